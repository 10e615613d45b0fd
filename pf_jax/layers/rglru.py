"""The gated linear recurrent units of Griffin (arXiv 2402.19427), real and complex."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pf_jax.config import PoolformerConfig
from pf_jax.layers.linear import BlockDiagonalLinear
from pf_jax.recurrence import Coefficients, gates, recurrence
from pf_jax.recurrence.gates import DECAY_EXPONENT
from pf_jax.recurrence.number import join, split


class RGLRU(nnx.Module):
    """The real-gated linear recurrent unit (section 2.4).

    A diagonal linear recurrence whose decay and input depend on its input, by gates that are
    block-diagonal linear maps::

        r_t = sigmoid(W_r u_t + b_r)                          recurrence gate   (eq. 1)
        i_t = sigmoid(W_i u_t + b_i)                          input gate        (eq. 2)
        log a_t = -8 softplus(L) r_t                          decay             (appendix A)
        h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t u_t)                           (eq. 4)

    from `h_{-1} = 0`. (Griffin's code scales the first input by 1; the published Poolformer does
    not.) The linear maps are of the compute type; all else is float32 and, where there is a kernel
    for it, in the same pass over memory as the recurrence.

    Attributes:
        recurrence_gate: `W_r`, `b_r`.
        input_gate: `W_i`, `b_i`.
        decay: `L`, one parameter a channel; initially `exp(-softplus(L))` is spread evenly by area
            over the ring `config.radii`.
    """

    coefficients: ClassVar[Coefficients] = gates.RGLRU

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the cell; `config.num_heads` must divide its real or complex channels."""
        self.width = width
        self.recurrence = config.recurrence
        self.sequence_axis = config.sequence_axis
        channels = width // self.coefficients.parts
        gate = {"out_width": channels, "dtype": config.dtype, "rngs": rngs}
        self.recurrence_gate = BlockDiagonalLinear(width, config.num_heads, **gate)
        self.input_gate = BlockDiagonalLinear(width, config.num_heads, **gate)
        self.decay = nnx.Param(initial_decay(rngs.params(), channels, config.radii))

    def init_state(self, batch_size: int) -> Float[Array, "batch width"]:
        """Zeros, float32."""
        return jnp.zeros((batch_size, self.width), jnp.float32)

    def __call__(
        self, u: Float[Array, "batch time width"], h: Float[Array, "batch width"]
    ) -> tuple[Float[Array, "batch time width"], Float[Array, "batch width"]]:
        """The states of all positions (parallel form) in `u`'s type, and the last in float32."""
        return recurrence(
            self.coefficients,
            (self.recurrence_gate(u), self.input_gate(u), u),
            self.channel(),
            h,
            dtype=u.dtype,
            implementation=self.recurrence,
            sequence_axis=self.sequence_axis,
        )

    def step(
        self, u: Float[Array, "batch width"], h: Float[Array, "batch width"]
    ) -> tuple[Float[Array, "batch width"], Float[Array, "batch width"]]:
        """The state at the next position (recurrent form), in `u`'s type and in float32."""
        inputs = (self.recurrence_gate(u), self.input_gate(u), u)
        h = next_state(self.coefficients, inputs, self.channel(), h)
        return h.astype(u.dtype), h

    def log_decay(
        self, u: Float[Array, "*batch width"]
    ) -> tuple[Float[Array, "*batch channels"], Float[Array, "channels"]]:
        """`log |a_t|` at each position, and its lower bound, reached at `r_t = 1`; float32."""
        bound = self.channel()[0]
        return bound * jax.nn.sigmoid(self.recurrence_gate(u).astype(jnp.float32)), bound

    def channel(self) -> tuple[Float[Array, "channels"], ...]:
        """The decay's parameters as `coefficients` takes them."""
        return (-DECAY_EXPONENT * jax.nn.softplus(self.decay[...]),)


class CGLRU(RGLRU):
    """The complex-gated linear recurrent unit (appendix B): states turn while they decay.

    The first half of the channels are real parts, the second half the imaginary parts of
    `width / 2` complex numbers. Gates are real, one of each kind for a complex channel, and depend
    on both parts::

        u~_t = u_t[first half] + i u_t[second half]                             (eqs. 8, 9)
        log |a~_t| = -8 softplus(L) r_t,    arg a~_t = theta r_t                (eq. 12)
        h~_t = a~_t h~_{t-1} + sqrt(1 - |a~_t|^2) (i_t u~_t)                    (eq. 13)
        output [Re h~_t, Im h~_t]                                               (eq. 14)

    The paper's `theta` is an eighth of this one, which is the turn at `r_t = 1`.

    Attributes:
        turn: `theta`, one parameter a complex channel; initially spread evenly over `config.turns`.
    """

    coefficients: ClassVar[Coefficients] = gates.CGLRU

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the cell."""
        super().__init__(width, config, rngs=rngs)
        low, high = config.turns
        shape = (width // 2,)
        self.turn = nnx.Param(jax.random.uniform(rngs.params(), shape, minval=low, maxval=high))

    def channel(self) -> tuple[Float[Array, "channels"], ...]:
        """The decay's and the turn's parameters as `coefficients` takes them."""
        return *super().channel(), self.turn[...]


def next_state(
    coefficients: Coefficients,
    inputs: tuple[Float[Array, "batch channels"], ...],
    channel: tuple[Float[Array, "channels"], ...],
    h: Float[Array, "batch width"],
) -> Float[Array, "batch width"]:
    """One step of `pf_jax.recurrence.recurrence`, in float32."""
    a, b = coefficients.numbers(coefficients.split(inputs, jnp.float32), channel)
    return join(a * split(h, coefficients.parts) + b)


def initial_decay(key, channels: int, radii: tuple[float, float]) -> Float[Array, "channels"]:
    """`L` such that `exp(-softplus(L))` is spread evenly by area over the ring `radii`."""
    low, high = radii
    area = jax.random.uniform(key, (channels,), minval=low**2, maxval=high**2)
    return jnp.log(jnp.expm1(-0.5 * jnp.log(area)))
