"""Initializers that depend on the whole model."""

from flax import nnx

from pf_jax.config import PoolformerConfig


def residual_output(
    config: PoolformerConfig, level: int | None = None, **axes: int
) -> nnx.Initializer:
    """For the last kernel of each branch that is added to a level's residual stream.

    The variance is `1 / branches / fan_in`, where `branches` counts those of the level: two a
    block, and one for the up-pooling. Their sum then starts out at the scale of one.

    Args:
        config: The model's hyper-parameters.
        level: The level whose residual stream it is; None counts the branches of all levels.
        **axes: `in_axis`, `out_axis`, `batch_axis` of the kernel, as for Flax.
    """
    levels = range(config.num_levels) if level is None else [level]
    blocks = sum(sum(config.depth(level)) for level in levels)
    branches = blocks * (1 if config.mlp == "none" else 2)
    branches += sum(level < config.num_levels - 1 for level in levels)
    return nnx.initializers.variance_scaling(1.0 / max(1, branches), "fan_in", "normal", **axes)
