"""Attention against softmax attention with rotary positions, written in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pf_jax import PoolformerConfig
from pf_jax.layers import Attention, attention

WIDTH, HEADS = 8, 2


def make_layer(window=5, width=WIDTH, heads=HEADS, dtype="float32"):
    fields = {"num_heads": heads, "attention_window": window, "dtype": dtype}
    config = PoolformerConfig((width,), (1,), embedding="learned", mixer="attention", **fields)
    return Attention(width, config, rngs=nnx.Rngs(0))


def parameters(layer):
    """By name, in float64."""
    named = {"W_qkv": layer.input.kernel, "b_qkv": layer.input.bias}
    return {name: np.array(p[...], np.float64) for name, p in named.items()}


def transcription(p, x, window, heads):
    """The equations of the docstring, one query after another, with planes as complex numbers."""
    batch, time, width = x.shape
    size = width // heads
    planes = size // 2
    qkv = x @ p["W_qkv"] + p["b_qkv"]
    q, k, v = (part.reshape(batch, time, heads, size) for part in np.split(qkv, 3, axis=-1))
    frequencies = 10_000.0 ** (-np.arange(planes) / max(planes, 1))

    def rotated(x, t):
        plane = (x[..., :planes] + 1j * x[..., planes : 2 * planes]) * np.exp(1j * t * frequencies)
        return np.concatenate([plane.real, plane.imag, x[..., 2 * planes :]], axis=-1)

    y = np.zeros_like(v)
    for t in range(time):
        heard = range(max(0, t - window + 1), t + 1)
        query = rotated(q[:, t], t)
        scores = np.stack([np.sum(query * rotated(k[:, s], s), axis=-1) for s in heard], axis=-1)
        weights = np.exp(scores / np.sqrt(size))
        weights /= weights.sum(axis=-1, keepdims=True)
        y[:, t] = np.einsum("bhs,bshd->bhd", weights, v[:, heard])
    return y.reshape(batch, time, width)


def random_input(batch=2, time=7, width=WIDTH, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, time, width)).astype(np.float32)


@nnx.jit
def forward(layer, x, state):
    return layer(x, state)


@pytest.mark.parametrize(
    ("window", "time", "heads", "width"),
    [
        (1, 3, 2, 8),  # Nothing but itself.
        (4, 4, 2, 8),
        (5, 17, 1, 7),  # An odd channel.
        (5, 23, 4, 4),  # Nothing to turn.
        (30, 11, 2, 8),
        (16, 33, 2, 6),
    ],
)
def test_equals_the_equations(monkeypatch, randomize, window, time, heads, width):
    monkeypatch.setattr(attention, "_ROWS", 3)
    layer = randomize(lambda: make_layer(window, width, heads), scale=2.0)
    x = random_input(time=time, width=width)
    y, state = forward(layer, x, layer.init_state(2))
    expected = transcription(parameters(layer), x.astype(np.float64), window, heads)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert int(state.count) == time


def test_gradients_are_those_of_the_equations(monkeypatch, randomize, assert_gradients_agree):
    monkeypatch.setattr(attention, "_ROWS", 2)
    assert_gradients_agree(
        randomize(lambda: make_layer(window=3, width=4, heads=1), scale=2.0),
        lambda layer, x: layer(x, layer.init_state(2))[0],
        lambda layer, x: transcription(parameters(layer), x, window=3, heads=1),
        random_input(time=8, width=4),
        atol=2e-5,
    )


@pytest.mark.parametrize(("dtype", "window"), [("float32", 4), ("float32", 1), ("bfloat16", 3)])
def test_parallel_form_equals_steps(randomize, assert_forms_agree, dtype, window):
    layer = randomize(lambda: make_layer(window, dtype=dtype))
    atol = 1e-5 if dtype == "float32" else 0.05
    assert_forms_agree(layer, jnp.asarray(random_input(), dtype), atol=atol)


@pytest.mark.parametrize(("window", "pieces"), [(6, (1, 13, 4)), (3, (2, 1))])
def test_pieces_of_any_length_equal_the_whole(randomize, window, pieces):
    layer, x = randomize(lambda: make_layer(window)), random_input(time=sum(pieces))
    expected, end = forward(layer, x, layer.init_state(2))
    state, ys = layer.init_state(2), []
    for piece in np.split(x, np.cumsum(pieces)[:-1], axis=1):
        y, state = forward(layer, piece, state)
        ys.append(y)
    np.testing.assert_allclose(np.concatenate(ys, axis=1), expected, atol=1e-5)
    for actual, wanted in zip(state, end, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-5)


def test_bfloat16_is_near_float32(randomize):
    x = random_input(time=40)
    exact, rough = (
        forward(layer, jnp.asarray(x, layer.dtype), layer.init_state(2))[0]
        for layer in (randomize(lambda d=d: make_layer(dtype=d)) for d in ("float32", "bfloat16"))
    )
    assert rough.dtype == jnp.bfloat16
    difference = np.abs(np.asarray(rough).astype(np.float32) - exact)
    assert 0 < difference.max() < 0.1


@pytest.mark.parametrize("start", [1_000_000_008, 2**31 - 16])
def test_outputs_are_the_same_after_hours_and_where_the_count_is_turned_back(randomize, start):
    """Only distances matter: to an empty past, and to one that began long ago."""
    layer, x = randomize(lambda: make_layer(window=7)), random_input(time=40)
    early = layer.init_state(2)._replace(count=jnp.array(64, jnp.int32))
    late = early._replace(count=jnp.array(start, jnp.int32))
    expected, _ = forward(layer, x, early)
    y, after = forward(layer, x, late)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    step, state = nnx.jit(lambda layer, x, state: layer.step(x, state)), late
    for t in range(40):
        y, state = step(layer, x[:, t], state)
        np.testing.assert_allclose(y, expected[:, t], atol=1e-5)
    assert int(state.count) == int(after.count) > 2**29
    for ring in ("keys", "values"):
        np.testing.assert_allclose(getattr(state, ring), getattr(after, ring), atol=1e-5)


def sizes(jaxpr):
    """The number of entries of each array in a program, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


def test_memory_grows_with_the_length_and_not_with_its_square():
    window, heads = 300, 4
    layer = make_layer(window, heads=heads)
    graph, params = nnx.split(layer)

    def loss(params, x):
        layer = nnx.merge(graph, params)
        return jnp.sum(layer(x, layer.init_state(1))[0] ** 2)

    def largest(time):
        x = jax.ShapeDtypeStruct((1, time, WIDTH), jnp.float32)
        return max(sizes(jax.make_jaxpr(jax.grad(loss))(params, x).jaxpr))

    # Either scores, of 256 queries at a time, or all queries, keys and values with some padding.
    of_scores = heads * 256 * (256 + window)
    assert largest(600) == of_scores
    assert largest(16_000) == of_scores
    assert of_scores < largest(64_000) < 64_000 * 3 * WIDTH * 1.1
