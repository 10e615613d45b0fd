"""The SPMD training step: written for one device, with collectives over the axis `DATA_AXIS`.

`jax.pmap(train_step, axis_name=DATA_AXIS)` runs it over all devices of all hosts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from pf_jax.poolformer import Poolformer
from pf_jax.training.state import Params, TrainState, merge_model

DATA_AXIS = "data"

Batch = dict[str, Any]
"""`tokens` (batch, time) uint8, and `length` (batch,): positions from there on are padding."""


def negative_log_likelihood(
    model: Poolformer,
    tokens: UInt8[Array, "batch time"],
    length: Int[Array, "batch"],
    *,
    dropout_key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The sum of `-log p(token | past)` over the real positions, in nats, and their number."""
    logits = model(tokens, dropout_key=dropout_key)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens.astype(jnp.int32))
    is_real = jnp.arange(tokens.shape[1]) < length[:, None]
    return jnp.sum(nats, where=is_real), jnp.sum(length)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
) -> tuple[TrainState, dict[str, Array]]:
    """One step on one device's share of the batch; all devices end with the same state.

    The loss is the mean over the real positions of the whole batch, wherever they are. Sums are
    exchanged, never means, so that the number of devices changes nothing but rounding (and the
    masks of dropout, where there is any).

    Returns:
        The state after the step, and metrics: `loss` (nats per sample) and `gradient_norm`, both
        before the update.
    """
    dropout_key = jax.random.fold_in(state.step_key(), jax.lax.axis_index(DATA_AXIS))

    def loss(params: Params):
        model = merge_model(graphdef, params)
        return negative_log_likelihood(model, **batch, dropout_key=dropout_key)

    (nats, count), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    nats, count, gradients = jax.lax.psum((nats, count, gradients), DATA_AXIS)
    count = jnp.maximum(count, 1)
    gradients = jax.tree.map(lambda g: g / count, gradients)

    updates, opt_state = optimizer.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    # Early on the average forgets faster, so that it is not held back by the initial weights.
    decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema_params = optax.incremental_update(params, state.ema_params, 1.0 - decay)
    metrics = {"loss": nats / count, "gradient_norm": optax.tree.norm(gradients)}
    state = TrainState(state.step + 1, state.key, params, ema_params, opt_state)
    return state, metrics


def eval_step(
    params: Params, batch: Batch, *, graphdef: nnx.GraphDef
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The negative log-likelihood of the whole batch in nats, and its number of real positions."""
    model = merge_model(graphdef, params)
    return jax.lax.psum(negative_log_likelihood(model, **batch), DATA_AXIS)
