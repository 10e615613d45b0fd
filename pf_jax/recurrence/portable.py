"""The recurrence and its gradient around any scan over time: what XLA compiles by itself.

The functions here have the signatures of the kernels' (`pallas_tpu`, `pallas_gpu`) with a `Scan` in
front, and any type of state.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from pf_jax.recurrence.coefficients import Coefficients


class Scan(NamedTuple):
    """A recurrence over time and its adjoint, of arrays of one type.

    Attributes:
        states: `(a, b, h0)` to all states of `h_t = a_t h_{t-1} + b_t`.
        adjoint: `(a, dh, dlast)` to all `g_t` and to `s_1`, see `gradient`.
    """

    states: Callable
    adjoint: Callable


def reversible(scan: Callable) -> Scan:
    """Of a function `(a, b, h0, *, reverse) -> h`."""

    def states(a, b, h0):
        return scan(a, b, h0, reverse=False)

    def adjoint(a, dh, dlast):
        s = scan(a, a * dh, dlast, reverse=True)
        return dh + jnp.concatenate([s[:, 1:], dlast[:, None]], axis=1), s[:, 0]

    return Scan(states, adjoint)


def forward(
    scan: Scan,
    coefficients: Coefficients,
    inputs: Sequence[Inexact[Array, "batch time width"]],
    channel: Sequence[Inexact[Array, "width"]],
    h0: Inexact[Array, "batch width"],
    dtype: Any,
) -> tuple[Inexact[Array, "batch time width"], Inexact[Array, "batch width"]]:
    """All states of `h_t = a_t h_{t-1} + b_t`, in `dtype`, and the last one in the type of `h0`."""
    a, b = coefficients(_of_type(inputs, h0.dtype), channel)
    h = scan.states(a, b, h0)
    return h.astype(dtype), h[:, -1]


def carry(
    scan: Scan,
    coefficients: Coefficients,
    inputs: Sequence[Inexact[Array, "batch time width"]],
    channel: Sequence[Inexact[Array, "width"]],
) -> tuple[Inexact[Array, "batch width"], Inexact[Array, "batch width"]]:
    """`(decay, last)` such that the whole sequence maps `h0` to `decay h0 + last`."""
    dtype = jnp.promote_types(jnp.result_type(*inputs), jnp.float32)
    a, b = coefficients(_of_type(inputs, dtype), channel)
    return jnp.prod(a, axis=1), scan.states(a, b, jnp.zeros_like(a[:, 0]))[:, -1]


def gradient(
    scan: Scan,
    coefficients: Coefficients,
    inputs: Sequence[Inexact[Array, "batch time width"] | None],
    channel: Sequence[Inexact[Array, "width"]],
    h0: Inexact[Array, "batch width"],
    h: Inexact[Array, "batch time width"],
    dh: Inexact[Array, "batch time width"],
    dlast: Inexact[Array, "batch width"],
) -> tuple[
    tuple[Inexact[Array, "batch time width"], ...],
    tuple[Inexact[Array, "width"], ...],
    Inexact[Array, "batch width"],
]:
    """The gradients of inputs, channel parameters and `h0`, by a recurrence that runs backwards.

    With the adjoint `s_t = a_t (dL/dh_t + s_{t+1})`, which starts from `dlast`, the gradients are
    `dL/db_t = g_t = dL/dh_t + s_{t+1}`, `dL/da_t = g_t h_{t-1}` and `dL/dh_0 = s_1`.

    Args:
        scan: The scan over time.
        coefficients: As for `forward`, and so `channel` and `h0`.
        inputs: Likewise; None in place of its linear inputs.
        channel: Parameters of the channels.
        h0: The state before the first position.
        h: What `forward` gave.
        dh: The gradient of the states.
        dlast: That of the last state apart from it, with which the adjoint starts.

    Returns:
        Gradients of the inputs in their types (those of linear ones in that of `dh`), of the
        channel parameters, and of `h0`.
    """
    dtypes = [dh.dtype if x is None else x.dtype for x in inputs]
    given = [jnp.zeros_like(dh) if x is None else x for x in inputs]
    dh = dh.astype(h0.dtype)
    (a, _), vjp = jax.vjp(coefficients, _of_type(given, h0.dtype), tuple(channel))
    g, dh0 = scan.adjoint(a, dh, dlast)
    previous = jnp.concatenate([h0[:, None], h[:, :-1].astype(h0.dtype)], axis=1)
    dinputs, dchannel = vjp((g * previous, g))
    dinputs = tuple(x.astype(dtype) for x, dtype in zip(dinputs, dtypes, strict=True))
    return dinputs, dchannel, dh0


def adjoint_carry(
    scan: Scan,
    coefficients: Coefficients,
    inputs: Sequence[Inexact[Array, "batch time width"] | None],
    channel: Sequence[Inexact[Array, "width"]],
    dh: Inexact[Array, "batch time width"],
) -> Inexact[Array, "batch width"]:
    """The adjoint `s_1` of a sequence that `dlast = 0` enters; another adds its decay times it."""
    dtype = jnp.promote_types(dh.dtype, jnp.float32)
    given = [jnp.zeros_like(dh) if x is None else x for x in inputs]
    a, _ = coefficients(_of_type(given, dtype), channel)
    return scan.adjoint(a, dh.astype(dtype), jnp.zeros_like(a[:, 0]))[1]


def _of_type(inputs, dtype):
    return tuple(x.astype(dtype) for x in inputs)
