"""The TPU kernels: interpreted here against the definition, and lowered for a TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pf_jax.recurrence import pallas_tpu, tpu_blocks
from pf_jax.recurrence.coefficients import PLAIN
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

# Nothing is a multiple of a block, or of the 8 or 16 rows and the 128 lanes of a register.
SHAPES = [(1, 1, 1), (1, 2, 130), (2, 150, 130), (2, 300, 40)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of time and of channels in small arrays, and little to compile."""
    monkeypatch.setattr(tpu_blocks, "_UNROLL", 1)
    monkeypatch.setattr(tpu_blocks, "_MAX_TIME", 128)
    monkeypatch.setattr(tpu_blocks, "_MAX_WIDTH", 128)


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
    actual = interpreted(pallas_tpu, PLAIN, (a, b), (), h0, dh, dlast)
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


# Channels along lanes and along sublanes; of complex numbers, one block and several.
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("rglru", (1, 150, 130)),
        ("rglru", (1, 300, 40)),
        ("cglru", (2, 150, 128)),
        ("cglru", (1, 300, 20)),
        ("cglru", (1, 7, 130)),
    ],
)
def test_gated_recurrence_equals_the_loop(kind, shape, dtype):
    coefficients = COEFFICIENTS[kind]
    arguments = problem(coefficients, 1, shape, (dtype,) * 3)
    # Gradients are sums over positions whose terms are rounded as the inputs are.
    tolerance = 2e-5 if dtype == jnp.float32 else 2e-2
    actual = interpreted(pallas_tpu, coefficients, *arguments)
    assert_equal(actual, expected(coefficients, *arguments), tolerance)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("coefficients", [PLAIN, RGLRU, CGLRU], ids=["plain", "rglru", "cglru"])
@pytest.mark.parametrize("shape", [(2, 300, 256), (1, 7, 40), (3, 1000, 600)])
def test_lowers_for_a_tpu(monkeypatch, coefficients, dtype, shape):
    monkeypatch.undo()  # The blocks as they are.
    of = RGLRU if coefficients is PLAIN else coefficients
    inputs, channel, *others = problem(of, 2, shape, (dtype,) * 3)
    if coefficients is PLAIN:
        inputs, channel = inputs[:2], ()
    exported = jax.export.export(
        jax.jit(functools.partial(everything, pallas_tpu, coefficients)),
        platforms=["tpu"],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("tpu_custom_call")],
    )(inputs, channel, *others)
    assert exported.mlir_module().count("@tpu_custom_call") == 4
