"""The recurrence one position after another: the fewest bytes and operations."""

import jax
import jax.numpy as jnp

from pf_jax.recurrence.number import Number


def sequential(a: Number, b: Number, h0: Number, *, reverse: bool) -> Number:
    """`pf_jax.linear_recurrence` by `jax.lax.scan`. `reverse` runs from the last position."""

    def step(h, a_and_b):
        a_t, b_t = a_and_b
        h = a_t * h + b_t
        return h, h

    time_major = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (a, b))
    _, h = jax.lax.scan(step, h0, time_major, reverse=reverse)
    return h.map(lambda x: jnp.moveaxis(x, 0, 1))
