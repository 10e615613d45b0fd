"""Pools between the levels: a group of positions becomes one, and one becomes a group."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pf_jax.config import PoolformerConfig
from pf_jax.layers.initialization import residual_output


class DownPool(nnx.Module):
    """A linear map of `factor` consecutive vectors to one, by groups of channels.

    An output channel depends on the input channels of its group only: on all with one group, on its
    own with as many groups as channels.

    Attributes:
        kernel: `(factor, width / groups, next_width)`.
        bias: `(next_width,)`.
    """

    def __init__(self, level: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the pool from a level to the next."""
        width, next_width = config.widths[level : level + 2]
        self.factor, self.dtype = config.pool_factors[level], config.dtype
        shape = (self.factor, width // _groups(level, config), next_width)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros((next_width,)))

    def __call__(
        self, x: Float[Array, "batch groups*factor width"]
    ) -> Float[Array, "batch groups next_width"]:
        """Pools whole groups of positions."""
        x = x.astype(self.dtype).reshape(x.shape[0], -1, self.factor, x.shape[-1])
        return pool_down(x, self.kernel.astype(self.dtype), self.bias.astype(self.dtype))


class UpPool(nnx.Module):
    """A linear map of one vector to `factor` consecutive ones, by groups of channels.

    Attributes:
        kernel: `(next_width / groups, factor, width)`.
        bias: `(factor, width)` with one group; with more it is shared by positions, `(width,)`.
    """

    def __init__(self, level: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the pool to a level from the next."""
        width, next_width = config.widths[level : level + 2]
        factor, groups, self.dtype = (
            config.pool_factors[level],
            _groups(level, config),
            config.dtype,
        )
        # Flax's fan-in: that of a dense layer with one group, of a grouped convolution with more.
        axes = {"in_axis": 0, "batch_axis": 1} if groups == 1 else {"in_axis": (0, 1)}
        init = residual_output(config, level, out_axis=2, **axes)
        self.kernel = nnx.Param(init(rngs.params(), (next_width // groups, factor, width)))
        self.bias = nnx.Param(jnp.zeros((factor, width) if groups == 1 else (width,)))

    def __call__(self, y: Float[Array, "*batch next_width"]) -> Float[Array, "*batch factor width"]:
        """Unpools each vector."""
        y = y.astype(self.dtype)
        return pool_up(y, self.kernel.astype(self.dtype), self.bias.astype(self.dtype))


def pool_down(
    x: Float[Array, "*batch factor width"],
    kernel: Float[Array, "factor width/groups next_width"],
    bias: Float[Array, "next_width"],
) -> Float[Array, "*batch next_width"]:
    """The equation of `DownPool`."""
    factor, group_width, next_width = kernel.shape
    groups = x.shape[-1] // group_width
    if group_width == 1 and next_width == groups:
        return jnp.sum(x * kernel[:, 0], axis=-2) + bias
    x = x.reshape(*x.shape[:-1], groups, group_width)
    kernel = kernel.reshape(factor, group_width, groups, -1)
    y = jnp.einsum("...fgi,figo->...go", x, kernel)
    return y.reshape(*y.shape[:-2], next_width) + bias


def pool_up(
    y: Float[Array, "*batch next_width"],
    kernel: Float[Array, "next_width/groups factor width"],
    bias: Float[Array, "#factor width"] | Float[Array, "width"],
) -> Float[Array, "*batch factor width"]:
    """The equation of `UpPool`."""
    group_width, factor, width = kernel.shape
    groups = y.shape[-1] // group_width
    if group_width == 1 and width == groups:
        return y[..., None, :] * kernel[0] + bias
    y = y.reshape(*y.shape[:-1], groups, group_width)
    kernel = kernel.reshape(group_width, factor, groups, -1)
    x = jnp.einsum("...gi,ifgo->...fgo", y, kernel)
    return x.reshape(*x.shape[:-3], factor, width) + bias


def _groups(level: int, config: PoolformerConfig) -> int:
    return config.widths[level] if config.pool_groups is None else config.pool_groups
