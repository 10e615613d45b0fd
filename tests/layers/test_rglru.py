"""The RG-LRU against its equations, written once more in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from pf_jax.layers import RGLRU
from pf_jax.layers.rglru import sqrt_one_minus_exp

HEADS, WIDTH = 2, 6


def make_layer(width=WIDTH, num_heads=HEADS, dtype="float32", recurrence="auto", seed=0):
    return RGLRU(width, num_heads, dtype=dtype, recurrence=recurrence, rngs=nnx.Rngs(seed))


def parameters(layer):
    """The layer's parameters under the names of the paper, in float64."""
    named = {
        "W_r": layer.recurrence_gate.kernel,
        "b_r": layer.recurrence_gate.bias,
        "W_i": layer.input_gate.kernel,
        "b_i": layer.input_gate.bias,
        "L": layer.decay,
    }
    return {name: np.array(p[...], np.float64) for name, p in named.items()}


def transcription(p, u, h=None):
    """Section 2 of DESIGN.md; without a state `h`, the sequence begins here."""

    def gate(kernel, bias, u_t):
        blocks = np.split(u_t, len(kernel), axis=-1)
        mapped = [block @ w + b for block, w, b in zip(blocks, kernel, bias, strict=True)]
        return 1.0 / (1.0 + np.exp(-np.concatenate(mapped, axis=-1)))

    states = []
    for t in range(u.shape[1]):
        r, i = gate(p["W_r"], p["b_r"], u[:, t]), gate(p["W_i"], p["b_i"], u[:, t])
        log_a = -8.0 * np.log1p(np.exp(p["L"])) * r
        if h is None:
            h = i * u[:, t]
        else:
            h = np.exp(log_a) * h + np.sqrt(-np.expm1(2.0 * log_a)) * (i * u[:, t])
        states.append(h)
    return np.stack(states, axis=1)


def random_input(batch=2, time=7, width=WIDTH, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, time, width)).astype(np.float32)


@pytest.mark.parametrize("recurrence", ["sequential", "associative"])
@pytest.mark.parametrize("num_heads", [1, 2, 6])
def test_equals_the_equations(randomize, num_heads, recurrence):
    layer, u = (
        randomize(lambda: make_layer(num_heads=num_heads, recurrence=recurrence)),
        random_input(),
    )
    h, state = nnx.jit(lambda layer, u: layer(u, layer.init_state(2)))(layer, u)
    expected = transcription(parameters(layer), u.astype(np.float64))
    np.testing.assert_allclose(h, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.h, expected[:, -1], rtol=1e-5, atol=1e-6)
    assert bool(state.started)


def test_first_position_is_unscaled_only_at_the_start_of_the_sequence(randomize):
    layer, u = randomize(lambda: make_layer()), random_input(time=3)
    p, exact = parameters(layer), u.astype(np.float64)
    first, state = layer(u, layer.init_state(2))
    second, _ = layer(u[:, ::-1], state)
    np.testing.assert_allclose(first, transcription(p, exact), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        second, transcription(p, exact[:, ::-1], np.array(state.h)), rtol=1e-5, atol=1e-6
    )


def test_gradients_agree_with_finite_differences_of_the_equations(randomize):
    layer, u = randomize(lambda: make_layer(width=4)), random_input(time=4, width=4)
    weights = random_input(time=4, width=4, seed=2).astype(np.float64)

    def loss(layer, u):
        return jnp.sum(layer(u, layer.init_state(2))[0] * weights.astype(np.float32))

    of_layer, of_u = nnx.jit(nnx.grad(loss, argnums=(0, 1)))(layer, u)
    actual = {
        "W_r": of_layer.recurrence_gate.kernel,
        "b_r": of_layer.recurrence_gate.bias,
        "W_i": of_layer.input_gate.kernel,
        "b_i": of_layer.input_gate.bias,
        "L": of_layer.decay,
    }
    actual = {name: gradient[...] for name, gradient in actual.items()} | {"u": of_u}

    inputs = parameters(layer) | {"u": u.astype(np.float64)}

    def exact_loss():
        return np.sum(transcription(inputs, inputs["u"]) * weights)

    for name, values in inputs.items():
        expected = np.empty_like(values)
        for index in np.ndindex(values.shape):
            kept, difference = values[index], 0.0
            for sign in (1, -1):
                values[index] = kept + sign * 1e-6
                difference += sign * exact_loss()
            values[index] = kept
            expected[index] = difference / 2e-6
        np.testing.assert_allclose(actual[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parallel_form_equals_steps(randomize, assert_forms_agree, dtype):
    layer = randomize(lambda: make_layer(dtype=dtype))
    assert_forms_agree(layer, jnp.asarray(random_input(), dtype))


def test_bfloat16_output_is_bfloat16_and_the_recurrence_inside_float32():
    layer = make_layer(dtype="bfloat16")
    # Nothing but decay: 300 steps of 0.999 in bfloat16 would not move from 1.
    layer.decay[...] = jnp.full((WIDTH,), np.log(np.expm1(-np.log(0.999) / 4.0)))
    state = layer.init_state(1)._replace(h=jnp.ones((1, WIDTH)), started=jnp.array(True))
    h, state = layer(jnp.zeros((1, 300, WIDTH), jnp.bfloat16), state)
    assert h.dtype == jnp.bfloat16
    assert state.h.dtype == jnp.float32
    np.testing.assert_allclose(state.h, 0.999**300, rtol=1e-4)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(layer, nnx.Param)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("decay", "gate_bias"), [(-20.0, 0.0), (-200.0, 0.0), (0.0, -100.0)])
def test_nothing_breaks_where_nothing_is_forgotten(dtype, decay, gate_bias):
    """Such an `a` rounds to 1 in float32; the derivative of the square root has no bound there."""
    layer = make_layer(dtype=dtype)
    layer.decay[...] = jnp.full((WIDTH,), decay)
    layer.recurrence_gate.bias[...] = jnp.full_like(layer.recurrence_gate.bias[...], gate_bias)
    u = random_input(time=50)

    @nnx.jit
    def run(layer, u):
        def loss(layer, u):
            h, _ = layer(u.astype(dtype), layer.init_state(2))
            return jnp.sum(h.astype(jnp.float32) ** 2), h

        return nnx.grad(loss, argnums=(0, 1), has_aux=True)(layer, u)

    gradients, h = run(layer, u)
    assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(gradients))
    rounded = np.asarray(jnp.asarray(u, dtype)).astype(np.float64)
    np.testing.assert_allclose(
        np.asarray(h).astype(np.float64),
        transcription(parameters(layer), rounded),
        atol=1e-6 if dtype == "float32" else 1e-2,
    )


X = -np.logspace(-30, 2, 400).astype(np.float32)


def test_sqrt_one_minus_exp_is_exact_near_zero():
    expected = np.sqrt(-np.expm1(X.astype(np.float64)))
    np.testing.assert_allclose(jax.jit(sqrt_one_minus_exp)(X), expected, rtol=1e-6)
    assert sqrt_one_minus_exp(jnp.float32(0.0)) == 0.0
    assert sqrt_one_minus_exp(jnp.float32(-np.inf)) == 1.0


def test_slope_of_sqrt_one_minus_exp_is_true_until_it_reaches_its_bound_of_500():
    slope = np.asarray(jax.jit(jax.vmap(jax.grad(sqrt_one_minus_exp)))(X)).astype(np.float64)
    x = X.astype(np.float64)
    true_slope = -0.5 * np.exp(x) / np.sqrt(-np.expm1(x))
    np.testing.assert_allclose(slope, np.maximum(true_slope, -500.0), rtol=1e-5, atol=1e-30)
    assert slope.min() >= -500.001
    assert (true_slope < -500).any()
    np.testing.assert_allclose(jax.grad(sqrt_one_minus_exp)(jnp.float32(0.0)), -500.0, rtol=1e-6)


def test_second_derivative_of_sqrt_one_minus_exp_is_finite_everywhere():
    curvature = jax.jit(jax.vmap(jax.grad(jax.grad(sqrt_one_minus_exp))))(jnp.append(X, 0.0))
    assert np.isfinite(curvature).all()


def test_initial_decay_is_a_radius_spread_evenly_by_area_to_the_eighth_power():
    width = 2**17  # Enough to tell area from radius: their distributions are 1 % apart.
    layer = make_layer(width, num_heads=width)
    layer.recurrence_gate.bias[...] = jnp.full((width, 1), 50.0)  # r = 1.
    state = layer.init_state(1)._replace(h=jnp.ones((1, width)), started=jnp.array(True))
    a = np.asarray(layer.step(jnp.zeros((1, width)), state)[0][0]).astype(np.float64)
    assert 0.9**8 - 1e-5 <= a.min() < 0.9**8 + 0.01
    assert 0.999**8 - 0.01 < a.max() <= 0.999**8 + 1e-5
    area = a ** (2 / 8)
    assert scipy.stats.kstest(area, "uniform", (0.9**2, 0.999**2 - 0.9**2)).pvalue > 1e-3
