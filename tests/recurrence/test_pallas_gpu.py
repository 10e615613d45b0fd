"""The GPU kernels: interpreted here against the definition, and lowered for a GPU."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pf_jax.recurrence import gpu_programs, pallas_gpu
from pf_jax.recurrence.coefficients import PLAIN, Coefficients
from pf_jax.recurrence.gates import CGLRU, RGLRU
from tests.recurrence.definition import (
    assert_close,
    double,
    loop,
    loop_gradients,
    random_problem,
)
from tests.recurrence.gated import (
    COEFFICIENTS,
    assert_equal,
    everything,
    expected,
    interpreted,
    problem,
)

DECAYS = ("any", "slow", "near one", "zeros and ones")


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks, groups and chunks in small arrays, and little to compile."""
    monkeypatch.setattr(gpu_programs, "_MAX_ROWS", 2)
    monkeypatch.setattr(gpu_programs, "_MIN_CHUNK", 10)
    monkeypatch.setattr(gpu_programs, "_FULL", 8)
    monkeypatch.setattr(gpu_programs, "_MIN_PROGRAMS", 5)


def defined(coefficients, inputs, channel, h0, dh, dlast):
    """The same by the definition, in float64, with JAX's derivatives of the coefficients alone."""
    h0, dh, dlast = double(h0, dh, dlast)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(double(x)[0]), (tuple(inputs), channel))
        (a, b), pull_back = jax.vjp(coefficients, *wide)
        a, b = double(a, b)
        whole = dh.copy()
        whole[:, -1] += dlast
        *cotangents, dh0 = loop_gradients(a, b, h0, whole)
        dinputs, dchannel = pull_back(tuple(map(jnp.asarray, cotangents)))
    h = loop(a, b, h0)
    return {
        "h": h,
        "last": h[:, -1],
        "gradients": (dinputs, dchannel, dh0),
        "carry": (np.prod(a, axis=1), loop(a, b, np.zeros_like(h0))[:, -1]),
        "adjoint_carry": loop_gradients(a, b, h0, dh)[2],
    }


def assert_plain_equals_the_definition(seed, batch, time, width, dtype):
    decays = [DECAYS[c % 4] for c in range(width)]
    a, b, h0, dh = random_problem(seed, batch, time, decays, dtype)
    h0 = h0.astype(jnp.float32)
    arguments = (a, b), (), h0, dh, 1.5 * h0
    actual, wanted = interpreted(pallas_gpu, PLAIN, *arguments), defined(PLAIN, *arguments)
    magnitude = defined(PLAIN, *jax.tree.map(jnp.abs, arguments))
    assert actual["h"].dtype == dtype
    # Of the states, and of the gradients of arrays, what is rounded to their types and how often.
    rounded = {"['h']": 1, "['gradients'][0][0]": 2, "['gradients'][0][1]": 1}
    for (path, x), y, z in zip(
        jax.tree.leaves_with_path(actual), *map(jax.tree.leaves, (wanted, magnitude)), strict=True
    ):
        times = rounded.get(jax.tree_util.keystr(path), 0)
        relative = 0.0 if dtype == jnp.float32 else times * 2.0**-8
        assert_close(x, np.asarray(y), np.asarray(z), relative)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 1, 1), jnp.float32), ((1, 45, 3), jnp.float32), ((2, 23, 130), jnp.bfloat16)],
)
def test_plain_recurrence_equals_the_loop(shape, dtype):
    assert_plain_equals_the_definition(0, *shape, dtype)


@pytest.mark.usefixtures("small_blocks")
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 2),
    time=st.integers(1, 50),
    width=st.integers(1, 140),
)
@settings(max_examples=2, deadline=None, derandomize=True)
def test_plain_recurrence_equals_the_loop_for_any_shape(seed, batch, time, width):
    assert_plain_equals_the_definition(seed, batch, time, width, jnp.float32)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "dtypes", [(jnp.float32,) * 3, (jnp.float32, jnp.bfloat16, jnp.bfloat16)], ids=["32", "mixed"]
)
@pytest.mark.parametrize("coefficients", COEFFICIENTS.values(), ids=COEFFICIENTS)
def test_gated_recurrence_equals_the_loop(monkeypatch, coefficients, dtypes):
    if dtypes[-1] != jnp.float32:
        monkeypatch.setattr(gpu_programs, "_MIN_PROGRAMS", 0)  # One chunk.
    arguments = problem(coefficients, 1, (2, 37, 130), dtypes)
    actual = interpreted(pallas_gpu, coefficients, *arguments)
    assert [x.dtype for x in actual["gradients"][0]] == list(dtypes)
    # Gradients are sums over positions whose terms are rounded as the states are.
    tolerance = 2e-5 if dtypes[-1] == jnp.float32 else 2e-2
    assert_equal(actual, expected(coefficients, *arguments), tolerance)


# Blocks of 1 and of 2 channels a thread, of fewer channels than threads, of one; chunks and none.
@pytest.mark.parametrize("shape", [(300, 100, 512), (2, 1000, 301), (1, 9, 5), (1, 1, 1)])
@pytest.mark.parametrize("coefficients", [PLAIN, RGLRU, CGLRU], ids=["plain", "rglru", "cglru"])
def test_lowers_for_a_gpu(coefficients, shape):
    of = RGLRU if coefficients is PLAIN else coefficients
    dtypes = jnp.float32, jnp.bfloat16, jnp.bfloat16
    make = functools.partial(problem, of, 0, shape, dtypes)
    inputs, channel, *others = jax.eval_shape(make)
    if coefficients is PLAIN:
        inputs, channel = inputs[:2], ()
    exported = jax.export.export(
        jax.jit(functools.partial(everything, pallas_gpu, coefficients)),
        platforms=["cuda"],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")],
    )(inputs, channel, *others)
    # With chunks, the two functions with states take two more kernels each, and the others one.
    kernels = 10 if gpu_programs.plan(*shape, 4).num_chunks > 1 else 4
    assert exported.mlir_module().count("@mosaic_gpu_v2") == kernels


@jax.custom_jvp
def root(x):
    return jnp.sqrt(x)


@root.defjvp
def root_jvp(primals, tangents):
    y = root(primals[0])
    return y, 7.0 * tangents[0]


def root_decay(inputs, channel):
    return root(inputs[0]) * channel[0], jax.jit(jnp.square)(inputs[1])


@pytest.mark.usefixtures("small_blocks")
def test_coefficients_may_have_a_slope_of_their_own(monkeypatch):
    monkeypatch.setattr(gpu_programs, "_MIN_PROGRAMS", 0)  # One chunk.
    rng = np.random.default_rng(3)
    inputs = tuple(jnp.asarray(x, jnp.float32) for x in rng.uniform(0.0, 1.0, (2, 1, 12, 6)))
    inputs = (inputs[0].at[0, 3].set(0.0), inputs[1])
    channel = (jnp.asarray(rng.uniform(0.5, 0.9, 6), jnp.float32),)
    h0, dlast = jnp.ones((1, 6)), jnp.ones((1, 6))
    problem = inputs, channel, h0, inputs[0], dlast
    coefficients = Coefficients(root_decay)
    actual, expected = (
        interpreted(pallas_gpu, coefficients, *problem),
        defined(coefficients, *problem),
    )
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@given(
    batch=st.integers(1, 300),
    time=st.integers(1, 2**20),
    width=st.integers(1, 5000),
    num_arrays=st.integers(1, 6),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_plan_covers_everything_within_bounds(batch, time, width, num_arrays):
    p = gpu_programs.plan(batch, time, width, num_arrays)
    assert (p.num_chunks - 1) * p.chunk < time <= p.num_chunks * p.chunk
    assert p.chunk % p.rows == 0
    assert p.rows <= time
    assert p.block_width <= width < 2 * p.block_width or p.block_width == 128 * p.vector
    assert p.block_width & (p.block_width - 1) == 0
    # Vectors are aligned in each row, and at the start of the last block.
    assert p.vector == 1 or (p.block_width == 128 * p.vector and width % p.vector == 0)
    assert p.vector * num_arrays * p.rows <= 48 or p.rows == 1


@pytest.mark.parametrize(
    ("shape", "chunked"), [((8, 16384, 256), True), ((64, 16384, 512), False), ((1, 64, 64), False)]
)
def test_plan_cuts_time_where_programs_are_too_few(shape, chunked):
    p = gpu_programs.plan(*shape, 2)
    programs = shape[0] * -(-shape[2] // p.block_width) * p.num_chunks
    assert (p.num_chunks > 1) == chunked
    assert programs >= 99 or shape[1] < 128
    assert not chunked or programs >= 3 * 132


@pytest.mark.parametrize("capability", ["7.5", "gfx942"])
def test_refuses_a_card_that_the_compiler_would_die_of(monkeypatch, capability):
    device = types.SimpleNamespace(compute_capability=capability, device_kind="an old card")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    x = jnp.ones((1, 2, 128))
    with pytest.raises(NotImplementedError, match=rf"an old card is {capability}"):
        pallas_gpu.carry(PLAIN, (x, x), ())
