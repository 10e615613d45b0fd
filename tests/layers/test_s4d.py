"""S4D against a loop over time in float64, and its two forms against each other."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf, expit

from pf_jax import PoolformerConfig, UserError
from pf_jax.layers import S4D, S4DState
from pf_jax.layers.s4d import _turns_after, initial_frequencies

LONG = 16_000


def make_config(width=6, **fields):
    return PoolformerConfig((width,), (1,), mixer="s4d", **fields)


def random_layer(width=6, seed=0, **fields):
    """Noise in every parameter, and memories from a few positions to thousands."""
    rng = np.random.default_rng(seed)
    layer = S4D(width, make_config(width, **fields), rngs=nnx.Rngs(seed))
    for parameter in (layer.log_a_real, layer.a_imag, layer.b, layer.c, layer.output.bias):
        noise = 0.3 * rng.standard_normal(parameter.shape).astype(np.float32)
        parameter[...] = parameter[...] + noise
    return layer


def exact(parameter):
    return np.asarray(parameter[...], np.float64)


def in_float64(layer, x, h):
    """The equations in the order of time: outputs, what GELU gets, and the last states."""
    dt = np.exp(exact(layer.log_dt))[:, None]
    a = -np.exp(exact(layer.log_a_real)) + 1j * exact(layer.a_imag)
    b, c = (np.tensordot([1.0, 1j], exact(p), axes=1) for p in (layer.b, layer.c))
    z = np.exp(dt * a)
    b = (z - 1.0) / a * b
    ys = []
    for u in np.moveaxis(x.astype(np.float64), 1, 0):
        h = z * h + b * u[..., None]
        ys.append(2.0 * (c * h).sum(axis=-1).real + exact(layer.d) * u)
    y = np.stack(ys, axis=1)
    active = 0.5 * y * (1.0 + erf(y / np.sqrt(2.0)))
    p, q = np.split(active @ exact(layer.output.kernel) + exact(layer.output.bias), 2, axis=-1)
    return p * expit(q), y, h


def random_input(time, width=6, batch=2, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, time, width)).astype(np.float32)


@nnx.jit
def parallel(layer, x, state):
    return layer(x, state)


@nnx.jit
def recurrent(layer, x, state):
    def step(state, u):
        y, state = layer.step(u, state)
        return state, y

    state, y = jax.lax.scan(step, state, jnp.moveaxis(x, 1, 0))
    return jnp.moveaxis(y, 0, 1), state


@pytest.mark.parametrize("init", ["lin", "inv"])
@pytest.mark.parametrize("form", [parallel, recurrent])
def test_long_sequences_from_any_state_are_those_of_float64(form, init):
    layer = random_layer(width=4, ssm_init=init)
    x = random_input(LONG, width=4)
    rng = np.random.default_rng(2)
    # About as large as they become.
    h = 0.1 * rng.standard_normal((2, 4, 32)) + 0.1j * rng.standard_normal((2, 4, 32))
    h = h.astype(np.complex64)
    expected, before, last = in_float64(layer, x, h)
    y, state = form(layer, x, S4DState(jnp.asarray(h), jnp.array(True)))
    np.testing.assert_allclose(y, expected, atol=5e-5 * before.std())
    np.testing.assert_allclose(state.h, last, atol=5e-5 * np.abs(last).max())


def test_impulse_response_of_a_state_that_hardly_decays():
    """A power of a rounded `z` would be wrong by a tenth after so long."""
    layer = random_layer(width=2)
    layer.log_dt[...] = jnp.log(jnp.array([1e-1, 1e-3]))
    layer.log_a_real[...] = jnp.full_like(layer.log_a_real[...], np.log(1e-5))
    impulse = np.zeros((1, LONG, 2))
    impulse[:, 0] = 1.0
    _, expected, _ = in_float64(layer, impulse, np.zeros((1, 2, 32)))
    expected = expected[0].T - exact(layer.d)[:, None] * impulse[0].T
    actual = jax.jit(lambda: layer.impulse_response(LONG))()
    assert np.abs(expected[:, -100:]).max() > 0.3 * np.abs(expected).max()
    # What is left is the rounding of the angle of one step.
    error = np.abs(actual - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert error[0] < 5e-2
    assert error[1] < 1e-3


@settings(max_examples=50, deadline=None)
@given(
    turns=st.floats(-300.0, 300.0, width=32),
    steps=st.lists(st.integers(0, 2**24), min_size=1, max_size=5),
)
def test_angles_after_many_steps(turns, steps):
    actual = _turns_after(jnp.array([turns], jnp.float32), jnp.array(steps, jnp.int32))
    for step, got in zip(steps, np.asarray(actual, np.float64), strict=True):
        error = (Fraction(turns) * step - Fraction(float(got))) % 1
        # A step is rounded to 2^-33 turns, the result as float32 is.
        assert min(error, 1 - error) <= step * 2.0**-33 + 2.0**-24


def test_slope_of_the_angles_is_the_number_of_steps():
    steps = jnp.array([0, 1, 16_000], jnp.int32)
    slopes = jax.jacobian(lambda t: _turns_after(t, steps))(jnp.array([0.3]))
    np.testing.assert_array_equal(slopes[:, 0], steps)


@pytest.mark.parametrize(("time", "split"), [(3, 1), (10, 4)])
def test_parallel_form_equals_steps(assert_forms_agree, time, split):
    assert_forms_agree(random_layer(state_size=4), jnp.asarray(random_input(time)), split)


def test_parallel_form_equals_steps_in_bfloat16(assert_forms_agree):
    layer = random_layer(state_size=4, dtype="bfloat16")
    x = jnp.asarray(random_input(10), jnp.bfloat16)
    assert_forms_agree(layer, x, 4, atol=0.05)
    y, state = jax.eval_shape(layer, x, layer.init_state(2))
    assert y.dtype == jnp.bfloat16
    assert state.h.dtype == jnp.complex64
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(layer, nnx.Param)))


def test_gradients_of_both_forms_are_equal_and_none_is_zero():
    graph, params = nnx.split(random_layer(state_size=6))
    x, weights = random_input(40), random_input(40, seed=3)

    def loss(params, x, form):
        layer = nnx.merge(graph, params)
        y, state = form(layer, x[:, :15], layer.init_state(2))
        return jnp.sum(weights * jnp.concatenate([y, form(layer, x[:, 15:], state)[0]], axis=1))

    gradients = [jax.grad(loss, argnums=(0, 1))(params, x, form) for form in (parallel, recurrent)]

    def same(actual, expected):
        scale = np.abs(expected).max()
        assert scale > 1e-3
        np.testing.assert_allclose(actual, expected, atol=2e-5 * scale)

    jax.tree.map(same, *gradients)


def test_start():
    width = 2_000
    layer = S4D(width, make_config(width), rngs=nnx.Rngs(0))
    log_dt = np.sort(exact(layer.log_dt)) / np.log(10.0)
    np.testing.assert_allclose(log_dt, np.linspace(-3.0, -1.0, width), atol=0.1)
    np.testing.assert_allclose(np.exp(exact(layer.log_a_real)), 0.5, rtol=1e-6)
    np.testing.assert_allclose(exact(layer.a_imag), [np.pi * np.arange(32)] * width, rtol=1e-6)
    np.testing.assert_array_equal(layer.b[0], 1.0)
    np.testing.assert_array_equal(layer.b[1], 0.0)
    assert np.mean(exact(layer.c) ** 2, axis=(1, 2)) == pytest.approx(0.5, rel=0.05)
    assert np.var(exact(layer.d)) == pytest.approx(1.0, rel=0.15)


def test_frequencies_of_s4d_inv():
    # N / pi (N / (2 n + 1) - 1), by hand for N = 6.
    np.testing.assert_allclose(
        initial_frequencies(6, "inv"), np.array([30.0, 6.0, 1.2]) / np.pi, rtol=1e-6
    )
    layer = S4D(2, make_config(2, state_size=6, ssm_init="inv"), rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer.a_imag[1], initial_frequencies(6, "inv"))


def test_states_are_pairs():
    with pytest.raises(UserError, match="state_size must be even, got 5"):
        S4D(4, make_config(4, state_size=5), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="ssm_init must be lin or inv, got 'legs'"):
        make_config(4, ssm_init="legs")
