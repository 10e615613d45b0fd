"""The one door through which whatever mixes over time enters a ResBlock."""

from typing import Any, Protocol

from flax import nnx
from jaxtyping import Array, Float

from pf_jax.config import PoolformerConfig
from pf_jax.layers.attention import Attention
from pf_jax.layers.complex_rglru import ComplexTemporalMixing
from pf_jax.layers.gru import GRUMixing
from pf_jax.layers.mamba import Mamba
from pf_jax.layers.s4d import S4D
from pf_jax.layers.temporal_mixing import TemporalMixing

MixerState = Any
"""A pytree of arrays with a leading batch axis (or scalars); each mixer has its own."""


class Mixer(Protocol):
    """A causal sequence layer in two forms with one set of weights and equal outputs.

    Output at a position depends on inputs up to that position and on the state only.

    One whose states decay by a factor `a_t` may also have `log_decay(x, state)`, which returns
    `log a_t <= 0` of all positions, `(batch, time, states)`, and the least that it can be whatever
    the input, `(states,)`. `pf_jax.evaluation.analysis` then shows how far it remembers.
    """

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the layer for a level of the given width."""

    def init_state(self, batch_size: int) -> MixerState:
        """The state before the first position of a sequence."""

    def __call__(
        self, x: Float[Array, "batch time width"], state: MixerState
    ) -> tuple[Float[Array, "batch time width"], MixerState]:
        """Parallel form: all positions at once, and the state after the last."""

    def step(
        self, x: Float[Array, "batch width"], state: MixerState
    ) -> tuple[Float[Array, "batch width"], MixerState]:
        """Recurrent form: the next position, and the state after it."""


MIXERS: dict[str, type[Mixer]] = {
    "attention": Attention,
    "gru": GRUMixing,
    "mamba": Mamba,
    "rglru": TemporalMixing,
    "rglru_complex": ComplexTemporalMixing,
    "s4d": S4D,
}
"""The mixers that a config can name; add your own class here."""
