"""The block-diagonal map against its blocks, one after another."""

import numpy as np
import pytest
from flax import nnx

from pf_jax.layers.linear import BlockDiagonalLinear
from tests.layers import equations


@pytest.mark.parametrize(
    ("width", "heads", "out_width"),
    [(6, 3, 3), (7, 7, 7), (600, 6, 600), (512, 2, 256), (300, 1, 300), (256, 32, 128)],
)
def test_equals_one_product_for_each_block(randomize, width, heads, out_width):
    sizes = {"out_width": out_width, "dtype": "float32"}
    layer = randomize(lambda: BlockDiagonalLinear(width, heads, **sizes, rngs=nnx.Rngs(0)))
    assert layer.kernel.shape == (heads, width // heads, out_width // heads)
    x = np.random.default_rng(1).standard_normal((2, 3, width)).astype(np.float32)
    expected = equations.block_diagonal(layer, x.astype(np.float64))
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
