import dataclasses
import json

import pytest

from pf_jax import PoolformerConfig, UserError, fields

CONFIG = PoolformerConfig(
    widths=(8, 16, 24), depths=(1, (0, 2), 3), pool_factors=(2, 8), pool_groups=1, num_heads=4
)
A, B = "convolution", "attention"
# What `depths` of two levels may be, and the mixers before and after, and within, that they mean.
DEPTHS = [
    ("(2, 1)", (("cglru", "cglru"), ("cglru", "cglru")), ("cglru",)),
    ("((0, 2), 0)", ((), ("cglru", "cglru")), ()),
    (f"(('{A}', 'cglru'), ('{A}', '{B}'))", ((A, "cglru"), ("cglru", A)), (A, B)),
    (f"((('{A}', '{B}'), 2), ())", ((A, B), ("cglru", "cglru")), ()),
    (f"(((), ('{A}',)), 1)", ((), (A,)), ("cglru",)),
    ("((), 1)", ((), ()), ("cglru",)),
    ("(((), ()), 1)", ((), ()), ("cglru",)),
]


@pytest.mark.parametrize(("text", "outer", "inner"), DEPTHS)
def test_all_forms_of_depths_name_the_mixers_before_and_after_a_pool(text, outer, inner):
    depths = fields.parse(text, fields.leaves(PoolformerConfig)["depths"])
    config = PoolformerConfig(widths=(8, 8), depths=depths, pool_factors=(2,))
    assert config.depths == depths
    assert [config.blocks(level) for level in range(2)] == [outer, (inner, ())]
    assert config.depth(0) == (len(outer[0]), len(outer[1]))
    assert config.depth(1) == (len(inner), 0)
    assert config.num_blocks == len(outer[0]) + len(outer[1]) + len(inner)
    assert config.layers == {*outer[0], *outer[1], *inner, "gated_mlp"}
    assert PoolformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "text", ["4", "('cglru', 'cglru')", "(('cglru', 1), 1)", "((1, 1, 1), 1)", "((('a',),), 1)"]
)
def test_what_is_no_depths_is_told_what_would_be(text):
    with pytest.raises(ValueError, match=r"\(\(0, 2\), 4\) or \(\('convolution', 'cglru'\), 4\)"):
        fields.parse(text, fields.leaves(PoolformerConfig)["depths"])


def test_one_level_is_a_plain_recurrent_network():
    config = PoolformerConfig(widths=(8,), depths=(5,))
    assert (config.num_levels, config.num_blocks) == (1, 5)
    assert config.depth(0) == (5, 0)


@pytest.mark.parametrize(("expansion", "hidden"), [(1.0, 24), (1.5, 36), (1 / 3, 8)])
def test_hidden_widths(expansion, hidden):
    assert dataclasses.replace(CONFIG, mixer_expansion=expansion, mixer="gru").hidden(24) == hidden


def test_a_config_is_immutable_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.dropout = 0.5
    values = CONFIG.to_dict() | {"widths": [8, 16, 24], "depths": [1, [0, 2], 3]}
    listed = PoolformerConfig(**values)
    assert hash(listed) == hash(CONFIG)
    assert listed == CONFIG


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (), "depths": (), "pool_factors": ()}, "n levels needs n widths"),
        ({"widths": (8, 16)}, r"n widths.* got widths=\(8, 16\)"),
        ({"depths": (1, 1)}, r"n depths.* depths=\(1, 1\)"),
        ({"pool_factors": (2, 2, 2)}, r"n - 1 pool_factors.* pool_factors=\(2, 2, 2\)"),
        ({"widths": 8}, "widths must be a tuple of integers .* got 8"),
        ({"widths": (8, 16.0, 24)}, "widths must be a tuple of integers"),
        ({"widths": (8, True, 24)}, "widths must be a tuple of integers"),
        ({"widths": (8, 0, 24)}, "widths must be at least 1"),
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"num_heads": 8.0}, "num_heads must be an integer, got 8.0"),
        ({"depths": (1, 1, (1, 1))}, "last entry of depths is a number or a tuple of mixers"),
        ({"depths": (1, 1, ((), ()))}, "last entry of depths is a number or a tuple of mixers"),
        ({"depths": (1, (1, 1, 1), 1)}, "depths must be a tuple"),
        ({"depths": (1, ("cglru", 1), 1)}, "depths must be a tuple"),
        ({"depths": (1, (-1, 1), 1)}, "depths must be at least 0"),
        ({"depths": (1, (("cglru",), -1), 1)}, "depths must be at least 0"),
        ({"depths": (-1, 1, 1)}, "depths must be at least 0"),
        ({"pool_factors": (2, 1)}, "pool_factors must be at least 2"),
        ({"pool_groups": None}, r"channel by channel, .* one width .* got widths=\(8, 16, 24\)"),
        ({"pool_groups": 3}, r"pool_groups=3 must .* divide every width; got widths=\(8, 16, 24\)"),
        ({"pool_groups": 0}, "pool_groups=0 must be at least 1"),
        ({"pool_groups": 2.0}, "pool_groups must be an integer or None, got 2.0"),
        ({"widths": (7, 14, 21), "mixer": "gru"}, "the first width must be even, got widths"),
        (
            {"num_heads": 3},
            "num_heads=3 must divide the 8 complex channels of .* 'cglru' at width 8",
        ),
        (
            {"num_heads": 3, "mixer": "rglru"},
            "divide the 16 channels of the mixer 'rglru' at width 8",
        ),
        ({"num_heads": 3, "mixer": "attention"}, "the 8 channels of the mixer 'attention'"),
        ({"num_heads": 3, "mixer": "gru", "depths": (1, ("rglru",), 1)}, "'rglru' at width 16"),
        ({"mixer_expansion": 1.1}, "hidden width must be even, and 1.1 times 8 gives 9"),
        ({"vocab_size": 1}, "vocab_size must be at least 2, got 1"),
        ({"attention_window": 0}, "attention_window must be at least 1, got 0"),
        ({"conv_width": 0}, "conv_width must be at least 1, got 0"),
        ({"mixer_expansion": 0.0}, "mixer_expansion must be above 0, got 0.0"),
        ({"state_size": 0}, "state_size must be at least 1, got 0"),
        ({"norm_epsilon": 0.0}, "norm_epsilon must be above 0, got 0.0"),
        ({"mlp_expansion": 0.0}, "mlp_expansion must be above 0, got 0.0"),
        ({"mlp_expansion": float("nan")}, "mlp_expansion must be above 0, got nan"),
        ({"mlp_expansion": float("inf")}, "mlp_expansion must be above 0, got inf"),
        ({"mlp_expansion": "2"}, "mlp_expansion must be a number, got '2'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        ({"radii": (0.9,)}, r"radii must be a pair of numbers, got \(0.9,\)"),
        ({"radii": (0.0, 0.9)}, r"0 < least <= greatest < 1, got \(0.0, 0.9\)"),
        ({"radii": (0.9, 0.8)}, "0 < least <= greatest < 1"),
        ({"radii": (0.9, 1.0)}, "0 < least <= greatest < 1"),
        ({"radii": (float("nan"), 0.9)}, "0 < least <= greatest < 1"),
        ({"turns": (0, float("inf"))}, "turns must be two finite angles in radians"),
        (
            {"embedding": "sine"},
            "embedding must be sinusoidal or sinusoidal_linear or learned, got",
        ),
        ({"convolution": "causal"}, "convolution must be none or full or depthwise, got 'causal'"),
        ({"norm": "batch"}, "norm must be layer or rms, got 'batch'"),
        ({"dtype": "float16"}, "dtype must be float32 or bfloat16, got 'float16'"),
        ({"remat": 1}, "remat must be true or false, got 1"),
        ({"mixer": None}, "mixer must be text, got None"),
    ],
)
def test_impossible_values_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_what_no_layer_needs_is_not_asked_for():
    """Heads matter to recurrences with gates and to attention, even widths to cosines and sines."""
    PoolformerConfig((7,), (2,), mixer="gru", embedding="sinusoidal_linear")
    PoolformerConfig((6, 6), (("convolution",), 0), (3,))
    PoolformerConfig((6, 9), (0, 0), (3,), pool_groups=3)
    PoolformerConfig((5,), (("rglru",),), embedding="learned", num_heads=10)


def test_from_dict_names_unknown_and_missing_fields():
    with pytest.raises(UserError, match="Unknown field width; did you mean widths"):
        PoolformerConfig.from_dict({"width": (8,), "depths": (1,)})
    with pytest.raises(UserError, match="depths is missing"):
        PoolformerConfig.from_dict({"widths": (8,)})
