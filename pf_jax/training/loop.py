"""The training of a Poolformer as one story, from a config to checkpoints."""

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Int

from pf_jax.data import Dataset, eval_batches, open_dataset, train_batches
from pf_jax.data.windows import Windows
from pf_jax.paths import checked_path
from pf_jax.sampling import generate
from pf_jax.training import summary
from pf_jax.training.checkpoint import warm_start
from pf_jax.training.config import TrainConfig
from pf_jax.training.hosts import StopRequest, first_replica, first_then_others, replicate
from pf_jax.training.logging import RunLog
from pf_jax.training.parallel import local_shares, parallel_eval_step, parallel_train_step
from pf_jax.training.profiler import Profiler
from pf_jax.training.saving import Checkpoints
from pf_jax.training.state import (
    Params,
    TrainState,
    abstract_model,
    init_train_state,
    make_optimizer,
    merge_model,
    split_model,
)
from pf_jax.training.step import Batch
from pf_jax.training.watch import Watch

_NATS_TO_BITS = 1.0 / math.log(2.0)
_MOST_SKIPPED_SHOWN = 20


def train(
    config: TrainConfig,
    workdir: epath.PathLike,
    *,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
) -> TrainState:
    """Trains a model, or goes on with the training that `workdir` holds.

    Works on all devices of all hosts that were joined (`pf_jax.training.hosts.join`); each host
    calls this. SIGTERM and Ctrl-C on any of them save a checkpoint and return; the same call again,
    on any number of devices and hosts, goes on to the same end, bit for bit where the devices are
    as many and compute repeatably, as CPUs do.

    Args:
        config: The experiment.
        workdir: Where checkpoints and logs are kept, a directory or a gs:// path.
        on_metrics: Is given each line of `metrics.jsonl` as it is written, after those that an
            earlier run left there, and takes the place of the lines that tell of progress. For
            notebooks: see `pf_jax.evaluation.LiveCurves`.

    Returns:
        The state at the end (or at the interruption), on the host.

    Raises:
        UserError: The config asks for something impossible, its data cannot be had, `workdir`
            belongs to another run or cannot be written, or training has diverged.
    """
    share = {
        "batch_size": config.batch_size,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "num_local_devices": local_shares(config),
    }
    workdir = checked_path(workdir, "workdir")
    dataset = first_then_others(lambda: open_dataset(config.data))
    batches = train_batches(dataset, config.data, seed=config.seed, **share)
    validate = functools.partial(eval_batches, dataset, "validation", config.data, **share)

    optimizer, schedule = make_optimizer(config)
    graphdef, state = init_train_state(config, optimizer)
    step_fn = parallel_train_step(config, graphdef, optimizer, schedule)
    eval_fn = parallel_eval_step(config, graphdef)

    with (
        Checkpoints(workdir, config, dataset.fingerprint) as checkpoints,
        StopRequest() as stop_request,
    ):
        state = checkpoints.restore(state, batches)
        resume_step = int(state.step)
        if config.init_from and not resume_step:
            state = warm_start(state, config)
        state = replicate(state)
        with (
            RunLog(
                workdir,
                num_steps=config.num_steps,
                resume_step=resume_step,
                write=jax.process_index() == 0,
                on_metrics=on_metrics,
            ) as log,
            Profiler(config.profile, workdir) as profiler,
        ):
            log.message(_introduction(config, dataset, resume_step))
            if not resume_step:
                log.text("config", json.dumps(config.to_dict(), indent=2))
                log.text("model", summary.model_table(config.model, config.data))
            watch = Watch(config, checkpoints, log)

            def evaluate(step: int) -> bool:
                """Says whether it came to its end; a request to stop is heard meanwhile."""
                bits = _evaluate(eval_fn, state.ema_params, validate(), stop_request)
                if bits is not None:
                    checkpoints.note_evaluation(step, bits)
                    cost = {"seconds": checkpoints.seconds}
                    log.evaluation(step, {"bits_per_sample": bits} | cost)
                return bits is not None

            # An evaluation in which the run was stopped is made up for.
            was_due = resume_step % config.eval_every == 0 or resume_step == config.num_steps
            if resume_step and was_due and resume_step not in checkpoints.evaluations:
                evaluate(resume_step)

            for step in range(resume_step + 1, config.num_steps + 1):
                if watch.out_of_patience():
                    log.message(f"No better for {config.patience} evaluations: training ends.")
                    break
                profiler.before(step)
                batch = next(batches)
                state, metrics = step_fn(state, batch, stop_request.flags())
                # Looks at the step before, while this one runs: devices do not wait for the host.
                stop = watch.look_at_last()
                watch.next(step, batch, metrics)
                profiler.after(step, metrics)

                last = step == config.num_steps
                stop |= stop_request.is_certain() or checkpoints.asked_to_stop(step)
                is_time_to_draw = config.sample_every and step % config.sample_every == 0
                is_evaluated = last or step % config.eval_every == 0
                if is_evaluated or stop or step % config.checkpoint_every == 0:
                    stop |= watch.look_at_last()
                    if is_evaluated and not stop:
                        stop = not evaluate(step)
                    checkpoints.save(first_replica(state), batches)
                    watch.restart(step)
                if is_time_to_draw and not stop and jax.process_index() == 0:
                    log.samples(
                        step,
                        _draw(config, first_replica(state.ema_params), step),
                        dataset.format,
                    )
                    watch.restart(step)
                if stop and not last:
                    log.message(f"Stopped after step {step}; the same command goes on from there.")
                    break
            watch.look_at_last()
            log.message(_conclusion(state, checkpoints))
    return first_replica(state)


def _introduction(config: TrainConfig, dataset: Dataset, resume_step: int) -> str:
    """What a person wants to know before waiting."""
    splits = ", ".join(
        f"{name} {dataset.format.describe(dataset.split(name).num_samples)}"
        for name in ("train", "validation", "test")
    )
    lines = [
        summary.model_table(config.model, config.data),
        f"Data: {dataset.name}, {splits}.",
        f"Devices: {jax.device_count()} x {jax.devices()[0].device_kind}"
        + (f" of {jax.process_count()} processes." if jax.process_count() > 1 else "."),
    ]
    fullness = Windows(dataset.split("train"), config.data).fullness
    if fullness < 0.5:
        lines.append(
            f"Recordings are short: windows of data.window={config.data.window} are "
            f"{100 * (1 - fullness):.0f} % padding, and shorter ones would waste less."
        )
    skipped = [f"  {file}: {reason}" for file, reason in dataset.skipped]
    if skipped:
        lines += [f"Left out {len(skipped)} files:", *skipped[:_MOST_SKIPPED_SHOWN]]
        if len(skipped) > _MOST_SKIPPED_SHOWN:
            lines.append(
                f"  and {len(skipped) - _MOST_SKIPPED_SHOWN} more: see experiments.inspect"
            )
    if resume_step:
        lines.append(f"Goes on from the checkpoint of step {resume_step}.")
    elif config.init_from:
        lines.append(f"Starts from the weights of {config.init_from}.")
    if resume_step < config.num_steps:
        lines.append(f"Compiles the step first; figures come every {config.log_every} steps.")
    return "\n".join(lines)


def _conclusion(state: TrainState, checkpoints: Checkpoints) -> str:
    """What came out of it."""
    step, skipped = (int(first_replica(x)) for x in (state.step, state.skipped))
    lines = [f"Step {step}" + (f", {skipped} of them skipped" if skipped else "")]
    if evaluations := checkpoints.evaluations:
        best = min(evaluations, key=evaluations.get)
        lines.append(f"best validation {evaluations[best]:.4f} bits/sample, at step {best}")
    return f"{'; '.join(lines)}. Checkpoints: {checkpoints.directory}."


def _evaluate(
    eval_fn: Callable, params: Params, batches: Iterator[Batch], stop_request: StopRequest
) -> float | None:
    """Bits per sample over all batches; None if a process was asked to stop meanwhile."""
    nats, count, previous = 0.0, 0, None
    for batch in itertools.chain(batches, [None]):
        # One batch ahead of the devices, as in training.
        sums = None if batch is None else eval_fn(params, batch, stop_request.flags())
        if previous is not None:
            batch_nats, batch_count, stop = first_replica(previous)
            nats += float(batch_nats)
            count += int(batch_count)
            if stop or stop_request.is_certain():
                return None
        previous = sums
    return nats / count * _NATS_TO_BITS


def _draw(config: TrainConfig, params: Params, step: int) -> Int[np.ndarray, "samples time"]:
    """Samples of the model as it is; the same random numbers whenever it is this step."""
    graphdef, _ = split_model(abstract_model(config.model))  # Of whole sequences, on one device.
    tokens, _ = generate(
        merge_model(graphdef, params),
        jax.random.fold_in(jax.random.key(config.seed), step),
        num_samples=config.num_samples,
        num_steps=config.sample_length or config.data.window,
        devices=jax.local_devices()[:1],  # Where the weights are; the others wait for this process.
    )
    return tokens
