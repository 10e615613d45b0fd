import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from pf_jax import PoolformerConfig, UserError
from pf_jax.data import DataConfig, Recordings
from pf_jax.data.builder import SEGMENT
from pf_jax.data.windows import Windows
from pf_jax.evaluation import likelihood
from pf_jax.evaluation.bootstrap import bits_interval
from pf_jax.evaluation.likelihood import score
from tests.models import make_model, parallel

CONFIG = PoolformerConfig(
    widths=(8, 16), depths=(1, 1), pool_factors=(4,), pool_groups=1, num_heads=2
)


@pytest.fixture(scope="module")
def model():
    return make_model(CONFIG, seed=3)


def recordings(lengths, seed=0):
    rng = np.random.default_rng(seed)
    pcm = [rng.integers(-(2**12), 2**12, n).astype(np.int16) for n in lengths]
    records = [
        {"samples": p[start : start + SEGMENT]} for p in pcm for start in range(0, len(p), SEGMENT)
    ]
    table = {
        "name": [f"recording {i}" for i in range(len(lengths))],
        "length": list(lengths),
        "low": [int(p.min()) for p in pcm],
        "high": [int(p.max()) for p in pcm],
        "labels": {},
    }
    return Recordings(table, records)


def windows_of(lengths, window, **fields):
    return Windows(recordings(lengths), DataConfig("in memory", window, **fields))


def nats_of(model, tokens):
    """Of each token of one sequence: the parallel form at once, and the softmax in float64."""
    # Of one length, so that there is one program: later tokens change nothing before them.
    padded = np.pad(tokens, (0, 70 - len(tokens)))
    logits = np.asarray(parallel(model, padded[None])[0, : len(tokens)], np.float64)
    log_sum = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    return log_sum - logits[np.arange(len(tokens)), tokens]


@pytest.mark.parametrize("normalization", ["none", "recording", "window"])
@pytest.mark.parametrize("carried", [True, False])
def test_each_real_sample_counts_once(model, carried, normalization, monkeypatch):
    monkeypatch.setattr(likelihood, "_MAX_CHUNK", 24)  # So recordings are taken in pieces.
    lengths, window = (70, 5, 31, 64, 1), 30
    windows = windows_of(lengths, window, normalization=normalization)
    result = score(model, windows, carried=carried)
    sections = np.zeros((2, max(lengths) if carried else window))
    for number, length in enumerate(lengths):
        tokens = windows.tokens(number)
        assert len(tokens) == length
        step = length if carried else window
        pieces = [nats_of(model, tokens[i : i + step]) for i in range(0, length, step)]
        np.testing.assert_allclose(result.nats[number], sum(p.sum() for p in pieces), rtol=1e-6)
        for piece in pieces:
            sections[0, : len(piece)] += piece
            sections[1, : len(piece)] += 1
    assert result.num_samples.tolist() == list(lengths)
    bits = result.nats.sum() / sum(lengths) / math.log(2)
    assert result.bits_per_sample == pytest.approx(bits, rel=1e-12)
    for positions in (result.octaves, result.sections):
        assert positions.edges[0] == 0
        assert positions.edges[-1] >= sections.shape[1]
        for i, (first, last) in enumerate(itertools.pairwise(positions.edges)):
            np.testing.assert_allclose(positions.nats[i], sections[0, first:last].sum(), rtol=1e-6)
            assert positions.counts[i] == sections[1, first:last].sum()
    assert result.octaves.edges[:4].tolist() == [0, 1, 2, 4]


@settings(deadline=None, max_examples=5)
@given(
    lengths=st.lists(st.integers(1, 80), min_size=1, max_size=9),
    window=st.sampled_from([1, 17, 60]),  # Of each, and of each batch, there is a program.
    batch_size=st.sampled_from([3, 12]),
    carried=st.booleans(),
)
def test_batch_size_changes_nothing(model, lengths, window, batch_size, carried):
    windows = windows_of(lengths, window)
    one = score(model, windows, carried=carried, batch_size=1)
    some = score(model, windows, carried=carried, batch_size=batch_size)
    np.testing.assert_allclose(some.nats, one.nats, rtol=1e-6)
    assert (some.num_samples == one.num_samples).all()


def test_positions_of_nothing_are_unknown():
    edges = np.array([0, 1, 2])
    positions = likelihood.Positions(edges, np.array([2.0, 0.0]), np.array([2, 0]))
    np.testing.assert_allclose(positions.bits_per_sample(), [1 / math.log(2), np.nan])


def test_a_model_without_finite_likelihood_is_named(model):
    broken = nnx.clone(model)
    broken.head.bias[...] = jnp.full(256, jnp.nan)
    with pytest.raises(UserError, match=r"recording 1 .* not finite"):
        score(broken, windows_of((3, 40), 16), carried=True)


def test_the_interval_is_that_of_plain_resampling():
    rng = np.random.default_rng(0)
    num_samples = rng.integers(100, 1_000, 40)
    nats = num_samples * rng.normal(2, 0.3, 40)
    draws = rng.integers(0, 40, (20_000, 40))
    bits = nats[draws].sum(1) / num_samples[draws].sum(1) / math.log(2)
    interval = bits_interval(nats, num_samples)
    np.testing.assert_allclose(interval, np.quantile(bits, (0.025, 0.975)), rtol=5e-3)
    assert interval == bits_interval(nats, num_samples)
    assert bits_interval(nats[:1], num_samples[:1]) is None
    # Of recordings that are all alike there is no doubt.
    low, high = bits_interval(np.full(5, 7.0), np.full(5, 10))
    assert low == pytest.approx(high, rel=1e-12)
