"""Pools by groups of channels against loops over channels in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pf_jax import PoolformerConfig
from pf_jax.layers import DownPool, UpPool
from tests.layers import equations

# (widths, groups): dense, between, channel by channel.
SHAPES = [((3, 5), 1), ((4, 6), 2), ((6, 6), 3), ((4, 4), None), ((4, 4), 4), ((2, 6), 2)]
every_shape = pytest.mark.parametrize(("widths", "groups"), SHAPES)


def make_config(widths, groups, factor, **fields):
    fields = {"mixer": "none", "embedding": "learned", **fields}
    return PoolformerConfig(widths, (1, 1), (factor,), groups, **fields)


def random_input(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@every_shape
@pytest.mark.parametrize("factor", [2, 5])
def test_pools_equal_their_equations(randomize, widths, groups, factor):
    config = make_config(widths, groups, factor)
    down, up = (
        randomize(lambda kind=kind: kind(0, config, rngs=nnx.Rngs(0)))
        for kind in (DownPool, UpPool)
    )
    x, y = random_input(2, 3 * factor, widths[0]), random_input(2, 3, widths[1])
    expected = equations.down_pool(down, x.astype(np.float64))
    np.testing.assert_allclose(down(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)
    expected = equations.up_pool(up, y.astype(np.float64))
    np.testing.assert_allclose(up(jnp.asarray(y)), expected, rtol=1e-5, atol=1e-5)
    # One vector by itself, as in the recurrent form.
    np.testing.assert_allclose(up(jnp.asarray(y[:, 1])), expected[:, 1], rtol=1e-5, atol=1e-5)
    # One group has a bias for each position, as the published code has.
    assert up.bias.shape == ((factor, widths[0]) if groups == 1 else (widths[0],))


@pytest.mark.parametrize("groups", [1, 4, None])
def test_pooling_starts_at_the_scale_of_its_input_and_of_a_branch(groups):
    """A level of one block on each side has five branches: four ResBlocks, and the up-pooling."""

    @nnx.jit
    def results(x, y):
        config = make_config((256, 256), groups, 4)
        return DownPool(0, config, rngs=nnx.Rngs(0))(x), UpPool(0, config, rngs=nnx.Rngs(0))(y)

    down, up = results(random_input(2, 64, 256), random_input(2, 64, 256))
    # Flax's fan-in of a transposed convolution of few channels counts its taps.
    fan_in = 1.0 if groups == 1 else 4.0
    assert np.var(down) == pytest.approx(1.0, abs=0.15)
    assert np.var(up) * 5.0 * fan_in == pytest.approx(1.0, abs=0.2)
