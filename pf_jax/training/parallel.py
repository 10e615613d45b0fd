"""The steps of one device, run over all of them: all that is said of how devices share work."""

import functools
from collections.abc import Callable, Sequence

import jax
import optax
from flax import nnx

from pf_jax.errors import UserError
from pf_jax.training.config import TrainConfig
from pf_jax.training.step import DATA_AXIS, eval_step, train_step


def parallel_train_step(
    config: TrainConfig,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Callable:
    """The config's `train_step` over devices; the state that it is given is donated.

    Its arguments and results have a leading axis of this host's devices.

    Args:
        config: The experiment.
        graphdef: The structure of the model.
        optimizer: The optimizer.
        schedule: Its learning rate as a function of its steps.
        devices: Those of all hosts; None for `jax.devices()`. They need not be attached if the step
            is only to be compiled.

    Raises:
        UserError: A device's share of a batch cannot be taken in `accumulation_steps` parts.
    """
    step = functools.partial(
        train_step,
        graphdef=graphdef,
        optimizer=optimizer,
        schedule=schedule,
        ema_decay=config.ema_decay,
        accumulation_steps=_parts_of_a_share(config, len(devices or jax.devices())),
    )
    return jax.pmap(step, axis_name=DATA_AXIS, donate_argnums=0, devices=devices)


def parallel_eval_step(
    graphdef: nnx.GraphDef, *, devices: Sequence[jax.Device] | None = None
) -> Callable:
    """`eval_step` over devices, as `parallel_train_step`."""
    step = functools.partial(eval_step, graphdef=graphdef)
    return jax.pmap(step, axis_name=DATA_AXIS, devices=devices)


def _parts_of_a_share(config: TrainConfig, num_devices: int) -> int:
    """Checks that each device's share of a batch can be taken in parts, and gives their number."""
    share, parts = config.batch_size // num_devices, config.accumulation_steps
    if share % parts:
        raise UserError(
            f"accumulation_steps={parts} does not divide the {share} windows of a device "
            f"(batch_size={config.batch_size} on {num_devices} devices)."
        )
    return parts
