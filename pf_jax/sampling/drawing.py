"""Drawing tokens from logits: by the inverse of the distribution function, in two short searches.

One uniform number a token is enough (Gumbel's trick takes one for each entry of the vocabulary).
Nothing here sorts, so that a loop around it can be one kernel.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_EXACT = jax.lax.Precision.HIGHEST


def draw(
    logits: Float[Array, "batch vocab"],
    uniform: Float[Array, "batch"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""] | None,
) -> Int[Array, "batch"]:
    """Tokens from `softmax(logits / temperature)`, of which only the likeliest may be left.

    Args:
        logits: float32.
        uniform: Random numbers in [0, 1), which decide.
        temperature: At 0, the likeliest token (of equal ones, any).
        top_p: Only the likeliest tokens that together have at least this probability are drawn;
            None takes all.

    Returns:
        Tokens, int32. One whose probability is 0 is never drawn.
    """
    batch = logits.shape[0]
    distance = logits - jnp.max(logits, axis=-1, keepdims=True)
    p = jnp.exp(jnp.minimum(distance / jnp.maximum(temperature, 1e-30), 0.0))
    if top_p is not None:
        p = _likeliest(p, top_p)

    # Tokens in a table, row by row. First the column of the token, then its row; the columns' sums
    # add whole rows up, and both searches look at about sqrt(vocab) numbers.
    columns = math.isqrt(p.shape[1] - 1) + 1
    table = jnp.pad(p, ((0, 0), (0, -p.shape[1] % columns))).reshape(batch, -1, columns)
    in_column = jnp.sum(table, axis=1)
    up_to_column = _running_sum(in_column)
    target = uniform * up_to_column[:, -1]
    column = _first_above(up_to_column, target)
    target = target - _pick(up_to_column - in_column, column)
    up_to_row = _running_sum(_pick(table, column))
    # Differences of rounded sums: the target may lie just outside of the column.
    target = jnp.clip(target, 0.0, up_to_row[:, -1] * (1.0 - 2.0**-20))
    token = _first_above(up_to_row, target) * columns + column
    # A compiler may compute logits anew for each of their uses, rounded in other ways. At the least
    # temperatures the likeliest is then as far from the maximum as any.
    return jnp.where(up_to_row[:, -1] > 0.0, token, jnp.argmax(logits, axis=-1))


def log_probability(
    logits: Float[Array, "batch vocab"], tokens: Int[Array, "batch"]
) -> Float[Array, "batch"]:
    """`log softmax(logits)` at the tokens, in nats."""
    return _pick(logits, tokens) - jax.nn.logsumexp(logits, axis=-1)


def _likeliest(p: Float[Array, "batch vocab"], top_p) -> Float[Array, "batch vocab"]:
    """Leaves the likeliest tokens that together reach `top_p`, and of equal ones all.

    A token stays if the likelier ones do not reach it without. How likely the least likely one is
    that stays, bisection finds: numbers above 0 are in the order of their bits, so that 31 halvings
    are exact. The likeliest stays in any case.
    """
    bits = jax.lax.bitcast_convert_type(p, jnp.int32)
    enough = top_p * jnp.sum(p, axis=-1)

    def halve(_, bounds):
        too_low, kept = bounds
        middle = too_low + (kept - too_low) // 2
        likelier = jnp.sum(jnp.where(bits > middle[:, None], p, 0.0), axis=-1)
        is_kept = likelier < enough
        return jnp.where(is_kept, too_low, middle), jnp.where(is_kept, middle, kept)

    highest = jnp.max(bits, axis=-1)
    _, least = jax.lax.fori_loop(0, 31, halve, (jnp.full_like(highest, -1), highest))
    return jnp.where(bits >= least[:, None], p, 0.0)


def _running_sum(x: Float[Array, "batch n"]) -> Float[Array, "batch n"]:
    """Sums of the first entries. Those of two neighbours are equal where the second one is 0."""
    return jnp.dot(x, np.triu(np.ones((x.shape[1],) * 2, np.float32)), precision=_EXACT)


def _first_above(sums: Float[Array, "batch n"], target: Float[Array, "batch"]):
    below = jnp.sum((sums <= target[:, None]).astype(jnp.int32), axis=-1)
    return jnp.minimum(below, sums.shape[1] - 1)


def _pick(x: Float[Array, "batch *rows n"], index: Int[Array, "batch"]):
    """Entry `index` of the last axis."""
    index = index.reshape((-1,) + (1,) * (x.ndim - 1))
    return jnp.take_along_axis(x, index, axis=-1)[..., 0]
