"""The guard against noise, and the band of likelihoods."""

import jax
import numpy as np
import pytest
import scipy.special

from pf_jax import PoolformerConfig, UserError
from pf_jax.sampling import Sampler
from pf_jax.sampling.guard import guarded_chunks, likelihood_band
from tests.models import make_model, parallel

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def sampler():
    config = PoolformerConfig((8, 8), (0, 1), (4,), vocab_size=5, num_heads=2)
    return Sampler(make_model(config, seed=1), chunk_steps=8)


def take(chunks, number):
    """The first so many chunks, put together, and the bits of each."""
    chunks, redrawn = zip(*[next(chunks) for _ in range(number)], strict=True)
    tokens, log_p = (np.concatenate(parts, axis=1) for parts in zip(*chunks, strict=True))
    bits = [-chunk.log_p.mean(axis=1) / np.log(2) for chunk in chunks]
    return tokens, log_p, np.stack(bits, axis=1), np.stack(redrawn, axis=1)


def test_what_is_good_is_left_alone(sampler):
    start = sampler.start(KEY, 6)
    tokens, _, _, redrawn = take(guarded_chunks(sampler, start, most_bits=1e3), 5)
    plain = sampler.chunks(start)
    np.testing.assert_array_equal(
        tokens, np.concatenate([next(plain).tokens for _ in range(5)], axis=1)
    )
    assert not redrawn.any()


def test_chunks_that_cost_too_much_are_drawn_again_and_stay_exact(sampler):
    start = sampler.start(KEY, 40, [1, 2, 3, 0])
    _, _, bits, _ = take(guarded_chunks(sampler, start, most_bits=1e3), 5)
    limit = np.quantile(bits, 0.7)

    tokens, log_p, bits, redrawn = take(guarded_chunks(sampler, start, most_bits=limit), 5)
    assert (bits <= limit).mean() > 0.99  # Eight more attempts at 30 %.
    assert 0.1 < redrawn.mean() < 0.6
    whole = np.concatenate([np.tile([1, 2, 3, 0], (40, 1)), tokens], axis=1)
    expected = scipy.special.log_softmax(parallel(sampler._model, whole), axis=-1)
    expected = np.take_along_axis(expected, whole[..., None], axis=-1)[:, 4:, 0]
    np.testing.assert_allclose(log_p, expected, atol=1e-5)

    again, *_ = take(guarded_chunks(sampler, start, most_bits=limit), 5)
    np.testing.assert_array_equal(again, tokens)


def test_a_guard_that_nothing_satisfies_gives_up(sampler):
    *_, redrawn = take(guarded_chunks(sampler, sampler.start(KEY, 3), most_bits=0.0), 2)
    assert redrawn.all()


@pytest.mark.parametrize("number", [1, 3, 10, 20, 100, 101])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.4, 0.95), (0.95, 1.0), (0.3, 0.31)])
def test_the_band_drops_both_ends_of_the_ranking(number, low, high):
    likelihoods = np.random.default_rng(number).normal(size=number)
    kept = likelihood_band(likelihoods, low=low, high=high)
    assert (np.diff(kept) > 0).all()
    rank = np.argsort(np.argsort(likelihoods))
    share = rank / number  # Of those below.
    inside = (share >= low - 1 / number) & (share < high + 1 / number)
    assert inside[kept].all()
    assert abs(len(kept) - (high - low) * number) < 2
    if (low, high) == (0.0, 1.0):
        assert len(kept) == number
    if number == 100:
        assert len(kept) == round(100 * (high - low))


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1), (0.5, 0.5), (0.9, 0.1), (0, 1.1)])
def test_a_band_that_is_none_is_refused(low, high):
    with pytest.raises(UserError, match="0 <= low < high <= 1"):
        likelihood_band([1.0, 2.0], low=low, high=high)
