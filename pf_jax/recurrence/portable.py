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
from pf_jax.recurrence.number import Number, join, split


class Scan(NamedTuple):
    """A recurrence over time and its adjoint, of numbers whose parts are (batch, time, width).

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
        a = a.conj()
        s = scan(a, a * dh, dlast, reverse=True)
        return dh + _append(s.map(lambda x: x[:, 1:]), dlast), s.map(lambda x: x[:, 0])

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
    a, b = coefficients.numbers(coefficients.split(inputs, h0.dtype), channel)
    h = join(scan.states(a, b, split(h0, coefficients.parts)))
    return h.astype(dtype), h[:, -1]


def carry(
    scan: Scan,
    coefficients: Coefficients,
    inputs: Sequence[Inexact[Array, "batch time width"]],
    channel: Sequence[Inexact[Array, "width"]],
) -> tuple[Inexact[Array, "batch width"], Inexact[Array, "batch width"]]:
    """`(decay, last)` such that the whole sequence maps `h0` to `decay h0 + last`."""
    dtype = jnp.promote_types(jnp.result_type(*inputs), jnp.float32)
    a, b = coefficients.numbers(coefficients.split(inputs, dtype), channel)
    h = scan.states(a, b, _first(a).full(0.0))
    return join(_product(a)), join(h.map(lambda x: x[:, -1]))


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
    `dL/db_t = g_t = dL/dh_t + s_{t+1}`, `dL/da_t = g_t h_{t-1}` and `dL/dh_0 = s_1`. In a complex
    recurrence the first factors of the products with `g_t` are `conj(a_t)` and `conj(h_{t-1})`, and
    a gradient is `dL/dRe + i dL/dIm`.

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
    dtype, parts = h0.dtype, coefficients.parts
    numbers = coefficients.split(coefficients.given(inputs, dh), dtype)
    (a, _), vjp = jax.vjp(coefficients.numbers, numbers, tuple(channel))
    dh, dlast, h0, h = (split(x.astype(dtype), parts) for x in (dh, dlast, h0, h))
    g, dh0 = scan.adjoint(a, dh, dlast)
    previous = jax.tree.map(
        lambda first, x: jnp.concatenate([first[:, None], x[:, :-1]], axis=1), h0, h
    )
    dinputs, dchannel = vjp((g * previous.conj(), g))
    dinputs = tuple(join(x).astype(dtype) for x, dtype in zip(dinputs, dtypes, strict=True))
    return dinputs, dchannel, join(dh0)


def adjoint_carry(
    scan: Scan,
    coefficients: Coefficients,
    inputs: Sequence[Inexact[Array, "batch time width"] | None],
    channel: Sequence[Inexact[Array, "width"]],
    dh: Inexact[Array, "batch time width"],
) -> Inexact[Array, "batch width"]:
    """The adjoint `s_1` of a sequence that `dlast = 0` enters; another adds its decay times it."""
    dtype = jnp.promote_types(dh.dtype, jnp.float32)
    numbers = coefficients.split(coefficients.given(inputs, dh), dtype)
    a, _ = coefficients.numbers(numbers, channel)
    dh = split(dh.astype(dtype), coefficients.parts)
    return join(scan.adjoint(a, dh, _first(a).full(0.0))[1])


def _first(x: Number) -> Number:
    return x.map(lambda part: part[:, 0])


def _append(x: Number, last: Number) -> Number:
    """With another position behind the others."""
    return jax.tree.map(lambda y, z: jnp.concatenate([y, z[:, None]], axis=1), x, last)


def _product(a: Number) -> Number:
    """Over all positions."""
    if len(a.parts) == 1:
        return a.map(lambda x: jnp.prod(x, axis=1))
    product = jnp.prod(jax.lax.complex(*a.parts), axis=1)
    return Number((product.real, product.imag))
