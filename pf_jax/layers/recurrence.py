"""Gated linear recurrences with their input and output maps."""

from typing import Any, ClassVar, NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from pf_jax.config import PoolformerConfig
from pf_jax.layers.convolution import CausalConvolution
from pf_jax.layers.norm import make_norm
from pf_jax.layers.rglru import CGLRU, RGLRU


class RecurrenceState(NamedTuple):
    """The states of the convolution, if there is one, and of the recurrence."""

    convolution: Any
    recurrence: Any


class Recurrence(nnx.Module):
    """`y = W_y cell(W_u x)`: a recurrent cell of a hidden width between two linear maps.

    A convolution may stand in front, `norm(conv(x))` in place of `x`, or behind the input map,
    `conv(W_u x)` in place of `W_u x`. Griffin's recurrent block (arXiv 2402.19427, figure 2) is the
    latter without `W_y`.

    Attributes:
        convolution: A full convolution of the level's width in front, or a depthwise one of the
            hidden width; None without one.
        norm: The norm behind a full convolution; None without one.
        input: `W_u`, from the level's width to the hidden width.
        cell: The recurrence.
        output: `W_y`, back to the level's width; None if the config wants none.
    """

    splits_sequences: ClassVar[bool] = True
    cell_type: ClassVar[type]

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the layer for a level of the given width."""
        hidden, dtype = config.hidden(width), config.dtype
        depthwise = config.convolution == "depthwise"
        if config.convolution == "none":
            self.convolution = None
        else:
            self.convolution = CausalConvolution(
                hidden if depthwise else width,
                config.conv_width,
                depthwise=depthwise,
                dtype=dtype,
                sequence_axis=config.sequence_axis,
                rngs=rngs,
            )
        is_full = config.convolution == "full"
        self.norm = make_norm(width, config, rngs=rngs) if is_full else None
        self.input = nnx.Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.cell = self.cell_type(hidden, config, rngs=rngs)
        has_output = config.recurrence_output
        self.output = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs) if has_output else None
        self.out_width = width if has_output else hidden

    def init_state(self, batch_size: int) -> RecurrenceState:
        """The state before the first position of a sequence."""
        convolution = self.convolution.init_state(batch_size) if self.convolution else ()
        return RecurrenceState(convolution, self.cell.init_state(batch_size))

    def __call__(
        self, x: Float[Array, "batch time width"], state: RecurrenceState
    ) -> tuple[Float[Array, "batch time out_width"], RecurrenceState]:
        """All positions (parallel form), and the state after them."""
        u, convolution = self._inputs(x, state, CausalConvolution.__call__)
        h, recurrence = self.cell(u, state.recurrence)
        return self._outputs(h), RecurrenceState(convolution, recurrence)

    def step(
        self, x: Float[Array, "batch width"], state: RecurrenceState
    ) -> tuple[Float[Array, "batch out_width"], RecurrenceState]:
        """The next position (recurrent form)."""
        u, convolution = self._inputs(x, state, CausalConvolution.step)
        h, recurrence = self.cell.step(u, state.recurrence)
        return self._outputs(h), RecurrenceState(convolution, recurrence)

    def _inputs(self, x, state, convolve):
        if self.convolution is None:
            return self.input(x), ()
        if self.norm is None:
            return convolve(self.convolution, self.input(x), state.convolution)
        x, convolution = convolve(self.convolution, x, state.convolution)
        return self.input(self.norm(x)), convolution

    def _outputs(self, h):
        return self.output(h) if self.output else h


class LinearRecurrence(Recurrence):
    """A recurrence whose states decay by a factor that depends on the input."""

    def log_decay(
        self, x: Float[Array, "batch time width"], state: RecurrenceState
    ) -> tuple[Float[Array, "batch time states"], Float[Array, "states"]]:
        """`log |a_t|` at all positions, and its lower bound, reached at an open gate; float32."""
        u, _ = self._inputs(x, state, CausalConvolution.__call__)
        return self.cell.log_decay(u)


class RealRecurrence(LinearRecurrence):
    """The RG-LRU between linear maps."""

    cell_type = RGLRU


class ComplexRecurrence(LinearRecurrence):
    """The CG-LRU between linear maps."""

    cell_type = CGLRU
