import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pf_jax.layers import CausalConvolution


def make_layer(width=3, taps=4, dtype="float32"):
    return CausalConvolution(width, taps, dtype=dtype, rngs=nnx.Rngs(0))


def random_input(time, batch=2, width=3):
    return np.random.default_rng(time).standard_normal((batch, time, width)).astype(np.float32)


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("time", [1, 3, 9])
def test_equals_numpy_convolve(randomize, taps, time):
    layer, u = randomize(lambda: make_layer(taps=taps)), random_input(time)
    y, _ = nnx.jit(lambda layer, u: layer(u, layer.init_state(2)))(layer, u)
    newest_first = np.asarray(layer.kernel[...])[::-1]
    for row in range(2):
        for channel in range(3):
            expected = np.convolve(u[row, :, channel], newest_first[:, channel])[:time]
            np.testing.assert_allclose(
                y[row, :, channel], expected + layer.bias[channel], rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("taps", "split"), [(1, 3), (4, 1), (4, 3), (4, 6)])
def test_parallel_form_equals_steps(randomize, assert_forms_agree, taps, split, dtype):
    layer = randomize(lambda: make_layer(taps=taps, dtype=dtype))
    # In bfloat16 a compiler may keep more digits between the taps in one form than in the other.
    atol = 1e-6 if dtype == "float32" else 0.05
    assert_forms_agree(layer, jnp.asarray(random_input(8), dtype), split, atol)


def test_state_is_the_last_inputs_oldest_first():
    layer, u = make_layer(taps=4), random_input(5)
    _, state = layer(u, layer.init_state(2))
    np.testing.assert_array_equal(state, u[:, -3:])
    _, state = layer(u[:, :2], layer.init_state(2))
    np.testing.assert_array_equal(state[:, 0], np.zeros((2, 3)))
    np.testing.assert_array_equal(state[:, 1:], u[:, :2])


@pytest.mark.parametrize("width", [4, 1024])
def test_initial_kernel_keeps_the_variance_of_white_noise_whatever_the_width(width):
    kernels = [
        CausalConvolution(width, 4, dtype="float32", rngs=nnx.Rngs(seed)).kernel[...]
        for seed in range(4096 // width // 4 or 1)
    ]
    gain = np.mean([np.square(kernel).sum(axis=0).mean() for kernel in kernels])
    assert gain == pytest.approx(1.0, abs=0.15)
