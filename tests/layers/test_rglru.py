"""The gated recurrences, real and complex, against their equations in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from pf_jax import PoolformerConfig
from pf_jax.layers import CGLRU, RGLRU
from tests.layers import equations

WIDTH = 8

both = pytest.mark.parametrize("kind", [RGLRU, CGLRU])


def make_layer(kind, width=WIDTH, **fields):
    fields = {"num_heads": 2, "mixer": "none", **fields}
    return kind(width, PoolformerConfig((width,), (1,), **fields), rngs=nnx.Rngs(0))


def random_input(batch=2, time=7, width=WIDTH, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, time, width)).astype(np.float32)


@nnx.jit
def run(layer, u, state):
    return layer(u, state)


@both
@pytest.mark.parametrize(
    ("num_heads", "recurrence"), [(1, "sequential"), (2, "associative"), (4, "auto")]
)
def test_equals_the_equations_from_zero_and_from_any_state(randomize, kind, num_heads, recurrence):
    layer = randomize(lambda: make_layer(kind, num_heads=num_heads, recurrence=recurrence), 2.0)
    u, h = random_input(), random_input(time=1, seed=2)[:, 0]
    np.testing.assert_array_equal(layer.init_state(2), np.zeros((2, WIDTH), np.float32))
    for state, before in ((layer.init_state(2), None), (jnp.asarray(h), h)):
        states, last = run(layer, u, state)
        expected = equations.gated_recurrence(layer, u.astype(np.float64), before)
        np.testing.assert_allclose(states, expected, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(last, expected[:, -1], rtol=1e-5, atol=2e-6)


@both
def test_gradients_are_those_of_the_equations(randomize, assert_gradients_agree, kind):
    assert_gradients_agree(
        randomize(lambda: make_layer(kind, width=4), 2.0),
        lambda layer, u, h: layer(u, h),
        lambda layer, u, h: (x := equations.gated_recurrence(layer, u, h), x[:, -1]),
        random_input(time=4, width=4),
        random_input(time=1, width=4, seed=2)[:, 0],
    )


@both
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_parallel_form_equals_steps(randomize, assert_forms_agree, kind, dtype, atol):
    layer = randomize(lambda: make_layer(kind, dtype=dtype), 2.0)
    # In bfloat16 a compiler may keep more digits of the gates in one form than in the other.
    assert_forms_agree(layer, jnp.asarray(random_input(), dtype), atol=atol)


@both
def test_bfloat16_output_is_bfloat16_and_the_recurrence_inside_float32(kind):
    layer = make_layer(kind, dtype="bfloat16")
    # Nothing but decay: 300 steps of 0.999 in bfloat16 would not move from 1.
    layer.decay[...] = jnp.full_like(layer.decay[...], np.log(np.expm1(-np.log(0.999) / 4.0)))
    h, state = run(layer, jnp.zeros((1, 300, WIDTH), jnp.bfloat16), jnp.ones((1, WIDTH)))
    assert h.dtype == jnp.bfloat16
    assert state.dtype == jnp.float32
    modulus = np.abs(state) if kind is RGLRU else np.hypot(*np.split(state, 2, axis=-1)) / 2**0.5
    np.testing.assert_allclose(modulus, 0.999**300, rtol=1e-4)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(layer, nnx.Param)))


def test_neither_values_nor_gradients_drift_in_a_long_sequence(randomize):
    """Some seconds, in which a state turns a thousand times: angles must not be added up."""
    time = 40_000
    layer, u = randomize(lambda: make_layer(CGLRU, width=2, num_heads=1)), random_input(1, time, 2)
    layer.turn[...] = jnp.array([0.3])
    layer.decay[...] = jnp.array([-7.0])  # A memory of some hundred positions.
    weight, exact = random_input(1, time, 2, seed=2), u.astype(np.float64)

    @nnx.jit
    def gradient(layer, u, weight):
        def loss(layer):
            h, _ = layer(u, layer.init_state(1))
            return jnp.sum(weight * h), h

        return nnx.grad(loss, has_aux=True)(layer)

    gradients, h = gradient(layer, u, weight)
    np.testing.assert_allclose(h, equations.gated_recurrence(layer, exact), atol=5e-6)
    graph, params = nnx.split(layer)

    def loss(change):
        changed = nnx.merge(graph, jax.tree.map(lambda p: np.array(p, np.float64), params))
        changed.turn[...] = changed.turn[...] + change
        return np.sum(equations.gated_recurrence(changed, exact) * weight)

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    np.testing.assert_allclose(gradients.turn[...], slope, rtol=2e-5)


@both
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("decay", "gate_bias"), [(-20.0, 0.0), (-200.0, 0.0), (0.0, -100.0), (100.0, 0.0)]
)
def test_nothing_breaks_where_nothing_or_everything_is_forgotten(kind, dtype, decay, gate_bias):
    """There `a` rounds to 1 in float32, where the square root's slope has no bound, or to 0."""
    layer = make_layer(kind, dtype=dtype)
    layer.decay[...] = jnp.full_like(layer.decay[...], decay)
    layer.recurrence_gate.bias[...] = jnp.full_like(layer.recurrence_gate.bias[...], gate_bias)
    u = random_input(time=50)

    @nnx.jit
    def gradient(layer, u):
        def loss(layer, u):
            h, _ = layer(u.astype(dtype), layer.init_state(2))
            return jnp.sum(h.astype(jnp.float32) ** 2), h

        return nnx.grad(loss, argnums=(0, 1), has_aux=True)(layer, u)

    gradients, h = gradient(layer, u)
    assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(gradients))
    rounded = np.asarray(jnp.asarray(u, dtype)).astype(np.float64)
    expected = equations.gated_recurrence(layer, rounded)
    atol = 2e-6 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(np.asarray(h).astype(np.float64), expected, atol=atol)


@both
def test_log_decay_is_that_of_the_modulus_and_its_bound_that_of_an_open_gate(randomize, kind):
    layer, u = randomize(lambda: make_layer(kind)), random_input()
    log_a, bound = layer.log_decay(u)
    expected = equations.log_decay(layer, u.astype(np.float64))
    assert log_a.shape == expected.shape == (2, 7, WIDTH // layer.coefficients.parts)
    np.testing.assert_allclose(log_a, expected, rtol=1e-5)
    exact = -8.0 * np.log1p(np.exp(equations.value(layer.decay)))
    np.testing.assert_allclose(bound, exact, rtol=1e-5)
    assert (np.asarray(log_a) > np.asarray(bound)).all()


@both
@pytest.mark.parametrize("radii", [(0.9, 0.99), (0.5, 0.999), (0.8, 0.8)])
def test_initial_radii_are_spread_evenly_by_area(kind, radii):
    channels = 2**14
    layer = make_layer(kind, channels * kind.coefficients.parts, num_heads=channels, radii=radii)
    radius = np.exp(-np.log1p(np.exp(equations.value(layer.decay))))
    assert radius.shape == (channels,)
    low, high = radii
    assert low - 1e-6 <= radius.min() < low + 0.01
    assert high - 0.01 < radius.max() <= high + 1e-6
    if low < high:
        area = scipy.stats.kstest(radius**2, "uniform", (low**2, high**2 - low**2))
        assert area.pvalue > 1e-3


@pytest.mark.parametrize("turns", [(0.0, 0.1 * np.pi), (-1.0, 2.0)])
def test_initial_turns_are_spread_evenly(turns):
    layer = make_layer(CGLRU, 2**12, turns=turns)
    low, high = turns
    assert scipy.stats.kstest(layer.turn[...], "uniform", (low, high - low)).pvalue > 1e-3
    fields = {field.name: field.default for field in PoolformerConfig.__dataclass_fields__.values()}
    assert fields["turns"] == (0.0, 0.1 * np.pi)
    assert fields["radii"] == (0.9, 0.99)
