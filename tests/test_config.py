import dataclasses
import json

import pytest

from pf_jax import PoolformerConfig, UserError

CONFIG = PoolformerConfig(widths=(8, 16, 24), depths=(1, (0, 2), 3), pool_factors=(2, 8))


def test_a_number_is_the_depth_before_and_after_and_a_pair_tells_them_apart():
    assert [CONFIG.depth(level) for level in range(3)] == [(1, 1), (0, 2), (3, 0)]
    assert CONFIG.num_levels == 3
    assert CONFIG.num_blocks == 1 + 1 + 0 + 2 + 3


def test_one_level_is_a_plain_recurrent_network():
    config = PoolformerConfig(widths=(8,), depths=(5,))
    assert config.depth(0) == (5, 0)
    assert config.num_blocks == 5


def test_json_and_back():
    assert PoolformerConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG


def test_a_config_is_immutable_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.dropout = 0.5
    listed = PoolformerConfig(widths=[8, 16, 24], depths=[1, [0, 2], 3], pool_factors=[2, 8])
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
        ({"widths": (8, 16, 20)}, "num_heads=8 must divide every width, but not 20"),
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"num_heads": 8.0}, "num_heads must be an integer, got 8.0"),
        ({"depths": (1, 1, (1, 1))}, "last entry of depths is a number"),
        ({"depths": (1, (1, 1, 1), 1)}, "depths must be a tuple"),
        ({"depths": (1, (-1, 1), 1)}, "depths must be at least 0"),
        ({"depths": (-1, 1, 1)}, "depths must be at least 0"),
        ({"pool_factors": (2, 1)}, "pool_factors must be at least 2"),
        ({"vocab_size": 1}, "vocab_size must be at least 2, got 1"),
        ({"attention_window": 0}, "attention_window must be at least 1, got 0"),
        ({"conv_width": 0}, "conv_width must be at least 1, got 0"),
        ({"mixer_expansion": 0.0}, "mixer_expansion must be above 0, got 0.0"),
        ({"state_size": 0}, "state_size must be at least 1, got 0"),
        ({"mlp_expansion": 0.0}, "mlp_expansion must be above 0, got 0.0"),
        ({"mlp_expansion": float("nan")}, "mlp_expansion must be above 0, got nan"),
        ({"mlp_expansion": float("inf")}, "mlp_expansion must be above 0, got inf"),
        ({"mlp_expansion": "2"}, "mlp_expansion must be a number, got '2'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        ({"embedding": "sinusoid"}, "embedding must be sinusoidal or learned, got 'sinusoid'"),
        ({"dtype": "float16"}, "dtype must be float32 or bfloat16, got 'float16'"),
        ({"remat": 1}, "remat must be true or false, got 1"),
        ({"mixer": None}, "mixer must be text, got None"),
    ],
)
def test_impossible_values_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_from_dict_names_unknown_and_missing_fields():
    with pytest.raises(UserError, match="Unknown field width; did you mean widths"):
        PoolformerConfig.from_dict({"width": (8,), "depths": (1,)})
    with pytest.raises(UserError, match="depths is missing"):
        PoolformerConfig.from_dict({"widths": (8,)})
