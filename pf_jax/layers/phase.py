"""Angles that add up over any number of positions without losing precision.

A float32 that grows with time soon cannot tell one position's angle from the next one's. Angles are
therefore added up as integers, `2**31` units a turn, whose overflow is two whole turns and so does
no harm.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

TURN = 2**31
"""Units of a whole turn."""


def angle(units: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The angle of so many units, from `-2 pi` to `2 pi`, in float32 and as exact as that is."""
    return units.astype(jnp.float32) * (2.0 * math.pi / TURN)
