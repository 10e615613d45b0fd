import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pf_jax.layers import DownPool, UpPool

WIDTH, NEXT_WIDTH = 3, 5


def random_input(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("factor", [2, 5])
def test_down_pool_maps_each_group_of_consecutive_vectors_to_one(randomize, factor):
    layer = randomize(
        lambda: DownPool(WIDTH, NEXT_WIDTH, factor, dtype="float32", rngs=nnx.Rngs(0))
    )
    kernel, bias = layer.projection.kernel[...], layer.projection.bias[...]
    x = random_input(2, 3 * factor, WIDTH)
    y = layer(jnp.asarray(x))
    assert y.shape == (2, 3, NEXT_WIDTH)
    for row in range(2):
        for group in range(3):
            vectors = [x[row, group * factor + position] for position in range(factor)]
            expected = np.concatenate(vectors) @ np.asarray(kernel) + np.asarray(bias)
            np.testing.assert_allclose(y[row, group], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 5])
def test_up_pool_gives_each_position_of_a_group_its_own_map(randomize, factor):
    layer = randomize(lambda: UpPool(WIDTH, NEXT_WIDTH, factor, dtype="float32", rngs=nnx.Rngs(0)))
    kernel, bias = np.asarray(layer.projection.kernel[...]), np.asarray(layer.projection.bias[...])
    y = random_input(2, 3, NEXT_WIDTH)
    x = layer(jnp.asarray(y))
    assert x.shape == (2, 3, factor, WIDTH)
    for position in range(factor):
        own = slice(position * WIDTH, (position + 1) * WIDTH)
        for row in range(2):
            for group in range(3):
                expected = y[row, group] @ kernel[:, own] + bias[own]
                np.testing.assert_allclose(x[row, group, position], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer(jnp.asarray(y[:, 1])), x[:, 1], rtol=1e-5, atol=1e-6)


def test_pooling_starts_at_the_scale_of_its_input():
    @nnx.jit
    def results(x, y):
        down = DownPool(64, 128, 4, dtype="float32", rngs=nnx.Rngs(0))
        up = UpPool(64, 128, 4, dtype="float32", rngs=nnx.Rngs(0))
        return down(x), up(y)

    for result in results(random_input(2, 256, 64), random_input(2, 64, 128)):
        assert np.var(result) == pytest.approx(1.0, abs=0.15)
