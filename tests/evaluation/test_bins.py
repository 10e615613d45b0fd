import math

import numpy as np
import pytest
import scipy.cluster.vq
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pf_jax.errors import UserError
from pf_jax.evaluation.distribution import ndb


def blobs(counts, seed=0, d=3):
    """Returns tight clusters far from each other, so that every good k-means finds them."""
    rng = np.random.default_rng(seed)
    centres = 100 * np.eye(len(counts), d) + 1_000 * np.arange(len(counts))[:, None]
    return np.repeat(centres, counts, axis=0) + rng.normal(size=(sum(counts), d))


def slow_ndb(train_counts, counts, significance=0.05):
    """The definition, bin by bin."""
    n, m = sum(train_counts), sum(counts)
    different, js = [], 0.0
    for c, e in zip(train_counts, counts, strict=True):
        p, q, pooled = c / n, e / m, (c + e) / (n + m)
        error = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
        p_value = 2 * scipy.stats.norm.sf(abs(p - q) / error) if error else 1
        different.append(p_value < significance)
        js += sum(x * math.log(2 * x / (p + q)) for x in (p, q) if x > 0) / 2
    return different, js


def by_share(comparison):
    order = np.argsort(comparison.train_shares)
    return comparison.train_shares[order], comparison.shares[order], comparison.different[order]


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_equals_the_definition(data):
    num_bins = data.draw(st.integers(2, 6))
    train_counts = [20 + 7 * i + data.draw(st.integers(0, 6)) for i in range(num_bins)]
    counts = data.draw(st.lists(st.integers(0, 60), min_size=num_bins, max_size=num_bins))
    counts[data.draw(st.integers(0, num_bins - 1))] += 2
    significance = data.draw(st.sampled_from([0.01, 0.05, 0.3]))
    comparison = ndb(
        blobs(train_counts), blobs(counts, seed=1), num_bins, significance=significance
    )
    different, js = slow_ndb(train_counts, counts, significance)
    train_shares, shares, found = by_share(comparison)
    np.testing.assert_allclose(train_shares, np.array(train_counts) / sum(train_counts))
    np.testing.assert_allclose(shares, np.array(counts) / sum(counts))
    assert found.tolist() == different
    assert comparison.num_different == sum(different)
    assert comparison.share == sum(different) / num_bins
    assert comparison.js_divergence == pytest.approx(js, abs=1e-12)


def test_the_training_set_itself_has_no_different_bins():
    features = np.random.default_rng(0).normal(size=(500, 8))
    comparison = ndb(features, features)
    assert comparison.num_different == comparison.js_divergence == 0
    assert len(comparison.shares) == 50
    assert comparison.train_shares.sum() == pytest.approx(1)


def test_about_one_bin_in_twenty_differs_by_chance():
    rng = np.random.default_rng(0)
    features = np.maximum(0, rng.normal(size=(8_000, 8)))
    half, other = features[:4_000], features[4_000:]
    comparison = ndb(half, other)
    assert comparison.num_different <= 8  # Binomial(50, 0.05) is more in 1 of 1000 cases.
    assert comparison.js_divergence < 0.01
    assert ndb(features, half).num_different <= 2


def test_a_set_elsewhere_has_all_bins_different():
    features = np.random.default_rng(0).uniform(size=(5_000, 4))
    # All in one bin, at a corner, so that it is far too full and the others are empty.
    comparison = ndb(features, features + 1_000)
    assert comparison.num_different == 50
    assert comparison.share == 1
    assert sorted(comparison.shares)[-2:] == [0, 1]
    assert comparison.js_divergence == pytest.approx(math.log(2), rel=0.1)


def test_missing_kinds_are_the_different_bins():
    train, others = blobs([500, 400, 300, 200]), blobs([500, 400, 0, 200], seed=1)
    comparison = ndb(train, others, 4)
    assert by_share(comparison)[1].tolist() == [200 / 1100, 0, 400 / 1100, 500 / 1100]
    assert comparison.different[np.argmin(comparison.shares)]


def test_the_same_seed_gives_the_same_bins_in_any_order():
    rng = np.random.default_rng(0)
    train, others = np.maximum(0, rng.normal(size=(2, 700, 5)))
    one = ndb(train, others, seed=3)
    zeros = np.where(train == 0, rng.choice([0.0, -0.0], train.shape), train)
    two = ndb(rng.permutation(zeros), rng.permutation(others), seed=3)
    np.testing.assert_array_equal(one.train_shares, two.train_shares)
    np.testing.assert_array_equal(one.shares, two.shares)
    assert not np.array_equal(one.train_shares, ndb(train, others, seed=4).train_shares)


def test_bins_are_where_k_means_comes_to_rest():
    rng = np.random.default_rng(0)
    train = rng.normal(size=(2_000, 2))
    comparison = ndb(train, train, 12)
    # Each bin is convex and about as heavy as the others; a start alone is not.
    assert comparison.train_shares.min() > 0.02
    assert comparison.train_shares.max() < 0.2


@pytest.mark.parametrize("repetitions", [1, 40])
def test_as_many_bins_as_different_rows(repetitions):
    rows = np.random.default_rng(0).normal(size=(50, 3))
    comparison = ndb(np.tile(rows, (repetitions, 1)), rows)
    np.testing.assert_allclose(comparison.train_shares, 1 / 50)
    np.testing.assert_allclose(comparison.shares, 1 / 50)


@pytest.mark.parametrize("fails", [False, True])
def test_an_empty_bin_moves_to_where_it_is_needed(monkeypatch, fails):
    train = blobs([50, 40, 30, 20])
    kmeans2 = scipy.cluster.vq.kmeans2
    starts = []

    def bad_start(data, k, *, minit, **options):
        if minit != "++":
            return kmeans2(data, k, minit=minit, **options)
        starts.append(k)
        if fails:
            raise scipy.cluster.vq.ClusterError
        return np.array([[0.0] * 3, [1e6] * 3, [2e6] * 3, [3e6] * 3]), None

    monkeypatch.setattr(scipy.cluster.vq, "kmeans2", bad_start)
    comparison = ndb(train, train, 4)
    assert starts == [4]
    assert comparison.train_shares.min() > 0
    if not fails:  # From any rows k-means may come to rest elsewhere.
        assert sorted(comparison.train_shares) == [20 / 140, 30 / 140, 40 / 140, 50 / 140]


def test_no_bin_is_empty_where_rows_lie_close():
    rng = np.random.default_rng(0)
    # Two thirds are almost the same row: it is easy to lose a centre among them.
    close = 5 + 1e-7 * rng.normal(size=(400, 8))
    train = np.concatenate([close, 1e3 * rng.normal(size=(200, 8))])
    for seed in range(5):
        assert ndb(train, train, 40, seed=seed).train_shares.min() > 0


def test_rows_that_rounding_makes_one_are_told():
    rng = np.random.default_rng(0)
    train = np.concatenate([1e-9 * rng.normal(size=(100, 8)), 1e8 * np.eye(1, 8)])
    with pytest.raises(UserError, match="almost the same"):
        ndb(train, train)


@pytest.mark.parametrize(
    ("train", "others", "options", "message"),
    [
        (np.zeros((60, 3)), np.zeros((60, 3)), {}, r"got 1 \(60 with repetitions\)"),
        (np.eye(49), np.eye(49), {}, "50 bins need"),
        (np.eye(60), np.zeros((1, 60)), {}, "the compared set"),
        (np.zeros((1, 3)), np.zeros((9, 3)), {}, "the training set"),
        (np.eye(60), np.zeros((5, 59)), {}, "60 for training and 59"),
        (np.full((60, 3), np.nan), np.zeros((9, 3)), {}, "NaN or infinite in the training set"),
        (np.eye(60), np.full((9, 60), np.inf), {}, "NaN or infinite in the compared set"),
        (np.eye(60), np.eye(60), {"num_bins": 1}, "num_bins must be 2"),
        (np.eye(60), np.eye(60), {"significance": 0}, "significance"),
        (np.eye(60), np.eye(60), {"significance": math.nan}, "significance"),
    ],
)
def test_what_cannot_be_divided_into_bins(train, others, options, message):
    with pytest.raises(UserError, match=message):
        ndb(train, others, **options)
