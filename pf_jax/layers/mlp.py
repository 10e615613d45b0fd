"""The MLP: where a ResBlock thinks about one position."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from pf_jax.config import PoolformerConfig
from pf_jax.layers.initialization import residual_output


class GatedMLP(nnx.Module):
    """`W_o (gelu(W_g x) * W_u x)` (GeGLU; Griffin, arXiv 2402.19427, section 2.2).

    Attributes:
        gate: `W_g`, to `mlp_expansion` times the width.
        input: `W_u`, likewise.
        output: `W_o`, scaled down at the start.
    """

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the layer for a level of the given width."""
        hidden = max(1, round(config.mlp_expansion * width))
        self.gate = nnx.Linear(width, hidden, dtype=config.dtype, rngs=rngs)
        self.input = nnx.Linear(width, hidden, dtype=config.dtype, rngs=rngs)
        self.output = nnx.Linear(
            hidden, width, kernel_init=residual_output(config), dtype=config.dtype, rngs=rngs
        )

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Applies the MLP at each position."""
        return self.output(jax.nn.gelu(self.gate(x)) * self.input(x))


class PlainMLP(nnx.Module):
    """`W_o gelu(W_i x)`, with the exact GELU of PyTorch.

    Attributes:
        input: `W_i`, to `mlp_expansion` times the width.
        output: `W_o`, scaled down at the start.
    """

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the layer for a level of the given width."""
        hidden = max(1, round(config.mlp_expansion * width))
        self.input = nnx.Linear(width, hidden, dtype=config.dtype, rngs=rngs)
        self.output = nnx.Linear(
            hidden, width, kernel_init=residual_output(config), dtype=config.dtype, rngs=rngs
        )

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Applies the MLP at each position."""
        return self.output(jax.nn.gelu(self.input(x), approximate=False))


MLPS = {"gated": GatedMLP, "plain": PlainMLP}
"""Those that a config can name, besides "none"."""
