"""The entry points of the recurrence: checks, types, gradients, pieces on several devices."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from pf_jax.errors import UserError
from pf_jax.recurrence import across, choice
from pf_jax.recurrence.coefficients import PLAIN, Coefficients

_TYPES_OF_KERNELS = {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)}


def linear_recurrence(
    a: Inexact[Array, "batch time width"],
    b: Inexact[Array, "batch time width"],
    h0: Inexact[Array, "batch width"] | None = None,
    *,
    implementation: str = "auto",
    sequence_axis: str = "",
) -> Inexact[Array, "batch time width"]:
    """All states of `h_t = a_t h_{t-1} + b_t`, in parallel over batch and width.

    Computed in float32 (or wider, if an input is) whatever comes in, and rounded once at the end.
    Differentiable (reverse mode, any order) with respect to `a`, `b` and `h0`.

    Args:
        a: Decay at each position.
        b: Input at each position, of the same shape.
        h0: The state before the first position; zeros if left out.
        implementation: "auto", the fastest on the backend that the program is compiled for, or one
            of `pf_jax.recurrence.IMPLEMENTATIONS`. All give the same numbers up to rounding. A
            kernel that the backend does not have leaves it to "auto", with a warning.
        sequence_axis: Inside of `shard_map` or `pmap`, the name of the axis over whose devices the
            sequence is split: each has a piece, in order, and `h0` is the first one's.

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
    dtype = jnp.result_type(a, b)
    if not jnp.issubdtype(dtype, jnp.inexact):
        dtype = jnp.dtype(jnp.float32)
        a, b = a.astype(dtype), b.astype(dtype)
    return recurrence(
        PLAIN,
        (a, b),
        h0=h0,
        dtype=dtype,
        implementation=implementation,
        sequence_axis=sequence_axis,
    )[0]


def recurrence(
    coefficients: Coefficients,
    inputs: Sequence[Inexact[Array, "batch time width"]],
    channel: Sequence[Float[Array, "width"]] = (),
    h0: Inexact[Array, "batch width"] | None = None,
    *,
    dtype: Any,
    implementation: str = "auto",
    sequence_axis: str = "",
) -> tuple[Inexact[Array, "batch time width"], Inexact[Array, "batch width"]]:
    """`linear_recurrence` of a decay and an input that are functions of other arrays.

    Kernels compute these functions and their gradients in the same pass as the recurrence. In the
    backward pass `a` and `b` are computed again, not kept.

    Args:
        coefficients: `(inputs, channel) -> (a, b)` at each position.
        inputs: What `a` and `b` depend on, of one shape and of any types.
        channel: Parameters of the channels that they depend on.
        h0: The state before the first position; zeros if left out.
        dtype: Of the states.
        implementation: As for `linear_recurrence`.
        sequence_axis: Likewise.

    Returns:
        The states, and the last one as it was before rounding, in float32 or a wider type of the
        inputs. With a sequence axis it is that after this device's piece.

    Raises:
        UserError: The shape of `h0` does not fit, or the implementation is unknown.
    """
    choice.check(implementation)
    if coefficients.is_complex:
        return _temporary_complex(coefficients, inputs, channel, h0, dtype)
    batch, time, width = inputs[0].shape
    state_dtype = jnp.promote_types(jnp.result_type(*inputs), jnp.float32)
    if h0 is None:
        h0 = jnp.zeros((batch, width), state_dtype)
    if h0.shape != (batch, width):
        raise UserError(f"h0 must have shape (batch, width) = {(batch, width)}, got {h0.shape}.")
    h0 = h0.astype(state_dtype)
    if 0 in (batch, time, width):
        return jnp.zeros((batch, time, width), dtype), h0
    if not {jnp.dtype(dtype), *(x.dtype for x in inputs)} <= _TYPES_OF_KERNELS:
        implementation = choice.of_any_type(implementation)
    how = _How(
        coefficients,
        jnp.dtype(dtype),
        tuple(x.dtype for x in inputs),
        implementation,
        sequence_axis,
    )
    return _recurrence(how, tuple(inputs), tuple(channel), h0)


class _How(NamedTuple):
    """What is not an array."""

    coefficients: Coefficients
    dtype: jnp.dtype
    input_dtypes: tuple[jnp.dtype, ...]
    implementation: str
    axis: str


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(how: _How, inputs, channel, h0):
    return _forward(how, inputs, channel, h0)[0]


def _forward(how: _How, inputs, channel, h0):
    run, decay = functools.partial(choice.run, how.implementation), None
    if how.axis:
        decay, last = run("carry", how.coefficients, inputs, channel)
        h0 = across.entering(decay, last, h0, how.axis)
    h, last = run("forward", how.coefficients, inputs, channel, h0, dtype=how.dtype)
    linear = how.coefficients.linear_inputs
    kept = tuple(None if number in linear else x for number, x in enumerate(inputs))
    return (h, last), (kept, channel, h0, h, decay)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _backward(how: _How, residuals, cotangents):
    """The gradients of inputs, channel and `h0`: see `pf_jax.recurrence.portable.gradient`."""
    return _gradients(how, residuals, cotangents)


def _gradients(how: _How, residuals, cotangents):
    inputs, channel, h0, h, decay = residuals
    dh, dlast = cotangents
    run = functools.partial(choice.run, how.implementation)
    if how.axis:
        # An adjoint that enters a piece comes from the piece behind it, and from `dlast`.
        s = run("adjoint_carry", how.coefficients, inputs, channel, dh)
        nothing = jnp.zeros_like(dlast)
        s = across.entering(decay, s + decay * dlast, nothing, how.axis, reverse=True)
        dlast = dlast + s
    dinputs, dchannel, dh0 = run("gradient", how.coefficients, inputs, channel, h0, h, dh, dlast)
    if how.axis:
        dh0 = jnp.where(jax.lax.axis_index(how.axis) == 0, dh0, 0.0)
    dinputs = tuple(x.astype(dtype) for x, dtype in zip(dinputs, how.input_dtypes, strict=True))
    return dinputs, dchannel, dh0


def _backward_forward(how: _How, residuals, cotangents):
    return _backward(how, residuals, cotangents), (residuals, cotangents)


def _backward_backward(how: _How, arguments, cotangents):
    # Gradients of gradients: rare, so JAX may derive them from plain operations.
    how = how._replace(implementation="associative")
    return jax.vjp(functools.partial(_gradients, how), *arguments)[1](cotangents)


_backward.defvjp(_backward_forward, _backward_backward)
_recurrence.defvjp(_forward, _backward)


def _temporary_complex(coefficients, inputs, channel, h0, dtype):
    channels = inputs[0].shape[-1]
    parts = tuple(
        tuple(jnp.split(x.astype(jnp.float32), 2, -1))
        if x.shape[-1] != channels
        else x.astype(jnp.float32)
        for x in inputs
    )
    a, b = (jax.lax.complex(*x) for x in coefficients(parts, channel))
    start = jax.lax.complex(*jnp.split(h0, 2, -1))
    h = linear_recurrence(a, b, start, implementation="associative")
    h = jnp.concatenate([h.real, h.imag], -1)
    return h.astype(dtype), h[:, -1]
