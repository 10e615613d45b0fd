"""The norm in front of each layer and of the head."""

from flax import nnx

from pf_jax.config import PoolformerConfig

Norm = nnx.RMSNorm | nnx.LayerNorm


def make_norm(width: int, config: PoolformerConfig, *, rngs: nnx.Rngs) -> Norm:
    """The norm that the config names: LayerNorm, or RMSNorm (Zhang & Sennrich, 2019)."""
    norm = nnx.LayerNorm if config.norm == "layer" else nnx.RMSNorm
    return norm(width, epsilon=config.norm_epsilon, dtype=config.dtype, rngs=rngs)
