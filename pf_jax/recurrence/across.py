"""A recurrence over a sequence whose pieces are on several devices, in the order of a mesh axis.

Each device finds the affine map of its piece as a whole, tells it to all others, and so knows the
state in which its own piece begins: one small exchange, and the recurrence then runs as on one
device. The adjoint takes the same way from the other end.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def entering(
    decay: Float[Array, "batch width"],
    last: Float[Array, "batch width"],
    start: Float[Array, "batch width"],
    axis: str,
    *,
    reverse: bool = False,
) -> Float[Array, "batch width"]:
    """The state in which this device's piece begins.

    Args:
        decay: The map `x -> decay x + last` of this device's piece.
        last: Likewise.
        start: The state in which the whole begins; that of the first device counts.
        axis: The name of the mapped axis.
        reverse: The whole runs from the last device to the first.
    """
    number, size = jax.lax.axis_index(axis), jax.lax.axis_size(axis)
    order = range(size - 1, 0, -1) if reverse else range(size - 1)
    is_first = number == (size - 1 if reverse else 0)
    last = jnp.where(is_first, decay * start + last, last)
    decays, lasts = jax.lax.all_gather(jnp.stack([decay, last]), axis, axis=1)
    state = jnp.zeros_like(start)
    for k in order:
        is_before = k > number if reverse else k < number
        state = jnp.where(is_before, decays[k] * state + lasts[k], state)
    return jnp.where(is_first, start, state)
