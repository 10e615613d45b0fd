"""The steps of one device, run over all of them: all that is said of how devices share work.

A batch is taken in *shares* of equal size. Each device takes one; or, with
`TrainConfig.sequence_devices`, so many devices take one together, each a consecutive piece of every
sequence in it. Devices that share a sequence belong to one process, so that a process always loads
whole windows: its own.
"""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pf_jax.errors import UserError
from pf_jax.training.config import SEQUENCE_AXIS, TrainConfig
from pf_jax.training.step import DATA_AXIS, Batch, eval_step, train_step


def parallel_train_step(
    config: TrainConfig,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Callable:
    """The config's `train_step` over devices; the state that it is given is donated.

    Its arguments and results have a leading axis of this process's devices, but for the batch,
    whose leading axis is of this process's shares (`local_shares`, `batch_shapes`).

    Args:
        config: The experiment.
        graphdef: The structure of the model in a step, as of `init_train_state`.
        optimizer: The optimizer.
        schedule: Its learning rate as a function of its steps.
        devices: Those of all hosts; None for `jax.devices()`. They need not be attached if the step
            is only to be compiled.

    Raises:
        UserError: The devices cannot share a batch as the config wants it.
    """
    share = batch_shapes(config, devices=devices)["tokens"].shape[1]
    if share % config.accumulation_steps:
        raise UserError(
            f"accumulation_steps={config.accumulation_steps} does not divide the {share} windows "
            f"of a device (batch_size={config.batch_size} on {len(devices or jax.devices())} "
            "devices)."
        )
    step = functools.partial(
        train_step,
        graphdef=graphdef,
        optimizer=optimizer,
        schedule=schedule,
        ema_decay=config.ema_decay,
        skip_norm=config.optimizer.skip_norm,
        accumulation_steps=config.accumulation_steps,
    )
    return _over_devices(step, config, devices, donate_argnums=(0,))


def parallel_eval_step(
    config: TrainConfig,
    graphdef: nnx.GraphDef,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Callable:
    """`eval_step` over devices, as `parallel_train_step`."""
    step = functools.partial(eval_step, graphdef=graphdef)
    return _over_devices(step, config, devices, donate_argnums=())


def local_shares(config: TrainConfig) -> int:
    """The number of shares of this process, which is the leading axis of its batches.

    Raises:
        UserError: The devices cannot share a batch as the config wants it.
    """
    return batch_shapes(config)["tokens"].shape[0] // jax.process_count()


def batch_shapes(config: TrainConfig, *, devices: Sequence[jax.Device] | None = None) -> Batch:
    """The shapes of the batch of all processes: (shares, rows of each, window), and (shares, rows).

    Args:
        config: The experiment.
        devices: Those of all hosts; None for `jax.devices()`.

    Raises:
        UserError: The devices cannot share a batch as the config wants it.
    """
    devices, together = devices or jax.devices(), config.sequence_devices
    for of_host in collections.Counter(device.process_index for device in devices).values():
        if of_host % together:
            possible = [n for n in range(1, of_host + 1) if of_host % n == 0]
            raise UserError(
                f"sequence_devices={together} does not divide the {of_host} devices of a host, "
                f"and a sequence does not leave its host; try {' or '.join(map(str, possible))}."
            )
    shares = len(devices) // together
    if config.batch_size % shares:
        below = config.batch_size // shares * shares
        near = " or ".join(str(size) for size in (below, below + shares) if size)
        raise UserError(
            f"batch_size={config.batch_size} is not a multiple of the {len(devices)} devices"
            + (f" over sequence_devices={together}" if together > 1 else "")
            + f"; try {near}."
        )
    shape = (shares, config.batch_size // shares, config.data.window)
    return {
        "tokens": jax.ShapeDtypeStruct(shape, jnp.uint8),
        "length": jax.ShapeDtypeStruct(shape[:2], jnp.int32),
    }


def _over_devices(
    step: Callable,
    config: TrainConfig,
    devices: Sequence[jax.Device] | None,
    donate_argnums: tuple[int, ...],
) -> Callable:
    if config.sequence_devices == 1:
        return jax.pmap(step, axis_name=DATA_AXIS, donate_argnums=donate_argnums, devices=devices)
    return _MeshStep(step, config.sequence_devices, devices or jax.devices(), donate_argnums)


class _MeshStep:
    """A step over a (data, sequence) mesh of devices; it is called, and lowered, as a pmap is."""

    def __init__(
        self,
        step: Callable,
        sequence_devices: int,
        devices: Sequence[jax.Device],
        donate_argnums: tuple[int, ...],
    ):
        # TPUs may be numbered along the rows of their slice, which are of several hosts.
        devices = np.array(sorted(devices, key=lambda device: device.process_index))
        self._mesh = Mesh(devices.reshape(-1, sequence_devices), (DATA_AXIS, SEQUENCE_AXIS))
        each = P((DATA_AXIS, SEQUENCE_AXIS))
        batch = {"tokens": P(DATA_AXIS, None, SEQUENCE_AXIS), "length": P(DATA_AXIS)}
        self._specs = (each, batch, each)

        def of_one_device(*args: Any) -> Any:
            args = jax.tree.map(lambda x: x[0], args)
            return jax.tree.map(lambda x: x[None], step(*args))

        self._step = jax.jit(
            jax.shard_map(
                of_one_device,
                mesh=self._mesh,
                in_specs=self._specs,
                out_specs=each,
                check_vma=False,
            ),
            donate_argnums=donate_argnums,
            in_shardings=jax.tree.map(
                functools.partial(NamedSharding, self._mesh),
                self._specs,
                is_leaf=lambda x: isinstance(x, P),
            ),
        )

    def __call__(self, *args: Any) -> Any:
        """Runs the step on what this process has; what is on the devices already stays there."""
        return self._step(
            *multihost_utils.host_local_array_to_global_array(args, self._mesh, self._specs)
        )

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Lowers the step for arguments of all processes, or their shapes."""
        return self._step.lower(*args)
