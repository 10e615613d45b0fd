"""Causality and the agreement of both forms, for random configs of one to three levels."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given
from hypothesis import strategies as st

from pf_jax import PoolformerConfig, UserError
from pf_jax.layers import LAYERS
from tests.models import (
    MIXERS,
    ROUNDING,
    SMALL,
    SPREADS_ROUNDING,
    configs,
    init_state,
    make_model,
    make_tokens,
    parallel,
    prefill,
    problems,
    recurrent,
    settled,
    shift,
)

each_number_of_levels = pytest.mark.parametrize("levels", [1, 2, 3])


def assert_later_tokens_leave_earlier_logits_bit_identical(config, model, tokens, positions):
    expected = np.asarray(parallel(model, tokens))
    for position in positions:
        changed = tokens.copy()
        changed[:, position:] = (changed[:, position:] + 1) % config.vocab_size
        difference = np.abs(np.asarray(parallel(model, changed)) - expected)
        rounding = ROUNDING if config.layers & SPREADS_ROUNDING else 0.0
        assert difference[:, : position + 1].max() <= rounding
        assert not difference[:, position + 1 :].size or difference[:, position + 1 :].max() > 0.0


@each_number_of_levels
@settled(4)  # Each config is three programs to compile, so that all is looked at that they give.
@given(data=st.data())
def test_forms_agree_from_the_start_and_after_a_prompt_and_hear_only_the_past(levels, data):
    config, tokens, seed = data.draw(problems(levels))
    prompt = data.draw(st.integers(1, tokens.shape[1]))
    model, batch = make_model(config, seed), len(tokens)
    expected = parallel(model, tokens)
    assert expected.shape == (*tokens.shape, config.vocab_size)
    assert expected.dtype == jnp.float32

    previous = shift(tokens, model.start_token)
    logits = recurrent(model, init_state(model, batch), previous)
    np.testing.assert_allclose(logits, expected, atol=ROUNDING)

    logits, state = prefill(model, tokens[:, :prompt])
    np.testing.assert_allclose(logits, expected[:, :prompt], atol=ROUNDING)
    # Padded at the end so that one program does for both.
    rest = np.pad(previous[:, prompt:], ((0, 0), (0, prompt)))
    logits = recurrent(model, state, rest)[:, : tokens.shape[1] - prompt]
    np.testing.assert_allclose(logits, expected[:, prompt:], atol=ROUNDING)

    positions = data.draw(st.lists(st.integers(0, tokens.shape[1] - 1), min_size=8))
    assert_later_tokens_leave_earlier_logits_bit_identical(config, model, tokens, positions)


@each_number_of_levels
@settled(2)
@given(data=st.data())
def test_prefill_in_pieces_equals_the_whole(levels, data):
    config, _, seed = data.draw(problems(levels, max_factor=4))
    period = int(np.prod(config.pool_factors))
    # Two alike, so that one program does for both.
    pieces = [period * data.draw(st.integers(1, 3))] * 2 + [data.draw(st.integers(1, 2 * period))]
    tokens = make_tokens(config, 2, sum(pieces), seed)
    model = make_model(config, seed)
    expected, end = prefill(model, tokens)
    state, previous, logits = init_state(model, 2), np.full(2, model.start_token), []
    for piece in np.split(tokens, np.cumsum(pieces)[:-1], axis=1):
        scores, state = prefill(model, piece, state, previous)
        previous = piece[:, -1]
        logits.append(scores)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), expected, atol=ROUNDING)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=ROUNDING), state, end)


def dependencies(config, time):
    """`[t, s]`: whether logits at `t` may depend on the embedded input at `s`, by plain logic."""
    reach = dict.fromkeys(LAYERS, time)
    reach |= dict.fromkeys(["convolution", "depthwise_convolution"], config.conv_width)
    reach |= {"attention": config.attention_window}

    def mix(x, mixers):
        for mixer in mixers:
            x = np.array(
                [x[max(0, t + 1 - reach[mixer]) : t + 1].any(axis=0) for t in range(len(x))]
            )
        return x.reshape(-1, time)

    def skip_block(level, x):
        before, after = config.blocks(level)
        x = mix(x, before)
        if level < config.num_levels - 1:
            factor = config.pool_factors[level]
            groups = [x[g * factor : (g + 1) * factor].any(0) for g in range(len(x) // factor)]
            nested = skip_block(level + 1, np.array(groups).reshape(-1, time))
            # The last position of a group hears of it, or with SaShiMi's backbone the next one.
            complete = (np.arange(len(x)) + (0 if config.sashimi_backbone else 1)) // factor
            x = np.array([x[t] | nested[g - 1] if g else x[t] for t, g in enumerate(complete)])
        return mix(x, after)

    return skip_block(0, np.eye(time, dtype=bool))


def jacobian(config, time, seed=0):
    """`[t, s]`: the largest slope of a combination of logits at `t` by the input at `s`."""
    model = make_model(config, seed)
    mix = np.random.default_rng(seed).standard_normal(config.vocab_size).astype(np.float32)

    def scores(model, x):
        y, _ = model.body(x[None], model.init_state(1))
        return model.head(model.head_norm(y))[0] @ mix

    x = np.random.default_rng(seed).standard_normal((time, config.widths[0])).astype(np.float32)
    return np.abs(nnx.jit(jax.jacrev(scores, argnums=1))(model, x)).max(axis=-1)


ONLY_THROUGH_POOLING = PoolformerConfig(
    (4, 4, 4), ((0, 0), (0, 0), 1), (2, 3), vocab_size=5, num_heads=2
)
# Of these, `dependencies` and the zeros of a Jacobian are exact.
EXACT = sorted({*MIXERS} - SPREADS_ROUNDING)


@settled(4)
@example(config=dataclasses.replace(ONLY_THROUGH_POOLING, depths=((0, 1), (0, 1), 1)), extra=0)
@given(
    config=st.integers(1, 3).flatmap(lambda n: configs(n, max_factor=3, mixers=EXACT)),
    extra=st.integers(0, 7),
)
def test_logits_listen_to_the_past_and_only_to_it(config, extra):
    time = 2 * math.prod(config.pool_factors) + 1 + extra
    slopes = jacobian(config, time)
    np.testing.assert_array_equal(np.triu(slopes, k=1), 0.0)
    np.testing.assert_array_equal(slopes != 0.0, dependencies(config, time))


@pytest.mark.parametrize("groups", [None, 1])
@pytest.mark.parametrize("factors", [(5,), (2, 3), (2, 2, 3)])
def test_the_delay_of_all_pools_is_their_product_less_one(factors, groups):
    """Outer levels without blocks: what is heard at each position, by a formula."""
    levels, period = len(factors) + 1, math.prod(factors)
    config = dataclasses.replace(
        ONLY_THROUGH_POOLING,
        widths=(4,) * levels,
        depths=((),) * (levels - 1) + (1,),
        pool_factors=factors,
        pool_groups=groups,
        mlp="none",
    )
    time = 2 * period + 3
    expected = np.eye(time, dtype=bool)
    for t in range(time):
        for pools in range(1, levels):
            # The last group of a level that is complete at t, that of t itself included.
            group = math.prod(factors[:pools])
            end = (t + 1) // group * group
            expected[t, max(0, end - group) : end] = True
        expected[t, :end] = True
    heard = jacobian(config, time) != 0.0
    np.testing.assert_array_equal(heard, expected)
    # All of the first group of groups is heard at its last position, and not before.
    assert heard[period - 1, :period].all()
    assert not heard[period - 2, 0]


def test_sashimi_delays_by_the_sum_of_whole_groups():
    config = dataclasses.replace(ONLY_THROUGH_POOLING, sashimi_backbone=True)
    slopes = jacobian(config, 17)
    # Itself, the pair before its own, and from the innermost level the sixes before that pair's.
    assert np.flatnonzero(slopes[7]).tolist() == [4, 5, 7]
    assert np.flatnonzero(slopes[8]).tolist() == [*range(9)]
    assert np.flatnonzero(slopes[13]).tolist() == [*range(6), 10, 11, 13]
    assert np.flatnonzero(slopes[14]).tolist() == [*range(15)]


def test_rows_of_a_batch_do_not_hear_each_other():
    model, tokens = make_model(SMALL), make_tokens(SMALL, 3, 20)
    changed = tokens.copy()
    changed[1] = (changed[1] + 1) % 7
    logits, expected = parallel(model, changed), parallel(model, tokens)
    np.testing.assert_array_equal(logits[::2], expected[::2])
    assert not np.array_equal(logits[1], expected[1])
    np.testing.assert_allclose(parallel(model, tokens[1:2])[0], expected[1], atol=ROUNDING)


def test_prefill_refuses_to_go_on_from_where_it_cannot():
    model = make_model(ONLY_THROUGH_POOLING)
    for time, past in ((7, 1), (8, 1), (4, 2)):  # A pair broken off; a three of pairs broken off.
        tokens = make_tokens(ONLY_THROUGH_POOLING, 2, time)
        _, state = prefill(model, tokens)
        with pytest.raises(UserError, match=f"state is {past} positions past one; use step"):
            model.prefill(tokens, state, tokens[:, -1])
    with pytest.raises(UserError, match="both state and previous_tokens"):
        model.prefill(tokens, state)
    with pytest.raises(UserError, match="both state and previous_tokens"):
        model.prefill(tokens, previous_tokens=tokens[:, -1])
