"""The complex RG-LRU against its equations, written once more in complex float64 NumPy."""

import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from pf_jax import PoolformerConfig, UserError
from pf_jax.layers import ComplexRGLRU, ComplexTemporalMixing
from pf_jax.layers.phase import accumulate
from tests import processes

HEADS, WIDTH = 2, 8


def make_layer(width=WIDTH, num_heads=HEADS, dtype="float32", recurrence="auto", axis=""):
    return ComplexRGLRU(
        width,
        num_heads,
        dtype=dtype,
        recurrence=recurrence,
        sequence_axis=axis,
        rngs=nnx.Rngs(0),
    )


def parameters(layer):
    """The layer's parameters under the names of the paper, in float64."""
    named = {
        "W_r": layer.recurrence_gate.kernel,
        "b_r": layer.recurrence_gate.bias,
        "W_i": layer.input_gate.kernel,
        "b_i": layer.input_gate.bias,
        "L": layer.decay,
        "theta": layer.phase,
    }
    return {name: np.array(p[...], np.float64) for name, p in named.items()}


def transcription(p, u, h=None):
    """Equations 8 to 14 of the appendix; without a state `h`, the sequence begins here."""

    def gate(kernel, bias):
        blocks = np.split(u, len(kernel), axis=-1)
        mapped = [block @ w + b for block, w, b in zip(blocks, kernel, bias, strict=True)]
        return 1.0 / (1.0 + np.exp(-np.concatenate(mapped, axis=-1)))

    r, i = gate(p["W_r"], p["b_r"]), gate(p["W_i"], p["b_i"])
    log_a = (-8.0 * np.log1p(np.exp(p["L"])) + 1j * p["theta"]) * r
    a, scale = np.exp(log_a), np.sqrt(-np.expm1(2.0 * log_a.real))
    real, imaginary = np.split(u, 2, axis=-1)
    x = i * (real + 1j * imaginary)
    states = []
    for t in range(u.shape[1]):
        h = x[:, t] if h is None else a[:, t] * h + scale[:, t] * x[:, t]
        states.append(h)
    h = np.stack(states, axis=1)
    return np.concatenate([h.real, h.imag], axis=-1)


def random_input(batch=2, time=7, width=WIDTH, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, time, width)).astype(np.float32)


@pytest.mark.parametrize(("num_heads", "recurrence"), [(1, "sequential"), (4, "associative")])
def test_equals_the_equations(randomize, num_heads, recurrence):
    layer, u = (
        randomize(lambda: make_layer(num_heads=num_heads, recurrence=recurrence), scale=2.0),
        random_input(),
    )
    run = nnx.jit(lambda layer, u, state: layer(u, state))
    h, state = run(layer, u, layer.init_state(2))
    p, exact = parameters(layer), u.astype(np.float64)
    expected = transcription(p, exact)
    np.testing.assert_allclose(h, expected, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(state.h, expected[:, -1], rtol=1e-5, atol=2e-6)
    # The first position is unscaled at the start of a sequence only.
    later, _ = run(layer, u[:, ::-1], state)
    real, imaginary = np.split(np.array(state.h, np.float64), 2, axis=-1)
    expected = transcription(p, exact[:, ::-1], real + 1j * imaginary)
    np.testing.assert_allclose(later, expected, rtol=1e-5, atol=2e-6)


def test_gradients_agree_with_finite_differences_of_the_equations(randomize):
    layer, u = randomize(lambda: make_layer(width=4), scale=2.0), random_input(time=4, width=4)
    weights = random_input(time=4, width=4, seed=2).astype(np.float64)

    def loss(layer, u):
        return jnp.sum(layer(u, layer.init_state(2))[0] * weights.astype(np.float32))

    of_layer, of_u = nnx.jit(nnx.grad(loss, argnums=(0, 1)))(layer, u)
    actual = parameters(of_layer) | {"u": of_u}
    inputs = parameters(layer) | {"u": u.astype(np.float64)}
    for name, values in inputs.items():
        expected = np.empty_like(values)
        for index in np.ndindex(values.shape):
            kept, difference = values[index], 0.0
            for sign in (1, -1):
                values[index] = kept + sign * 1e-6
                difference += sign * np.sum(transcription(inputs, inputs["u"]) * weights)
            values[index] = kept
            expected[index] = difference / 2e-6
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(actual[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parallel_form_equals_steps(randomize, assert_forms_agree, dtype):
    layer = randomize(lambda: make_layer(dtype=dtype), scale=2.0)
    assert_forms_agree(layer, jnp.asarray(random_input(), dtype))


def test_the_block_around_it_agrees_in_both_forms(randomize, assert_forms_agree):
    config = PoolformerConfig((WIDTH,), (1,), num_heads=HEADS)
    layer = randomize(lambda: ComplexTemporalMixing(WIDTH, config, rngs=nnx.Rngs(0)))
    assert type(layer.rglru) is ComplexRGLRU
    assert_forms_agree(layer, jnp.asarray(random_input()))


def test_neither_values_nor_gradients_drift_in_a_long_sequence(randomize):
    """Some seconds, in which a state turns a thousand times: radians in float32 would not do."""
    time = 40_000
    layer, u = randomize(lambda: make_layer(width=2, num_heads=1)), random_input(1, time, 2)
    layer.phase[...] = jnp.array([0.3])
    layer.decay[...] = jnp.array([-7.0])  # A memory of some hundred positions.
    p, exact = parameters(layer), u.astype(np.float64)
    weight = random_input(1, time, 2, seed=2)

    @nnx.jit
    def run(layer, u):
        def loss(layer):
            h, _ = layer(u, layer.init_state(1))
            return jnp.sum(weight * h), h

        return nnx.grad(loss, has_aux=True)(layer)

    gradients, h = run(layer, u)
    np.testing.assert_allclose(h, transcription(p, exact), atol=5e-6)

    def loss(theta):
        return np.sum(transcription(p | {"theta": p["theta"] + theta}, exact) * weight)

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    np.testing.assert_allclose(gradients.phase[...], slope, rtol=2e-5)


def test_bfloat16_output_is_bfloat16_and_the_recurrence_inside_float32():
    layer = make_layer(dtype="bfloat16")
    layer.decay[...] = jnp.full((WIDTH // 2,), np.log(np.expm1(-np.log(0.999) / 4.0)))
    state = layer.init_state(1)._replace(h=jnp.ones((1, WIDTH)), started=jnp.array(True))
    u = jnp.zeros((1, 300, WIDTH), jnp.bfloat16)
    h, state = nnx.jit(lambda layer, u: layer(u, state))(layer, u)
    assert h.dtype == jnp.bfloat16
    assert state.h.dtype == jnp.float32
    # Nothing but decay: what is left of the square root of 2.
    modulus = np.hypot(*np.split(np.asarray(state.h), 2, axis=-1))
    np.testing.assert_allclose(modulus, np.sqrt(2.0) * 0.999**300, rtol=1e-4)


@pytest.mark.parametrize("decay", [-200.0, 100.0])
def test_gradients_are_finite_where_nothing_or_everything_is_forgotten(decay):
    layer = make_layer()
    layer.decay[...] = jnp.full((WIDTH // 2,), decay)

    @nnx.jit
    def run(layer, u):
        return nnx.grad(
            lambda layer, u: jnp.sum(layer(u, layer.init_state(2))[0] ** 2), argnums=(0, 1)
        )(layer, u)

    gradients = run(layer, random_input(time=50))
    assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(gradients))


def test_log_decay_is_that_of_the_modulus(randomize):
    """Without input, a step from a state of ones shrinks it by the modulus, and turns it."""
    layer = randomize(make_layer)

    @nnx.jit
    def run(layer, u):
        state = layer.init_state(2)._replace(h=jnp.ones((2, WIDTH)), started=jnp.array(True))
        return layer.log_decay(u), layer.step(jnp.zeros_like(u[:, 0]), state)[0]

    (log_a, least), h = run(layer, jnp.zeros((2, 7, WIDTH)))
    assert log_a.shape == (2, 7, WIDTH // 2)
    gate = np.asarray(layer.recurrence_gate.bias[...]).reshape(-1)
    np.testing.assert_allclose(log_a[1, 5], least / (1.0 + np.exp(-gate)), rtol=1e-5)
    modulus = np.hypot(*np.split(np.asarray(h), 2, axis=-1))
    np.testing.assert_allclose(np.log(modulus / np.sqrt(2.0)), log_a[:, 0], rtol=1e-4, atol=1e-6)


def test_phases_start_in_a_tenth_of_half_a_turn():
    phase = np.asarray(make_layer(width=256, num_heads=8).phase[...])
    assert phase.min() >= 0.0
    assert 0.95 * np.pi / 10 < phase.max() < np.pi / 10


def test_widths_that_cannot_be_halved_are_refused():
    with pytest.raises(UserError, match="num_heads=4 does not divide 12/2"):
        make_layer(width=12, num_heads=4)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), largest=st.sampled_from([1e-6, 0.1, 3.0, 100.0]))
def test_angles_add_up_modulo_a_turn(seed, largest):
    phase = np.random.default_rng(seed).uniform(-largest, largest, (1, 1000, 2)).astype(np.float32)
    expected = np.cumsum(phase.astype(np.float64), axis=1)
    actual = np.asarray(accumulate(phase), np.float64)
    apart = (actual - expected + np.pi) % (2 * np.pi) - np.pi
    # Each angle is rounded once by float32, and the sum once more.
    assert np.abs(apart).max() < 5e-7 + 1000 * 1e-7 * largest
    slope = jax.grad(lambda x: jnp.sum(accumulate(x)[0, -1]))(jnp.asarray(phase))
    np.testing.assert_array_equal(slope, 1.0)


OVER_DEVICES = """
    import importlib.util, sys
    import jax, jax.numpy as jnp, numpy as np
    from flax import nnx
    from jax.sharding import Mesh, PartitionSpec as P
    spec = importlib.util.spec_from_file_location("tests_of_layer", sys.argv[1])
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)

    u = jnp.asarray(tests.random_input(time=24))
    weight = jnp.asarray(tests.random_input(time=24, seed=2))
    layer = tests.make_layer()
    layer.phase[...] = jnp.linspace(1.0, 3.0, 4)
    state = layer.init_state(2)._replace(h=u[:, 0], started=jnp.array(True))

    def loss_and_state(params, u, weight, axis):
        layer = nnx.merge(nnx.split(tests.make_layer(axis=axis))[0], params)
        h, after = layer(u, state)
        return jnp.sum(h * weight), after.h

    def run(params, u, weight, axis):
        return jax.value_and_grad(loss_and_state, argnums=(0, 1), has_aux=True)(
            params, u, weight, axis
        )

    def piece(params, u, weight):
        (loss, after), (of_params, of_u) = run(params, u, weight, "pieces")
        loss, of_params = jax.lax.psum((loss, of_params), "pieces")
        return loss, of_params, of_u, after[None]

    params = nnx.state(layer)
    (loss, after), (of_params, of_u) = jax.jit(run, static_argnums=3)(params, u, weight, "")
    split, whole = P(None, "pieces"), P()
    found = jax.jit(jax.shard_map(
        piece, mesh=Mesh(jax.devices(), ("pieces",)), in_specs=(whole, split, split),
        out_specs=(whole, whole, split, P("pieces")), check_vma=False,
    ))(params, u, weight)
    assert jax.device_count() == 4
    found = (*found[:3], found[3][-1])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, found, (loss, of_params, of_u, after))
"""


def test_pieces_on_four_devices_are_as_the_whole():
    command = [sys.executable, "-c", textwrap.dedent(OVER_DEVICES), __file__]
    done = processes.run(command, env=processes.with_devices(4), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
