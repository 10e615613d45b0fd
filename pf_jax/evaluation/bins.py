"""The number of statistically different bins: which kinds of sounds come too often or too rarely.

Its names are public in `pf_jax.evaluation.distribution`, with the other metrics.
"""

import dataclasses
import statistics

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from pf_jax.errors import UserError

_START_ROWS = 100  # For each bin: enough to choose where k-means starts, in little time.
_MOST_STEPS = 300


@dataclasses.dataclass(frozen=True, eq=False)
class BinComparison:
    """How often sounds fall into each bin of the training data.

    Attributes:
        num_different: Number of bins whose shares are statistically different (NDB).
        share: The same as a share of all bins (NDB/K).
        js_divergence: Jensen-Shannon divergence between both sets' shares, in nats, 0 to `ln 2`.
        train_shares: Of the training sounds in each bin.
        shares: Of the compared sounds in each bin.
        different: For which bins the shares are statistically different.
    """

    num_different: int
    share: float
    js_divergence: float
    train_shares: Float[np.ndarray, "bins"]
    shares: Float[np.ndarray, "bins"]
    different: Bool[np.ndarray, "bins"]


def ndb(
    train_features: Float[np.ndarray, "n d"],
    features: Float[np.ndarray, "m d"],
    num_bins: int = 50,
    *,
    significance: float = 0.05,
    seed: int = 0,
) -> BinComparison:
    """Compares the shares of two sets of sounds in bins of the training data.

    Bins are the cells of k-means on the training features as they are, with no whitening; each
    sound belongs to the bin with the nearest centre. The shares `p` of `n` training sounds and `q`
    of `m` others differ in a bin if the two-sided two-proportion z-test with the pooled share
    `r = (n p + m q) / (n + m)` says so at the level `significance`:

        z = (p - q) / sqrt(r (1 - r) (1/n + 1/m))

    (Richardson & Weiss, 2018.) Of two samples of one distribution about that share of bins comes
    out as different. The script behind SaShiMi's tables has 50 bins at 0.05 and gives `share`, as
    does DiffWave's table. That script runs scikit-learn's k-means from a seed, so its bins are not
    these. Here SciPy's starts once, by k-means++, on at most 100 rows a bin, and goes on with all
    rows until no row changes its bin (or 300 times). An empty bin moves to the row that is farthest
    from the centre of its own. The order of the rows changes nothing.

    Args:
        train_features: Of the training sounds.
        features: Of the sounds to compare.
        num_bins: Number of bins, 2 or more.
        significance: Of the test, between 0 and 1.
        seed: Of the start of k-means.

    Raises:
        UserError: There are fewer than 2 rows, the widths differ, a value is not finite, an option
            is out of range, or the training set has fewer different rows than bins.
    """
    train = checked_features(train_features, "the training set")
    others = checked_features(features, "the compared set")
    if train.shape[1] != others.shape[1]:
        raise UserError(
            "Both sets need the same number of features, as one classifier gives them, "
            f"got {train.shape[1]} for training and {others.shape[1]} to compare."
        )
    if num_bins < 2 or not 0 < significance < 1:
        raise UserError(
            "num_bins must be 2 or more and significance between 0 and 1, "
            f"got {num_bins} and {significance:g}."
        )
    train_counts, counts = _bin_counts(train, others, num_bins, seed)
    p, q = train_counts / len(train), counts / len(others)
    pooled = (train_counts + counts) / (len(train) + len(others))
    error = np.sqrt(pooled * (1 - pooled) * (1 / len(train) + 1 / len(others)))
    different = np.abs(p - q) > statistics.NormalDist().inv_cdf(1 - significance / 2) * error
    middle = (p + q) / 2
    return BinComparison(
        num_different=int(different.sum()),
        share=float(different.mean()),
        js_divergence=float(np.sum(special.rel_entr(p, middle) + special.rel_entr(q, middle)) / 2),
        train_shares=p,
        shares=q,
        different=different,
    )


def checked_features(features: np.ndarray, name: str) -> Float[np.ndarray, "n d"]:
    """Returns features as float64.

    Raises:
        UserError: They have another shape, fewer than 2 rows, or values that are not finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
        raise UserError(
            f"Features need the shape (rows, features) with 2 or more rows, got {features.shape} "
            f"for {name}."
        )
    if not np.isfinite(features).all():
        raise UserError(f"There are features that are NaN or infinite in {name}.")
    return features


def _bin_counts(
    train: np.ndarray, others: np.ndarray, num_bins: int, seed: int
) -> tuple[Int[np.ndarray, "bins"], Int[np.ndarray, "bins"]]:
    """Returns how many rows of either set are nearest to each centre of the training set."""
    from scipy.cluster.vq import vq

    train, is_new = _sorted(train)
    if is_new.sum() < num_bins:
        raise UserError(
            f"{num_bins} bins need as many different rows of training features, got "
            f"{is_new.sum()} ({len(train)} with repetitions): give more sounds, or fewer bins."
        )
    middle = train.mean(axis=0)  # SciPy's distances are most exact near 0.
    train, others = train - middle, others - middle
    centres = _centres(train, train[is_new], num_bins, np.random.default_rng(seed))
    counts, other_counts = (
        np.bincount(vq(rows, centres, check_finite=False)[0], minlength=num_bins)
        for rows in (train, others)
    )
    if not counts.all():
        raise UserError(
            f"The training features cannot be divided into {num_bins} bins: too many of their "
            "rows are almost the same. Give fewer bins."
        )
    return counts, other_counts


def _centres(
    rows: np.ndarray, different_rows: np.ndarray, num_bins: int, rng: np.random.Generator
) -> Float[np.ndarray, "bins d"]:
    """Returns where k-means comes to rest."""
    from scipy.cluster.vq import ClusterError, kmeans2, vq

    options = {"iter": 1, "missing": "raise", "check_finite": False}
    num_start = min(len(different_rows), _START_ROWS * num_bins)
    start = different_rows[rng.choice(len(different_rows), num_start, replace=False)]
    try:
        centres, _ = kmeans2(start, num_bins, minit="++", rng=rng, **options)
    except ClusterError:  # Some rows are so close that rounding makes them one.
        centres = start[:num_bins]
    bins = None
    for _ in range(_MOST_STEPS):
        before = bins
        try:
            centres, bins = kmeans2(rows, centres, minit="matrix", **options)
        except ClusterError:
            bins, distances = vq(rows, centres, check_finite=False)
            centres = centres.copy()
            # One at a time: the rows farthest away may all belong together.
            centres[np.argmin(np.bincount(bins, minlength=num_bins))] = rows[np.argmax(distances)]
        if before is not None and np.array_equal(bins, before):
            break
    return centres


def _sorted(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows in an order of their own, and which differ from the one before."""
    rows = np.ascontiguousarray(rows + 0.0)  # No -0.0, whose bytes are not those of 0.0.
    whole = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize)))[:, 0]
    rows = rows[np.argsort(whole, kind="stable")]
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return rows, is_new
