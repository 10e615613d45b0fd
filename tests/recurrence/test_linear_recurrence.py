"""Every implementation against the definition, a loop in float64 NumPy, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from pf_jax import UserError, linear_recurrence
from pf_jax.recurrence import IMPLEMENTATIONS, choice, recurrence
from pf_jax.recurrence.coefficients import PLAIN
from tests.recurrence.definition import (
    DECAYS,
    assert_close,
    double,
    loop,
    loop_gradients,
    random_problem,
)

# Kernels of other platforms have tests of their own.
PORTABLE = [name for name, x in IMPLEMENTATIONS.items() if x.platform in (None, "cpu")]

CUSTOM_CALLS = ("tpu_custom_call", "mosaic_gpu_v2")

# That which "auto" is here is tested under that name, and for any shape by its own.
every_implementation = pytest.mark.parametrize(
    "implementation", ["auto", *(name for name in PORTABLE if name != choice.best_here())]
)


@functools.partial(jax.jit, static_argnums=0)
def states(implementation, a, b, h0=None):
    return linear_recurrence(a, b, h0, implementation=implementation)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(implementation, a, b, h0, dh):
    """`h` and the gradients of `sum(dh * h)`."""
    h, pull_back = jax.vjp(functools.partial(states, implementation), a, b, h0)
    return h, pull_back(dh.astype(h.dtype))


def assert_equals_the_loop(implementation, a, b, h0, dh, relative=0.0):
    h, gradients = value_and_gradients(implementation, a, b, h0, dh)
    exact, magnitudes = double(a, b, h0, dh), [np.abs(x) for x in double(a, b, h0, dh)]
    assert_close(h, loop(*exact[:3]), loop(*magnitudes[:3]), relative)
    for gradient, of, expected, magnitude in zip(
        gradients, (a, b, h0), loop_gradients(*exact), loop_gradients(*magnitudes), strict=True
    ):
        assert gradient.dtype == of.dtype
        # That of `a` is made of the states as they were rounded.
        assert_close(gradient, expected, magnitude, 2 * relative if of is a else relative)


@every_implementation
@pytest.mark.parametrize("time", [1, 2, 64, 127])
def test_equals_the_loop_for_each_kind_of_decay(implementation, time):
    assert_equals_the_loop(implementation, *random_problem(0, 3, time))


@every_implementation
def test_equals_the_loop_over_65536_positions(implementation):
    assert_equals_the_loop(
        implementation, *random_problem(1, 1, 65_536, ("near one", "any", "slow"))
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 4),
    time=st.integers(1, 40),
    decays=st.lists(st.sampled_from(list(DECAYS)), min_size=1, max_size=5),
    implementation=st.sampled_from(PORTABLE),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_equals_the_loop_for_any_shape(seed, batch, time, decays, implementation):
    assert_equals_the_loop(implementation, *random_problem(seed, batch, time, decays))


@every_implementation
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_rounds_once_at_the_end(implementation, dtype):
    problem = random_problem(2, 2, 127, dtype=dtype)
    h, _ = value_and_gradients(implementation, *problem)
    assert h.dtype == dtype
    assert_equals_the_loop(implementation, *problem, relative=jnp.finfo(dtype).eps / 2)


@every_implementation
@pytest.mark.parametrize(
    ("of_a", "of_b", "of_h0", "of_h"),
    [
        (jnp.float32, jnp.bfloat16, jnp.bfloat16, jnp.float32),
        (jnp.bfloat16, jnp.float32, jnp.float16, jnp.float32),
        (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float32),
        (jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.bfloat16),
    ],
)
def test_mixed_types_promote_and_each_gradient_has_its_inputs_type(
    implementation, of_a, of_b, of_h0, of_h
):
    a, b, h0, dh = random_problem(4, 2, 16)
    # A cotangent that bfloat16 holds exactly, so that its type does not matter.
    problem = a.astype(of_a), b.astype(of_b), h0.astype(of_h0), jnp.round(dh)
    h, _ = value_and_gradients(implementation, *problem)
    assert h.dtype == of_h
    assert_equals_the_loop(implementation, *problem, relative=2.0**-8)


@every_implementation
def test_integers_become_float32(implementation):
    a, b = jnp.array([[[2], [3]]]), jnp.array([[[1], [1]]])
    h = states(implementation, a, b, jnp.array([[0.5]]))
    assert h.dtype == jnp.float32
    np.testing.assert_allclose(h[0, :, 0], [2.0, 7.0])


@every_implementation
def test_without_h0_starts_from_zeros(implementation):
    a, b, h0, _ = random_problem(5, 2, 9)
    np.testing.assert_array_equal(
        states(implementation, a, b), states(implementation, a, b, jnp.zeros_like(h0))
    )


@every_implementation
def test_last_state_is_the_h0_with_which_the_sequence_goes_on(implementation):
    a, b, h0, _ = random_problem(6, 2, 20)
    h = states(implementation, a, b, h0)
    rest = states(implementation, a[:, 7:], b[:, 7:], h[:, 6])
    np.testing.assert_allclose(rest, h[:, 7:], rtol=1e-5, atol=1e-6)


@every_implementation
def test_first_and_second_derivatives_agree_with_finite_differences_in_float64(implementation):
    with jax.enable_x64(True):
        a, b, h0, dh = random_problem(7, 1, 5, ("any", "one"), np.float64)

        def loss(a, b, h0):
            h = linear_recurrence(a, b, h0, implementation=implementation)
            assert h.dtype == jnp.float64
            return jnp.sum(dh * h**2)

        check_grads(jax.jit(loss), (a, b, h0), order=2, modes=["rev"], atol=1e-4, rtol=1e-4)


@every_implementation
def test_vmap_of_value_and_gradient_equals_one_by_one(implementation):
    a, b, h0, dh = random_problem(8, 6, 11)
    a, b, h0, dh = (x.reshape(3, 2, *x.shape[1:]) for x in (a, b, h0, dh))
    run = jax.vmap(functools.partial(value_and_gradients, implementation), (None, 0, 0, 0))
    h, (da, db, dh0) = run(a[0], b, h0, dh)
    for i in range(3):
        expected, gradients = value_and_gradients(implementation, a[0], b[i], h0[i], dh[i])
        np.testing.assert_allclose(h[i], expected, rtol=1e-5, atol=1e-6)
        for actual, gradient in zip((da, db, dh0), gradients, strict=True):
            np.testing.assert_allclose(actual[i], gradient, rtol=1e-5, atol=1e-6)


@every_implementation
def test_eager_equals_compiled(implementation):
    a, b, h0, _ = random_problem(9, 2, 3)
    np.testing.assert_allclose(
        linear_recurrence(a, b, h0, implementation=implementation),
        states(implementation, a, b, h0),
        rtol=1e-6,
        atol=1e-6,
    )


@every_implementation
def test_no_position_gives_no_state_and_no_gradient(implementation):
    a, b, h0 = jnp.zeros((2, 0, 3), jnp.bfloat16), jnp.zeros((2, 0, 3)), jnp.ones((2, 3))
    h = linear_recurrence(a, b, h0, implementation=implementation)
    assert h.shape == (2, 0, 3)
    assert h.dtype == jnp.float32
    gradient = jax.grad(
        lambda h0: linear_recurrence(a, b, h0, implementation=implementation).sum()
    )(h0)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(h0))


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_auto_and_its_gradient_lower_for_every_platform_from_here(platform):
    def loss(a, b, h0):
        return linear_recurrence(a, b, h0).sum()

    problem = random_problem(10, 2, 32)[:3]
    exported = jax.export.export(
        jax.jit(jax.grad(loss, (0, 1, 2))),
        platforms=[platform],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(name) for name in CUSTOM_CALLS],
    )(*problem)
    assert exported.platforms == (platform,)
    assert ("custom_call" in exported.mlir_module()) == (platform != "cpu")


@every_implementation
def test_the_last_state_is_told_before_rounding_and_takes_part_in_gradients(implementation):
    a, b, h0, dh = random_problem(12, 2, 9)

    def run(a, b, h0):
        return recurrence(PLAIN, (a, b), h0=h0, dtype=jnp.bfloat16, implementation=implementation)

    (h, last), pull_back = jax.vjp(run, a, b, h0)
    assert h.dtype == jnp.bfloat16
    exact, magnitudes = double(a, b, h0), [np.abs(x) for x in double(a, b, h0)]
    assert_close(last, loop(*exact)[:, -1], loop(*magnitudes)[:, -1])
    gradients = pull_back((jnp.zeros_like(h), dh[:, -1]))
    dh = np.where(np.arange(9)[None, :, None] == 8, *double(dh), 0.0)
    expected = loop_gradients(*exact, dh), loop_gradients(*magnitudes, np.abs(dh))
    for gradient, value, magnitude in zip(gradients, *expected, strict=True):
        assert_close(gradient, value, magnitude, relative=2.0**-8)


@pytest.mark.parametrize("name", [name for name in IMPLEMENTATIONS if name not in PORTABLE])
def test_a_kernel_that_has_no_place_here_leaves_it_to_auto_with_one_warning(name):
    problem = random_problem(13, 1, 4)[:3]
    choice._warn_once.cache_clear()
    with pytest.warns(UserWarning, match=f"'{name}' runs on .* and not on cpu") as warned:
        h, _ = [linear_recurrence(*problem, implementation=name) for _ in range(2)]
    assert len(warned) == 1
    np.testing.assert_array_equal(h, linear_recurrence(*problem))


def test_a_kernel_that_does_not_compile_falls_back_with_one_warning(monkeypatch):
    def broken(*args):
        raise NotImplementedError("no such instruction")

    kernel = choice.IMPLEMENTATIONS["pallas_tpu"]._replace(forward=broken, platform="cpu")
    monkeypatch.setitem(choice.IMPLEMENTATIONS, "pallas_tpu", kernel)
    monkeypatch.setitem(choice._AUTO, "cpu", ("pallas_tpu", "sequential"))
    for cached in (choice._warn_once, choice._why_it_fails):
        cached.cache_clear()
    jax.clear_caches()
    problem = random_problem(14, 1, 4)[:3]
    with pytest.warns(UserWarning, match=r"'pallas_tpu' does not compile.*no such") as warned:
        h, _ = [linear_recurrence(*problem) for _ in range(2)]
    assert len(warned) == 1
    choice._why_it_fails.cache_clear()
    np.testing.assert_array_equal(h, linear_recurrence(*problem, implementation="sequential"))


def test_only_what_runs_is_traced(monkeypatch):
    for name in IMPLEMENTATIONS.keys() - {"cpu_loop"}:
        monkeypatch.setitem(choice.IMPLEMENTATIONS, name, choice.Implementation(*[None] * 4))
    jax.clear_caches()
    assert_equals_the_loop("auto", *random_problem(15, 2, 5))


def test_vmap_of_vmap_along_any_axes():
    a, b, h0, _ = random_problem(16, 2, 5)
    decays, inputs, starts = np.stack([a, 0.5 * a, 0.2 * a], 2), np.stack([b, -b], 1), [h0, 2 * h0]
    run = jax.vmap(jax.vmap(linear_recurrence, (None, 1, 0)), (2, None, None), out_axes=1)
    h = run(decays, inputs, np.stack(starts))
    for i, j in np.ndindex(3, 2):
        expected = linear_recurrence(decays[:, :, i], inputs[:, j], starts[j])
        np.testing.assert_allclose(h[j, i], expected, rtol=1e-6)


def test_wrong_shapes_are_named():
    a = jnp.ones((2, 5, 3))
    with pytest.raises(UserError, match=r"one shape .*got a: \(2, 5, 3\) and b: \(2, 4, 3\)"):
        linear_recurrence(a, a[:, 1:])
    with pytest.raises(UserError, match=r"\(batch, time, width\), got a: \(5, 3\)"):
        linear_recurrence(a[0], a[0])
    with pytest.raises(UserError, match=r"h0 must have shape .*\(2, 3\), got \(3,\)"):
        linear_recurrence(a, a, a[0, 0])
    with pytest.raises(UserError, match=r"h0 must have shape .*\(2, 3\), got \(2, 5, 3\)"):
        linear_recurrence(a, a, a)


def test_an_unknown_implementation_is_answered_with_the_known():
    a = jnp.ones((1, 2, 3))
    with pytest.raises(UserError, match=r"'fast'.*auto, associative, sequential"):
        linear_recurrence(a, a, implementation="fast")
