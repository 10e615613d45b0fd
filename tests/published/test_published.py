"""The model against the published code of the paper's author, weight for weight.

The `.npz` files hold parameters (`param:PATH`, all random), tokens, logits, the loss in bits, and
its gradients (`grad:PATH`) of small models, as the code of the author (daniel-gallo/ssm, state of
June 2025) computed them on a CPU in float32. Such data is made by initializing one of its models
at a small size, replacing every parameter with random numbers, and storing what its apply function
and `jax.grad` return. `_parameters` maps the names there to the names here.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pf_jax import PoolformerConfig
from pf_jax.training.state import abstract_model, merge_model, split_model
from pf_jax.training.variants import count_parameters

_SMALL = {"vocab_size": 256, "num_heads": 4}
_MIXED = ("convolution", "cglru")
CONFIGS = {
    "published_small": PoolformerConfig(
        widths=(16,) * 3, depths=(2, 2, 1), pool_factors=(2, 4), **_SMALL
    ),
    "dense_pools_conv_blocks": PoolformerConfig(
        widths=(16,) * 3,
        depths=(_MIXED, ("convolution", *_MIXED), 2),
        pool_factors=(2, 3),
        pool_groups=1,
        mixer_expansion=1.5,
        convolution="full",
        **_SMALL,
    ),
    "real_recurrence": PoolformerConfig(
        widths=(16,) * 2,
        depths=(1, 2),
        pool_factors=(5,),
        mixer="rglru",
        mixer_expansion=1.0,
        **_SMALL,
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def golden(request):
    """A config, the published numbers, and the model with the published parameters."""
    file = np.load(pathlib.Path(__file__).parent / f"{request.param}.npz")
    arrays = {name: file[name] for name in file.files}
    config = CONFIGS[request.param]
    graphdef, abstract = split_model(abstract_model(config))
    values, used = _parameters(config, arrays, "param:")
    assert used == {name for name in arrays if name.startswith("param:")}
    params = jax.tree.map_with_path(
        lambda path, x: jnp.asarray(values.pop(jax.tree_util.keystr(path))).reshape(x.shape),
        abstract,
    )
    assert not values
    return config, arrays, graphdef, params


def test_has_as_many_parameters_as_the_published_model_for_sc09():
    config = PoolformerConfig(
        widths=(128,) * 5, depths=(4,) * 5, pool_factors=(2, 4, 4, 5), num_heads=32
    )
    assert count_parameters(config) == 7_272_704


def test_logits_loss_and_gradients_are_the_published_ones(golden):
    config, arrays, graphdef, params = golden
    tokens = jnp.asarray(arrays["tokens"])

    @jax.jit
    def loss(params):
        logits = merge_model(graphdef, params)(tokens)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)
        return -jnp.mean(log_p) / jnp.log(2.0), logits

    (bits, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(logits, arrays["logits"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(bits, arrays["bits"], atol=1e-5, rtol=0)
    expected, _ = _parameters(config, arrays, "grad:")
    for path, gradient in jax.tree.leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        there = expected[name].reshape(gradient.shape)
        scale = np.abs(there).max()
        np.testing.assert_allclose(gradient, there, atol=1e-3 * scale, rtol=0, err_msg=name)


def test_logits_of_the_recurrent_form_are_the_published_ones(golden):
    _, arrays, graphdef, params = golden
    tokens = jnp.asarray(arrays["tokens"])

    @jax.jit
    def run(params):
        model = merge_model(graphdef, params)

        def step(carry, token):
            state, previous = carry
            logits, state = model.step(state, previous)
            return (state, token), logits

        previous = jnp.full(tokens.shape[:1], model.start_token)
        carry = model.init_state(tokens.shape[0]), previous
        return jnp.moveaxis(jax.lax.scan(step, carry, tokens.T)[1], 0, 1)

    np.testing.assert_allclose(run(params), arrays["logits"], atol=1e-4, rtol=0)


def _parameters(config, arrays, prefix):
    """The arrays of a prefix by the names of parameters here, and the names that were used."""
    used, values = set(), {}

    def take(path):
        used.add(prefix + path)
        return arrays[prefix + path]

    def linear(here, there):
        values[f"{here}['kernel']"] = take(f"{there}/kernel")
        values[f"{here}['bias']"] = take(f"{there}/bias")

    def norm(here, there):
        values[f"{here}['scale']"] = take(f"{there}/scale")
        values[f"{here}['bias']"] = take(f"{there}/bias")

    def layer(here, there, name):
        if name == "gated_mlp":
            linear(f"{here}['input']", f"{there}/Dense_0")
        elif name == "convolution":
            linear(here, f"{there}/Conv_0")
        else:
            if config.convolution == "full":
                linear(f"{here}['convolution']", f"{there}/Conv_0")
                norm(f"{here}['norm']", f"{there}/LayerNorm_0")
            there = f"{there}/RGLRU_0"
            linear(f"{here}['input']", f"{there}/Dense_0")
            linear(f"{here}['output']", f"{there}/Dense_1")
            here = f"{here}['cell']"
            for number, gate in enumerate(["input_gate", "recurrence_gate"]):
                values[f"{here}['{gate}']['kernel']"] = take(
                    f"{there}/BlockDiagonalLinear_{number}/W"
                )
                values[f"{here}['{gate}']['bias']"] = take(
                    f"{there}/BlockDiagonalLinear_{number}/b"
                )
            values[f"{here}['decay']"] = take(f"{there}/a_real_param")
            if name == "cglru":
                values[f"{here}['turn']"] = take(f"{there}/a_imag_param")

    def blocks(here, there, mixers):
        names = [name for mixer in mixers for name in (mixer, "gated_mlp")]
        for number, name in enumerate(names):
            block, published = f"{here}[{number}]", f"{there}_{number}"
            norm(f"{block}['norm']", f"{published}/LayerNorm_0")
            linear(f"{block}['gate']", f"{published}/Dense_0")
            linear(f"{block}['output']", f"{published}/Dense_1")
            layer(f"{block}['layer']", f"{published}/layer", name)

    def pools(here, there, level):
        factor, width = config.pool_factors[level], config.widths[level]
        down, up = (f"{here}['{name}']" for name in ("down_pool", "up_pool"))
        if config.pool_groups == 1:
            linear(down, f"{there}/down_pool/Dense_0")
            linear(up, f"{there}/up_pool/Dense_0")
        else:
            linear(down, f"{there}/down_pool/Conv_0")
            linear(up, f"{there}/up_pool/Conv_0")
            # A transposed convolution: position m of a group has entry p - 1 - m.
            kernel = values[f"{up}['kernel']"]
            values[f"{up}['kernel']"] = kernel[::-1].reshape(1, factor, width)

    here, there = "['body']", "temporal_pyramid"
    for level in range(config.num_levels):
        before, after = config.blocks(level)
        if level == config.num_levels - 1:
            blocks(f"{here}['before']", f"{there}/blocks", before)
        else:
            blocks(f"{here}['before']", f"{there}/down_blocks", before)
            blocks(f"{here}['after']", f"{there}/up_blocks", after)
            pools(here, there, level)
        here, there = f"{here}['nested']", f"{there}/inner_layer"
    norm("['head_norm']", "norm")
    linear("['head']", "cls_head/final")
    return values, used
