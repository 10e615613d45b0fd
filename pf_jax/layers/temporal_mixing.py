"""Griffin's recurrent block: where a ResBlock looks into the past (arXiv 2402.19427, figure 2)."""

from typing import ClassVar, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float

from pf_jax.config import PoolformerConfig
from pf_jax.layers.convolution import CausalConvolution
from pf_jax.layers.initialization import residual_output
from pf_jax.layers.rglru import RGLRU, RGLRUState


class TemporalMixingState(NamedTuple):
    """The states of the convolution and of the RG-LRU."""

    convolution: Float[Array, "batch taps-1 width"]
    rglru: RGLRUState


class TemporalMixing(nnx.Module):
    """`g = gelu(W_g x)`, `h = RGLRU(conv(W_u x))`, output `W_o (g * h)`.

    Attributes:
        gate: `W_g`; None without `config.mixer_gate`, where the output is `W_o h`.
        input: `W_u`.
        convolution: A short causal convolution: what happened in the last few positions.
        rglru: The recurrence: what happened before that.
        output: `W_o`, scaled down at the start as the branches of a deep residual network are.
    """

    splits_sequences: ClassVar[bool] = True
    """It heeds `config.sequence_axis`: its parallel form takes a sequence split over devices."""

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the layer for a level of the given width."""
        dtype, axis = config.dtype, config.sequence_axis
        self.gate = nnx.Linear(width, width, dtype=dtype, rngs=rngs) if config.mixer_gate else None
        self.input = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.convolution = CausalConvolution(
            width, config.conv_width, dtype=dtype, sequence_axis=axis, rngs=rngs
        )
        self.rglru = RGLRU(
            width,
            config.num_heads,
            dtype=dtype,
            recurrence=config.recurrence,
            sequence_axis=axis,
            rngs=rngs,
        )
        self.output = nnx.Linear(
            width, width, kernel_init=residual_output(config), dtype=dtype, rngs=rngs
        )

    def init_state(self, batch_size: int) -> TemporalMixingState:
        """The state before the first position of a sequence."""
        return TemporalMixingState(
            self.convolution.init_state(batch_size), self.rglru.init_state(batch_size)
        )

    def __call__(
        self, x: Float[Array, "batch time width"], state: TemporalMixingState
    ) -> tuple[Float[Array, "batch time width"], TemporalMixingState]:
        """All positions (parallel form), and the state after them."""
        u, convolution = self.convolution(self.input(x), state.convolution)
        h, rglru = self.rglru(u, state.rglru)
        return self._output(x, h), TemporalMixingState(convolution, rglru)

    def step(
        self, x: Float[Array, "batch width"], state: TemporalMixingState
    ) -> tuple[Float[Array, "batch width"], TemporalMixingState]:
        """The next position (recurrent form)."""
        u, convolution = self.convolution.step(self.input(x), state.convolution)
        h, rglru = self.rglru.step(u, state.rglru)
        return self._output(x, h), TemporalMixingState(convolution, rglru)

    def log_decay(
        self, x: Float[Array, "batch time width"], state: TemporalMixingState
    ) -> tuple[Float[Array, "batch time width"], Float[Array, "width"]]:
        """`log a_t` of the RG-LRU at all positions, and what it is where its gate is open."""
        u, _ = self.convolution(self.input(x), state.convolution)
        return self.rglru.log_decay(u)

    def _output(self, x: Float[Array, "*batch width"], h: Float[Array, "*batch width"]):
        return self.output(h if self.gate is None else jax.nn.gelu(self.gate(x)) * h)
