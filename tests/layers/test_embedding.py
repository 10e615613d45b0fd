import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pf_jax import PoolformerConfig
from pf_jax.layers import Embedding
from pf_jax.layers.embedding import sinusoidal_features

both = pytest.mark.parametrize("embedding", ["sinusoidal", "learned"])


@functools.partial(nnx.jit, static_argnums=0)
def fresh(config, seed):
    return Embedding(config.widths[0], config, rngs=nnx.Rngs(jax.random.key(seed)))


def make_layer(embedding, width=32, vocab_size=256, dtype="float32", seed=0):
    config = PoolformerConfig(
        (width,), (1,), vocab_size=vocab_size, embedding=embedding, dtype=dtype
    )
    return fresh(config, seed)


@nnx.jit
def embed(layer, tokens):
    return layer(tokens)


def test_sinusoidal_levels_lie_the_nearer_the_closer_they_are():
    x = np.asarray(make_layer("sinusoidal", width=64)(jnp.arange(256)))
    lags = (1, 2, 4, 16, 64, 128)
    distances = [np.linalg.norm(x[lag:] - x[:-lag], axis=1).mean() for lag in lags]
    # Waves of 4 levels and more tell neighbours apart; beyond half the range all are far.
    assert np.all(np.diff(distances[:5]) > 0), distances
    assert distances[0] < 0.6 * min(distances[3:]), distances


def test_sinusoidal_levels_are_all_different():
    x = np.asarray(make_layer("sinusoidal", width=16)(jnp.arange(256)))
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1) + 1e9 * np.eye(256)
    assert distances.min() > 0.05 * np.linalg.norm(x, axis=1).mean()


def test_sinusoidal_features_are_the_formula():
    features = sinusoidal_features(256, 5)
    assert features.shape == (256, 10)
    assert features.dtype == np.float32
    for k in range(5):
        wavelength = 4.0 * 256 ** (k / 4)
        for level in (0, 1, 100, 255):
            phase = 2.0 * np.pi * level / wavelength
            expected = np.sqrt(2.0) * np.array([np.sin(phase), np.cos(phase)])
            np.testing.assert_allclose(features[level, [k, 5 + k]], expected, atol=1e-5)


def test_learned_embedding_is_a_table():
    layer = make_layer("learned", vocab_size=10)
    tokens = np.array([[3, 0, 9], [9, 9, 1]])
    np.testing.assert_array_equal(layer(jnp.asarray(tokens)), np.asarray(layer.table[...])[tokens])


@both
def test_the_token_past_the_vocabulary_is_the_learned_start(randomize, embedding):
    layer = randomize(lambda: make_layer(embedding))
    tokens = jnp.array([256, 7, 256])
    x = layer(tokens)
    np.testing.assert_array_equal(x[0], layer.start[...])
    np.testing.assert_array_equal(x[2], layer.start[...])
    np.testing.assert_allclose(x[1], layer(jnp.array([7]))[0], rtol=1e-5, atol=1e-6)
    assert not np.array_equal(x[1], layer.start[...])
    gradient = nnx.grad(lambda layer: layer(tokens).sum())(layer)
    np.testing.assert_array_equal(gradient.start[...], jnp.full((32,), 2.0))


@both
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_token_outside_is_nan_and_touches_no_other(embedding, dtype):
    layer = make_layer(embedding, dtype=dtype)
    tokens = jnp.array([[0, -1, 255], [257, 256, 10_000]])
    x = embed(layer, tokens)
    assert x.dtype == dtype
    outside = (tokens < 0) | (tokens > 256)
    np.testing.assert_array_equal(np.isnan(x.astype(jnp.float32)).all(axis=-1), outside)
    np.testing.assert_array_equal(np.isnan(x.astype(jnp.float32)).any(axis=-1), outside)


@both
def test_vectors_start_out_with_variance_one(embedding):
    layers = [make_layer(embedding, width=64, seed=seed) for seed in range(4)]
    variances = [np.var(embed(layer, np.arange(256))) for layer in layers]
    assert np.mean(variances) == pytest.approx(1.0, abs=0.2)


@both
def test_parameters_are_float32_whatever_the_compute_type(embedding):
    layer = make_layer(embedding, dtype="bfloat16")
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(layer, nnx.Param)))
