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
from pf_jax.recurrence.number import join, split

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
    h0: Inexact[Array, "batch parts*width"] | None = None,
    *,
    dtype: Any,
    implementation: str = "auto",
    sequence_axis: str = "",
) -> tuple[Inexact[Array, "batch time parts*width"], Inexact[Array, "batch parts*width"]]:
    """`linear_recurrence` of a decay and an input that are functions of other arrays.

    Kernels compute these functions and their gradients in the same pass as the recurrence. In the
    backward pass `a` and `b` are computed again, not kept.

    In a complex recurrence `parts` is 2: states and complex inputs are real arrays that have the
    real parts of all channels in front of the imaginary parts.

    Args:
        coefficients: `(inputs, channel) -> (a, b)` at each position.
        inputs: What `a` and `b` depend on, of any types and of one shape, but for complex inputs,
            which are twice as wide as real ones.
        channel: Parameters of the channels that they depend on.
        h0: The state before the first position; zeros if left out.
        dtype: Of the states.
        implementation: As for `linear_recurrence`.
        sequence_axis: Likewise.

    Returns:
        The states, and the last one as it was before rounding, in float32 or a wider type of the
        inputs. With a sequence axis it is that after this device's piece.

    Raises:
        UserError: The shapes do not fit, or the implementation is unknown.
    """
    choice.check(implementation)
    batch, time, _ = inputs[0].shape
    channels = coefficients.width(inputs)
    for n, x in enumerate(inputs):
        if x.shape != (batch, time, channels * coefficients.parts_of(n)):
            shapes = ", ".join(str(x.shape) for x in inputs)
            raise UserError(
                "The inputs of a recurrence need one shape, complex ones twice the width, got "
                f"{shapes}; complex are those with the indices {coefficients.complex_inputs}."
            )
    width = channels * coefficients.parts
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
        h0 = _entering(how, decay, last, h0)
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
        parts = how.coefficients.parts
        decay = join(split(decay, parts).conj())
        s = s + join(split(decay, parts) * split(dlast, parts))
        dlast = dlast + _entering(how, decay, s, jnp.zeros_like(dlast), reverse=True)
    dinputs, dchannel, dh0 = run("gradient", how.coefficients, inputs, channel, h0, h, dh, dlast)
    if how.axis:
        dh0 = jnp.where(jax.lax.axis_index(how.axis) == 0, dh0, 0.0)
    dinputs = tuple(x.astype(dtype) for x, dtype in zip(dinputs, how.input_dtypes, strict=True))
    return dinputs, dchannel, dh0


def _entering(how: _How, *arrays, reverse: bool = False):
    """`across.entering` of arrays."""
    numbers = (split(x, how.coefficients.parts) for x in arrays)
    return join(across.entering(*numbers, how.axis, reverse=reverse))


def _backward_forward(how: _How, residuals, cotangents):
    return _backward(how, residuals, cotangents), (residuals, cotangents)


def _backward_backward(how: _How, arguments, cotangents):
    # Gradients of gradients: rare, so JAX may derive them from plain operations.
    how = how._replace(implementation="associative")
    return jax.vjp(functools.partial(_gradients, how), *arguments)[1](cotangents)


_backward.defvjp(_backward_forward, _backward_backward)
_recurrence.defvjp(_forward, _backward)
