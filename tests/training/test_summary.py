"""The model table and utilization against real models, hand counts and XLA's own counting."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from pf_jax import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.layers import CGLRU, LAYERS, RGLRU, S4D, S4DState, linear
from pf_jax.training import summary
from pf_jax.training.state import abstract_model, merge_model, split_model

THREE_LEVELS = PoolformerConfig(
    widths=(128, 192, 256),
    depths=(1, (0, 1), 1),
    pool_factors=(2, 3),
    pool_groups=1,
    num_heads=4,
)
GRIFFIN = {
    **{"mixer": "rglru", "mixer_expansion": 1.0, "recurrence_output": False},
    **{"convolution": "depthwise", "norm": "rms", "embedding": "sinusoidal_linear"},
}
AUDIO = DataConfig(name="demo", window=4096, sample_rate=16_000)


@pytest.fixture(autouse=True)
def blocks_as_they_are(monkeypatch):
    """The zeros between merged blocks of gates are multiplied, but are no FLOPs of the model."""
    monkeypatch.setattr(linear, "_WIDTH", 1)


@functools.cache
def xla_flops(config: PoolformerConfig, *, backward: bool = False) -> float:
    """FLOPs a sample of the compiled program, every operation counted. Nothing is run."""
    graphdef, params = split_model(abstract_model(config))

    def forward(params, tokens):
        return merge_model(graphdef, params)(tokens).sum()

    shape = (2, 192)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    f = jax.grad(forward) if backward else forward
    return jax.jit(f).lower(params, tokens).compile().cost_analysis()["flops"] / np.prod(shape)


def dense(inputs: int, outputs: int) -> np.ndarray:
    """Parameters and multiply-adds of a linear map with a bias."""
    return np.array([inputs * outputs + outputs, inputs * outputs])


def mlp(width: int, hidden: int) -> np.ndarray:
    """Parameters and multiply-adds of GeGLU."""
    return 2 * dense(width, hidden) + dense(hidden, width)


def griffin_block(width: int, heads: int, taps: int, hidden: int) -> np.ndarray:
    """Parameters and multiply-adds of a block of Griffin, from its paper's description."""
    gate = np.array([width * width // heads + width, width * width // heads])
    convolution = np.array([taps * width + width, taps * width])
    norms_and_decay = np.array([3 * width, 0])
    return 3 * dense(width, width) + 2 * gate + convolution + mlp(width, hidden) + norms_and_decay


def published_block(width: int, heads: int) -> np.ndarray:
    """Of a block of the published Poolformer, whose recurrence is twice as wide."""
    gate = np.array([2 * width * width // heads + width, 2 * width * width // heads])
    maps = 2 * dense(width, width) + dense(width, 2 * width) + dense(2 * width, width)
    # Of each norm a scale and a bias; a decay and an angle.
    return maps + 2 * gate + mlp(width, 2 * width) + np.array([2 * 2 * width + 2 * width, 0])


def assert_costs(config, outside, levels):
    found, *found_levels = summary.level_costs(config)
    assert (found.parameters, found.multiply_adds) == tuple(outside)
    for level, every, (parameters, multiply_adds) in zip(
        found_levels, (1, 2, 6), levels, strict=True
    ):
        assert level.every == every
        assert level.parameters == parameters
        assert level.multiply_adds == pytest.approx(multiply_adds / every)
    assert [level.blocks for level in found_levels] == [(1, 1), (0, 1), (1, 0)]


def test_counts_of_griffins_blocks_and_dense_pools_by_hand():
    config = dataclasses.replace(THREE_LEVELS, **GRIFFIN, mlp_expansion=1.5, conv_width=5)
    levels = [
        2 * griffin_block(128, 4, 5, 192),
        griffin_block(192, 4, 5, 288) + dense(2 * 128, 192) + dense(192, 2 * 128),
        griffin_block(256, 4, 5, 384) + dense(3 * 192, 256) + dense(256, 3 * 192),
    ]
    assert_costs(config, dense(256, 128) + dense(128, 256) + [128, 0], levels)


def test_counts_of_published_blocks_and_pools_by_hand():
    config = dataclasses.replace(THREE_LEVELS, widths=(32,) * 3, pool_groups=None)
    block = published_block(32, 4)
    # One weight for each channel and position of a group, and a bias for each channel.
    pools = [2 * np.array([32 * factor + 32, 32 * factor]) for factor in (2, 3)]
    levels = [2 * block, block + pools[0], block + pools[1]]
    assert_costs(config, dense(32, 256) + np.array([2 * 32, 0]), levels)


@settings(max_examples=5, deadline=None)
@given(
    data=st.data(),
    levels=st.integers(1, 3),
    embedding=st.sampled_from(["sinusoidal", "learned"]),
    mlp=st.sampled_from(["gated_mlp", "none"]),
)
def test_parameters_are_those_of_the_model(data, levels, embedding, mlp):
    def lists(values, n):
        return tuple(data.draw(st.lists(values, min_size=n, max_size=n)))

    mixers = st.lists(st.sampled_from(["convolution", "cglru"]), max_size=3).map(tuple)
    side = st.integers(0, 2) | mixers
    config = PoolformerConfig(
        widths=lists(st.sampled_from([2, 4, 6]), levels),
        depths=(*lists(side | st.tuples(side, side), levels - 1), data.draw(side)),
        pool_factors=lists(st.integers(2, 3), levels - 1),
        pool_groups=2,
        embedding=embedding,
        mlp=mlp,
        num_heads=2,
    )
    _, params = split_model(abstract_model(config))
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(cost.parameters for cost in summary.level_costs(config)) == total
    assert f" {total:,}  100.0 %" in summary.model_table(config)


@pytest.mark.parametrize("change", [{}, GRIFFIN | {"num_heads": 2, "conv_width": 9}])
def test_forward_flops_are_those_of_the_compiled_program(change):
    config = dataclasses.replace(THREE_LEVELS, **change)
    ratio = xla_flops(config) / (summary.flops_per_sample(config) / 3.0)
    # The rest are norms, activations and the recurrence.
    assert 1.0 < ratio < 1.05


def test_backward_flops_are_about_two_forward_passes():
    ratio = xla_flops(THREE_LEVELS, backward=True) / summary.flops_per_sample(THREE_LEVELS)
    assert 0.95 < ratio < 1.1


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_share_of_a_level_is_what_its_blocks_add(level):
    depths = list(map(THREE_LEVELS.depth, range(3)))
    depths[level] = (depths[level][0] + 2, depths[level][1])
    depths[2] = depths[2][0]
    deeper = dataclasses.replace(THREE_LEVELS, depths=tuple(depths))
    old, new = (summary.level_costs(config)[1 + level] for config in (THREE_LEVELS, deeper))
    added = 2.0 * (new.multiply_adds - old.multiply_adds)
    assert 1.0 < (xla_flops(deeper) - xla_flops(THREE_LEVELS)) / added < 1.05


@pytest.mark.parametrize(("mixer", "cell", "parts"), [("rglru", RGLRU, 1), ("cglru", CGLRU, 2)])
def test_memory_is_that_of_a_fresh_layer(mixer, cell, parts):
    channels = 20_000
    config = dataclasses.replace(THREE_LEVELS, mixer=mixer)
    heads = dataclasses.replace(config, depths=(0, 0, 0), num_heads=2_000)
    layer = cell(parts * channels, heads, rngs=nnx.Rngs(0))
    # From a state of ones and without input, one step leaves the decay.
    state = layer.init_state(1).at[:, :channels].set(1.0)
    h, _ = layer.step(jnp.zeros_like(state), state)
    decay = np.linalg.norm(np.asarray(h, np.float64).reshape(parts, channels), axis=0)
    memory = 1.0 / (1.0 - decay)
    for cost in summary.level_costs(config)[1:]:
        shortest, longest = np.array(cost.memory) / cost.every
        assert shortest == pytest.approx(memory.min(), rel=1e-2)
        assert longest == pytest.approx(memory.max(), rel=1e-2)
        assert shortest <= memory.min() * (1.0 + 1e-4)
        assert longest >= memory.max() * (1.0 - 1e-2)


def test_memory_of_a_state_space_is_that_of_a_fresh_layer():
    width = 2_000
    config = dataclasses.replace(THREE_LEVELS, mixer="s4d", state_size=2)
    layer = S4D(width, config, rngs=nnx.Rngs(0))
    # From a state of ones and without input, one step leaves the decay.
    state = S4DState(jnp.ones((1, width, 1), jnp.complex64), jnp.array(True))
    _, state = layer.step(jnp.zeros((1, width)), state)
    memory = 1.0 / (1.0 - np.abs(np.asarray(state.h, np.complex128)))
    for cost in summary.level_costs(config)[1:]:
        shortest, longest = np.array(cost.memory) / cost.every
        assert shortest == pytest.approx(memory.min(), rel=1e-2)
        assert longest == pytest.approx(memory.max(), rel=1e-2)


def test_counts_of_a_state_space_by_hand():
    config = PoolformerConfig((12,), (2,), mixer="s4d", mlp="plain_mlp", state_size=10, norm="rms")
    _, level = summary.level_costs(config)
    # The norms, dt and D; A, B and C, each of two numbers a state.
    block = dense(12, 24) + dense(12, 24) + dense(24, 12) + [4 * 12 + 3 * 10 * 12, 0]
    assert (level.parameters, level.multiply_adds) == tuple(2 * block)


def test_table():
    config = PoolformerConfig(
        widths=(64, 128, 256),
        depths=(4, (0, 2), 4),
        pool_factors=(16, 16),
        pool_groups=1,
        radii=(0.9, 0.999),
    )
    assert summary.model_table(config, AUDIO).splitlines() == TABLE


def test_table_of_other_data_gives_no_time():
    for data in (None, DataConfig(name="enwik8", window=64, modality="text")):
        table = summary.model_table(THREE_LEVELS, data)
        assert "2.9 to 25 samples" in table
        assert not re.search(r"\d m?s\b", table)


def test_where_it_is_not_known_there_is_no_memory(monkeypatch):
    class Mean(nnx.Module):
        def __init__(self, width, config, *, rngs):
            del config
            self.out_width = width
            self.map = nnx.Linear(width, width, rngs=rngs)

    monkeypatch.setitem(LAYERS, "mean", Mean)
    config = dataclasses.replace(THREE_LEVELS, mixer="mean")
    assert all(cost.memory is None for cost in summary.level_costs(config))
    lines = summary.model_table(config, AUDIO).splitlines()
    assert all(line.endswith(" -") for line in lines[1:5])
    empty = dataclasses.replace(THREE_LEVELS, depths=(1, 0, 1))
    assert [cost.memory is None for cost in summary.level_costs(empty)] == [
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("text", "expect"), [(2.857, "2.9"), (9.96, "10"), (250.4, "250"), (32_049, "32,000")]
)
def test_two_digits(text, expect):
    assert summary._two_digits(text) == expect


def test_times_and_units():
    assert summary._describe_time(0.00018) == "0.18 ms"
    assert summary._describe_time(0.9999) == "1 s"
    assert summary._describe_time(32_049 / 16_000) == "2 s"
    assert summary._si(999_900.0) == "1 M"
    assert summary._si(12.0) == "12 "


def test_model_flops_utilization():
    config = THREE_LEVELS
    speed = 0.4 * 8 * 275e12 / summary.flops_per_sample(config)
    assert summary.model_flops_utilization(speed, config, 8, "TPU v4") == pytest.approx(0.4)
    assert summary.model_flops_utilization(speed, config, 8, "cpu") is None


TABLE = """\
level            every  width  blocks  parameters  compute  memory at initialisation
embedding, head      1     64       -      16,768    3.4 %  -
0                    1     64   4 + 4     418,816   84.5 %  2.9 to 250 samples, 0.18 ms to 16 ms
1                   16    128   0 + 2     677,504    8.7 %  47 to 4,000 samples, 2.9 ms to 250 ms
2                  256    256   4 + 0   4,346,112    3.5 %  740 to 64,000 samples, 47 ms to 4 s
total                              14   5,459,200  100.0 %
The pools between two levels count with the deeper one. Training takes 2.91 MFLOPs a sample.
""".splitlines()
