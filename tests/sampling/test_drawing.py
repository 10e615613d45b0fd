"""Drawing one token: against the distribution in float64, for every part of the unit interval."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pf_jax.sampling.drawing import draw, log_probability

VOCABS = [2, 3, 5, 16, 17, 255, 256, 300]
NUMBER = 2**13
# What jax.random.uniform gives is a multiple of 2**-23, and here is smaller still.
EDGES = np.float32([0.0, 1e-45, 1e-38, 1e-30, 2.0**-24, 2.0**-23, 0.5, 1 - 2.0**-22, 1 - 2.0**-23])
INF = float("inf")

_jitted = jax.jit(draw)
_jitted_log_probability = jax.jit(log_probability)


def grid(number):
    """Evenly spread over the unit interval."""
    return ((np.arange(number) + 0.5) / number).astype(np.float32)


several = settings(max_examples=10, deadline=None, derandomize=True)


def drawn(logits, uniform, temperature=1.0, top_p=None):
    """Tokens for logits `(vocab,)`, one for each uniform number."""
    # Of few lengths, so that there are few programs to compile.
    number = next(n for n in (64, 128, 1_024, NUMBER) if n >= len(uniform))
    logits = np.broadcast_to(np.asarray(logits, np.float32), (number, len(logits)))
    padded = np.pad(np.asarray(uniform), (0, number - len(uniform)), mode="edge")
    top_p = None if top_p is None else np.float32(top_p)
    tokens = _jitted(logits, padded, np.float32(temperature), top_p)
    assert tokens.dtype == jnp.int32
    assert tokens.shape == (number,)
    return np.asarray(tokens)[: len(uniform)]


def softmax(logits, temperature=1.0):
    return scipy.special.softmax(np.asarray(np.float32(logits), np.float64) / temperature)


def assert_shares(logits, p, number=NUMBER, **options):
    """Each token has one interval of the unit interval, as long as it is likely.

    So of evenly spread numbers its share is right to less than one of them at either end, which is
    much sharper than a test of random numbers could be.
    """
    tokens = drawn(logits, grid(number), **options)
    assert tokens.min() >= 0
    assert tokens.max() < len(logits)
    counts = np.bincount(tokens, minlength=len(logits))
    np.testing.assert_allclose(counts, number * p, rtol=0, atol=1.1)
    changes = np.count_nonzero(np.diff(tokens))
    assert changes == np.count_nonzero(counts) - 1


def random_logits(vocab, seed, scale=2.0):
    return np.float32(scale * np.random.default_rng(seed).standard_normal(vocab))


@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
@pytest.mark.parametrize("vocab", VOCABS)
def test_each_token_has_its_share_of_the_unit_interval(vocab, temperature):
    for seed in range(3):
        logits = random_logits(vocab, seed) + 50.0 * seed
        assert_shares(logits, softmax(logits, temperature), temperature=temperature)


@pytest.mark.parametrize("vocab", VOCABS)
def test_random_numbers_give_the_distribution(vocab):
    logits = random_logits(vocab, 1, 0.7)
    uniform = jax.random.uniform(jax.random.key(vocab), (NUMBER,))
    counts = np.bincount(drawn(logits, uniform), minlength=vocab)
    expected = NUMBER * softmax(logits)
    rare = expected < 10  # Too few for the test one by one: it takes them together.
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


def test_each_row_has_its_own_logits_and_number():
    rng = np.random.default_rng(0)
    logits, uniform = np.float32(rng.standard_normal((64, 17))), np.float32(rng.random(64))
    together = _jitted(logits, uniform, np.float32(1.0), None)
    alone = [
        _jitted(logits[i : i + 1], uniform[i : i + 1], np.float32(1.0), None)[0] for i in range(64)
    ]
    np.testing.assert_array_equal(together, alone)
    assert len({int(token) for token in alone}) > 5


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("top_p", [None, 0.9])
@several
@given(data=st.data())
def test_a_token_of_probability_0_is_never_drawn(vocab, top_p, data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    number = data.draw(st.sampled_from([1, 2, 3, vocab // 2, vocab - 1]))
    rng = np.random.default_rng(seed)
    logits = np.float32(rng.choice([0.1, 1.0, 5.0, 30.0]) * rng.standard_normal(vocab))
    possible = rng.permutation(vocab)[: min(max(number, 1), vocab)]
    impossible = np.ones(vocab, bool)
    impossible[possible] = False
    # 200 below the likeliest is as impossible as infinitely far: its exponential is 0 in float32.
    far = rng.choice([-INF, logits[possible].max() - 200.0], vocab)
    logits = np.where(impossible, far, logits).astype(np.float32)
    uniform = np.concatenate([EDGES, np.float32(rng.integers(0, 2**23, 55) * 2.0**-23)])
    tokens = drawn(logits, uniform, top_p=top_p)
    assert not set(tokens) - set(possible), (logits, tokens)


@pytest.mark.parametrize("vocab", [17, 255, 256, 300])
def test_nor_is_it_drawn_where_one_token_ends_and_another_begins(vocab):
    """Sums round there, each in its own way. The edges are found by bisection."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        logits = random_logits(vocab, seed)
        logits[vocab - rng.integers(1, vocab // 2) :] = -INF
        possible = logits > -INF
        low = np.arange(2**10) * 2**13
        high = low + 2**13 - 1
        left = drawn(logits, np.float32(low * 2.0**-23))
        for _ in range(13):
            middle = (low + high) // 2
            tokens = drawn(logits, np.float32(middle * 2.0**-23))
            assert possible[tokens].all()
            low, high = np.where(tokens == left, (middle, high), (low, middle))
        assert possible[drawn(logits, np.float32(high * 2.0**-23))].all()


@pytest.mark.parametrize("vocab", VOCABS)
def test_wherever_the_only_possible_token_is_it_is_drawn(vocab):
    for token in {0, 1, vocab // 2, vocab - 2, vocab - 1}:
        logits = np.where(np.arange(vocab) == token, 3.0, -INF)
        np.testing.assert_array_equal(drawn(logits, EDGES), token)


@pytest.mark.parametrize("vocab", VOCABS)
def test_extreme_logits(vocab):
    apart = 1e4 * np.random.default_rng(0).permutation(vocab)
    for logits in (apart, apart - 1e6, -apart):
        np.testing.assert_array_equal(drawn(logits, EDGES), np.argmax(logits))
    for value in (0.0, 1e4, -1e4, 3e38, -3e38):
        assert_shares(np.full(vocab, value), np.full(vocab, 1 / vocab))


@pytest.mark.parametrize("top_p", [None, 0.5])
@pytest.mark.parametrize("vocab", VOCABS)
def test_temperature_0_takes_the_likeliest(vocab, top_p):
    for seed in range(4):
        logits = random_logits(vocab, seed, 10.0 ** (seed - 3))
        tokens = drawn(logits, EDGES, temperature=0.0, top_p=top_p)
        np.testing.assert_array_equal(tokens, np.argmax(logits))
    # Of equal ones any, but no other.
    likeliest = np.random.default_rng(0).permutation(vocab)[:2]
    logits[likeliest] = logits.max() + 1e-3
    tokens = drawn(logits, np.concatenate([EDGES, grid(50)]), temperature=0.0, top_p=top_p)
    assert set(tokens) <= set(likeliest)


def nucleus_of(p, top_p):
    """The likeliest tokens that reach `top_p`, ties whole; None if rounding could decide."""
    order = np.argsort(-p, kind="stable")
    total, last = 0.0, None
    for token in order:
        # Within rounding of the edge, either is right; ties go on past it.
        if p[token] != last and abs(total - top_p) < 1e-5:
            return None
        if p[token] != last and total >= top_p:
            break
        total, last = total + p[token], p[token]
    return p >= last


@pytest.mark.parametrize("vocab", VOCABS)
@several
@given(data=st.data())
def test_top_p_keeps_exactly_the_nucleus(vocab, data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    top_p = data.draw(st.floats(0.001, 0.999))
    temperature = data.draw(st.sampled_from([1.0, 0.5, 2.0]))
    logits = random_logits(vocab, seed)
    if data.draw(st.booleans()):
        logits = np.round(logits)  # Many ties.
    p = softmax(logits, temperature)
    nucleus = nucleus_of(p, np.float64(np.float32(top_p)))
    assume(nucleus is not None)
    options = {"temperature": temperature, "top_p": top_p}
    # Of each number, all pairs of tokens are compared.
    shares = np.where(nucleus, p, 0.0) / p[nucleus].sum()
    assert_shares(logits, shares, 2**10 if vocab < 20 else 2**7, **options)
    assert nucleus[drawn(logits, EDGES, **options)].all()


def test_top_p_keeps_ties_together():
    logits = np.log([0.4, 0.15, 0.15, 0.15, 0.15])
    assert_shares(logits, np.array([1.0, 0, 0, 0, 0]), top_p=0.39)
    for top_p in (0.41, 0.5, 0.6, 0.9):
        assert_shares(logits, np.array([0.4, 0.15, 0.15, 0.15, 0.15]), top_p=top_p)
    assert_shares(np.zeros(5), np.full(5, 0.2), top_p=0.01)


@pytest.mark.parametrize("scale", [0.1, 3.0, 1e3])
@pytest.mark.parametrize("vocab", VOCABS)
def test_log_probability_is_that_of_float64(vocab, scale):
    rng = np.random.default_rng(vocab)
    logits = np.float32(scale * rng.standard_normal((40, vocab)) + scale)
    tokens = rng.integers(0, vocab, 40)
    expected = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    log_p = _jitted_log_probability(logits, tokens)
    assert log_p.dtype == jnp.float32
    np.testing.assert_allclose(log_p, expected[np.arange(40), tokens], rtol=1e-6, atol=2e-6 * scale)


def test_log_probability_of_extreme_logits():
    logits = jnp.array([[0.0, -INF, -1e4], [1e4, 0.0, -1e4], [7.0, 7.0, 7.0]])
    pick = functools.partial(log_probability, logits)
    np.testing.assert_allclose(pick(jnp.array([0, 0, 1])), [0.0, 0.0, -np.log(3)], atol=1e-6)
    np.testing.assert_array_equal(pick(jnp.array([1, 2, 0]))[:2], [-INF, -2e4])


def test_a_top_p_that_float32_cannot_hold_leaves_the_likeliest():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(50, 9)), jnp.float32)
    for top_p in (1e-40, 1e-50):
        tokens = draw(logits, jnp.full((50,), 0.999), jnp.float32(1.0), jnp.float32(top_p))
        np.testing.assert_array_equal(tokens, jnp.argmax(logits, axis=-1))
