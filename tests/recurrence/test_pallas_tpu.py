"""The TPU kernels: interpreted here against the definition, and lowered for a TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pf_jax.recurrence.gates import CGLRU, RGLRU
from pf_jax.recurrence import pallas_tpu, tpu_blocks
from pf_jax.recurrence.coefficients import PLAIN
from tests.recurrence.definition import (
    assert_close,
    double,
    loop,
    loop_gradients,
    random_problem,
)

DECAYS = ("any", "slow", "near one", "zeros and ones")

# Nothing is a multiple of a block, or of the 8 or 16 rows and the 128 lanes of a register.
SHAPES = [(1, 1, 1), (1, 2, 130), (2, 150, 130), (2, 300, 40)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of time and of channels in small arrays, and little to compile."""
    monkeypatch.setattr(tpu_blocks, "_UNROLL", 1)
    monkeypatch.setattr(tpu_blocks, "_MAX_TIME", 128)
    monkeypatch.setattr(tpu_blocks, "_MAX_WIDTH", 128)


def everything(coefficients, inputs, channel, h0, dh, dlast, **options):
    """What the four functions give, by name."""
    kept = tuple(None if n in coefficients.linear_inputs else x for n, x in enumerate(inputs))
    h, last = pallas_tpu.forward(coefficients, inputs, channel, h0, inputs[0].dtype, **options)
    gradients = pallas_tpu.gradient(coefficients, kept, channel, h0, h, dh, dlast, **options)
    return {
        "h": h,
        "last": last,
        "gradients": gradients,
        "carry": pallas_tpu.carry(coefficients, inputs, channel, **options),
        "adjoint_carry": pallas_tpu.adjoint_carry(coefficients, kept, channel, dh, **options),
    }


interpreted = jax.jit(
    functools.partial(everything, interpret=True),
    static_argnums=0,
    compiler_options={"xla_backend_optimization_level": 0},  # Compiling takes all the time.
)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_plain_recurrence_equals_the_loop(shape, dtype):
    batch, time, width = shape
    assert_equals_the_loop(0, batch, time, [DECAYS[c % 4] for c in range(width)], dtype)


@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 2),
    time=st.integers(1, 200),
    width=st.integers(1, 140),
)
@settings(max_examples=3, deadline=None, derandomize=True)
def test_plain_recurrence_equals_the_loop_for_any_shape(seed, batch, time, width):
    decays = [DECAYS[c % 4] for c in range(width)]
    assert_equals_the_loop(seed, batch, time, decays, jnp.float32)


def assert_equals_the_loop(seed, batch, time, decays, dtype):
    relative = 0.0 if dtype == jnp.float32 else 2.0**-8
    a, b, h0, dh = random_problem(seed, batch, time, decays, dtype)
    h0, dlast = h0.astype(jnp.float32), (1.5 * h0).astype(jnp.float32)
    actual = interpreted(PLAIN, (a, b), (), h0, dh, dlast)
    exact, magnitudes = double(a, b, h0), [np.abs(x) for x in double(a, b, h0)]
    h, magnitude = loop(*exact), loop(*magnitudes)
    assert actual["h"].dtype == dtype
    assert_close(actual["h"], h, magnitude, relative)
    assert_close(actual["last"], h[:, -1], magnitude[:, -1])

    whole = double(dh)[0]
    zeros = np.zeros_like(whole)
    zeros[:, -1] = dlast
    expected = loop_gradients(*exact, whole + zeros)
    magnitude = loop_gradients(*magnitudes, np.abs(whole) + np.abs(zeros))
    (da, db), _, dh0 = actual["gradients"]
    assert_close(da, expected[0], magnitude[0], 2 * relative)
    assert_close(db, expected[1], magnitude[1], relative)
    assert_close(dh0, expected[2], magnitude[2])
    assert_close(
        actual["adjoint_carry"],
        loop_gradients(*exact, whole)[2],
        loop_gradients(*magnitudes, np.abs(whole))[2],
    )

    decay, last = actual["carry"]
    assert_close(decay, np.prod(exact[0], axis=1), np.prod(magnitudes[0], axis=1))
    nothing = np.zeros_like(exact[2])
    assert_close(last, loop(*exact[:2], nothing)[:, -1], loop(*magnitudes[:2], nothing)[:, -1])


def gates_of(seed, shape, dtype):
    """Arguments of `everything` for an RG-LRU."""
    rng = np.random.default_rng(seed)
    batch, _, width = shape
    inputs = tuple(jnp.asarray(x, dtype) for x in rng.standard_normal((3, *shape)))
    channel = (jnp.asarray(-rng.uniform(1e-4, 1.0, width), jnp.float32),)
    rows = [jnp.asarray(x, jnp.float32) for x in rng.standard_normal((2, batch, width))]
    dh = jnp.asarray(rng.standard_normal(shape), dtype)
    return inputs, channel, rows[0], dh, rows[1]


@jax.jit
def derived(arguments, dh, dlast):
    """What JAX makes of a scan over time that it differentiates itself."""

    def run(inputs, channel, h0):
        a, b = (jnp.moveaxis(x, 1, 0) for x in RGLRU(inputs, channel))

        def step(h, coefficients):
            h = coefficients[0] * h + coefficients[1]
            return h, h

        last, h = jax.lax.scan(step, h0, (a, b))
        return jnp.moveaxis(h, 0, 1), last, jnp.prod(a, axis=0)

    inputs, channel, h0 = arguments
    (h, last, decay), pull_back = jax.vjp(run, *arguments)
    gradients = pull_back((dh, dlast, jnp.zeros_like(decay)))
    adjoint = pull_back((dh, jnp.zeros_like(last), jnp.zeros_like(decay)))[2]
    carried = run(inputs, channel, jnp.zeros_like(h0))[1]
    return (h, last, decay), gradients, adjoint, carried


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(1, 150, 130), (1, 300, 40)])
def test_fused_rglru_equals_what_jax_derives_in_float64(shape, dtype):
    inputs, channel, h0, dh, dlast = gates_of(1, shape, dtype)
    actual = interpreted(RGLRU, inputs, channel, h0, dh, dlast)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(double(x)[0]), (inputs, channel, h0))
        dh, dlast = (jnp.asarray(double(x)[0]) for x in (dh, dlast))
        (h, last, decay), gradients, adjoint, carried = derived(wide, dh, dlast)
    expected = {
        "h": h,
        "last": last,
        "gradients": gradients,
        "carry": (decay, carried),
        "adjoint_carry": adjoint,
    }
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    # Gradients are sums over positions whose terms are rounded as the inputs are.
    tolerance = 2e-5 if dtype == jnp.float32 else 2e-2
    for (path, x), y in zip(
        jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        x, y = double(x, y)
        scale = np.abs(y).max()
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * scale, err_msg=str(path))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("coefficients", [PLAIN, RGLRU])
@pytest.mark.parametrize("shape", [(2, 300, 256), (1, 7, 40), (3, 1000, 600)])
def test_lowers_for_a_tpu(monkeypatch, coefficients, dtype, shape):
    monkeypatch.undo()  # The blocks as they are.
    inputs, channel, h0, dh, dlast = gates_of(2, shape, dtype)
    if coefficients is PLAIN:
        inputs, channel = inputs[:2], ()
    exported = jax.export.export(
        jax.jit(functools.partial(everything, coefficients)),
        platforms=["tpu"],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("tpu_custom_call")],
    )(inputs, channel, h0, dh, dlast)
    assert exported.mlir_module().count("@tpu_custom_call") == 4
