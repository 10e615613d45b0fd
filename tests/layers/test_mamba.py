"""Mamba's block against its equations, written once more in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from pf_jax import PoolformerConfig
from pf_jax.layers import Mamba, mamba

WIDTH, STATES, TAPS = 17, 3, 3
RANK = 2  # A sixteenth of the width, rounded up.


def make_config(width=WIDTH, **fields):
    defaults = {"mixer": "mamba", "state_size": STATES, "conv_width": TAPS, "mixer_expansion": 0.3}
    return PoolformerConfig((width,), (1,), embedding="learned", **defaults | fields)


def build(width=WIDTH, **fields):
    return lambda: Mamba(width, make_config(width, **fields), rngs=nnx.Rngs(0))


def random_input(batch=2, time=7, width=WIDTH, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, time, width)).astype(np.float32)


def named(layer):
    """The parameters, or their gradients, under the names of the paper and its code."""
    return {
        "W_u": layer.input.kernel[...],
        "W_z": layer.gate.kernel[...],
        "taps": layer.convolution.kernel[...],
        "b_taps": layer.convolution.bias[...],
        "W_s": layer.selection.kernel[...],
        "W_dt": layer.step_size.kernel[...],
        "b_dt": layer.step_size.bias[...],
        "A_log": layer.log_rates[...],
        "D": layer.skip[...],
        "W_o": layer.output.kernel[...],
    }


def exact(arrays):
    return {name: np.array(x, np.float64) for name, x in arrays.items()}


def silu(x):
    return x * scipy.special.expit(x)


def transcription(p, x, past=None, h=None):
    """Outputs, states and step sizes; `past` are the inputs of the convolution before `x`."""
    (states, inner), taps, rank = p["A_log"].shape, len(p["taps"]), len(p["W_dt"])
    past = np.zeros((len(x), taps - 1, inner)) if past is None else past
    h = np.zeros((len(x), states, inner)) if h is None else h
    before = np.concatenate([past, x @ p["W_u"]], axis=1)
    outputs, hs, step_sizes = [], [], []
    for t in range(x.shape[1]):
        u = silu(np.einsum("btd,td->bd", before[:, t : t + taps], p["taps"]) + p["b_taps"])
        r, b, c = np.split(u @ p["W_s"], [rank, rank + states], axis=-1)
        dt = np.logaddexp(0.0, r @ p["W_dt"] + p["b_dt"])
        h = h.copy()
        y = p["D"] * u
        for n in range(states):
            h[:, n] = np.exp(-dt * np.exp(p["A_log"][n])) * h[:, n] + dt * b[:, n, None] * u
            y = y + c[:, n, None] * h[:, n]
        outputs.append((y * silu(x[:, t] @ p["W_z"])) @ p["W_o"])
        hs.append(h)
        step_sizes.append(dt)
    return tuple(np.stack(parts, axis=1) for parts in (outputs, hs, step_sizes))


@pytest.fixture(params=["whole", "chunks"])
def chunk(request, monkeypatch):
    """All in one chunk of time, or in several of at most three positions."""
    if request.param == "chunks":
        entries = 3 * STATES * round(0.3 * WIDTH)
        monkeypatch.setattr(mamba, "_CHUNK_ENTRIES", entries)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("recurrence", ["sequential", "associative"])
def test_equals_the_equations_at_the_start_and_from_any_state(randomize, recurrence):
    layer, x = randomize(build(recurrence=recurrence)), random_input()
    p = exact(named(layer))
    assert p["W_s"].shape == (5, RANK + 2 * STATES)
    run = nnx.jit(lambda layer, x, state: layer(x, state))
    y, state = run(layer, x, layer.init_state(2))
    expected, h, _ = transcription(p, x.astype(np.float64))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.h, h[:, -1], rtol=1e-5, atol=1e-6)

    rng = np.random.default_rng(2)
    past, h = rng.standard_normal((2, TAPS - 1, 5)), rng.standard_normal((2, STATES, 5))
    state = mamba.MambaState(jnp.asarray(past, jnp.float32), jnp.asarray(h, jnp.float32))
    y, state = run(layer, x, state)
    expected, h, _ = transcription(p, x.astype(np.float64), past, h)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.h, h[:, -1], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("chunk")
def test_gradients_are_those_of_the_equations(randomize, assert_gradients_agree):
    def run(layer, x, h):
        y, state = layer(x, layer.init_state(2)._replace(h=h))
        return y, state.h

    def equations(layer, x, h):
        y, hs, _ = transcription(exact(named(layer)), x, h=h)
        return y, hs[:, -1]

    h = np.random.default_rng(3).standard_normal((2, STATES, 5)).astype(np.float32)
    layer = randomize(build())
    assert_gradients_agree(layer, run, equations, random_input(time=4), h, rtol=1e-3, atol=2e-5)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_parallel_form_equals_steps(randomize, assert_forms_agree, dtype, atol):
    layer = randomize(build(dtype=dtype))
    assert_forms_agree(layer, jnp.asarray(random_input(), dtype), atol=atol)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_chunks_of_any_length_give_values_and_gradients_of_the_whole(data):
    """Also where the last one is not full, and where a chunk would be less than a position."""
    batch, time, inner, states = (data.draw(st.integers(1, n)) for n in (3, 19, 5, 4))
    entries = data.draw(st.integers(1, inner * states * time))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    u, dt, h = normal(batch, time, inner), normal(batch, time, inner), normal(batch, states, inner)
    b, c, a = normal(batch, time, states), normal(batch, time, states), normal(states, inner)
    of_y, of_h = normal(batch, time, inner), normal(batch, states, inner)

    def run():
        def forward(*args):
            return mamba.selective_scan(*args, implementation="sequential")

        args = (u, jnp.exp(dt), b, c, -jnp.exp(a), h)
        results, vjp = jax.vjp(forward, *args)
        return results, vjp((of_y, of_h))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mamba, "_CHUNK_ENTRIES", entries)
        actual = jax.jit(run)()
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), actual, jax.jit(run)()
    )


def test_states_of_all_positions_never_exist_at_once(monkeypatch):
    batch, time, inner, states = 1, 4096, 8, 16
    monkeypatch.setattr(mamba, "_CHUNK_ENTRIES", 64 * inner * states)

    def loss(*args):
        y, h = mamba.selective_scan(*args)
        return jnp.sum(y**2) + jnp.sum(h)

    shapes = [(batch, time, inner)] * 2 + [(batch, time, states)] * 2
    shapes += [(states, inner), (batch, states, inner)]
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    gradient = jax.jit(jax.grad(loss, argnums=tuple(range(6)))).lower(*shapes).compile()
    of_all_states = 4 * batch * time * inner * states
    assert gradient.memory_analysis().temp_size_in_bytes < of_all_states


def test_bfloat16_output_is_bfloat16_and_the_states_inside_float32():
    layer = build(dtype="bfloat16", state_size=1)()
    # Nothing but decay: 300 steps of 0.999 in bfloat16 would not move from 1.
    layer.selection.kernel[...] = jnp.zeros_like(layer.selection.kernel[...])
    layer.step_size.bias[...] = jnp.full((5,), np.log(np.expm1(-np.log(0.999))))
    state = layer.init_state(1)._replace(h=jnp.ones((1, 1, 5)))
    run = nnx.jit(lambda layer, x, state: layer(x, state))
    y, state = run(layer, jnp.zeros((1, 300, WIDTH), jnp.bfloat16), state)
    assert y.dtype == jnp.bfloat16
    assert state.h.dtype == jnp.float32
    np.testing.assert_allclose(state.h, 0.999**300, rtol=1e-4)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(layer, nnx.Param)))


def test_log_decay_is_that_of_the_equations(randomize):
    layer, x = randomize(build()), random_input()
    state = layer(random_input(seed=5), layer.init_state(2))[1]
    log_a, least = layer.log_decay(x, state)
    p = exact(named(layer))
    past = np.array(state.convolution, np.float64)
    _, _, dt = transcription(p, x.astype(np.float64), past)
    expected = -dt[:, :, None] * np.exp(p["A_log"])
    np.testing.assert_allclose(log_a, expected.reshape(2, 7, -1), rtol=1e-5, atol=1e-6)
    assert least.shape == log_a.shape[2:]
    assert (np.asarray(least) <= np.asarray(log_a)).all()


def test_step_sizes_start_spread_evenly_by_logarithm_and_rates_are_1_to_the_number_of_states():
    layer = nnx.jit(build(256, mixer_expansion=8.0, state_size=16))()
    step_sizes = np.logaddexp(0.0, np.array(layer.step_size.bias[...], np.float64))
    assert scipy.stats.kstest(np.log10(step_sizes), "uniform", (-3.0, 2.0)).pvalue > 1e-3
    kernel = np.asarray(layer.step_size.kernel[...])
    assert kernel.shape == (16, 2048)
    assert scipy.stats.kstest(kernel.ravel(), "uniform", (-1 / 4, 1 / 2)).pvalue > 1e-3
    np.testing.assert_allclose(np.exp(layer.log_rates[:, 7]), np.arange(1, 17), rtol=1e-6)
    np.testing.assert_array_equal(layer.skip[...], 1.0)
