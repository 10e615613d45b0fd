"""The norm in front of each branch of a ResBlock, and of the head."""

from flax import nnx

from pf_jax.config import PoolformerConfig

Norm = nnx.RMSNorm | nnx.LayerNorm

_LAYER_NORM_EPSILON = 1e-5  # PyTorch's, so that its weights mean the same here.


def make_norm(width: int, config: PoolformerConfig, *, rngs: nnx.Rngs) -> Norm:
    """The norm that the config names: RMSNorm (Zhang & Sennrich, 2019), or LayerNorm."""
    if config.norm == "layer":
        return nnx.LayerNorm(width, epsilon=_LAYER_NORM_EPSILON, dtype=config.dtype, rngs=rngs)
    return nnx.RMSNorm(width, dtype=config.dtype, rngs=rngs)
