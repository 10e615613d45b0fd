"""The block-diagonal map against its blocks, one after another."""

import numpy as np
import pytest
from flax import nnx

from pf_jax.layers.linear import BlockDiagonalLinear


@pytest.mark.parametrize(("width", "heads"), [(6, 3), (7, 7), (600, 6), (512, 2), (300, 1)])
def test_equals_one_product_for_each_block(randomize, width, heads):
    layer = randomize(lambda: BlockDiagonalLinear(width, heads, dtype="float32", rngs=nnx.Rngs(0)))
    x = np.random.default_rng(1).standard_normal((2, 3, width)).astype(np.float32)
    kernel, bias = (np.array(p[...], np.float64) for p in (layer.kernel, layer.bias))
    blocks = np.split(x.astype(np.float64), heads, axis=-1)
    expected = [block @ w + b for block, w, b in zip(blocks, kernel, bias, strict=True)]
    np.testing.assert_allclose(layer(x), np.concatenate(expected, axis=-1), rtol=1e-5, atol=1e-5)
