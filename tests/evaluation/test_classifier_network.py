"""The network against a plain NumPy one in float64, and its normalization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from pf_jax.errors import UserError
from pf_jax.evaluation.classifier.resnext import GroupedConv, ResNeXt, ResNeXtConfig
from pf_jax.evaluation.classifier.saved import abstract_network, merge_network

TINY = ResNeXtConfig(
    depth=20, cardinality=2, base_width=3, widen_factor=2, stem_width=4, num_classes=5
)


def convolve(x, kernel, stride, groups):
    """Of (height, width, c_in) with (size, size, c_in / groups, c_out), one number at a time."""
    size, _, group_in, width_out = kernel.shape
    margin = size // 2
    padded = np.pad(x, ((margin, margin), (margin, margin), (0, 0)))
    out = np.zeros((-(-x.shape[0] // stride), -(-x.shape[1] // stride), width_out))
    for i, j, c in np.ndindex(out.shape):
        group = c // (width_out // groups)
        channels = slice(group * group_in, (group + 1) * group_in)
        rows, columns = i * stride, j * stride
        patch = padded[rows : rows + size, columns : columns + size, channels]
        out[i, j, c] = (patch * kernel[..., c]).sum()
    return out


def reference(config, variables, picture):
    """Features and logits of one spectrogram, in evaluation."""
    params, stats = variables["params"], variables["batch_stats"]

    def normed_conv(x, params, stats, stride=1, groups=1):
        x = convolve(x, params["conv"]["kernel"], stride, groups)
        mean, var = stats["norm"]["mean"], stats["norm"]["var"]
        return (x - mean) / np.sqrt(var + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]

    x = np.maximum(normed_conv(picture[..., None], params["stem"], stats["stem"]), 0)
    for number in range(3 * config.blocks):
        p, s = params["blocks"][number], stats["blocks"][number]
        stride = 2 if number in (config.blocks, 2 * config.blocks) else 1
        y = np.maximum(normed_conv(x, p["reduce"], s["reduce"]), 0)
        y = np.maximum(normed_conv(y, p["look"], s["look"], stride, config.cardinality), 0)
        y = normed_conv(y, p["expand"], s["expand"])
        if "shortcut" in p:
            x = normed_conv(x, p["shortcut"], s["shortcut"], stride)
        x = np.maximum(x + y, 0)
    features = x.mean(axis=(0, 1))
    return features, features @ params["head"]["kernel"] + params["head"]["bias"]


def random_variables(config, seed=0):
    rng = np.random.default_rng(seed)
    graphdef, abstract = abstract_network(config)

    def draw(path, leaf):
        if path[-1].key == "var":
            return rng.uniform(0.5, 2, leaf.shape)
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.5
        return scale * rng.standard_normal(leaf.shape) + (path[-1].key == "scale")

    return graphdef, jax.tree.map_with_path(draw, abstract)


@pytest.mark.parametrize("config", [TINY, ResNeXtConfig(11, 3, 2, 1, 4, 3)])
def test_as_a_loop_in_float64(config):
    graphdef, variables = random_variables(config)
    pictures = np.random.default_rng(1).uniform(-80, 0, (2, 6, 5))
    network = merge_network(graphdef, jax.tree.map(lambda x: jnp.asarray(x, "float32"), variables))
    features, logits = network(pictures.astype(np.float32))
    for row, picture in enumerate(pictures):
        wanted_features, wanted_logits = reference(config, variables, picture)
        np.testing.assert_allclose(features[row], wanted_features, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(logits[row], wanted_logits, rtol=1e-4, atol=1e-3)


@settings(deadline=None, max_examples=6)
@given(
    groups=st.integers(1, 3),
    size=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    height=st.integers(1, 6),
)
def test_groups_convolve_alike_on_all_devices(groups, size, stride, height):
    conv = GroupedConv(2 * groups, 4 * groups, size, stride=stride, groups=groups, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, height, 5, 2 * groups))
    elsewhere = conv._convolve(x, conv.kernel[...], groups)  # What is no CPU takes this way.
    wanted = [
        convolve(np.array(row, "f8"), np.array(conv.kernel[...], "f8"), stride, groups) for row in x
    ]
    np.testing.assert_allclose(conv(x), wanted, atol=1e-4)
    np.testing.assert_allclose(elsewhere, wanted, atol=1e-4)


def test_the_published_shape():
    """34.4 million parameters, as table 7 of the paper has ResNeXt-29, 8x64d."""
    config = ResNeXtConfig()
    _, variables = abstract_network(config)
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    assert round(count / 1e6, 1) == 34.4
    assert config.num_features == 1024


def test_normalization_gathers_averages_and_uses_them():
    network = ResNeXt(ResNeXtConfig(11, 1, 4, 1, 4, 3), rngs=nnx.Rngs(0))
    batch = np.random.default_rng(0).uniform(-80, 0, (8, 8, 8)).astype(np.float32)
    before = network(batch)[1]
    learn = nnx.jit(lambda network: network(batch, train=True)[1])
    for _ in range(150):
        learned = learn(network)
    after = network(batch)[1]
    # The averages have come to be those of the batch; of variances it is the same but for rounding.
    np.testing.assert_allclose(after, learned, rtol=1e-3, atol=1e-3)
    assert np.abs(np.asarray(before - after)).max() > 0.1
    np.testing.assert_allclose(network(batch[:1])[1], after[:1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 12}, "depth must be 11, 20, 29 or so on by nines, got 12"),
        ({"cardinality": 0}, "cardinality must be at least 1"),
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"base_width": 1.5}, "base_width must be an integer"),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(UserError, match=message):
        ResNeXtConfig(**change)
