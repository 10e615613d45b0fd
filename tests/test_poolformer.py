"""The model's parts: types, layers of a user's own, dropout, parameters, and their start."""

import collections
import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from pf_jax import Poolformer, PoolformerConfig, UserError
from pf_jax.layers import LAYERS
from pf_jax.poolformer import ResBlock, SkipBlock
from tests.layers import equations
from tests.models import (
    ROUNDING,
    SMALL,
    configs,
    fill,
    init_state,
    make_model,
    make_tokens,
    parallel,
    recurrent,
    settled,
    shift,
    zeros,
)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_any_type_of_integer_will_do(dtype):
    config = PoolformerConfig((4,), (1,), vocab_size=5, num_heads=2)
    model, tokens = make_model(config), make_tokens(config, 2, 4)
    np.testing.assert_array_equal(parallel(model, tokens.astype(dtype)), parallel(model, tokens))


def test_wrong_tokens_are_refused_with_their_type_and_shape():
    model = make_model(PoolformerConfig((4,), (1,), vocab_size=5, num_heads=2))
    for tokens, got in (
        (jnp.zeros((2, 3)), r"float32 of shape \(2, 3\)"),
        (jnp.zeros((2, 3), bool), r"bool of shape \(2, 3\)"),
        (jnp.zeros((3,), int), r"int32 of shape \(3,\)"),
        (jnp.zeros((2, 3, 1), int), r"int32 of shape \(2, 3, 1\)"),
        (jnp.zeros((2, 0), int), r"int32 of shape \(2, 0\)"),
        (jnp.zeros((0, 3), int), r"int32 of shape \(0, 3\)"),
    ):
        with pytest.raises(UserError, match=f"integer array of shape .*, got {got}"):
            model(tokens)


class Summing(nnx.Module):
    """A layer of a user's own: the sum of all inputs, scaled; it counts its steps."""

    steps: ClassVar[collections.Counter] = collections.Counter()  # By width.

    def __init__(self, width, config, *, rngs):
        self.out_width = width
        self.scale = nnx.Param(jnp.full((width,), 0.1))

    def init_state(self, batch_size):
        return {"sum": jnp.zeros((batch_size, self.out_width))}

    def __call__(self, x, state):
        sums = state["sum"][:, None] + jnp.cumsum(x, axis=1)
        return self.scale * sums, {"sum": sums[:, -1]}

    def step(self, x, state):
        jax.debug.callback(lambda: self.steps.update([self.out_width]))
        total = state["sum"] + x
        return self.scale * total, {"sum": total}


@pytest.fixture
def summing(monkeypatch):
    monkeypatch.setitem(LAYERS, "summing", Summing)
    monkeypatch.setattr(Summing, "steps", collections.Counter())
    return PoolformerConfig((4, 6, 8), (1, (2, 1), 3), (2, 3), 1, vocab_size=5, mixer="summing")


def test_a_users_own_layer_comes_in_by_the_same_door(summing):
    model, tokens = make_model(summing), make_tokens(summing, 2, 17)
    assert type(model.body.nested.before[0].layer) is Summing
    logits = recurrent(model, init_state(model, 2), shift(tokens, model.start_token))
    np.testing.assert_allclose(logits, parallel(model, tokens), atol=ROUNDING)


def test_a_pooled_level_steps_once_in_a_group(summing):
    model = make_model(summing)
    for time in (5, 17):
        Summing.steps.clear()
        recurrent(model, model.init_state(1), make_tokens(summing, 1, time)).block_until_ready()
        jax.effects_barrier()
        assert Summing.steps == {
            width: steps * blocks
            for width, steps, blocks in ((4, time, 2), (6, time // 2, 3), (8, time // 6, 3))
            if steps
        }


def test_an_unknown_layer_is_answered_with_the_known():
    config = PoolformerConfig((8,), (1,), mixer="attentoin")
    known = ", ".join(sorted(LAYERS))
    assert "cglru" in known
    with pytest.raises(UserError, match=f"Unknown layer 'attentoin'; known: {known}"):
        Poolformer(config, rngs=nnx.Rngs(0))


def test_a_layer_that_does_not_say_so_is_not_split_over_devices(summing):
    config = dataclasses.replace(summing, sequence_axis="sequence")
    with pytest.raises(
        UserError, match=r"The layer 'summing' takes whole sequences .* splits_sequences = T"
    ):
        Poolformer(config, rngs=nnx.Rngs(0))


TINY = dataclasses.replace(SMALL, depths=((0, 1), 0))


def test_bfloat16_stays_near_float32_in_both_forms():
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    model, tokens = make_model(config), make_tokens(config, 2, 20)
    expected = np.asarray(parallel(make_model(SMALL), tokens))
    logits = np.asarray(parallel(model, tokens))
    assert logits.dtype == np.float32
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    steps = recurrent(model, init_state(model, 2), shift(tokens, model.start_token))
    assert steps.dtype == jnp.float32
    for actual in (logits, steps):
        difference = np.abs(actual - expected)
        assert 0 < difference.max() < 0.15 * expected.std()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_leaves_the_shapes_and_types_of_the_state_as_they_were(dtype):
    model = make_model(dataclasses.replace(SMALL, dtype=dtype))
    state = model.init_state(2)

    def describe(state):
        # A weak type, as of a Python number, would compile a program of the state twice.
        shapes = jax.eval_shape(lambda: state)
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), shapes)

    _, stepped = jax.eval_shape(model.step, state, jnp.zeros((2,), jnp.int32))
    _, prefilled = jax.eval_shape(model.prefill, jnp.zeros((2, 7), jnp.int32))
    assert describe(stepped) == describe(state)
    assert describe(prefilled) == describe(state)


def loss_and_gradients(config, tokens):
    def loss(model, tokens):
        log_p = jax.nn.log_softmax(model(tokens, dropout_key=jax.random.key(3)))
        return -jnp.take_along_axis(log_p, tokens[..., None], axis=-1).mean()

    run = nnx.jit(nnx.value_and_grad(loss))
    return run(make_model(config), tokens)


def test_remat_changes_neither_loss_nor_gradients():
    config = dataclasses.replace(TINY, dropout=0.3)
    tokens = make_tokens(config, 2, 10)
    loss, gradients = loss_and_gradients(config, tokens)
    remat_loss, remat_gradients = loss_and_gradients(
        dataclasses.replace(config, remat=True), tokens
    )
    np.testing.assert_allclose(remat_loss, loss, rtol=1e-6)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(compare, remat_gradients, gradients)
    # Every parameter learns.
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("remat", [False, True])
def test_remat_is_there_only_if_asked_and_in_a_plain_jax_transform_too(remat):
    model = make_model(dataclasses.replace(SMALL, remat=remat))
    program = str(jax.make_jaxpr(lambda tokens: model(tokens))(jnp.zeros((1, 4), int)))
    assert ("remat" in program) == remat


def test_dropout_needs_a_key_and_changes_with_it():
    model, tokens = make_model(dataclasses.replace(TINY, dropout=0.5)), make_tokens(TINY, 2, 9)
    run = nnx.jit(lambda model, tokens, key: model(tokens, dropout_key=key))
    without = parallel(model, tokens)
    np.testing.assert_array_equal(without, parallel(make_model(TINY), tokens))
    first, again = run(model, tokens, jax.random.key(0)), run(model, tokens, jax.random.key(0))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, without)
    assert not np.array_equal(first, run(model, tokens, jax.random.key(1)))
    np.testing.assert_allclose(
        run(make_model(TINY), tokens, jax.random.key(0)), without, atol=ROUNDING
    )


@pytest.mark.parametrize("empty", [(1, (0, 0)), (0, (0, 1)), (0, (1, 0))])
def test_dropout_works_with_levels_that_have_no_blocks(empty):
    last, first = empty
    config = dataclasses.replace(SMALL, depths=(first, last), dropout=0.5)
    model = make_model(config)
    run = functools.partial(model, jnp.zeros((2, 7), int))
    assert jax.eval_shape(lambda key: run(dropout_key=key), jax.random.key(0)).shape == (2, 7, 7)


def constant_branches(blocks, first=1.0):
    """In blocks of zeros, makes branch `n` give `2^n` times the first everywhere."""
    for n, block in enumerate(blocks):
        block.output.bias[...] = jnp.full_like(block.output.bias[...], first * 2**n)


def test_dropout_drops_entries_of_each_branch_by_themselves_and_keeps_the_mean():
    """Four branches that give 1, 2, 4 and 8: each sum tells which of them were dropped where."""
    config = dataclasses.replace(SMALL, widths=(64, 64), depths=((1, 1), 0), dropout=0.25)
    body = fill(lambda: SkipBlock(0, config, rngs=nnx.Rngs(0)), zeros)
    constant_branches([*body.before, *body.after])
    x = jnp.zeros((4, 64, 64))
    y = nnx.jit(lambda body, x, key: body(x, body.init_state(4), key)[0])(
        body, x, jax.random.key(0)
    )
    sums = np.asarray(y) * 0.75
    codes = np.round(sums).astype(int)
    np.testing.assert_allclose(sums, codes, atol=1e-4)
    kept = np.stack([(codes >> branch & 1).ravel() for branch in range(4)])
    # 16,384 entries: five standard deviations of a frequency are 0.017, of a correlation 0.039.
    np.testing.assert_allclose(kept.mean(axis=1), 0.75, atol=0.017)
    np.testing.assert_allclose(np.corrcoef(kept), np.eye(4), atol=0.039)
    assert np.mean(y) == pytest.approx(15.0, abs=0.2)


def number_of_parameters(config):
    """Added up by hand, from the equations of DESIGN.md."""

    def norm(w):
        return {"rms": 1, "layer": 2}[config.norm] * w

    def dense(inputs, outputs, times=1):
        return times * inputs * outputs + outputs

    def layer(name, w):
        """Parameters, and the width of the output."""
        hidden, taps = max(1, round(config.mixer_expansion * w)), config.conv_width
        if name == "convolution":
            return dense(w, w, taps), w
        if name == "depthwise_convolution":
            return dense(1, w, taps), w
        if name in ("gated_mlp", "plain_mlp"):
            hidden = max(1, round(config.mlp_expansion * w))
            return dense(w, hidden), hidden
        channels, heads = (hidden // 2 if name == "cglru" else hidden), config.num_heads
        gates = 2 * dense(hidden, channels, times=1 / heads)
        total = dense(w, hidden) + gates + channels * (2 if name == "cglru" else 1)
        total += {
            "none": 0,
            "full": dense(w, w, taps) + norm(w),
            "depthwise": dense(1, hidden, taps),
        }[config.convolution]
        return (total + dense(hidden, w), w) if config.recurrence_output else (total, hidden)

    def res_block(name, w):
        parameters, out = layer(name, w)
        is_gated = name != "plain_mlp" and (config.mixer_gate or name == "gated_mlp")
        return norm(w) + parameters + dense(w, out) * is_gated + dense(out, w)

    widths, vocab = config.widths, config.vocab_size
    total = 0
    for level, w in enumerate(widths):
        for mixer in sum(config.blocks(level), ()):
            total += res_block(mixer, w) + (0 if config.mlp == "none" else res_block(config.mlp, w))
    for w, inner, factor in zip(widths[:-1], widths[1:], config.pool_factors, strict=True):
        kernel = factor * w * inner // (config.pool_groups or w)
        total += kernel + inner + kernel + (factor * w if config.pool_groups == 1 else w)
    embedding = {"sinusoidal": 0, "sinusoidal_linear": dense(2 * widths[0], widths[0])}
    return (
        total
        + embedding.get(config.embedding, vocab * widths[0])
        + norm(widths[0])
        + dense(widths[0], vocab)
    )


COUNTED = ("cglru", "rglru", "convolution", "depthwise_convolution")


@settled(10)
@given(
    config=st.integers(1, 3).flatmap(lambda n: configs(n, mixers=COUNTED)),
    expansion=st.floats(0.1, 4.0),
)
def test_number_of_parameters_is_that_of_the_equations(config, expansion):
    config = dataclasses.replace(config, mlp_expansion=expansion)
    model = nnx.eval_shape(lambda: Poolformer(config, rngs=nnx.Rngs(0)))
    count = sum(p.size for p in jax.tree.leaves(nnx.state(model)))
    assert count == number_of_parameters(config)


def test_residual_outputs_start_scaled_down_with_the_blocks_of_their_level():
    """The published scales: 1 / (4 n + 1) of n blocks on each side, 1 / (2 n) in the innermost."""
    config = PoolformerConfig((128, 128), (1, 2), (4,))
    body = nnx.jit(lambda: SkipBlock(0, config, rngs=nnx.Rngs(0)))()
    for blocks, branches in (([*body.before, *body.after], 5), (body.nested.before, 4)):
        for block in blocks:
            kernel = block.output.kernel[...]
            assert np.var(kernel) * len(kernel) * branches == pytest.approx(1.0, abs=0.06)
            kept = block.gate.kernel[...], block.layer.input.kernel[...]
            assert [np.var(k) * len(k) for k in kept] == pytest.approx([1.0, 1.0], abs=0.06)


def test_a_fresh_model_knows_little_and_is_certain_of_nothing():
    """Its loss starts at the entropy of a guess, or the first steps go into unlearning."""
    config = PoolformerConfig((32,), (1,), vocab_size=16)
    model = nnx.jit(lambda: Poolformer(config, rngs=nnx.Rngs(0)))()
    log_p = jax.nn.log_softmax(parallel(model, make_tokens(config, 2, 64)))
    assert -np.mean(log_p) < np.log(16) + 1.0


def test_sashimi_adds_what_goes_into_blocks_in_a_row():
    """Blocks of zeros pass on what they get: with it they double that, if there are any."""
    x = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
    for depths, factor in (((0, 0), 1), ((2, 0), 2), ((0, 1), 2), ((1, 2), 4)):
        config = dataclasses.replace(SMALL, depths=(depths, 1), sashimi_backbone=True)
        body = fill(lambda config=config: SkipBlock(0, config, rngs=nnx.Rngs(0)), zeros)
        y, _ = jax.jit(lambda x, body=body: body(x, body.init_state(2)))(x)
        np.testing.assert_array_equal(y, factor * x)


class Tripling(nnx.Module):
    """A layer that gives three times its input, and whose branch is to be said."""

    def __init__(self, width, config, *, rngs):
        self.out_width = width

    def init_state(self, batch_size):
        return ()

    def __call__(self, x, state):
        return 3.0 * x, state

    step = __call__


@pytest.mark.parametrize("branch", [None, "gated", "linear", "whole"])
@pytest.mark.parametrize("mixer_gate", [False, True])
def test_res_block_is_its_equation(monkeypatch, branch, mixer_gate):
    kind = type("Layer", (Tripling,), {} if branch is None else {"branch": branch})
    monkeypatch.setitem(LAYERS, "tripling", kind)
    config = PoolformerConfig((4,), (1,), mixer="tripling", mixer_gate=mixer_gate)
    rng = np.random.default_rng(0)
    block = fill(
        lambda: ResBlock("tripling", 0, config, rngs=nnx.Rngs(0)),
        lambda name, shape: rng.standard_normal(shape),
    )
    x = rng.standard_normal((2, 5, 4))
    n = equations.norm(block.norm, x)
    expected = 3.0 * n
    if branch in (None, "gated") and mixer_gate:
        expected = equations.gelu(equations.linear(block.gate, n)) * expected
    if branch != "whole":
        expected = equations.linear(block.output, expected)
    x32 = jnp.asarray(x, jnp.float32)
    y, state = block(x32, block.init_state(2))
    np.testing.assert_allclose(y, x + expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(block.step(x32[:, 3], state)[0], y[:, 3], rtol=1e-5, atol=1e-5)
