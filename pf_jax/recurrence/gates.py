"""Decay and input of the gated linear recurrences, real and complex (Griffin, arXiv 2402.19427)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pf_jax.recurrence.coefficients import Coefficients

DECAY_EXPONENT = 8.0
"""At `r_t = 1` a state decays by `softplus(L)` to this power: `c` in Griffin's equation 3."""

MAX_SLOPE = 200.0
"""Bound on the derivative of the square root in `sqrt(1 - |a|^2)`, as published."""


@jax.custom_jvp
def input_scale(
    log_modulus: Float[Array, "*shape"], modulus: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`sqrt(1 - |a|^2)` of `log |a|` and `|a|`, exact also near `|a| = 1`.

    There `1 - |a|^2` would cancel, and the derivative of the root is unbounded; with respect to
    `2 log |a|` it is here at most `MAX_SLOPE`.
    """
    # Kernels have no expm1: near 0 as many terms of its series as float32 resolves.
    x, series = 2.0 * log_modulus, 1.0
    for n in range(7, 1, -1):
        series = 1.0 + x * (1.0 / n) * series
    return jnp.sqrt(jax.lax.select(x > -0.3, -x * series, 1.0 - modulus * modulus))


@input_scale.defjvp
def _input_scale_jvp(primals, tangents):
    # The tangent of the modulus follows from that of its logarithm.
    log_modulus, modulus = primals
    y = input_scale(log_modulus, modulus)
    return y, -(modulus * modulus) / jnp.maximum(y, 0.5 / MAX_SLOPE) * tangents[0]


@jax.custom_jvp
@jax.jit  # In a loop on a CPU, XLA would compute it again for each of its uses.
def cos_sin(angle: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Cosine and sine of an angle in radians, to 2e-7 for angles up to 10,000.

    Made of operations that every kernel has and every compiler vectorizes, unlike those of JAX.
    """
    half_turns = _round(angle * (1.0 / math.pi))
    x = angle
    for part in _PI:
        x = x - half_turns * part
    odd = half_turns * 0.5 - _round(half_turns * 0.5)  # 0, or 1/2 of either sign.
    sign = 1.0 - 8.0 * (odd * odd)
    square = x * x
    cos, sin = (_polynomial(square, coefficients) for coefficients in (_COS, _SIN))
    return sign * cos, sign * (x * sin)


# In float32, half turns times each of the first two are exact.
_PI = (3.140625, 9.67502593994140625e-4, 1.50995799097837e-7)
# Of `cos(x)` and `sin(x) / x` as polynomials of the square of x up to pi / 2: minimax, to 4e-9.
_COS = (1.0, -0.499999995, 0.0416666406, -0.00138884024, 2.4761826e-05, -2.60759915e-07)
_SIN = (1.0, -0.166666476, 0.00833289883, -0.000198008364, 2.59036408e-06)


def _round(x):
    return jax.lax.round(x, jax.lax.RoundingMethod.TO_NEAREST_EVEN)


def _polynomial(x, coefficients):
    *others, value = coefficients
    for coefficient in reversed(others):
        value = coefficient + x * value
    return value


@cos_sin.defjvp
def _cos_sin_jvp(primals, tangents):
    (angle,), (tangent,) = primals, tangents
    cos, sin = cos_sin(angle)
    return (cos, sin), (-sin * tangent, cos * tangent)


def real(inputs, channel):
    """`a_t = exp(log_decay r_t)`, `b_t = sqrt(1 - a_t^2) i_t u_t`.

    Args:
        inputs: The gates before their sigmoids, and `u`.
        channel: `log_decay = -8 softplus(L)`.
    """
    r_gate, i_gate, u = inputs
    (log_decay,) = channel
    log_a = log_decay * jax.nn.sigmoid(r_gate)
    a = jnp.exp(log_a)
    return a, input_scale(log_a, a) * jax.nn.sigmoid(i_gate) * u


def complex_(inputs, channel):
    """`a_t = exp((log_decay + i theta) r_t)`, `b_t = sqrt(1 - |a_t|^2) i_t u_t`.

    Args:
        inputs: The gates before their sigmoids, and `u` as a pair of real and imaginary parts.
        channel: `log_decay = -8 softplus(L)`, and `theta`.

    Returns:
        `a` and `b`, pairs of real and imaginary parts.
    """
    r_gate, i_gate, (u_real, u_imaginary) = inputs
    log_decay, theta = channel
    r = jax.nn.sigmoid(r_gate)
    modulus, scale = real((r_gate, i_gate, 1.0), (log_decay,))
    cos, sin = cos_sin(theta * r)
    return (modulus * cos, modulus * sin), (scale * u_real, scale * u_imaginary)


RGLRU = Coefficients(real)
"""The RG-LRU: inputs are gates `r`, `i` before sigmoids and `u`; channel is `log_decay`."""

CGLRU = Coefficients(complex_, complex_inputs=(2,))
"""The CG-LRU; here `u` and the states have real parts, then imaginary parts, side by side."""
