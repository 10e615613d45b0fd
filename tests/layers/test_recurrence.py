"""The recurrence between its maps, with and without a convolution, against its equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pf_jax import PoolformerConfig
from pf_jax.layers import LAYERS
from tests.layers import equations

WIDTH = 6
FORMS = [
    ("cglru", "none", True, 2.0),
    ("cglru", "full", True, 1.0),
    ("rglru", "full", False, 1.5),
    ("rglru", "depthwise", False, 1.0),
    ("cglru", "depthwise", True, 2.0),
]
every_form = pytest.mark.parametrize(("mixer", "convolution", "output", "expansion"), FORMS)


def make_layer(mixer, convolution, output, expansion, **fields):
    config = PoolformerConfig(
        (WIDTH,),
        (1,),
        mixer=mixer,
        num_heads=3,
        convolution=convolution,
        recurrence_output=output,
        mixer_expansion=expansion,
        **fields,
    )
    return LAYERS[mixer](WIDTH, config, rngs=nnx.Rngs(0))


def random_input(batch=2, time=7):
    return np.random.default_rng(1).standard_normal((batch, time, WIDTH)).astype(np.float32)


@every_form
def test_equals_its_equation_and_tells_its_decay(randomize, mixer, convolution, output, expansion):
    layer = randomize(lambda: make_layer(mixer, convolution, output, expansion))
    hidden = round(WIDTH * expansion)
    assert layer.out_width == (WIDTH if output else hidden)
    x = random_input()
    run = nnx.jit(lambda layer, x, state: (layer(x, state), layer.log_decay(x, state)))
    (y, state), (log_a, bound) = run(layer, x, layer.init_state(2))
    expected = equations.recurrence(layer, x.astype(np.float64))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert state.recurrence.shape == (2, hidden)
    channels = hidden // (2 if mixer == "cglru" else 1)
    assert log_a.shape == (2, 7, channels)
    assert bound.shape == (channels,)
    # From ones, and where the input map gives nothing, a step leaves the decay.
    layer.input.kernel[...] *= 0.0
    layer.input.bias[...] *= 0.0
    if convolution == "depthwise":
        layer.convolution.bias[...] *= 0.0
    state = state._replace(recurrence=jnp.ones((2, hidden)), convolution=())
    if convolution != "none":
        state = state._replace(convolution=layer.convolution.init_state(2))
    (_, after), (log_a, _) = run(layer, x[:, :1], state)
    modulus = np.abs(after.recurrence)
    if mixer == "cglru":
        modulus = np.hypot(*np.split(after.recurrence, 2, axis=-1)) / 2**0.5
    np.testing.assert_allclose(np.log(modulus), log_a[:, 0], rtol=1e-4, atol=1e-6)


@every_form
def test_parallel_form_equals_steps(
    randomize, assert_forms_agree, mixer, convolution, output, expansion
):
    layer = randomize(lambda: make_layer(mixer, convolution, output, expansion))
    assert_forms_agree(layer, jnp.asarray(random_input()))


@pytest.mark.parametrize("form", FORMS[1:4:2])
def test_parallel_form_equals_steps_in_bfloat16(randomize, assert_forms_agree, form):
    layer = randomize(lambda: make_layer(*form, dtype="bfloat16"))
    x = jnp.asarray(random_input(), jnp.bfloat16)
    assert_forms_agree(layer, x, atol=0.1)
    y, state = jax.eval_shape(layer, x, layer.init_state(2))
    assert y.dtype == jnp.bfloat16
    assert state.recurrence.dtype == jnp.float32
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(layer, nnx.Param)))
