"""How weights start, where that depends on the whole model."""

from flax import nnx

from pf_jax.config import PoolformerConfig


def residual_output(config: PoolformerConfig) -> nnx.Initializer:
    """For the last kernel of a residual branch: scaled down with depth.

    The residual stream sums two branches a ResBlock; with a variance of `1 / num_blocks` each, the
    sum starts out at the scale of the input however deep the model is.
    """
    variance = 1.0 / max(1, config.num_blocks)
    return nnx.initializers.variance_scaling(variance, "fan_in", "truncated_normal")
