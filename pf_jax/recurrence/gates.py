"""Decay and input of the gated linear recurrences, real and complex (Griffin, arXiv 2402.19427)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pf_jax.recurrence.coefficients import Coefficients

DECAY_EXPONENT = 8.0
"""At `r_t = 1` a state decays by `softplus(L)` to this power: `c` in Griffin's equation 3."""

MAX_SLOPE = 200.0
"""Bound on the derivative of the square root in `sqrt(1 - |a|^2)`, as published."""


@jax.custom_jvp
def sqrt_one_minus_exp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`sqrt(1 - exp(x))` for `x <= 0`, exact near 0.

    With `x = 2 log |a|` it is `sqrt(1 - |a|^2)` without the cancellation of `1 - |a|^2` near
    `|a| = 1`, where the derivative of the root is unbounded; here it is at most `MAX_SLOPE`.
    """
    # Kernels have no expm1: near 0 as many terms of its series as float32 resolves.
    series = 1.0
    for n in range(7, 1, -1):
        series = 1.0 + x * (1.0 / n) * series
    return jnp.sqrt(jnp.where(x > -0.3, -x * series, 1.0 - jnp.exp(x)))


@sqrt_one_minus_exp.defjvp
def _sqrt_one_minus_exp_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = sqrt_one_minus_exp(x)
    return y, -0.5 * jnp.exp(x) / jnp.maximum(y, 0.5 / MAX_SLOPE) * dx


def decay_scale_input(gates, log_decay):
    """`log |a_t|`, `r_t`, `sqrt(1 - |a_t|^2)` and `i_t` of real gates before their sigmoids."""
    recurrence_gate, input_gate = gates
    r = jax.nn.sigmoid(recurrence_gate)
    log_a = log_decay * r
    return log_a, r, sqrt_one_minus_exp(2.0 * log_a), jax.nn.sigmoid(input_gate)


def real(inputs, channel):
    """`a_t = exp(log_decay r_t)`, `b_t = sqrt(1 - a_t^2) i_t u_t`.

    Args:
        inputs: The gates before their sigmoids, and `u`.
        channel: `log_decay = -8 softplus(L)`.
    """
    *gates, u = inputs
    log_a, _, scale, i = decay_scale_input(gates, *channel)
    return jnp.exp(log_a), scale * i * u


def complex_(inputs, channel):
    """`a_t = exp((log_decay + i theta) r_t)`, `b_t = sqrt(1 - |a_t|^2) i_t u_t`.

    Args:
        inputs: The gates before their sigmoids, and `u` as a pair of real and imaginary parts.
        channel: `log_decay = -8 softplus(L)`, and `theta`.

    Returns:
        `a` and `b`, pairs of real and imaginary parts.
    """
    *gates, (real, imaginary) = inputs
    log_decay, theta = channel
    log_a, r, scale, i = decay_scale_input(gates, log_decay)
    a, turn, scale = jnp.exp(log_a), theta * r, scale * i
    return (a * jnp.cos(turn), a * jnp.sin(turn)), (scale * real, scale * imaginary)


RGLRU = Coefficients(real)
"""The RG-LRU: inputs are gates `r`, `i` before sigmoids and `u`; channel is `log_decay`."""

CGLRU = Coefficients(complex_, is_complex=True)
"""The CG-LRU; here `u` and the states have real parts, then imaginary parts, side by side."""
