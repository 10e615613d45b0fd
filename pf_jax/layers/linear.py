"""Linear maps that Flax does not have."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class BlockDiagonalLinear(nnx.Module):
    """A linear map that mixes channels within `num_heads` blocks only.

    Attributes:
        kernel: One square matrix a block, `(heads, width / heads, width / heads)`.
        bias: `(heads, width / heads)`.
    """

    def __init__(self, width: int, num_heads: int, *, dtype, rngs: nnx.Rngs):
        """Makes the layer; `num_heads` must divide `width`."""
        block = width // num_heads
        init = nnx.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0)
        self.dtype = dtype
        self.kernel = nnx.Param(init(rngs.params(), (num_heads, block, block)))
        self.bias = nnx.Param(jnp.zeros((num_heads, block)))

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Applies the map to the last axis."""
        heads, block, _ = self.kernel.shape
        kernel, bias = self.kernel.astype(self.dtype), self.bias.astype(self.dtype)
        blocks = x.astype(self.dtype).reshape(*x.shape[:-1], heads, block)
        y = jnp.einsum("...hi,hij->...hj", blocks, kernel) + bias
        return y.reshape(x.shape)
