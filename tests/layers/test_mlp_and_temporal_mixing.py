"""The two branches of a ResBlock against their equations, and how they start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pf_jax import PoolformerConfig
from pf_jax.layers import GatedMLP, TemporalMixing
from pf_jax.poolformer import ResBlock

WIDTH = 6


def make_config(**fields):
    return PoolformerConfig(**{"widths": (WIDTH,), "depths": (1,), "num_heads": 2} | fields)


def random_input(batch=2, time=7, width=WIDTH):
    return np.random.default_rng(1).standard_normal((batch, time, width)).astype(np.float32)


def gelu(x):
    """The tanh form of Hendrycks and Gimpel (arXiv 1606.08415)."""
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


@nnx.jit
def forward(layer, x):
    return layer(x, layer.init_state(len(x)))


def linear(layer, x):
    kernel, bias = np.array(layer.kernel[...], np.float64), np.array(layer.bias[...], np.float64)
    return x @ kernel + bias


@pytest.mark.parametrize(("expansion", "hidden"), [(2.0, 12), (1.4, 8), (0.01, 1)])
def test_gated_mlp_equals_its_equation(randomize, expansion, hidden):
    layer = randomize(
        lambda: GatedMLP(WIDTH, make_config(mlp_expansion=expansion), rngs=nnx.Rngs(0))
    )
    assert layer.gate.kernel.shape == (WIDTH, hidden)
    x = random_input()
    exact = x.astype(np.float64)
    expected = linear(layer.output, gelu(linear(layer.gate, exact)) * linear(layer.input, exact))
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


def test_temporal_mixing_equals_its_equation(randomize):
    layer = randomize(lambda: TemporalMixing(WIDTH, make_config(), rngs=nnx.Rngs(0)))
    x = random_input()
    exact = x.astype(np.float64)
    u = linear(layer.input, exact)
    kernel, bias = np.asarray(layer.convolution.kernel[...]), layer.convolution.bias[...]
    u = np.stack(
        [np.convolve(u[0, :, c], kernel[::-1, c])[:7] + bias[c] for c in range(WIDTH)], axis=-1
    )
    h, _ = forward(layer.rglru, u[None].astype(np.float32))
    expected = linear(layer.output, gelu(linear(layer.gate, exact[:1])) * np.asarray(h))
    y, _ = forward(layer, x)
    np.testing.assert_allclose(y[:1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [TemporalMixing, ResBlock])
@pytest.mark.parametrize("conv_width", [1, 4])
def test_parallel_form_equals_steps(randomize, assert_forms_agree, kind, conv_width):
    layer = randomize(lambda: kind(WIDTH, make_config(conv_width=conv_width), rngs=nnx.Rngs(0)))
    assert_forms_agree(layer, jnp.asarray(random_input()))


@pytest.mark.parametrize("kind", [TemporalMixing, ResBlock])
def test_parallel_form_equals_steps_in_bfloat16(randomize, assert_forms_agree, kind):
    layer = randomize(lambda: kind(WIDTH, make_config(dtype="bfloat16"), rngs=nnx.Rngs(0)))
    assert_forms_agree(layer, jnp.asarray(random_input(), jnp.bfloat16), atol=0.1)


@pytest.mark.parametrize(("depths", "num_blocks"), [((1,), 1), ((2, (0, 3), 9), 16)])
def test_residual_output_kernels_start_scaled_down_with_depth(depths, num_blocks):
    width = 128
    config = make_config(
        widths=(width,) * len(depths), depths=depths, pool_factors=(2,) * (len(depths) - 1)
    )
    block = nnx.jit(lambda: ResBlock(width, config, rngs=nnx.Rngs(0)))()
    for output in (block.mixer.output, block.mlp.output):
        fan_in = output.kernel.shape[0]
        assert np.var(output.kernel[...]) * fan_in * num_blocks == pytest.approx(1.0, abs=0.05)
    for kept in (block.mixer.gate, block.mixer.input, block.mlp.gate, block.mlp.input):
        assert np.var(kept.kernel[...]) * width == pytest.approx(1.0, abs=0.05)


def test_signal_in_the_recurrence_starts_at_the_scale_of_its_input():
    """Through `W_u` and the convolution, whatever the width: else the branch starts out dead."""
    width = 256

    @nnx.jit
    def into_the_recurrence(x):
        layer = TemporalMixing(width, make_config(widths=(width,)), rngs=nnx.Rngs(0))
        return layer.convolution(layer.input(x), layer.convolution.init_state(1))[0]

    u = into_the_recurrence(random_input(1, 64, width))
    assert np.var(u) == pytest.approx(1.0, abs=0.2)


def test_parameters_are_float32_and_results_bfloat16_where_asked():
    config = make_config(dtype="bfloat16")
    block = nnx.eval_shape(lambda: ResBlock(WIDTH, config, rngs=nnx.Rngs(0)))
    y, _ = nnx.eval_shape(forward, block, jnp.asarray(random_input(), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(block, nnx.Param)))
