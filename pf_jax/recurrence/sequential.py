"""The recurrence one position after another: the fewest bytes and operations."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact


def sequential(
    a: Inexact[Array, "batch time width"],
    b: Inexact[Array, "batch time width"],
    h0: Inexact[Array, "batch width"],
    *,
    reverse: bool,
) -> Inexact[Array, "batch time width"]:
    """`pf_jax.linear_recurrence` by `jax.lax.scan`. `reverse` runs from the last position."""

    def step(h, a_and_b):
        a_t, b_t = a_and_b
        h = a_t * h + b_t
        return h, h

    time_major = (jnp.moveaxis(a, 1, 0), jnp.moveaxis(b, 1, 0))
    _, h = jax.lax.scan(step, h0, time_major, reverse=reverse)
    return jnp.moveaxis(h, 0, 1)
