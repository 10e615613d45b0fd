"""The RG-LRU of complex numbers (Griffin, arXiv 2402.19427, appendix B: the CG-LRU)."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pf_jax.config import PoolformerConfig
from pf_jax.errors import UserError
from pf_jax.layers.linear import BlockDiagonalLinear
from pf_jax.layers.phase import accumulate
from pf_jax.layers.rglru import (
    DECAY_EXPONENT,
    RGLRUState,
    initial_decay,
    sqrt_one_minus_exp,
)
from pf_jax.layers.temporal_mixing import TemporalMixing
from pf_jax.recurrence import linear_recurrence

MAX_PHASE = math.pi / 10


class ComplexRGLRU(nnx.Module):
    """An RG-LRU whose states turn while they decay.

    The first half of the channels are real parts, the second half the imaginary ones of `width / 2`
    complex numbers. Gates are real, one of each kind for a complex channel, and depend on both
    parts (block-diagonal, each block a piece of all channels in their order)::

        u~_t = u_t[first half] + i u_t[second half]                               (eqs. 8, 9)
        r_t = sigmoid(W_r u_t + b_r)                          recurrence gate     (eq. 10)
        i_t = sigmoid(W_i u_t + b_i)                          input gate          (eq. 11)
        log |a~_t| = -8 softplus(L) r_t                       decay               (eq. 12)
        arg a~_t = theta r_t                                  turn                (eq. 12)
        h~_t = a~_t h~_{t-1} + sqrt(1 - |a~_t|^2) (i_t u~_t)                      (eq. 13)
        y_t = [Re h~_t, Im h~_t]                                                  (eq. 14)

    The paper's `theta` is an eighth of this one, which is the turn at `r_t = 1`. At the first
    position of a sequence the input enters unscaled, as in the real RG-LRU.

    The parallel form runs on the kernels of the real recurrence: with `phi_t` the sum of all turns
    up to `t`, `g_t = exp(-i phi_t) h~_t` obeys `g_t = |a~_t| g_{t-1} + exp(-i phi_t) b_t`, where
    nothing mixes real and imaginary parts. Sums of turns are kept modulo whole turns, and lose no
    precision with length (`pf_jax.layers.phase`). The state is `h~_t`, whatever came before it.

    Attributes:
        recurrence_gate: `W_r`, `b_r`, from `width` to `width / 2` channels.
        input_gate: `W_i`, `b_i`, likewise.
        decay: `L`, one parameter a complex channel, which starts as in the RG-LRU.
        phase: `theta`, likewise; starts evenly spread over [0, pi / 10].
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
        """Makes the layer.

        Raises:
            UserError: `2 num_heads` does not divide `width`.
        """
        if width % (2 * num_heads):
            raise UserError(
                "With the mixer 'rglru_complex', half of whose channels are real parts, num_heads "
                f"must divide half of every width; num_heads={num_heads} does not divide {width}/2."
            )
        half = width // 2
        gate = {"out_width": half, "dtype": dtype, "rngs": rngs}
        self.width = width
        self.recurrence = recurrence
        self.sequence_axis = sequence_axis
        self.recurrence_gate = BlockDiagonalLinear(width, num_heads, **gate)
        self.input_gate = BlockDiagonalLinear(width, num_heads, **gate)
        self.decay = nnx.Param(initial_decay(rngs.params(), half))
        self.phase = nnx.Param(jax.random.uniform(rngs.params(), (half,), maxval=MAX_PHASE))

    def init_state(self, batch_size: int) -> RGLRUState:
        """The state before the first position of a sequence: real parts, then imaginary ones."""
        return RGLRUState(jnp.zeros((batch_size, self.width), jnp.float32), jnp.array(False))

    def __call__(
        self, u: Float[Array, "batch time width"], state: RGLRUState
    ) -> tuple[Float[Array, "batch time width"], RGLRUState]:
        """The states of all positions (parallel form) in `u`'s type, and the state after them."""
        a, turn, scale, gated_input = self._coefficients(u)
        is_first = ~state.started & (jnp.arange(u.shape[1]) == 0)
        if self.sequence_axis:
            is_first &= jax.lax.axis_index(self.sequence_axis) == 0
        b = jnp.where(is_first[:, None], 1.0, _twice(scale)) * gated_input
        h = complex_recurrence(self.recurrence, self.sequence_axis, a, turn, b, state.h)
        return h.astype(u.dtype), RGLRUState(h[:, -1], jnp.array(True))

    def step(
        self, u: Float[Array, "batch width"], state: RGLRUState
    ) -> tuple[Float[Array, "batch width"], RGLRUState]:
        """The state at the next position (recurrent form)."""
        a, turn, scale, gated_input = self._coefficients(u)
        # Rounded as in the parallel form, or the two would turn apart.
        turn = accumulate(turn[:, None])[:, 0]
        scale = jnp.where(state.started, _twice(scale), 1.0)
        h = _rotate(_twice(a) * state.h, turn) + scale * gated_input
        return h.astype(u.dtype), RGLRUState(h, jnp.array(True))

    def log_decay(
        self, u: Float[Array, "*batch width"]
    ) -> tuple[Float[Array, "*batch width/2"], Float[Array, "width/2"]]:
        """`log |a_t|` at each position, and what it is at `r_t = 1`, the least it can be."""
        least = -DECAY_EXPONENT * jax.nn.softplus(self.decay[...])
        return least * _sigmoid(self.recurrence_gate(u)), least

    def _coefficients(self, u):
        """`|a_t|`, `arg a_t` and `sqrt(1 - |a_t|^2)` of complex channels, `i_t u_t` of all."""
        gate = _sigmoid(self.recurrence_gate(u))
        log_a = -DECAY_EXPONENT * jax.nn.softplus(self.decay[...]) * gate
        gated_input = _twice(_sigmoid(self.input_gate(u))) * u.astype(jnp.float32)
        return jnp.exp(log_a), self.phase[...] * gate, sqrt_one_minus_exp(2.0 * log_a), gated_input


def _sigmoid(x):
    return jax.nn.sigmoid(x.astype(jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def complex_recurrence(
    implementation: str,
    sequence_axis: str,
    a: Float[Array, "batch time channels"],
    turn: Float[Array, "batch time channels"],
    b: Float[Array, "batch time 2*channels"],
    h0: Float[Array, "batch 2*channels"],
) -> Float[Array, "batch time 2*channels"]:
    """All states of `h_t = a_t exp(i turn_t) h_{t-1} + b_t`, float32, real parts first.

    Args:
        implementation: As of `pf_jax.linear_recurrence`.
        sequence_axis: Likewise.
        a: The modulus of the decay at each position.
        turn: Its angle in radians.
        b: Input at each position: real parts, then imaginary ones.
        h0: The state before the first position.
    """
    return _forward(implementation, sequence_axis, a, turn, b, h0)[0]


def _forward(implementation, sequence_axis, a, turn, b, h0):
    turned = accumulate(turn, sequence_axis)
    b = _rotate(b, -turned)
    run = functools.partial(
        linear_recurrence, implementation=implementation, sequence_axis=sequence_axis
    )
    g, vjp = jax.vjp(run, _twice(a), b, h0)
    return _rotate(g, turned), (vjp, turned, b, g)


def _backward(implementation, sequence_axis, residuals, dh):
    del implementation, sequence_axis
    vjp, turned, b, g = residuals
    da, db, dh0 = vjp(_rotate(dh, -turned))
    # That of a turn by itself: the gradients of two rotations by sums of turns would cancel, and
    # what is left of them drift.
    (x, y), (dx, dy) = jnp.split(g - b, 2, axis=-1), jnp.split(db, 2, axis=-1)
    return sum(jnp.split(da, 2, axis=-1)), dy * x - dx * y, _rotate(db, turned), dh0


complex_recurrence.defvjp(_forward, _backward)


def _twice(x):
    """For the real parts, and for the imaginary ones."""
    return jnp.concatenate([x, x], axis=-1)


def _rotate(x, angle):
    """`exp(i angle) x`."""
    real, imaginary = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([cos * real - sin * imaginary, sin * real + cos * imaginary], axis=-1)


class ComplexTemporalMixing(TemporalMixing):
    """Griffin's recurrent block with the complex RG-LRU in the place of the real one."""

    def make_recurrence(
        self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs
    ) -> ComplexRGLRU:
        """The complex RG-LRU."""
        return ComplexRGLRU(
            width,
            config.num_heads,
            dtype=config.dtype,
            recurrence=config.recurrence,
            sequence_axis=config.sequence_axis,
            rngs=rngs,
        )
