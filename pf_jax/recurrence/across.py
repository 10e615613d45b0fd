"""A recurrence over a sequence whose pieces are on several devices, in the order of a mesh axis.

Each device finds the affine map of its piece as a whole, tells it to all others, and so knows the
state in which its own piece begins: one small exchange, and the recurrence then runs as on one
device. The adjoint takes the same way from the other end.
"""

import jax
import jax.numpy as jnp

from pf_jax.recurrence.number import Number


def entering(
    decay: Number, last: Number, start: Number, axis: str, *, reverse: bool = False
) -> Number:
    """The state in which this device's piece begins; all parts are of shape (batch, width).

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

    def choose(condition, x, y):
        return jax.tree.map(lambda x, y: jnp.where(condition, x, y), x, y)

    last = choose(is_first, decay * start + last, last)
    gathered = jax.lax.all_gather(jnp.stack([*decay.parts, *last.parts]), axis)
    state = start.full(0.0)
    for k in order:
        is_before = k > number if reverse else k < number
        decay_k, last_k = (Number(tuple(x)) for x in jnp.split(gathered[k], 2))
        state = choose(is_before, decay_k * state + last_k, state)
    return choose(is_first, start, state)
