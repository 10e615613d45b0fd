"""Position-wise layers against their equations; the ResBlock around them has the gate."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from pf_jax import PoolformerConfig
from pf_jax.layers import GatedMLP, PlainMLP
from tests.layers import equations

WIDTH = 6


@pytest.mark.parametrize(("expansion", "hidden"), [(2.0, 12), (1.4, 8), (0.01, 1)])
@pytest.mark.parametrize("kind", [GatedMLP, PlainMLP])
def test_mlps_equal_their_equations_in_both_forms(randomize, kind, expansion, hidden):
    config = PoolformerConfig((WIDTH,), (1,), mixer="none", mlp_expansion=expansion)
    layer = randomize(lambda: kind(WIDTH, config, rngs=nnx.Rngs(0)))
    assert layer.input.kernel.shape == (WIDTH, layer.out_width) == (WIDTH, hidden)
    x = np.random.default_rng(1).standard_normal((2, 7, WIDTH)).astype(np.float32)
    expected = equations.linear(layer.input, x.astype(np.float64))
    if kind is PlainMLP:
        expected = 0.5 * expected * (1.0 + erf(expected / np.sqrt(2.0)))
    y, state = layer(jnp.asarray(x), layer.init_state(2))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    y, after = layer.step(jnp.asarray(x[:, 3]), state)
    np.testing.assert_allclose(y, expected[:, 3], rtol=1e-4, atol=1e-5)
    assert state == after == ()
