"""Variants of a model: what their names change, and that they have equally many parameters."""

import dataclasses
import pathlib
import re

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from experiments import cli
from pf_jax.config import PoolformerConfig
from pf_jax.data import DataConfig
from pf_jax.errors import UserError
from pf_jax.training import variants
from pf_jax.training.config import TrainConfig
from pf_jax.training.state import abstract_model, merge_model, split_model
from pf_jax.training.variants import (
    VARIANTS,
    count_parameters,
    make_variants,
    match_parameters,
    without_pooling,
)

MODEL = PoolformerConfig(
    widths=(16, 24, 40), depths=((0, 1), (1, 1), 1), pool_factors=(4, 2), pool_groups=1, num_heads=4
)
CONFIG = TrainConfig(model=MODEL, data=DataConfig(name="demo", window=256, sample_rate=8_000))


def models(text, **arguments):
    return {v.name: v.config.model for v in make_variants(text, CONFIG, **arguments)}


SAME_SHAPE = {
    "poolformer": {},
    "attention": {"mixer": "attention"},
    "gru": {"mixer": "gru"},
    "real": {"mixer": "rglru"},
    "complex": {},
    "griffin": {
        **{"mixer": "rglru", "mixer_expansion": 1.0, "recurrence_output": False, "norm": "rms"},
        **{"radii": (0.9, 0.999), "convolution": "depthwise", "conv_width": 4},
    },
    "dense_pools": {},
    "grouped_pools": {"pool_groups": 4},
    "backwards_pools": {"pool_factors": (2, 4)},
    "fewer_levels": {"widths": (16, 24), "depths": ((0, 1), 3), "pool_factors": (4,)},
    "blocks_after": {"depths": ((0, 1), (0, 2), 1)},
    "no_pooling": {"widths": (40,), "depths": (4,), "pool_factors": ()},
    "convolution": {"convolution": "full"},
    "depthwise_convolution": {"convolution": "depthwise"},
    "no_convolution": {},
    "no_gate": {"mixer_gate": False},
    "no_mlp": {"mlp": "none"},
    "plain_mlp": {"mlp": "plain_mlp"},
    "layer_norm": {},
    "rms_norm": {"norm": "rms"},
    "learned_embedding": {"embedding": "learned"},
    "linear_embedding": {"embedding": "sinusoidal_linear"},
    "fixed_embedding": {},
    "dropout": {"dropout": 0.2},
    "no_dropout": {},
}
BACKBONE = {
    **{"pool_groups": 1, "sashimi_backbone": True, "embedding": "learned"},
    "depths": ((0, 1), (0, 2), 1),
}
RIVALS = {
    "sashimi": {"mixer": "s4d", "mlp": "plain_mlp", "norm_epsilon": 1e-5},
    "mamba": {"mixer": "mamba", "mlp": "none", "norm": "rms", "state_size": 16, "conv_width": 4},
}


def test_names_change_what_they_say(monkeypatch):
    monkeypatch.setattr(variants, "match_parameters", lambda model, parameters: model)
    monkeypatch.setattr(variants, "count_parameters", lambda model: 1)
    expected = SAME_SHAPE | {name: BACKBONE | values for name, values in RIVALS.items()}
    found = models(",".join(expected))
    assert {*expected, "published", "channel_pools", "convolution_blocks"} == {*VARIANTS}
    for name, values in expected.items():
        assert found[name] == dataclasses.replace(MODEL, **values), name
    # Of a model that has what they take away.
    config = dataclasses.replace(MODEL, convolution="full", dropout=0.5, norm="rms", mixer="gru")
    config = dataclasses.replace(config, embedding="learned")
    for name, field in (
        *{"no_convolution": "convolution", "no_dropout": "dropout", "layer_norm": "norm"}.items(),
        *{"fixed_embedding": "embedding", "complex": "mixer"}.items(),
    ):
        changed = variants.change(dataclasses.replace(CONFIG, model=config), name).model
        assert changed == dataclasses.replace(config, **{field: getattr(MODEL, field)}), name


def test_the_published_shape():
    (variant,) = make_variants(f"published:widths={(128,) * 5};num_heads=32", CONFIG, 7_272_704)
    sc09 = cli.load_config("sc09").model
    assert variant.config.model == dataclasses.replace(sc09, dropout=0.0, remat=False)
    assert variant.deviation == 0.0


def test_convolutions_at_the_ends_of_a_level():
    model = dataclasses.replace(MODEL, depths=(4, (1, 3), 5))
    config = dataclasses.replace(CONFIG, model=model)
    c, r = "convolution", "cglru"
    one = variants.change(config, "convolution_blocks").model
    assert one.blocks(0) == ((c, c, r, r), (r, r, c, c))
    assert one.blocks(1) == ((r,), (r, r, c))
    assert one.blocks(2) == ((c, c, r, r, r), ())
    after = variants.change(config, "convolution_blocks+blocks_after").model
    assert after.blocks(0) == ((), (c, c, r, r, r, r, c, c))
    fewer = variants.change(config, "convolution_blocks+fewer_levels").model
    assert fewer.blocks(1) == ((r, c, c, r, r, r, r, r, c), ())


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "channel_pools"])
def test_every_variant_is_a_model_of_as_many_parameters(name):
    model = dataclasses.replace(MODEL, widths=(16, 24), depths=((0, 1), 1), pool_factors=(2,))
    (variant,) = make_variants(name, dataclasses.replace(CONFIG, model=model), parameters=40_000)
    # The 36 blocks of the published shape are too many for so few.
    assert variant.deviation == variant.parameters / 40_000 - 1.0
    assert abs(variant.deviation) < (1.0 if name == "published" else 0.15)
    graphdef, params = split_model(abstract_model(variant.config.model))
    tokens = jax.ShapeDtypeStruct((2, 9), np.int32)
    logits = jax.eval_shape(lambda p, tokens: merge_model(graphdef, p)(tokens), params, tokens)
    assert logits.shape == (2, 9, 256)
    assert variant.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("path", ["docs/comparison.md", "experiments/compare.py"])
def test_every_variant_is_listed(path):
    text = (pathlib.Path(__file__).parents[2] / path).read_text()
    assert {*VARIANTS} <= {*re.findall(r"\w+", text)}


def test_a_change_may_follow_another():
    def changed(name):
        return variants.change(CONFIG, name).model

    one, other = changed("mamba+no_pooling"), changed("no_pooling+mamba")
    assert (one.mixer, one.mlp, one.num_levels) == ("mamba", "none", 1)
    assert dataclasses.replace(one, widths=other.widths) == other
    third = changed("sashimi+fewer_levels+no_mlp:conv_width=2")
    assert (third.mixer, third.mlp, third.num_levels, third.conv_width) == ("s4d", "none", 2, 2)
    assert third.depths == ((0, 1), 3)
    for name in ("no_pooling", "fewer_levels", "blocks_after"):
        assert changed(f"{name}:mixer=gru").layers == {"gru", "gated_mlp"}


def test_fields_may_be_given():
    text = "poolformer:pool_factors=(2, 2);mlp=none, no_gate:depths=(1,(0,2),1);dtype=bfloat16"
    one, two = make_variants(f"{text},poolformer:optimizer.learning_rate=1e-4", CONFIG)[:2]
    assert (one.config.model.pool_factors, one.config.model.mlp) == ((2, 2), "none")
    assert two.config.model.depths == (1, (0, 2), 1)
    assert (two.config.model.mixer_gate, two.config.model.dtype) == (False, "bfloat16")
    assert one.directory == "poolformer_pool_factors=_2,2_mlp=none"
    slow = make_variants("poolformer:optimizer.learning_rate=1e-4", CONFIG)[0].config
    optimizer = dataclasses.replace(CONFIG.optimizer, learning_rate=1e-4)
    assert slow == dataclasses.replace(CONFIG, optimizer=optimizer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "No model is named: give some of poolformer, published"),
        (",", "No model is named"),
        ("no_gates", "Unknown model 'no_gates'; did you mean no_gate"),
        ("mamba+no_pool", "Unknown model 'no_pool'; did you mean no_pooling"),
        ("mamba+", "Unknown model ''"),
        ("poolformer,poolformer", "Two models are the same: poolformer and poolformer"),
        ("poolformer:mixr=gru", "The model poolformer:mixr=gru has no field 'mixr'; did you mean"),
        ("poolformer:xyz=1", "no field 'xyz'; fields are those of --config.model"),
        ("poolformer:mlp", "'mlp' is not like field=value"),
        ("poolformer:conv_width=x", "conv_width must be an integer, got 'x'"),
        ("poolformer:conv_width=0", "poolformer:conv_width=0: conv_width must be at least 1"),
        ("poolformer:widths=(8,)", "n widths, n depths and n - 1 pool_factors"),
        ("channel_pools", "model channel_pools: .* channel by channel, which needs one width"),
        ("poolformer:mixer=rglu", "needs the layer 'rglu'; .*rglru"),
        ("no_pooling,fewer_levels:optimizer.b1=2", r"b1 must be in \[0, 1\)"),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(UserError, match=message):
        make_variants(text, CONFIG)


def test_impossible_numbers_and_levels():
    with pytest.raises(UserError, match="parameters must be at least 1, got 0"):
        make_variants("poolformer", CONFIG, parameters=0)
    one = dataclasses.replace(MODEL, widths=(16,), depths=(1,), pool_factors=())
    with pytest.raises(UserError, match="fewer_levels: it has one level"):
        make_variants("fewer_levels", dataclasses.replace(CONFIG, model=one))


def test_a_mixer_that_there_is_not_is_named(monkeypatch):
    """Whichever layers there are: these are taken away."""
    known = {name: variants.LAYERS[name] for name in ("rglru", "gated_mlp", "plain_mlp")}
    monkeypatch.setattr(variants, "LAYERS", known)
    for name, mixer in (("sashimi", "s4d"), ("mamba", "mamba"), ("attention", "attention")):
        with pytest.raises(UserError, match=f"The model {name} needs the layer '{mixer}'; .*rglru"):
            make_variants(name, CONFIG)


@hypothesis.settings(max_examples=4, deadline=None)
@hypothesis.example(heads=1, multiples=[8, 9], factor=0.5, mlp="none")
@hypothesis.given(
    heads=st.integers(1, 3),
    multiples=st.lists(st.integers(8, 24), min_size=1, max_size=3),
    factor=st.floats(0.4, 2.5),
    mlp=st.sampled_from(["gated_mlp", "none"]),
)
def test_parameters_are_matched_for_all_shapes(heads, multiples, factor, mlp):
    levels = len(multiples)
    model = PoolformerConfig(
        widths=tuple(heads * m for m in multiples),
        depths=(1,) * levels,
        pool_factors=(2,) * (levels - 1),
        pool_groups=1,
        embedding="learned",
        num_heads=heads,
        mlp=mlp,
    )
    wanted = round(factor * count_parameters(model))
    matched = match_parameters(model, wanted)
    assert dataclasses.replace(matched, widths=model.widths) == model
    found = [width / heads for width in matched.widths]
    assert all(x == int(x) for x in found)
    # In proportion, up to one multiple for rounding and one to come closer.
    scale = max(found) / max(multiples)
    for x, multiple in zip(found, multiples, strict=True):
        assert abs(x - scale * multiple) <= 2.5 + 2.0 * multiple / max(multiples)
    # As near as it can be: no one level does better by one more multiple, or one less.
    distance = abs(count_parameters(matched) - wanted)
    if distance > 0.01 * wanted:
        level = int(np.argmax(matched.widths))
        for change in (heads, -heads):
            widths = list(matched.widths)
            widths[level] += change
            other = dataclasses.replace(matched, widths=tuple(widths))
            assert abs(count_parameters(other) - wanted) >= distance


def test_with_channel_pools_heads_keep_their_width():
    model = PoolformerConfig((16, 16), (1, 1), (2,), num_heads=4)
    for factor in (0.3, 0.6, 2.0):
        wanted = round(factor * count_parameters(model))
        matched = match_parameters(model, wanted)
        assert matched.widths[0] == matched.widths[1] == 4 * matched.num_heads
        for heads in (matched.num_heads - 1, matched.num_heads + 1):
            other = dataclasses.replace(model, widths=(4 * heads,) * 2, num_heads=heads)
            others = abs(count_parameters(other) - wanted)
            assert others >= abs(count_parameters(matched) - wanted)


def test_one_level_has_the_nearest_width():
    one = without_pooling(MODEL)
    assert (one.num_levels, one.num_blocks) == (1, MODEL.num_blocks)
    wanted = count_parameters(MODEL)
    every = [dataclasses.replace(one, widths=(4 * n,)) for n in range(1, 13)]
    nearest = min(every, key=lambda model: abs(count_parameters(model) - wanted))
    assert nearest.widths == one.widths
