import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pf_jax import PoolformerConfig
from pf_jax.config import EMBEDDINGS
from pf_jax.layers import Embedding
from pf_jax.layers.embedding import sinusoidal_features, wave_features

every_kind = pytest.mark.parametrize("embedding", EMBEDDINGS)


@functools.partial(nnx.jit, static_argnums=0)
def fresh(config, seed):
    return Embedding(config.widths[0], config, rngs=nnx.Rngs(jax.random.key(seed)))


def make_layer(embedding, width=32, vocab_size=256, dtype="float32", seed=0):
    config = PoolformerConfig(
        (width,), (0,), vocab_size=vocab_size, embedding=embedding, dtype=dtype
    )
    return fresh(config, seed)


@nnx.jit
def embed(layer, tokens):
    return layer(tokens)


def test_sinusoidal_embedding_is_cosines_then_sines_and_nothing_is_learned():
    layer = make_layer("sinusoidal", width=6)
    assert not jax.tree.leaves(nnx.state(layer, nnx.Param))
    x = np.asarray(layer(jnp.arange(256)), np.float64)
    np.testing.assert_array_equal(x, sinusoidal_features(256, 6))
    for i in range(3):
        for level in (0, 1, 128, 255):
            angle = level * 10_000.0 ** (-i / 3)
            np.testing.assert_allclose(x[level, i], np.cos(angle), atol=1e-6)
            np.testing.assert_allclose(x[level, 3 + i], np.sin(angle), atol=1e-6)


def test_a_linear_map_of_waves_that_fit_the_vocabulary(randomize):
    layer = randomize(lambda: make_layer("sinusoidal_linear", width=5))
    features = wave_features(256, 5)
    assert features.shape == (256, 10)
    assert features.dtype == np.float32
    for k in range(5):
        wavelength = 4.0 * 256 ** (k / 4)
        for level in (0, 1, 100, 255):
            phase = 2.0 * np.pi * level / wavelength
            expected = np.sqrt(2.0) * np.array([np.sin(phase), np.cos(phase)])
            np.testing.assert_allclose(features[level, [k, 5 + k]], expected, atol=1e-5)
    kernel, bias = (np.asarray(p[...]) for p in (layer.projection.kernel, layer.projection.bias))
    tokens = np.array([[3, 0], [255, 17]])
    expected = features[tokens] @ kernel + bias
    np.testing.assert_allclose(layer(jnp.asarray(tokens)), expected, rtol=1e-5, atol=1e-5)


def test_learned_embedding_is_a_table():
    layer = make_layer("learned", vocab_size=10)
    tokens = np.array([[3, 0, 9], [9, 9, 1]])
    np.testing.assert_array_equal(layer(jnp.asarray(tokens)), np.asarray(layer.table[...])[tokens])


@pytest.mark.parametrize("embedding", ["sinusoidal", "sinusoidal_linear"])
def test_levels_lie_the_nearer_the_closer_they_are_and_are_all_different(embedding):
    x = np.asarray(make_layer(embedding, width=64)(jnp.arange(256)))
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    lags = (1, 2, 4, 16, 64)
    means = [np.diagonal(distances, lag).mean() for lag in lags]
    assert np.all(np.diff(means) > 0), means
    assert means[0] < 0.6 * min(means[3:]), means
    least = (distances + 1e9 * np.eye(256)).min()
    assert least > 0.05 * np.linalg.norm(x, axis=1).mean()


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_token_outside_is_nan_and_touches_no_other(embedding, dtype):
    layer = make_layer(embedding, dtype=dtype)
    tokens = jnp.array([[0, -1, 255], [257, 256, 10_000]])
    x = embed(layer, tokens)
    assert x.dtype == dtype
    outside = (tokens < 0) | (tokens > 255)
    np.testing.assert_array_equal(np.isnan(x.astype(jnp.float32)).all(axis=-1), outside)
    np.testing.assert_array_equal(np.isnan(x.astype(jnp.float32)).any(axis=-1), outside)


@pytest.mark.parametrize("embedding", ["sinusoidal_linear", "learned"])
def test_learned_vectors_start_with_variance_one_and_float32_parameters(embedding):
    layers = [make_layer(embedding, width=64, seed=seed) for seed in range(4)]
    variances = [np.var(embed(layer, np.arange(256))) for layer in layers]
    assert np.mean(variances) == pytest.approx(1.0, abs=0.2)
    layer = make_layer(embedding, dtype="bfloat16")
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(layer, nnx.Param)))
