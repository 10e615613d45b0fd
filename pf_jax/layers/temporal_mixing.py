"""Griffin's recurrent block: where a ResBlock looks into the past (arXiv 2402.19427, figure 2)."""

from typing import Any, ClassVar, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float

from pf_jax.config import PoolformerConfig
from pf_jax.layers.convolution import CausalConvolution
from pf_jax.layers.initialization import residual_output
from pf_jax.layers.rglru import RGLRU


class TemporalMixingState(NamedTuple):
    """The states of the convolution and of the recurrence."""

    convolution: Float[Array, "batch taps-1 width"]
    recurrence: Any


class RecurrentBlock(nnx.Module):
    """`g = gelu(W_g x)`, `h = recurrence(conv(W_u x))`, output `W_o (g * h)`.

    The recurrence is a subclass's choice, and kept under a name of the subclass's own.

    Attributes:
        gate: `W_g`; None without `config.mixer_gate`, where the output is `W_o h`.
        input: `W_u`.
        convolution: A short causal convolution: what happened in the last few positions.
        output: `W_o`, scaled down at the start as the branches of a deep residual network are.
    """

    recurrence_name: ClassVar[str]
    """The attribute that holds the recurrence: what happened before the last few positions."""

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the layer for a level of the given width."""
        dtype, axis = config.dtype, config.sequence_axis
        self.gate = nnx.Linear(width, width, dtype=dtype, rngs=rngs) if config.mixer_gate else None
        self.input = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.convolution = CausalConvolution(
            width, config.conv_width, dtype=dtype, sequence_axis=axis, rngs=rngs
        )
        setattr(self, self.recurrence_name, self.make_recurrence(width, config, rngs=rngs))
        self.output = nnx.Linear(
            width, width, kernel_init=residual_output(config), dtype=dtype, rngs=rngs
        )

    def make_recurrence(
        self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs
    ) -> nnx.Module:
        """The recurrence: a layer with the methods of a mixer."""
        raise NotImplementedError

    def init_state(self, batch_size: int) -> TemporalMixingState:
        """The state before the first position of a sequence."""
        return TemporalMixingState(
            self.convolution.init_state(batch_size), self._recurrence.init_state(batch_size)
        )

    def __call__(
        self, x: Float[Array, "batch time width"], state: TemporalMixingState
    ) -> tuple[Float[Array, "batch time width"], TemporalMixingState]:
        """All positions (parallel form), and the state after them."""
        u, convolution = self.convolution(self.input(x), state.convolution)
        h, recurrence = self._recurrence(u, state.recurrence)
        return self._output(x, h), TemporalMixingState(convolution, recurrence)

    def step(
        self, x: Float[Array, "batch width"], state: TemporalMixingState
    ) -> tuple[Float[Array, "batch width"], TemporalMixingState]:
        """The next position (recurrent form)."""
        u, convolution = self.convolution.step(self.input(x), state.convolution)
        h, recurrence = self._recurrence.step(u, state.recurrence)
        return self._output(x, h), TemporalMixingState(convolution, recurrence)

    @property
    def _recurrence(self):
        return getattr(self, self.recurrence_name)

    def _output(self, x: Float[Array, "*batch width"], h: Float[Array, "*batch width"]):
        return self.output(h if self.gate is None else jax.nn.gelu(self.gate(x)) * h)


class TemporalMixing(RecurrentBlock):
    """The recurrent block as Griffin has it, with the RG-LRU.

    Attributes:
        rglru: The recurrence.
    """

    splits_sequences: ClassVar[bool] = True
    """It heeds `config.sequence_axis`: its parallel form takes a sequence split over devices."""

    recurrence_name: ClassVar[str] = "rglru"

    def make_recurrence(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs) -> RGLRU:
        """The RG-LRU."""
        return RGLRU(
            width,
            config.num_heads,
            dtype=config.dtype,
            recurrence=config.recurrence,
            sequence_axis=config.sequence_axis,
            rngs=rngs,
        )

    def log_decay(
        self, x: Float[Array, "batch time width"], state: TemporalMixingState
    ) -> tuple[Float[Array, "batch time states"], Float[Array, "states"]]:
        """`log |a_t|` of the recurrence at all positions, and what it is where its gate is open."""
        u, _ = self.convolution(self.input(x), state.convolution)
        return self._recurrence.log_decay(u)
