"""The Real-Gated Linear Recurrent Unit (Griffin, arXiv 2402.19427, section 2.4)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from pf_jax.layers.linear import BlockDiagonalLinear
from pf_jax.recurrence import Coefficients, recurrence

# At r_t = 1 a state decays by softplus(L) to this power: the constant c of Griffin's equation 3.
DECAY_EXPONENT = 8.0
MIN_RADIUS, MAX_RADIUS = 0.9, 0.999


class RGLRUState(NamedTuple):
    """What the RG-LRU carries from one position to the next.

    Attributes:
        h: The recurrent state, float32.
        started: Whether a position of the sequence has been seen; the first is special.
    """

    h: Float[Array, "batch width"]
    started: Bool[Array, ""]


class RGLRU(nnx.Module):
    """A diagonal linear recurrence whose decay and input are gated by the input.

    With sigmoid gates from block-diagonal linear maps. Those maps are of the compute type, all else
    is in float32, in the same pass over memory as the recurrence where there is a kernel for it::

        r_t = sigmoid(W_r u_t + b_r)                          recurrence gate   (eq. 1)
        i_t = sigmoid(W_i u_t + b_i)                          input gate        (eq. 2)
        log a_t = -8 softplus(L) r_t                          decay             (appendix A)
        h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t u_t)                           (eq. 4)

    At the first position of a sequence the input enters unscaled, `h_0 = i_0 u_0`, as in the
    reference implementation: there is no earlier state to share the variance with. The parallel
    form starts from a state that makes it so.

    Attributes:
        recurrence_gate: `W_r`, `b_r`.
        input_gate: `W_i`, `b_i`.
        decay: `L`, one parameter a channel. At `r_t = 1` the initial decay is `radius^8`, with
            radius spread evenly by area over the ring [0.9, 0.999].
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        dtype,
        recurrence: str,
        sequence_axis: str = "",
        rngs: nnx.Rngs,
    ):
        """Makes the layer; `num_heads` must divide `width`."""
        self.width = width
        self.recurrence = recurrence
        self.sequence_axis = sequence_axis
        self.recurrence_gate = BlockDiagonalLinear(width, num_heads, dtype=dtype, rngs=rngs)
        self.input_gate = BlockDiagonalLinear(width, num_heads, dtype=dtype, rngs=rngs)
        self.decay = nnx.Param(initial_decay(rngs.params(), width))

    def init_state(self, batch_size: int) -> RGLRUState:
        """The state before the first position of a sequence."""
        return RGLRUState(jnp.zeros((batch_size, self.width), jnp.float32), jnp.array(False))

    def __call__(
        self, u: Float[Array, "batch time width"], state: RGLRUState
    ) -> tuple[Float[Array, "batch time width"], RGLRUState]:
        """The states of all positions (parallel form) in `u`'s type, and the state after them."""
        gates, channel = self._gates(u)
        first = tuple(x[:, 0].astype(jnp.float32) for x in gates)
        h, last = recurrence(
            RGLRU_COEFFICIENTS,
            gates,
            channel,
            jnp.where(state.started, state.h, _state_before_first(first, channel)),
            dtype=u.dtype,
            implementation=self.recurrence,
            sequence_axis=self.sequence_axis,
        )
        return h, RGLRUState(last, jnp.array(True))

    def step(
        self, u: Float[Array, "batch width"], state: RGLRUState
    ) -> tuple[Float[Array, "batch width"], RGLRUState]:
        """The state at the next position (recurrent form)."""
        gates, channel = self._gates(u)
        gates = tuple(x.astype(jnp.float32) for x in gates)
        a, scale, gated_input = _decay_scale_input(gates, channel)
        h = a * state.h + jnp.where(state.started, scale, 1.0) * gated_input
        return h.astype(u.dtype), RGLRUState(h, jnp.array(True))

    def log_decay(
        self, u: Float[Array, "*batch width"]
    ) -> tuple[Float[Array, "*batch width"], Float[Array, "width"]]:
        """`log a_t` at each position, and what it is at `r_t = 1`, the least it can be; float32.

        Neither form needs it: it is for those who want to know how far the layer remembers.
        """
        (recurrence_gate, *_), (least,) = self._gates(u)
        return least * jax.nn.sigmoid(recurrence_gate.astype(jnp.float32)), least

    def _gates(self, u):
        """What the decay and the input depend on: of each position, and of each channel."""
        log_decay = -DECAY_EXPONENT * jax.nn.softplus(self.decay[...])
        return (self.recurrence_gate(u), self.input_gate(u), u), (log_decay,)


def _decay_scale_input(gates, channel):
    """`a_t`, `sqrt(1 - a_t^2)` and `i_t u_t`, in float32."""
    (recurrence_gate, input_gate, u), (log_decay,) = gates, channel
    log_a = log_decay * jax.nn.sigmoid(recurrence_gate)
    return jnp.exp(log_a), sqrt_one_minus_exp(2.0 * log_a), jax.nn.sigmoid(input_gate) * u


def _coefficients(gates, channel):
    a, scale, gated_input = _decay_scale_input(gates, channel)
    return a, scale * gated_input


RGLRU_COEFFICIENTS = Coefficients(_coefficients)
"""`a_t` and `sqrt(1 - a_t^2) i_t u_t` of the gates before sigmoids, `u`, and `log a` at `r = 1`."""


def _state_before_first(gates, channel):
    """The state from which equation 4 leads to `h_0 = i_0 u_0`.

    With `s = sqrt(1 - a^2)`, `a h + s i u = i u` for `h = (1 - s) / a * i u = a / (1 + s) * i u`.
    """
    a, scale, gated_input = _decay_scale_input(gates, channel)
    return a / (1.0 + scale) * gated_input


@jax.custom_jvp
def sqrt_one_minus_exp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`sqrt(1 - exp(x))` for `x <= 0`, exact near 0, where its slope is bounded by 500.

    With `x = 2 log a` it is `sqrt(1 - a^2)` without the cancellation of `1 - a^2` near `a = 1`. The
    true slope has no bound there; one channel that forgets nothing must not wreck the gradient.
    """
    # Kernels have no expm1: near 0 as much of its series as float32 can tell.
    series = 1.0
    for n in range(7, 1, -1):
        series = 1.0 + x * (1.0 / n) * series
    return jnp.sqrt(jnp.where(x > -0.3, -x * series, 1.0 - jnp.exp(x)))


@sqrt_one_minus_exp.defjvp
def _sqrt_one_minus_exp_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = sqrt_one_minus_exp(x)
    return y, -0.5 * jnp.exp(x) / jnp.maximum(y, 1e-3) * dx


def initial_decay(key, width: int) -> Float[Array, "width"]:
    """`L` such that `exp(-softplus(L))` is a radius spread evenly by area over the ring."""
    area = jax.random.uniform(key, (width,), minval=MIN_RADIUS**2, maxval=MAX_RADIUS**2)
    return jnp.log(jnp.expm1(-0.5 * jnp.log(area)))
