"""The interface of the layers in a ResBlock, and the registry of their names."""

from typing import Any, ClassVar, Protocol

from flax import nnx
from jaxtyping import Array, Float

from pf_jax.config import PoolformerConfig
from pf_jax.errors import UserError
from pf_jax.layers.attention import Attention
from pf_jax.layers.convolution import Convolution, DepthwiseConvolution
from pf_jax.layers.gru import GRURecurrence
from pf_jax.layers.mamba import Mamba
from pf_jax.layers.mlp import GatedMLP, PlainMLP
from pf_jax.layers.recurrence import ComplexRecurrence, RealRecurrence
from pf_jax.layers.s4d import S4D

LayerState = Any
"""A pytree of arrays with a leading batch axis (or scalars); empty for layers without memory."""


class Layer(Protocol):
    """A causal sequence layer in two forms with one set of weights and equal outputs.

    The output at a position depends on inputs up to that position and on the state only.

    A layer may also have these attributes:

    * `branch`, which says how a ResBlock uses the output `y`: "gated" (the default),
      `W_o (gelu(W_g x) * y)`; "linear", `W_o y`; "whole", `y` itself, of the level's width.
    * `splits_sequences = True`: the parallel form handles sequences that are split over devices
      (`config.sequence_axis`).
    * `log_decay(x, state)`, for states that decay by a factor `a_t`: `log |a_t| <= 0` at all
      positions, `(batch, time, states)`, and its lower bound whatever the input, `(states,)`.
      `pf_jax.evaluation.analysis` uses it to show how far the layer remembers.

    Attributes:
        out_width: The number of channels of the output.
    """

    out_width: int
    branch: ClassVar[str]

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the layer for a level of the given width."""

    def init_state(self, batch_size: int) -> LayerState:
        """The state before the first position of a sequence."""

    def __call__(
        self, x: Float[Array, "batch time width"], state: LayerState
    ) -> tuple[Float[Array, "batch time out_width"], LayerState]:
        """Parallel form: all positions at once, and the state after the last."""

    def step(
        self, x: Float[Array, "batch width"], state: LayerState
    ) -> tuple[Float[Array, "batch out_width"], LayerState]:
        """Recurrent form: the next position, and the state after it."""


LAYERS: dict[str, type[Layer]] = {
    "attention": Attention,
    "cglru": ComplexRecurrence,
    "convolution": Convolution,
    "depthwise_convolution": DepthwiseConvolution,
    "gated_mlp": GatedMLP,
    "gru": GRURecurrence,
    "mamba": Mamba,
    "plain_mlp": PlainMLP,
    "rglru": RealRecurrence,
    "s4d": S4D,
}
"""The layers that a config can name; add your own class here."""


def find_layer(name: str, config: PoolformerConfig) -> type[Layer]:
    """The layer of a name.

    Raises:
        UserError: There is none, or it cannot do what `config.sequence_axis` asks for.
    """
    if name not in LAYERS:
        raise UserError(
            f"Unknown layer {name!r}; known: {', '.join(sorted(LAYERS))}. One of your own must be "
            "added to pf_jax.layers.LAYERS first: import the file that does it, or give the "
            "command --import=FILE.py."
        )
    if config.sequence_axis and not getattr(LAYERS[name], "splits_sequences", False):
        raise UserError(
            f"The layer {name!r} takes whole sequences only: they cannot be split over devices. "
            "One that uses config.sequence_axis says splits_sequences = True."
        )
    return LAYERS[name]


def own_layers(config: PoolformerConfig) -> list[str]:
    """The names of a config's layers that do not come with pf_jax, which a file of a user adds."""
    names = sorted(config.layers & LAYERS.keys())
    return [name for name in names if not LAYERS[name].__module__.startswith("pf_jax.")]
