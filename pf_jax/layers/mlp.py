"""Position-wise MLPs."""

from typing import ClassVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from pf_jax.config import PoolformerConfig


class GatedMLP(nnx.Module):
    """One linear map to `mlp_expansion` times the width.

    With the gate and the output map of its ResBlock it is GeGLU, `W_o (gelu(W_g x) * W_u x)`
    (arXiv 2002.05202).

    Attributes:
        input: `W_u`.
    """

    splits_sequences: ClassVar[bool] = True

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the layer for a level of the given width."""
        self.out_width = max(1, round(config.mlp_expansion * width))
        self.input = nnx.Linear(width, self.out_width, dtype=config.dtype, rngs=rngs)

    def init_state(self, batch_size: int) -> tuple[()]:
        """Nothing: each position is mapped by itself."""
        del batch_size
        return ()

    def __call__(
        self, x: Float[Array, "*batch width"], state: tuple[()]
    ) -> tuple[Float[Array, "*batch out_width"], tuple[()]]:
        """Applies the map at each position."""
        return self.input(x), state

    step = __call__


class PlainMLP(GatedMLP):
    """`gelu(W_u x)`, with the exact GELU of PyTorch; the ResBlock has no gate.

    Attributes:
        input: `W_u`.
    """

    branch: ClassVar[str] = "linear"

    def __call__(
        self, x: Float[Array, "*batch width"], state: tuple[()]
    ) -> tuple[Float[Array, "*batch out_width"], tuple[()]]:
        """Applies the map at each position."""
        return jax.nn.gelu(self.input(x), approximate=False), state

    step = __call__
