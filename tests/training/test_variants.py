"""Variants of a model: what their names change, and that they have equally many parameters."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from flax import nnx

from pf_jax.config import PoolformerConfig
from pf_jax.data import DataConfig
from pf_jax.errors import UserError
from pf_jax.poolformer import Poolformer
from pf_jax.training import variants
from pf_jax.training.config import TrainConfig
from pf_jax.training.variants import (
    count_parameters,
    make_variants,
    match_parameters,
    without_pooling,
)

MODEL = PoolformerConfig(
    widths=(16, 24, 40), depths=((0, 1), 1, 1), pool_factors=(4, 2), pool_groups=1, num_heads=4
)
CONFIG = TrainConfig(model=MODEL, data=DataConfig(name="demo", window=256, sample_rate=8_000))


def models(text, **arguments):
    return {v.name: v.config.model for v in make_variants(text, CONFIG, **arguments)}


def test_names_change_what_they_say(monkeypatch):
    monkeypatch.setattr(variants, "match_parameters", lambda model, parameters: model)
    found = models(
        "poolformer,no_gate,convolution,depthwise_convolution,no_mlp,plain_mlp,rms_norm,"
        "learned_embedding,linear_embedding,fewer_levels,blocks_after,no_pooling,real,gru,"
        "attention,backwards_pools,grouped_pools,convolution_blocks,dropout"
    )
    assert found.pop("poolformer") == MODEL
    cglru = ("cglru",)
    expected = {
        "no_gate": {"mixer_gate": False},
        "convolution": {"convolution": "full"},
        "depthwise_convolution": {"convolution": "depthwise"},
        "no_mlp": {"mlp": "none"},
        "plain_mlp": {"mlp": "plain_mlp"},
        "rms_norm": {"norm": "rms"},
        "learned_embedding": {"embedding": "learned"},
        "linear_embedding": {"embedding": "sinusoidal_linear"},
        "fewer_levels": {"widths": (16, 24), "depths": ((0, 1), 3 * cglru), "pool_factors": (4,)},
        "blocks_after": {"depths": (((), cglru), ((), 2 * cglru), 1)},
        "no_pooling": {"widths": (16,), "depths": (4 * cglru,), "pool_factors": ()},
        "real": {"mixer": "rglru", "depths": ((0, 1), (1, 1), 1)},
        "gru": {"mixer": "gru", "depths": ((0, 1), (1, 1), 1)},
        "attention": {"mixer": "attention", "depths": ((0, 1), (1, 1), 1)},
        "backwards_pools": {"pool_factors": (2, 4)},
        "grouped_pools": {"pool_groups": 4},
        "convolution_blocks": {"depths": (((), cglru), (cglru, cglru), cglru)},
        "dropout": {"dropout": 0.2},
    }
    found["no_pooling"] = dataclasses.replace(found["no_pooling"], widths=(16,))
    assert found == {
        name: dataclasses.replace(MODEL, **values) for name, values in expected.items()
    }


def test_a_change_may_follow_another():
    found = models("mamba+no_pooling,no_pooling+mamba,sashimi+fewer_levels+no_mlp:conv_width=2")
    one, other = found["mamba+no_pooling"], found["no_pooling+mamba"]
    assert (one.mixer, one.mlp, one.num_levels) == ("mamba", "none", 1)
    assert one.blocks(0) == other.blocks(0) == (4 * ("mamba",), ())
    assert dataclasses.replace(one, widths=other.widths, depths=other.depths) == other
    third = found["sashimi+fewer_levels+no_mlp:conv_width=2"]
    assert (third.mixer, third.mlp, third.num_levels, third.conv_width) == ("s4d", "none", 2, 2)
    assert third.depths == (((), ("s4d",)), 3 * ("s4d",))


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
        ("", "No model is named: give some of poolformer, published, sashimi"),
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


def test_a_layer_that_there_is_not_is_named(monkeypatch):
    """Whichever layers there are: these are taken away."""
    kept = {name: variants.LAYERS[name] for name in ("cglru", "gated_mlp", "plain_mlp")}
    monkeypatch.setattr(variants, "LAYERS", kept)
    for name, layer in (("sashimi", "s4d"), ("mamba", "mamba"), ("attention", "attention")):
        with pytest.raises(UserError, match=f"The model {name} needs the layer '{layer}'; .*cglru"):
            make_variants(name, CONFIG)


@pytest.mark.parametrize("name", [*variants.VARIANTS, "published+no_pooling"])
def test_every_variant_is_a_model_of_the_wanted_size(name):
    (variant,) = make_variants(name, CONFIG, parameters=60_000)
    assert abs(variant.deviation) < 0.35  # Widths move in steps, large ones at this size.
    assert count_parameters(variant.config.model) == variant.parameters


def test_parameters_are_counted_as_they_are():
    (variant,) = make_variants("no_mlp", CONFIG, parameters=40_000)
    model = nnx.jit(lambda: Poolformer(variant.config.model, rngs=nnx.Rngs(0)))()
    sizes = [np.asarray(leaf).size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    assert variant.parameters == sum(sizes)
    assert variant.deviation == pytest.approx(sum(sizes) / 40_000 - 1.0)


@hypothesis.settings(max_examples=6, deadline=None)
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
        mixer="rglru",
        mixer_expansion=1.0,
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


def test_one_level_has_the_nearest_width():
    one = without_pooling(MODEL)
    assert (one.num_levels, one.num_blocks) == (1, MODEL.num_blocks)
    wanted = count_parameters(MODEL)
    every = [dataclasses.replace(one, widths=(4 * n,)) for n in range(1, 13)]
    nearest = min(every, key=lambda model: abs(count_parameters(model) - wanted))
    assert nearest.widths == one.widths
