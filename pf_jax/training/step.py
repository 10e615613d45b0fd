"""The SPMD training step: written for one device, with collectives over the axis `DATA_AXIS`.

Where a model's sequences are split over devices (`PoolformerConfig.sequence_axis`), also over that
axis. `pf_jax.training.parallel` runs the step over all devices of all hosts.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from pf_jax.poolformer import Poolformer
from pf_jax.training.state import Params, TrainState, merge_model

DATA_AXIS = "data"

Batch = dict[str, Any]
"""`tokens` (batch, time) uint8, and `length` (batch,): positions from there on are padding.

A device that has a piece of the sequences has the tokens of that, and the lengths of the whole.
"""


def negative_log_likelihood(
    model: Poolformer,
    tokens: UInt8[Array, "batch time"],
    length: Int[Array, "batch"],
    *,
    dropout_key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The sum of `-log p(token | past)` over the real positions, in nats, and their number.

    Where the model's sequences are split over devices: over those of this device's piece.
    """
    logits = model(tokens, dropout_key=dropout_key)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens.astype(jnp.int32))
    time, axis = tokens.shape[1], model.config.sequence_axis
    start = jax.lax.axis_index(axis) * time if axis else 0
    is_real = start + jnp.arange(time) < length[:, None]
    return jnp.sum(nats, where=is_real), jnp.sum(is_real)


def train_step(
    state: TrainState,
    batch: Batch,
    stop: Bool[Array, ""],
    *,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float,
    skip_norm: float = 0.0,
    accumulation_steps: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
    """One step on one device's share of the batch; all devices end with the same state.

    With a `sequence_axis` in the model, that is its piece of the sequences of its share.

    The loss is the mean over the real positions of the whole batch, wherever they are. Sums are
    exchanged, never means, so that neither the number of devices nor that of parts changes anything
    but rounding (and the masks of dropout, where there is any).

    A step whose loss or gradient is not finite, or whose gradient's norm is above `skip_norm`, is
    skipped: it counts, and changes nothing else.

    Args:
        state: The state before the step.
        batch: This device's share of the batch.
        stop: Whether this process was asked to stop.
        graphdef: The structure of the model.
        optimizer: The optimizer.
        schedule: Its learning rate as a function of its steps; only to tell of.
        ema_decay: Decay of the moving average of the weights.
        skip_norm: As of `OptimizerConfig`; 0 for no limit.
        accumulation_steps: Parts that the share is taken in, one after the other.

    Returns:
        The state after the step, and metrics: `loss` (nats per sample) and `gradient_norm`, both
        before the update; `learning_rate`; the counts of the state; and `stop`, whether any process
        was asked to.
    """
    axes = _axes(merge_model(graphdef, state.params))
    key = jax.random.fold_in(state.step_key(), jax.lax.axis_index(axes))

    def loss(params: Params, part: Batch, part_key: PRNGKeyArray):
        model = merge_model(graphdef, params)
        return negative_log_likelihood(model, **part, dropout_key=part_key)

    sums = _in_parts(
        jax.value_and_grad(loss, has_aux=True), state.params, batch, key, accumulation_steps
    )
    # All that devices have to say to each other in a step is said here, but for what those that
    # share sequences have to know of each other's pieces.
    (nats, count), gradients, stop = jax.lax.psum((*sums, stop.astype(jnp.int32)), axes)
    count = jnp.maximum(count, 1)
    gradients = jax.tree.map(lambda g: g / count, gradients)
    metrics = {
        "loss": nats / count,
        "gradient_norm": optax.tree.norm(gradients),
        # A step that was skipped did not move along the schedule.
        "learning_rate": jnp.asarray(schedule(state.step - state.skipped), jnp.float32),
    }
    is_taken = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
    if skip_norm:
        is_taken &= metrics["gradient_norm"] <= skip_norm

    updates, opt_state = optimizer.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    # Early on the average forgets faster, so that it is not held back by the initial weights.
    decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema_params = optax.incremental_update(params, state.ema_params, 1.0 - decay)
    params, ema_params, opt_state = jax.tree.map(
        functools.partial(jnp.where, is_taken),
        (params, ema_params, opt_state),
        (state.params, state.ema_params, state.optimizer),
    )
    state = TrainState(
        step=state.step + 1,
        skipped=state.skipped + ~is_taken,
        skipped_in_a_row=jnp.where(is_taken, 0, state.skipped_in_a_row + 1),
        key=state.key,
        params=params,
        ema_params=ema_params,
        optimizer=opt_state,
    )
    counts = {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}
    return state, metrics | counts | {"stop": stop}


def _in_parts(
    value_and_grad: Callable, params: Params, batch: Batch, key: PRNGKeyArray, num_parts: int
) -> tuple[Any, Params]:
    """The sums of a loss and its gradients over a batch, which is taken in some equal parts."""
    if num_parts == 1:
        return value_and_grad(params, batch, key)
    parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), batch)

    def add(sums, numbered_part):
        number, part = numbered_part
        more = value_and_grad(params, part, jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, sums, more), None

    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(value_and_grad, params, first, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(num_parts), parts))[0]


def eval_step(
    params: Params, batch: Batch, stop: Bool[Array, ""], *, graphdef: nnx.GraphDef
) -> tuple[Float[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """The negative log-likelihood of the whole batch in nats, and its number of real positions.

    The third is whether any process was asked to stop.
    """
    model = merge_model(graphdef, params)
    sums = negative_log_likelihood(model, **batch)
    return jax.lax.psum((*sums, stop.astype(jnp.int32)), _axes(model))


def _axes(model: Poolformer) -> tuple[str, ...]:
    """The mapped axes over which a batch is split."""
    sequence_axis = model.config.sequence_axis
    return (DATA_AXIS, sequence_axis) if sequence_axis else (DATA_AXIS,)
