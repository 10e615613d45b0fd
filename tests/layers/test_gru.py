"""The GRU against its equations, written once more in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pf_jax import PoolformerConfig
from pf_jax.layers import GRU, GRURecurrence

WIDTH = 4


def make_layer(width=WIDTH, dtype="float32"):
    config = PoolformerConfig((width,), (1,), mixer="gru", dtype=dtype)
    return GRU(width, config, rngs=nnx.Rngs(0))


def parameters(layer):
    """Under the names that PyTorch has for them, in float64."""
    named = {
        "weight_ih": layer.input.kernel,
        "weight_hh": layer.state.kernel,
        "bias_ih": layer.input.bias,
        "bias_hh": layer.state.bias,
    }
    return {name: np.array(p[...], np.float64).T for name, p in named.items()}


def transcription(p, u, h):
    """The equations of the docstring."""

    def sigmoid(x):
        return 1.0 / (1.0 + np.exp(-x))

    states = []
    for t in range(u.shape[1]):
        of_input = np.split(u[:, t] @ p["weight_ih"].T + p["bias_ih"], 3, axis=-1)
        of_state = np.split(h @ p["weight_hh"].T + p["bias_hh"], 3, axis=-1)
        r, z = (sigmoid(a + b) for a, b in zip(of_input[:2], of_state[:2], strict=True))
        n = np.tanh(of_input[2] + r * of_state[2])
        h = (1.0 - z) * n + z * h
        states.append(h)
    return np.stack(states, axis=1)


def random_input(batch=2, time=7, width=WIDTH, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, time, width)).astype(np.float32)


def test_equals_the_equations_from_any_state(randomize):
    layer, u = randomize(make_layer, scale=2.0), random_input()
    run = nnx.jit(lambda layer, u, h: layer(u, h))
    for h in (layer.init_state(2), jnp.asarray(random_input(time=1, seed=2)[:, 0])):
        states, last = run(layer, u, h)
        expected = transcription(
            parameters(layer), u.astype(np.float64), np.asarray(h).astype(np.float64)
        )
        np.testing.assert_allclose(states, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(last, expected[:, -1], rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_equations(randomize, assert_gradients_agree):
    assert_gradients_agree(
        randomize(make_layer, scale=2.0),
        lambda layer, u, h: layer(u, h)[0],
        lambda layer, u, h: transcription(parameters(layer), u, h),
        random_input(time=4),
        random_input(time=1, seed=2)[:, 0],
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parallel_form_equals_steps(randomize, assert_forms_agree, dtype):
    layer = randomize(lambda: make_layer(dtype=dtype), scale=2.0)
    atol = 1e-5 if dtype == "float32" else 0.03
    assert_forms_agree(layer, jnp.asarray(random_input(), dtype), atol=atol)


def test_the_maps_around_it_leave_its_forms_alike(randomize, assert_forms_agree):
    config = PoolformerConfig((WIDTH,), (1,), mixer="gru", convolution="depthwise")
    layer = randomize(lambda: GRURecurrence(WIDTH, config, rngs=nnx.Rngs(0)))
    assert layer.cell.width == 2 * WIDTH
    assert_forms_agree(layer, jnp.asarray(random_input()))


def test_bfloat16_is_near_float32_and_the_state_is_float32(randomize):
    u = random_input(time=100)
    layers = [
        randomize(lambda dtype=dtype: make_layer(dtype=dtype)) for dtype in ("float32", "bfloat16")
    ]
    results = [
        nnx.jit(lambda layer, u: layer(u, layer.init_state(2)))(layer, jnp.asarray(u, layer.dtype))
        for layer in layers
    ]
    (exact, _), (h, last) = results
    assert h.dtype == jnp.bfloat16
    assert last.dtype == jnp.float32
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(layers[1])))
    difference = np.abs(np.asarray(h).astype(np.float32) - exact)
    assert 0 < difference.max() < 0.05


def test_each_gate_starts_with_an_orthogonal_matrix_of_the_state():
    kernel = np.asarray(make_layer(width=16).state.kernel[...])
    for matrix in np.split(kernel, 3, axis=1):
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(16), atol=1e-5)
