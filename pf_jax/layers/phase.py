"""Angles that add up over any number of positions without losing precision.

A float32 that grows with time soon cannot tell one position's angle from the next one's. Angles are
therefore added up as integers, `2**31` units a turn, whose overflow is two whole turns and so does
no harm.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pf_jax.layers.sequence import sum_of_left

TURN = 2**31
"""Units of a whole turn."""


def angle(units: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The angle of so many units, from `-2 pi` to `2 pi`, in float32 and as exact as that is."""
    return units.astype(jnp.float32) * (2.0 * math.pi / TURN)


def accumulate(
    phase: Float[Array, "batch time channels"], sequence_axis: str = ""
) -> Float[Array, "batch time channels"]:
    """The sum of all angles up to and including a position's own, up to whole turns.

    Its derivative is that of the plain sum.

    Args:
        phase: Angles in radians.
        sequence_axis: Where a sequence is split over devices, the mapped axis: sums then begin on
            the first of them.
    """
    return _accumulate(phase, sequence_axis)


def _sum(x, sequence_axis: str):
    sums = jnp.cumsum(x, axis=1, dtype=x.dtype)
    if sequence_axis:
        sums = sums + sum_of_left(sums[:, -1:], sequence_axis)
    return sums


def _accumulate_jvp(sequence_axis, primals, tangents):
    (phase,), (tangent,) = primals, tangents
    return _accumulate(phase, sequence_axis), _sum(tangent, sequence_axis)


def _accumulate_value(phase, sequence_axis: str):
    turns = phase.astype(jnp.float32) * (0.5 / math.pi)
    units = jnp.round((turns - jnp.round(turns)) * float(TURN)).astype(jnp.int32)
    return angle(_sum(units, sequence_axis))


_accumulate = jax.custom_jvp(_accumulate_value, nondiff_argnums=(1,))
_accumulate.defjvp(_accumulate_jvp)
