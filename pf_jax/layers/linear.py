"""Linear maps that Flax does not have."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

_WIDTH = 256


class BlockDiagonalLinear(nnx.Module):
    """A linear map that mixes channels within `num_heads` blocks only.

    Attributes:
        kernel: One matrix a block, `(heads, width / heads, out_width / heads)`.
        bias: `(heads, out_width / heads)`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        out_width: int | None = None,
        dtype,
        rngs: nnx.Rngs,
    ):
        """Makes the layer; `num_heads` must divide `width`, and `out_width` where it is another."""
        block, out_block = width // num_heads, (out_width or width) // num_heads
        init = nnx.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0)
        self.dtype = dtype
        self.kernel = nnx.Param(init(rngs.params(), (num_heads, block, out_block)))
        self.bias = nnx.Param(jnp.zeros((num_heads, out_block)))

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch out_width"]:
        """Applies the map to the last axis."""
        kernel, bias = self.kernel.astype(self.dtype), self.bias.astype(self.dtype)
        kernel = _merged(kernel)
        groups, width, out_width = kernel.shape
        x = x.astype(self.dtype)
        y = jnp.einsum("...gi,gij->...gj", x.reshape(*x.shape[:-1], groups, width), kernel)
        return y.reshape(*x.shape[:-1], groups * out_width) + bias.reshape(-1)


def _merged(kernel: Float[Array, "heads block out"]) -> Float[Array, "groups width out_width"]:
    """The same map in fewer and larger blocks, with zeros between the old ones.

    Matrix units take 128 or 256 channels at a time, and processors too lose more with many small
    products than with the zeros. Small blocks would also lead XLA to layouts that must be undone.
    """
    heads, block, out_block = kernel.shape
    fitting = [n for n in range(2, heads + 1) if heads % n == 0 and n * block <= _WIDTH]
    number = max(fitting, default=1)
    kernel = kernel.reshape(-1, number, block, out_block)
    spread = jnp.einsum("ghij,hk->ghikj", kernel, jnp.eye(number, dtype=kernel.dtype))
    return spread.reshape(-1, number * block, number * out_block)
