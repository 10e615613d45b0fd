"""The entry point of the recurrence: checks, types, the gradient, and the choice per backend.

An implementation is one function of one file, `(a, b, h0, *, reverse) -> h`, and needs no gradient
of its own: the gradient of a linear recurrence is a linear recurrence that runs backwards in time.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from pf_jax.errors import UserError
from pf_jax.recurrence.associative import associative
from pf_jax.recurrence.sequential import sequential

IMPLEMENTATIONS = {"associative": associative, "sequential": sequential}

# The faster one of each backend. CPU as measured by benchmarks/recurrence.py; elsewhere a step per
# position would leave nearly all lanes idle.
_AUTO = {"cpu": sequential, "default": associative}


def linear_recurrence(
    a: Inexact[Array, "batch time width"],
    b: Inexact[Array, "batch time width"],
    h0: Inexact[Array, "batch width"] | None = None,
    *,
    implementation: str = "auto",
) -> Inexact[Array, "batch time width"]:
    """All states of `h_t = a_t h_{t-1} + b_t`, in parallel over batch and width.

    Computed in float32 (or wider, if an input is) whatever comes in, and rounded once at the end.
    Differentiable (reverse mode, any order) with respect to `a`, `b` and `h0`. With the adjoint
    `g_t = dL/dh_t + a_{t+1} g_{t+1}`, a recurrence itself, the gradients are `dL/db_t = g_t`,
    `dL/da_t = g_t h_{t-1}` and `dL/dh_0 = a_1 g_1`.

    Args:
        a: Decay at each position.
        b: Input at each position, of the same shape.
        h0: The state before the first position; zeros if left out.
        implementation: "auto", the fastest on the backend that the program is compiled for, or one
            of `pf_jax.recurrence.IMPLEMENTATIONS`. All give the same numbers up to rounding.

    Returns:
        The states `h_1 ... h_time`, of the type that `a` and `b` promote to. The last one is the
        `h0` with which the sequence goes on.

    Raises:
        UserError: The shapes do not fit, or the implementation is unknown.
    """
    if a.ndim != 3 or a.shape != b.shape:
        raise UserError(
            "linear_recurrence needs a and b of one shape (batch, time, width), got "
            f"a: {a.shape} and b: {b.shape}."
        )
    batch, time, width = a.shape
    if h0 is not None and h0.shape != (batch, width):
        raise UserError(f"h0 must have shape (batch, width) = {(batch, width)}, got {h0.shape}.")
    if implementation != "auto" and implementation not in IMPLEMENTATIONS:
        known = ", ".join(["auto", *IMPLEMENTATIONS])
        raise UserError(f"Unknown recurrence implementation {implementation!r}; known: {known}.")

    dtype = jnp.result_type(a, b)
    if not jnp.issubdtype(dtype, jnp.inexact):
        dtype = jnp.dtype(jnp.float32)
    if time == 0:
        return jnp.zeros(a.shape, dtype)
    state_dtype = jnp.promote_types(dtype, jnp.float32)
    if h0 is None:
        h0 = jnp.zeros((batch, width), state_dtype)
    h = _recurrence(
        a.astype(state_dtype), b.astype(state_dtype), h0.astype(state_dtype), implementation, False
    )
    return h.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _recurrence(a, b, h0, implementation: str, reverse: bool):
    """The recurrence in one type; with `reverse`, from the last position to the first."""
    if implementation == "auto":
        choice = {name: functools.partial(f, reverse=reverse) for name, f in _AUTO.items()}
        return jax.lax.platform_dependent(a, b, h0, **choice)
    return IMPLEMENTATIONS[implementation](a, b, h0, reverse=reverse)


def _forward(a, b, h0, implementation, reverse):
    h = _recurrence(a, b, h0, implementation, reverse)
    return h, (a, h0, h)


def _backward(implementation, reverse, residuals, dh):
    a, h0, h = residuals
    zeros = jnp.zeros_like(h0)
    a_next = _shift(a, zeros, reverse=not reverse)
    g = _recurrence(a_next, dh, zeros, implementation, not reverse)
    h_previous = _shift(h, h0, reverse=reverse)
    first = -1 if reverse else 0
    return g * h_previous, g, a[:, first] * g[:, first]


def _shift(x, enters, *, reverse: bool):
    """Each position gets what its predecessor in the direction had; the first gets `enters`."""
    if reverse:
        return jnp.concatenate([x[:, 1:], enters[:, None]], axis=1)
    return jnp.concatenate([enters[:, None], x[:, :-1]], axis=1)


_recurrence.defvjp(_forward, _backward)
