"""The training of a Poolformer as one story, from a config to checkpoints."""

import contextlib
import functools
import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from pf_jax.data import Dataset, eval_batches, open_dataset, train_batches
from pf_jax.errors import UserError
from pf_jax.training.checkpoint import Checkpoints
from pf_jax.training.config import TrainConfig
from pf_jax.training.logging import RunLog
from pf_jax.training.state import Params, TrainState, init_train_state, make_optimizer
from pf_jax.training.step import DATA_AXIS, eval_step, train_step

_NATS_TO_BITS = 1.0 / math.log(2.0)
_MOST_SKIPPED_SHOWN = 20


def train(config: TrainConfig, workdir: epath.PathLike) -> TrainState:
    """Trains a model, or goes on with the training that `workdir` holds.

    Works on all devices of this host. SIGTERM and
    Ctrl-C save a checkpoint and return; the same call again goes on to the same end, bit for bit
    where the device computes repeatably, as CPUs do.

    Args:
        config: The experiment.
        workdir: Where checkpoints and logs are kept, a directory or a gs:// path.

    Returns:
        The state at the end (or at the interruption), on the host.

    Raises:
        UserError: The config asks for something impossible, its data cannot be had, or `workdir`
            belongs to another run or cannot be written.
    """
    share = {
        "batch_size": config.batch_size,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "num_local_devices": jax.local_device_count(),
    }
    dataset = open_dataset(config.data)
    batches = train_batches(dataset, config.data, seed=config.seed, **share)
    validate = functools.partial(eval_batches, dataset, "validation", config.data, **share)

    optimizer, schedule = make_optimizer(config)
    graphdef, state = init_train_state(config, optimizer)
    step_fn = jax.pmap(
        functools.partial(
            train_step, graphdef=graphdef, optimizer=optimizer, ema_decay=config.ema_decay
        ),
        axis_name=DATA_AXIS,
        donate_argnums=0,
    )
    eval_fn = jax.pmap(functools.partial(eval_step, graphdef=graphdef), axis_name=DATA_AXIS)

    with (
        Checkpoints(workdir, config, dataset.fingerprint) as checkpoints,
        _stop_signals() as stop_requested,
    ):
        resume_step = checkpoints.latest_step() or 0
        if resume_step:
            state = checkpoints.restore(state, batches)
        introduction = _introduction(config, dataset, state.params, resume_step)
        state = replicate(state)
        with RunLog(
            workdir,
            num_steps=config.num_steps,
            resume_step=resume_step,
            write=jax.process_index() == 0,
        ) as log:
            log.message(introduction)
            speed = _Speed(config.batch_size * config.data.window)
            previous_metrics = None
            for step in range(resume_step + 1, config.num_steps + 1):
                state, metrics = step_fn(state, next(batches))
                # Prepare one step ahead of the devices and no more: a signal is heard at once.
                jax.block_until_ready(previous_metrics)
                previous_metrics = metrics
                log.advance(step)

                last = step == config.num_steps
                stop = stop_requested()
                evaluate = last or step % config.eval_every == 0
                save = evaluate or stop or step % config.checkpoint_every == 0
                if save or step % config.log_every == 0:
                    _check_finite(metrics)
                if last or step % config.log_every == 0:
                    log.train(step, _to_log(metrics, schedule(step - 1)) | speed.at(step))
                bits = None
                if evaluate:
                    bits = _evaluate(eval_fn, state.ema_params, validate())
                    log.evaluation(step, {"bits_per_sample": bits})
                    speed.restart(step)
                if save or (stop := stop_requested()):
                    checkpoints.save(_first_replica(state), batches, bits)
                if stop and not last:
                    log.message(f"Stopped after step {step}; the same command goes on from there.")
                    break
    return _first_replica(state)


def _introduction(config: TrainConfig, dataset: Dataset, params: Params, resume_step: int) -> str:
    """What a person wants to know before waiting."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
    splits = ", ".join(
        f"{name} {dataset.format.describe(dataset.split(name).num_samples)}"
        for name in ("train", "validation", "test")
    )
    lines = [
        f"Model: {size:.2f} M parameters, widths {config.model.widths}, "
        f"pool factors {config.model.pool_factors}.",
        f"Data: {dataset.name}, {splits}.",
        f"Devices: {jax.device_count()} x {jax.devices()[0].device_kind}.",
    ]
    skipped = [f"  {file}: {reason}" for file, reason in dataset.skipped]
    if skipped:
        lines += [f"Left out {len(skipped)} files:", *skipped[:_MOST_SKIPPED_SHOWN]]
        if len(skipped) > _MOST_SKIPPED_SHOWN:
            lines.append(f"  and {len(skipped) - _MOST_SKIPPED_SHOWN} more")
    if resume_step:
        lines.append(f"Goes on from the checkpoint of step {resume_step}.")
    return "\n".join(lines)


def _check_finite(metrics: dict[str, jax.Array]) -> None:
    """Keeps weights that are lost out of the log and the checkpoints."""
    loss = float(_first_replica(metrics["loss"]))
    if not math.isfinite(loss):
        raise UserError(
            f"The loss is {loss}: training has diverged. The checkpoints are from before; train "
            "anew in another --workdir with a lower optimizer.learning_rate."
        )


def _to_log(metrics: dict[str, jax.Array], learning_rate: Any) -> dict[str, float]:
    metrics = {name: float(value) for name, value in _first_replica(metrics).items()}
    bits = metrics["loss"] * _NATS_TO_BITS
    return metrics | {"bits_per_sample": bits, "learning_rate": float(learning_rate)}


def _evaluate(eval_fn: Callable, params: Params, batches: Iterator[dict[str, np.ndarray]]) -> float:
    """Bits per sample over all batches."""
    nats, count, previous = 0.0, 0, None
    for batch in itertools.chain(batches, [None]):
        # One batch ahead of the devices, as in training.
        sums = None if batch is None else eval_fn(params, batch)
        if previous is not None:
            batch_nats, batch_count = _first_replica(previous)
            nats += float(batch_nats)
            count += int(batch_count)
        previous = sums
    return nats / count * _NATS_TO_BITS


def replicate(state: TrainState) -> TrainState:
    """One copy a local device, with a leading device axis, as `pmap` wants it."""
    devices = np.arange(jax.local_device_count())
    # Over the axis of the step, or the step would be compiled again for its own output.
    return jax.pmap(lambda _, state: state, axis_name=DATA_AXIS, in_axes=(0, None))(devices, state)


def _first_replica(tree: Any) -> Any:
    """Of values that all devices agree on, those of this host's first, as NumPy arrays."""
    local = jax.tree.map(lambda x: x.addressable_shards[0].data, tree)
    return jax.tree.map(lambda x: x[0], jax.device_get(local))


class _Speed:
    """Samples per second between readings; compilation, before the first, is left out."""

    def __init__(self, samples_per_step: int):
        self._samples_per_step = samples_per_step
        self._last = None

    def restart(self, step: int) -> None:
        """Starts to count anew."""
        self._last = (step, time.monotonic())

    def at(self, step: int) -> dict[str, float]:
        """The speed as a metric, and a new start; empty at the first reading."""
        last = self._last
        self.restart(step)
        if last is None or last[0] == step:
            return {}
        seconds = self._last[1] - last[1]
        return {"samples_per_second": (step - last[0]) * self._samples_per_step / seconds}


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and Ctrl-C into a request for the loop; a second Ctrl-C interrupts at once."""
    received = []

    def receive(number, frame):
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # Only the main thread may handle signals.
        return
    old = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
