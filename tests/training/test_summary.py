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
    widths=(128, 192, 256), depths=(1, (0, 1), 1), pool_factors=(2, 3), pool_groups=1, num_heads=4
)
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


def block(width: int, heads: int, hidden: int, mlp: int) -> np.ndarray:
    """Parameters and multiply-adds of a published block: CG-LRU and GeGLU."""
    gate = np.array([hidden * hidden // 2 // heads + hidden // 2, hidden * hidden // 2 // heads])
    norms_decay_and_turn = np.array([4 * width + hidden, 0])
    recurrence = dense(width, hidden) + 2 * gate + dense(hidden, width)
    mixing = recurrence + 2 * dense(width, width)
    return mixing + 2 * dense(width, mlp) + dense(mlp, width) + norms_decay_and_turn


def test_counts_by_hand():
    config = dataclasses.replace(THREE_LEVELS, mlp_expansion=1.5, mixer_expansion=2.5)
    outside, *levels = summary.level_costs(config)

    expect = dense(128, 256) + np.array([2 * 128, 0])
    assert (outside.parameters, outside.multiply_adds) == tuple(expect)
    expect = [
        2 * block(128, 4, 320, 192),
        block(192, 4, 480, 288) + dense(2 * 128, 192) + dense(192, 2 * 128),
        block(256, 4, 640, 384) + dense(3 * 192, 256) + dense(256, 3 * 192),
    ]
    for level, every, (parameters, multiply_adds) in zip(levels, (1, 2, 6), expect, strict=True):
        assert level.every == every
        assert level.parameters == parameters
        assert level.multiply_adds == pytest.approx(multiply_adds / every)
    assert [level.blocks for level in levels] == [(1, 1), (0, 1), (1, 0)]


@settings(max_examples=5, deadline=None)
@given(
    data=st.data(), levels=st.integers(1, 3), embedding=st.sampled_from(["sinusoidal", "learned"])
)
def test_parameters_are_those_of_the_model(data, levels, embedding):
    def lists(values, n):
        return tuple(data.draw(st.lists(values, min_size=n, max_size=n)))

    depth = st.integers(0, 1)
    config = PoolformerConfig(
        widths=lists(st.sampled_from([4, 6, 8]), levels),
        depths=(*lists(depth | st.tuples(depth, depth), levels - 1), data.draw(depth)),
        pool_factors=lists(st.integers(2, 3), levels - 1),
        embedding=embedding,
        pool_groups=2,
        num_heads=2,
    )
    _, params = split_model(abstract_model(config))
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(cost.parameters for cost in summary.level_costs(config)) == total
    assert f" {total:,}  100.0 %" in summary.model_table(config)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"embedding": "sinusoidal_linear", "num_heads": 2, "mixer": "rglru", "convolution": "full"},
    ],
)
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


@pytest.mark.parametrize("cell", [RGLRU, CGLRU])
def test_memory_is_that_of_a_fresh_layer(cell):
    channels = 20_000
    width = channels * cell.coefficients.parts
    config = dataclasses.replace(
        THREE_LEVELS, embedding="learned", mixer="none", num_heads=channels
    )
    # From a state of ones and without input, one step leaves the decay.
    decay, _ = cell(width, config, rngs=nnx.Rngs(0)).step(
        jnp.zeros((1, width)), jnp.ones((1, width))
    )
    modulus = np.linalg.norm(np.asarray(decay, np.float64).reshape(-1, channels), axis=0)
    memory = 1.0 / (1.0 - modulus / np.sqrt(cell.coefficients.parts))
    for cost in summary.level_costs(THREE_LEVELS)[1:]:
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
    config = PoolformerConfig((12,), (2,), mixer="s4d", mlp="plain_mlp", state_size=10)
    _, level = summary.level_costs(config)
    # Two norms, dt and D; A, B and C, each of two numbers a state.
    block = dense(12, 24) + dense(12, 24) + dense(24, 12) + [6 * 12 + 3 * 10 * 12, 0]
    assert (level.parameters, level.multiply_adds) == tuple(2 * block)


def test_table():
    config = PoolformerConfig(
        widths=(64, 128, 256), depths=(4, (0, 2), 4), pool_factors=(16, 16), pool_groups=1
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
0                    1     64   4 + 4     418,816   84.5 %  2.9 to 25 samples, 0.18 ms to 1.6 ms
1                   16    128   0 + 2     677,504    8.7 %  47 to 410 samples, 2.9 ms to 25 ms
2                  256    256   4 + 0   4,346,112    3.5 %  740 to 6,500 samples, 47 ms to 410 ms
total                              14   5,459,200  100.0 %
The pools between two levels count with the deeper one. Training takes 2.91 MFLOPs a sample.
""".splitlines()
