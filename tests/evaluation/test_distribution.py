import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from pf_jax.errors import UserError
from pf_jax.evaluation.distribution import (
    Outputs,
    am_score,
    frechet_distance,
    inception_score,
    inception_score_of_halves,
    modified_inception_score,
    score,
)


def gaussian(n, d, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def with_moments(n, mean, covariance, seed=0):
    """Returns rows whose mean and unbiased covariance are exactly these."""
    rows = np.random.default_rng(seed).normal(size=(n, len(mean)))
    rows -= rows.mean(axis=0)
    whitened = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows, rowvar=False)).T)
    return whitened @ np.linalg.cholesky(covariance).T + mean


def predictions(n, k, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(k, 0.3), size=n)


def slow_kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def slow_mean(rows):
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def make_outputs(n, d=4, k=10, seed=0):
    return Outputs(gaussian(n, d, seed), predictions(n, k, seed))


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(8, 40), st.integers(8, 40))
@settings(deadline=None, max_examples=30)
def test_frechet_distance_is_the_formula(seed, d, n, m):
    a, b = gaussian(n, d, seed), gaussian(m, d, seed + 1)
    cov_a, cov_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    expected = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    expected += np.trace(cov_a + cov_b - 2 * np.real(root))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("n", "d"), [(2, 1), (50, 7), (5, 30), (31, 30), (2, 8)])
def test_equal_sets_have_the_distance_0(n, d):
    a = gaussian(n, d)
    scale = a.var(axis=0).sum()
    assert 0 <= frechet_distance(a, a) < 1e-12 * scale
    assert 0 <= frechet_distance(a, a[::-1]) < 1e-12 * scale
    # A column that never changes makes the covariance singular.
    dead = np.concatenate([a, np.full((n, 2), 3.0)], axis=1)
    assert 0 <= frechet_distance(dead, dead) < 1e-12 * scale


def test_exact_gaussians_have_the_closed_form():
    rng = np.random.default_rng(0)
    mean_a, mean_b = rng.normal(size=(2, 5))
    # With covariances that commute, the distance is that of the eigenvalues' roots.
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    eigen_a, eigen_b = rng.uniform(0.1, 4, size=(2, 5))
    a = with_moments(20, mean_a, basis * eigen_a @ basis.T)
    b = with_moments(33, mean_b, basis * eigen_b @ basis.T, seed=1)
    expected = np.sum((mean_a - mean_b) ** 2)
    expected += np.sum((np.sqrt(eigen_a) - np.sqrt(eigen_b)) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_many_samples_of_gaussians_approach_the_closed_form():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40_000, 2))
    b = rng.normal(size=(40_000, 2)) @ np.array([[3, 0], [0, 1]]) + np.array([1, 2])
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (3 - 1) ** 2, rel=0.02)


def test_with_fewer_rows_than_features_the_distance_is_that_of_degenerate_gaussians():
    # Rows in planes that share one line: variances 2 along it, and 2 along either other axis.
    line, left, right = np.eye(60)[[3, 7, 50]]
    square = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * math.sqrt(1.5)  # Covariance 2 I.
    a, b = square @ np.stack([line, left]), square @ np.stack([line, right]) + 0.5 * right
    assert frechet_distance(a, b) == pytest.approx(2 + 2 + 0.25, rel=1e-12)


def test_a_large_offset_leaves_the_distance_exact():
    a, b = gaussian(40, 6), gaussian(40, 6, seed=1)
    moved = frechet_distance(a + 1e6, b + 1e6)
    assert moved == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_float32_features_are_scored_in_float64():
    a, b = gaussian(500, 8).astype(np.float32), gaussian(500, 8, seed=1).astype(np.float32)
    assert frechet_distance(a, b) == frechet_distance(a.astype(float), b.astype(float))


@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 8))
@settings(deadline=None, max_examples=30)
def test_scores_of_predictions_are_the_loops_written_out(seed, n, k):
    rows = predictions(n, k, seed)
    p = slow_mean(rows)
    expected = math.exp(math.fsum(slow_kl(row, p) for row in rows) / n)
    assert inception_score(rows) == pytest.approx(expected, rel=1e-9)

    pairs = math.fsum(slow_kl(x, y) for x in rows for y in rows) / n**2
    assert modified_inception_score(rows) == pytest.approx(math.exp(pairs), rel=1e-7)

    marginal = predictions(1, k, seed + 1)[0]
    entropy = -math.fsum(q * math.log(q) for row in rows for q in row if q > 0) / n
    expected = slow_kl(marginal, p) + entropy
    assert am_score(rows, marginal) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("n", [2, 7, 40])
def test_inception_score_of_halves_is_the_scripts(n):
    rows = predictions(n, 5)
    np.random.seed(0)  # As the published script does; other tests use generators of their own.
    order = np.random.permutation(n)
    first, second = [rows[i] for i in order[: n // 2]], [rows[i] for i in order[n // 2 :]]
    p = slow_mean(second)
    expected = math.exp(math.fsum(slow_kl(row, p) for row in first) / len(first))
    assert inception_score_of_halves(rows) == pytest.approx(expected, rel=1e-12)


def test_both_inception_scores_agree_for_many_sounds():
    rows = predictions(20_000, 10)
    assert inception_score_of_halves(rows) == pytest.approx(inception_score(rows), rel=0.02)


@pytest.mark.parametrize("k", [1, 2, 10])
def test_certain_predictions(k):
    certain = np.tile(np.eye(k), (6, 1))
    assert inception_score(certain) == pytest.approx(k)
    assert am_score(certain, np.full(k, 1 / k)) == pytest.approx(0, abs=1e-12)
    assert modified_inception_score(certain) == (1 if k == 1 else math.inf)


def test_certain_predictions_of_other_shares_than_in_training():
    certain = np.eye(4)[[0, 0, 1, 2]]
    assert am_score(certain, [0.5, 0.25, 0.25, 0]) == pytest.approx(0, abs=1e-12)
    expected = math.log(1 / 0.5)  # Training has the first class only.
    assert am_score(certain, [1, 0, 0, 0]) == pytest.approx(expected)
    assert am_score(certain, np.full(4, 0.25)) == math.inf  # The last class never comes.


def test_a_model_that_makes_one_sound():
    same = np.tile([0.7, 0.2, 0.1], (5, 1))
    assert inception_score(same) == pytest.approx(1)
    assert modified_inception_score(same) == pytest.approx(1)
    assert modified_inception_score(np.eye(3)[[1, 1, 1]]) == pytest.approx(1)


@pytest.mark.parametrize("k", [2, 10])
def test_uniform_predictions(k):
    uniform = np.full((8, k), 1 / k)
    assert inception_score(uniform) == pytest.approx(1)
    assert modified_inception_score(uniform) == pytest.approx(1)
    assert am_score(uniform, np.full(k, 1 / k)) == pytest.approx(math.log(k))


def test_the_training_data_itself():
    # The table's row for it: FID 0, and an AM that is the mean entropy of a prediction.
    train = make_outputs(600)
    scores = score(train, train)
    assert scores.fid == pytest.approx(0, abs=1e-10)
    entropy = -np.mean(np.sum(train.probabilities * np.log(train.probabilities), axis=1))
    assert scores.am_score == pytest.approx(entropy)
    assert (scores.ndb, scores.ndb_share, scores.js_divergence) == (0, 0, 0)


def test_the_order_of_the_sounds_changes_nothing():
    generated, train = make_outputs(300), make_outputs(700, seed=1)
    shuffled = [
        Outputs(outputs.features[order], outputs.probabilities[order])
        for outputs in (generated, train)
        for order in [np.random.default_rng(2).permutation(len(outputs.features))]
    ]
    before, after = (score(*sets).to_dict() for sets in ([generated, train], shuffled))
    assert before.pop("warnings") == after.pop("warnings")
    for name in before.keys() - {"inception_score_of_halves", "num_reference"}:
        assert before[name] == pytest.approx(after[name], rel=1e-9), name


def test_fid_compares_with_the_reference_and_the_rest_with_the_training_set():
    generated, train, test = (make_outputs(2_100, seed=seed) for seed in range(3))
    alone, other = score(generated, train), score(generated, train, reference=test)
    assert alone.fid == frechet_distance(train.features, generated.features)
    assert other.fid == frechet_distance(test.features, generated.features) != alone.fid
    assert (alone.num_reference, other.num_reference) == (None, 2_100)
    assert (alone.num_generated, alone.num_train) == (2_100, 2_100)
    assert dataclasses.replace(other, fid=alone.fid, num_reference=None) == alone
    assert alone.warnings == ()


def test_too_few_sounds_are_told_for_each_metric():
    train = make_outputs(3_000, d=100, seed=1)
    warnings = score(make_outputs(90, d=100), train).warnings
    assert [line.split(":")[0] for line in warnings] == [
        "fid",
        "inception_score",
        "inception_score_of_halves",
        "modified_inception_score",
        "am_score",
        "ndb",
    ]
    assert "90 generated sounds cannot tell the covariance of 100 features" in warnings[0]
    assert "2048 or more" in warnings[0]
    assert "90 generated sounds for 10 classes, 100 or more" in warnings[1]
    assert "90 generated sounds for 50 bins, 500 or more" in warnings[5]

    warnings = score(make_outputs(600, d=100), make_outputs(400, d=100, seed=1)).warnings
    assert [line.split(",")[0] for line in warnings] == [
        "fid: 600 generated sounds",
        "fid: 400 training sounds",
        "ndb: 400 training sounds for 50 bins",
    ]
    reference = make_outputs(50, d=100, seed=2)
    warnings = score(make_outputs(2_048, d=100), train, reference=reference).warnings
    assert len(warnings) == 1
    assert warnings[0].startswith("fid: 50 reference sounds cannot tell")


def test_scores_are_json():
    scores = score(make_outputs(60), make_outputs(70, seed=1))
    values = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert values == dataclasses.asdict(scores) | {"warnings": list(scores.warnings)}
    assert isinstance(scores.ndb, int)
    assert isinstance(scores.fid, float)


def test_what_is_infinite_is_told():
    certain = Outputs(gaussian(3_000, 2), np.eye(10)[np.arange(3_000) % 9])
    scores = score(certain, make_outputs(3_000, d=2, seed=1))
    assert scores.modified_inception_score == scores.am_score == math.inf
    assert [line.split(",")[0] for line in scores.warnings] == [
        "modified_inception_score: infinite",
        "am_score: infinite",
    ]
    values = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert values["modified_inception_score"] is values["am_score"] is None


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full((3, 2), 0.6), "sums go from 1.2 to 1.2"),
        (np.array([[1.5, -0.5], [0.5, 0.5]]), "the least value is -0.5"),
        (np.log(np.full((3, 2), 0.5)), "not its logits"),
        (np.array([[np.nan, 1], [0.5, 0.5]]), "no probabilities"),
        (np.array([[np.inf, 0], [0.5, 0.5]]), "no probabilities"),
        (np.ones((1, 1)), "2 or more sounds"),
        (np.ones((0, 3)), "2 or more sounds"),
        (np.ones((3, 0)), "2 or more sounds"),
        (np.ones(4), "shape"),
    ],
)
def test_what_are_no_probabilities(bad, message):
    metrics = [inception_score, inception_score_of_halves, modified_inception_score]
    for metric in [*metrics, lambda rows: am_score(rows, [0.5, 0.5])]:
        with pytest.raises(UserError, match=message):
            metric(bad)
    train = Outputs(gaussian(60, 3), predictions(60, 2))
    with pytest.raises(UserError, match=r"generated sounds.*" if len(bad) > 1 else message):
        score(Outputs(np.zeros((len(bad), 3)), bad), train)


def test_rounded_probabilities_are_taken_as_the_script_does():
    rows = predictions(50, 10)
    for metric in (inception_score, modified_inception_score, inception_score_of_halves):
        assert metric(rows * 1.0005) == pytest.approx(metric(rows), rel=1e-12)
        assert metric(rows.astype(np.float32)) == pytest.approx(metric(rows), rel=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "first set"),
        (np.zeros((5, 3)), np.zeros((1, 3)), "second set"),
        (np.zeros((5, 3)), np.zeros((5, 4)), "got 3 and 4"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "NaN or infinite in the first set"),
        (np.zeros((5, 3)), np.full((5, 3), np.inf), "NaN or infinite in the second set"),
        (np.zeros(5), np.zeros(5), "shape"),
    ],
)
def test_features_that_have_no_distance(a, b, message):
    with pytest.raises(UserError, match=message):
        frechet_distance(a, b)


def test_sets_that_cannot_be_compared():
    train = make_outputs(60)
    with pytest.raises(UserError, match="got 5 and 6 rows"):
        Outputs(np.zeros((5, 2)), np.zeros((6, 2)))
    with pytest.raises(UserError, match="4 for training and 3"):
        score(make_outputs(60, d=3), train)
    with pytest.raises(UserError, match="7 for the generated and 10"):
        score(make_outputs(60, k=7), train)
    with pytest.raises(UserError, match="got 9 and 4"):
        score(train, train, reference=make_outputs(60, d=9))
    with pytest.raises(UserError, match="2 or more"):
        score(make_outputs(1), train)
    with pytest.raises(UserError, match="50 bins need"):
        score(train, make_outputs(49))
    assert score(train, make_outputs(49), num_bins=5).num_train == 49
    with pytest.raises(UserError, match="the training labels"):
        am_score(train.probabilities, np.full(10, 0.2))
