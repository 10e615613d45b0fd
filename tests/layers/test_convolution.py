"""Causal convolutions, full and depthwise, against sums over taps in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pf_jax import PoolformerConfig
from pf_jax.layers import LAYERS, CausalConvolution
from tests.layers import equations

both = pytest.mark.parametrize("depthwise", [False, True])


def make_layer(depthwise, width=3, taps=4, dtype="float32", seed=0):
    return CausalConvolution(width, taps, depthwise=depthwise, dtype=dtype, rngs=nnx.Rngs(seed))


def random_input(time, batch=2, width=3):
    return np.random.default_rng(time).standard_normal((batch, time, width)).astype(np.float32)


@both
@pytest.mark.parametrize(("taps", "time"), [(1, 3), (2, 1), (4, 3), (4, 9)])
def test_equals_the_equation_from_zeros_and_after_other_inputs(randomize, depthwise, taps, time):
    layer, u = randomize(lambda: make_layer(depthwise, taps=taps)), random_input(time)
    run = nnx.jit(lambda layer, u, state: layer(u, state))
    past = random_input(taps, batch=2)[:, 1:]
    for state, before in ((layer.init_state(2), None), (jnp.asarray(past), past)):
        y, _ = run(layer, u, state)
        expected = equations.convolution(layer, u.astype(np.float64), before)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("taps", "split"), [(1, 3), (4, 1), (4, 3), (4, 6)])
def test_parallel_form_equals_steps(randomize, assert_forms_agree, depthwise, taps, split, dtype):
    layer = randomize(lambda: make_layer(depthwise, taps=taps, dtype=dtype))
    # In bfloat16 a compiler may keep more digits between the taps in one form than in the other.
    atol = 1e-6 if dtype == "float32" else 0.05
    assert_forms_agree(layer, jnp.asarray(random_input(8), dtype), split, atol)


@both
def test_state_is_the_last_inputs_oldest_first(depthwise):
    layer, u = make_layer(depthwise), random_input(5)
    _, state = layer(u, layer.init_state(2))
    np.testing.assert_array_equal(state, u[:, -3:])
    _, state = layer(u[:, :2], layer.init_state(2))
    np.testing.assert_array_equal(state[:, 0], np.zeros((2, 3)))
    np.testing.assert_array_equal(state[:, 1:], u[:, :2])


@pytest.mark.parametrize(
    ("depthwise", "width", "fan_in"), [(True, 4, 4), (True, 1024, 4), (False, 32, 4 * 32)]
)
def test_initial_kernel_keeps_the_variance_of_white_noise_whatever_the_width(
    depthwise, width, fan_in
):
    kernels = [
        make_layer(depthwise, width, seed=seed).kernel[...] for seed in range(4096 // width // 4)
    ]
    assert np.mean(np.square(kernels)) * fan_in == pytest.approx(1.0, abs=0.15)


def test_as_mixers_they_have_the_width_of_the_level_and_the_taps_of_the_config():
    config = PoolformerConfig((6,), (0,), conv_width=5)
    shapes = {"convolution": (5, 6, 6), "depthwise_convolution": (5, 6)}
    for name, shape in shapes.items():
        layer = nnx.eval_shape(lambda name=name: LAYERS[name](6, config, rngs=nnx.Rngs(0)))
        assert layer.kernel.shape == shape
        assert layer.out_width == 6
