"""The gated recurrences, real and complex, by every implementation that runs here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from pf_jax import UserError
from pf_jax.recurrence import IMPLEMENTATIONS, choice, recurrence
from pf_jax.recurrence.gates import CGLRU, MAX_SLOPE, cos_sin, input_scale
from tests.recurrence.gated import COEFFICIENTS, assert_equal, expected, problem

PORTABLE = [name for name, x in IMPLEMENTATIONS.items() if x.platform in (None, "cpu")]
every_implementation = pytest.mark.parametrize("implementation", PORTABLE)
every_kind = pytest.mark.parametrize("coefficients", COEFFICIENTS.values(), ids=COEFFICIENTS)


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradients(implementation, coefficients, inputs, channel, h0, dh, dlast):
    def run(inputs, channel, h0):
        return recurrence(
            coefficients, inputs, channel, h0, dtype=dh.dtype, implementation=implementation
        )

    (h, last), pull_back = jax.vjp(run, inputs, channel, h0)
    return {"h": h, "last": last, "gradients": pull_back((dh, dlast))}


def assert_equals_the_loop(implementation, coefficients, arguments, tolerance=1e-5):
    actual = value_and_gradients(implementation, coefficients, *arguments)
    wanted = expected(coefficients, *arguments)
    assert_equal(actual, {name: wanted[name] for name in actual}, tolerance)
    return actual


@every_kind
@every_implementation
def test_value_and_gradients_equal_the_loop(implementation, coefficients):
    assert_equals_the_loop(implementation, coefficients, problem(coefficients, 0, (2, 37, 5)))


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 30), st.integers(1, 9)),
    implementation=st.sampled_from(PORTABLE),
)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_cglru_equals_the_loop_for_any_shape(seed, shape, implementation):
    assert_equals_the_loop(implementation, CGLRU, problem(CGLRU, seed, shape))


@every_kind
@every_implementation
def test_half_precision_keeps_float32_states(implementation, coefficients):
    dtypes = (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    arguments = problem(coefficients, 1, (2, 37, 5), dtypes)
    actual = assert_equals_the_loop(implementation, coefficients, arguments, 2e-2)
    assert actual["h"].dtype == jnp.bfloat16
    assert [x.dtype for x in actual["gradients"][0]] == list(dtypes)
    assert_equal(actual["last"], expected(coefficients, *arguments)["last"], 1e-5)


@every_implementation
@pytest.mark.parametrize("log_decay", [-1e-7, -30.0])
def test_cglru_that_forgets_nothing_or_all_equals_the_loop(implementation, log_decay):
    arguments = problem(CGLRU, 2, (1, 64, 4), log_decay=(log_decay, log_decay), turn=100.0)
    assert_equals_the_loop(implementation, CGLRU, arguments, 1e-4)


@every_implementation
def test_errors_of_the_cglru_do_not_grow_with_length(implementation):
    arguments = problem(CGLRU, 3, (1, 16_384, 3), log_decay=(-0.1, -0.03))
    h = value_and_gradients(implementation, CGLRU, *arguments)["h"]
    error = np.abs(np.asarray(h, np.float64) - expected(CGLRU, *arguments)["h"])
    first, second = (np.sqrt(np.mean(x**2)) for x in np.split(error, 2, axis=1))
    assert second < 1.2 * first
    assert error.max() < 2e-6


@every_kind
@every_implementation
def test_pieces_on_several_devices_equal_the_whole(implementation, coefficients):
    inputs, channel, h0, dh, dlast = problem(coefficients, 4, (2, 24, 3))

    def piece(inputs, dh, is_last):
        def run(inputs, channel, h0):
            return recurrence(
                coefficients,
                inputs,
                channel,
                h0,
                dtype=jnp.float32,
                implementation=implementation,
                sequence_axis="sequence",
            )

        (h, last), pull_back = jax.vjp(run, inputs, channel, h0)
        dinputs, *others = pull_back((dh, is_last * dlast))
        return h, last, dinputs, jax.lax.psum(others, "sequence")

    pieces = jax.tree.map(lambda x: jnp.stack(jnp.split(x, 4, axis=1)), (inputs, dh))
    run = jax.jit(jax.vmap(piece, axis_name="sequence"))
    h, last, dinputs, others = run(*pieces, jnp.arange(4) == 3)
    h, *dinputs = (jnp.concatenate([*x], axis=1) for x in (h, *dinputs))
    dchannel, dh0 = jax.tree.map(lambda x: x[0], others)
    actual = {"h": h, "last": last[-1], "gradients": (tuple(dinputs), dchannel, dh0)}
    wanted = expected(coefficients, inputs, channel, h0, dh, dlast)
    assert_equal(actual, {name: wanted[name] for name in actual}, 1e-5)


def test_second_derivatives_of_the_cglru_agree_with_finite_differences():
    with jax.enable_x64(True):
        arguments = problem(CGLRU, 5, (1, 3, 2))
        *arguments, dh, _ = jax.tree.map(lambda x: x.astype(jnp.float64), arguments)

        def loss(inputs, channel, h0):
            h, last = recurrence(CGLRU, inputs, channel, h0, dtype=jnp.float64)
            return jnp.sum(dh * h**2) + jnp.sum(last)

        check_grads(jax.jit(loss), arguments, order=2, modes=["rev"], atol=1e-3, rtol=1e-3)


def test_vmap_of_the_cglru_equals_one_by_one():
    inputs, channel, h0, _, _ = problem(CGLRU, 6, (4, 9, 3))
    run = functools.partial(recurrence, CGLRU, dtype=jnp.float32)
    expected = run(inputs, channel, h0)
    split = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), (inputs, h0))
    actual = jax.vmap(lambda inputs, h0: run(inputs, channel, h0))(*split)
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x.reshape(y.shape), y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("platform", "call"), [("tpu", "tpu_custom_call"), ("cuda", "mosaic_gpu")])
def test_the_cglru_is_lowered_with_the_kernels_of_a_platform(platform, call):
    arguments = problem(CGLRU, 7, (1, 20, 4))
    exported = jax.export.export(
        jax.jit(functools.partial(value_and_gradients, "auto", CGLRU)),
        platforms=[platform],
        disabled_checks=[
            jax.export.DisabledSafetyCheck.custom_call(name)
            for name in ("tpu_custom_call", "mosaic_gpu_v2")
        ],
    )(*arguments)
    assert exported.mlir_module().count(f"@{call}") == 2


def test_wrong_shapes_of_inputs_are_named():
    inputs, channel, h0, _, _ = problem(CGLRU, 8, (2, 5, 3))
    with pytest.raises(
        UserError, match=r"complex ones twice the width, got .*\(2, 5, 3\); .*\(2,\)"
    ):
        recurrence(CGLRU, (*inputs[:2], inputs[2][..., :3]), channel, h0, dtype=jnp.float32)
    with pytest.raises(UserError, match=r"h0 must have shape .*\(2, 6\), got \(2, 3\)"):
        recurrence(CGLRU, inputs, channel, h0[:, :3], dtype=jnp.float32)


def test_cosine_and_sine_are_exact_to_float32_and_have_each_other_as_slopes():
    angles = np.concatenate([np.linspace(-end, end, 100_001) for end in (4.0, 100.0, 10_000.0)])
    angles = angles.astype(np.float32)
    (cos, sin), (dcos, dsin) = jax.jvp(cos_sin, (angles,), (np.ones_like(angles),))
    exact = angles.astype(np.float64)
    for actual, wanted in [(cos, np.cos(exact)), (sin, np.sin(exact)), (dsin, cos), (-dcos, sin)]:
        np.testing.assert_allclose(actual, wanted, rtol=0.0, atol=2.5e-7)
    small = angles[(np.abs(angles) < 0.5) & (angles != 0.0)]
    np.testing.assert_allclose(cos_sin(small)[1], np.sin(small.astype(np.float64)), rtol=2e-7)


def test_input_scale_is_exact_near_one_and_its_slope_is_bounded():
    def scale(log_modulus):
        return input_scale(log_modulus, jnp.exp(log_modulus))

    x = -np.geomspace(1e-12, 50.0, 200).astype(np.float32)
    exact = np.sqrt(-np.expm1(2.0 * x.astype(np.float64)))
    np.testing.assert_allclose(jax.jit(scale)(x), exact, rtol=1e-6)
    slope = jax.jit(jax.vmap(jax.grad(scale)))(x)
    expected = -np.exp(2.0 * x.astype(np.float64)) / np.maximum(exact, 0.5 / MAX_SLOPE)
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-30)
    assert scale(0.0) == 0.0
    np.testing.assert_allclose(jax.grad(scale)(0.0), -2.0 * MAX_SLOPE)
    curvature = jax.vmap(jax.grad(jax.grad(scale)))(jnp.append(x, 0.0))
    assert jnp.isfinite(curvature).all()


def test_a_kernel_that_does_not_compile_for_complex_numbers_falls_back(monkeypatch):
    def broken(*args):
        raise NotImplementedError("no such instruction")

    kernel = choice.IMPLEMENTATIONS["pallas_tpu"]._replace(forward=broken, platform="cpu")
    monkeypatch.setitem(choice.IMPLEMENTATIONS, "pallas_tpu", kernel)
    monkeypatch.setitem(choice._AUTO, "cpu", ("pallas_tpu", "cpu_loop"))
    for cached in (choice._warn_once, choice._why_it_fails):
        cached.cache_clear()
    jax.clear_caches()
    with pytest.warns(UserWarning, match=r"'pallas_tpu' does not compile.*no such"):
        assert_equals_the_loop("auto", CGLRU, problem(CGLRU, 9, (1, 4, 2)))
    choice._why_it_fails.cache_clear()
