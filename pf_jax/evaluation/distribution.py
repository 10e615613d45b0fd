"""How close a set of generated sounds is to a set of real ones, as a classifier hears them.

The metrics are those of the tables of DiffWave (Kong et al., 2021, arXiv 2009.09761) and SaShiMi
(Goel et al., 2022, arXiv 2202.09729, appendix C.3), which later papers on SC09 go on with. Of each
sound they need what a classifier of the spoken digit says of it: `features`, the input of its last
linear layer (1,024 numbers in the published ResNeXt), and `probabilities`, the softmax of that
layer's output. Logarithms are natural, nothing is clipped, and no small number is added anywhere.

The published protocol compares with the training split: all of it gives the features for the
Frechet distance and the bins, and the mean prediction for the AM score. It scores 2,048 sounds of
a model without a tractable likelihood. Of an autoregressive model it draws 10,240, sorts them by
likelihood, finds which share to leave out at either end by the inception score of one half, and
scores what is then left of the other half (at most 5,120), so its tables flatter such a model.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import special

from pf_jax.errors import UserError
from pf_jax.evaluation.bins import BinComparison as BinComparison
from pf_jax.evaluation.bins import checked_features
from pf_jax.evaluation.bins import ndb as ndb

_PUBLISHED = 2_048  # Sounds behind a published figure, at least.
_PER_CLASS = 10
_PER_BIN = 10
_SUM_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
    """What a classifier says of a set of sounds.

    Attributes:
        features: The input of its last linear layer, one row for each sound.
        probabilities: Of each class, one row for each sound, summing to 1. The softmax is best
            taken in float64: one that rounds to 0 makes `modified_inception_score` infinite.

    Raises:
        UserError: The numbers of rows differ.
    """

    features: Float[np.ndarray, "n d"]
    probabilities: Float[np.ndarray, "n k"]

    def __post_init__(self) -> None:
        if len(self.features) != len(self.probabilities):
            raise UserError(
                "Each sound needs one row of features and one of probabilities, got "
                f"{len(self.features)} and {len(self.probabilities)} rows."
            )


@dataclasses.dataclass(frozen=True)
class Scores:
    """The distribution metrics of a set of generated sounds.

    Attributes:
        fid: `frechet_distance` of the features; 0 is best.
        inception_score: From 1 to the number of classes, which is best.
        inception_score_of_halves: The same as the published script estimates it.
        modified_inception_score: From 1; higher is better.
        am_score: From 0, which is best.
        ndb: Number of statistically different bins; 0 is best.
        ndb_share: Share of all bins that are different, as tables give it.
        js_divergence: Between the bins' shares, in nats, at most `ln 2`; 0 is best.
        num_generated: Number of generated sounds.
        num_train: Number of training sounds.
        num_reference: Number of sounds that `fid` compares with if these are not the training
            sounds; else None.
        warnings: One line for each figure that has too few sounds behind it to be trusted.
    """

    fid: float
    inception_score: float
    inception_score_of_halves: float
    modified_inception_score: float
    am_score: float
    ndb: int
    ndb_share: float
    js_divergence: float
    num_generated: int
    num_train: int
    num_reference: int | None = None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold; figures that are infinite are None."""
        values = dataclasses.asdict(self) | {"warnings": list(self.warnings)}
        return {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in values.items()
        }


def score(
    generated: Outputs,
    train: Outputs,
    *,
    reference: Outputs | None = None,
    num_bins: int = 50,
    seed: int = 0,
) -> Scores:
    """Returns all metrics of a set of generated sounds.

    Args:
        generated: Of the model's sounds; no real recording among them.
        train: Of the training split, all of it, by the same classifier.
        reference: What `fid` compares with instead of the training split, such as the test split.
            Published figures compare with the training split: leave it out to compare with them.
        num_bins: Number of bins of `ndb`; published figures have 50.
        seed: Of the bins.

    Raises:
        UserError: Impossible input: fewer than 2 sounds, sets that differ in the number of features
            or classes, values that are not finite, rows that are not probabilities, or a training
            split that cannot be divided into `num_bins` bins.
    """
    probabilities = _checked_probabilities(generated.probabilities, "the generated sounds")
    marginal = _checked_probabilities(train.probabilities, "the training sounds").mean(axis=0)
    target = train if reference is None else reference
    bins = ndb(train.features, generated.features, num_bins, seed=seed)
    scores = Scores(
        fid=frechet_distance(target.features, generated.features),
        inception_score=inception_score(probabilities),
        inception_score_of_halves=inception_score_of_halves(probabilities),
        modified_inception_score=modified_inception_score(probabilities),
        am_score=am_score(probabilities, marginal),
        ndb=bins.num_different,
        ndb_share=bins.share,
        js_divergence=bins.js_divergence,
        num_generated=len(probabilities),
        num_train=len(train.features),
        num_reference=None if reference is None else len(reference.features),
    )
    warnings = _warnings(scores, generated.features.shape[1], probabilities.shape[1], num_bins)
    return dataclasses.replace(scores, warnings=tuple(warnings))


def frechet_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Returns the squared Frechet distance between Gaussians fitted to two sets of features.

    With the means `m` and the unbiased covariances `S`, it is (Heusel et al., 2017, equation 6)

        |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    which is the FID if the features are those of a classifier. If `S_a = A^T A` and `S_b = B^T B`,
    the trace of the root is the sum of the singular values of `A B^T`: real, never negative and
    exact to rounding, even if the covariances are singular or there are fewer rows than columns.
    There it is the distance between two degenerate Gaussians, and larger than that of more samples.

    Raises:
        UserError: There are fewer than 2 rows, the widths differ, or a value is not finite.
    """
    a, b = checked_features(a, "the first set"), checked_features(b, "the second set")
    if a.shape[1] != b.shape[1]:
        raise UserError(
            "Both sets need the same number of features, as one classifier gives them, "
            f"got {a.shape[1]} and {b.shape[1]}."
        )
    shift = a.mean(axis=0) - b.mean(axis=0)
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = shift @ shift + np.sum(root_a**2) + np.sum(root_b**2) - 2 * cross
    return float(max(0.0, distance))  # Rounding can bring equal sets below 0.


def inception_score(probabilities: Float[np.ndarray, "n k"]) -> float:
    """Returns `exp E_x KL(p(y|x) || p(y))`, with `p(y) = E_x p(y|x)`, all means over all sounds.

    It goes from 1, if all predictions are alike, to the number of classes `k`, if they are certain
    and each class comes equally often (Salimans et al., 2016).
    From few sounds it is too low, by a factor of about `1 - (k - 1) / 2n` if predictions are
    certain. The formula is DiffWave's; `inception_score_of_halves` produced SaShiMi's tables.

    Raises:
        UserError: There are fewer than 2 rows, or they are not probabilities.
    """
    probabilities = _checked_probabilities(probabilities)
    return _inception_score(probabilities, probabilities)


def inception_score_of_halves(probabilities: Float[np.ndarray, "n k"]) -> float:
    """Returns the inception score as the script behind SaShiMi's tables estimates it.

    That script (state-spaces/s4, models/sashimi/sc09_classifier/test_speech_commands.py) shuffles
    the sounds with `numpy.random.seed(0)` and takes `p(y|x)` from the first half (the smaller one
    if `n` is odd) and `p(y)` from the second. This is noisier than `inception_score`, too high from
    few sounds, by a factor of about `1 + (k - 1) / n` if predictions are certain, and depends on
    the order of the rows.

    Raises:
        UserError: There are fewer than 2 rows, or they are not probabilities.
    """
    probabilities = _checked_probabilities(probabilities)
    shuffled = probabilities[np.random.RandomState(0).permutation(len(probabilities))]
    half = len(shuffled) // 2
    return _inception_score(shuffled[:half], shuffled[half:])


def modified_inception_score(probabilities: Float[np.ndarray, "n k"]) -> float:
    """Returns `exp E_{x, x'} KL(p(y|x) || p(y|x'))` over all pairs of sounds.

    Also known as the m-IS (Gurumurthy et al., 2017). All `n^2` pairs count, those of a sound with
    itself too, in time `O(n k)`:

        E KL = E_x sum_y p(y|x) ln p(y|x) - sum_y E_x[p(y|x)] E_x[ln p(y|x)]

    The script behind SaShiMi's tables estimates the same from 10,000 pairs drawn with replacement.
    DiffWave's formula is the same. A certain prediction of two classes makes it infinite.

    Raises:
        UserError: There are fewer than 2 rows, or they are not probabilities.
    """
    probabilities = _checked_probabilities(probabilities)
    marginal = probabilities.mean(axis=0)
    with np.errstate(divide="ignore", over="ignore"):
        mean_log = np.log(probabilities).mean(axis=0)
        # A class that is never predicted adds nothing.
        cross = np.sum(marginal * np.where(marginal > 0, mean_log, 0.0))
        return float(np.exp(-special.entr(probabilities).sum(axis=1).mean() - cross))


def am_score(
    probabilities: Float[np.ndarray, "n k"], train_label_marginal: Float[np.ndarray, "k"]
) -> float:
    """Returns `KL(p_train(y) || p(y)) + E_x H(p(y|x))`, in nats.

    `p(y) = E_x p(y|x)` over the generated sounds. The second term wants certain predictions, the
    first wants the classes as often as in the training data (Zhou et al., 2018). For the training
    data itself what is left is the mean entropy of a prediction. Formula and direction are those of
    DiffWave and of the script behind SaShiMi's tables. It is infinite if a class of the training
    data has a probability of exactly 0 in all sounds.

    Args:
        probabilities: Predictions for generated sounds.
        train_label_marginal: The mean prediction for the training sounds (not the shares of their
            labels), summing to 1.

    Raises:
        UserError: There are fewer than 2 rows, they or the marginal are not probabilities, or the
            numbers of classes differ.
    """
    probabilities = _checked_probabilities(probabilities)
    marginal = _checked_probabilities(
        np.atleast_2d(train_label_marginal), "the training labels", fewest=1
    )[0]
    if len(marginal) != probabilities.shape[1]:
        raise UserError(
            "Both sets need the same classes, as one classifier gives them, got "
            f"{probabilities.shape[1]} for the generated and {len(marginal)} for the training set."
        )
    divergence = special.rel_entr(marginal, probabilities.mean(axis=0)).sum()
    return float(divergence + special.entr(probabilities).sum(axis=1).mean())


def frechet_warnings(name: str, counts: dict[str, int], width: int, enough: int) -> tuple[str, ...]:
    """Returns a line for each set with too few rows for a Frechet distance, or none.

    Args:
        name: Of the metric.
        counts: Number of rows of each set, by what its rows are, such as "generated sounds".
        width: Number of features.
        enough: Number of rows from which the bias is small, or known.
    """
    lines = []
    for rows, count in counts.items():
        if count <= width:
            lines.append(
                f"{name}: {count} {rows} cannot tell the covariance of {width} features, which "
                f"takes more than {width} ({max(enough, width + 1)} or more are wanted): the "
                "distance comes out far too large."
            )
        elif count < enough:
            lines.append(
                f"{name}: {count} {rows}, {enough} or more are wanted: the distance comes out too "
                "large, so compare it only with figures from as many."
            )
    return tuple(lines)


def _covariance_root(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "least_of_n_d d"]:
    """Returns `A` where `A^T A` is the unbiased covariance."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.linalg.qr(centred, mode="r") if len(centred) > centred.shape[1] else centred


def _inception_score(conditional: np.ndarray, others: np.ndarray) -> float:
    divergences = special.rel_entr(conditional, others.mean(axis=0)).sum(axis=1)
    return float(np.exp(divergences.mean()))


def _checked_probabilities(
    probabilities: np.ndarray, name: str = "the generated sounds", fewest: int = 2
) -> Float[np.ndarray, "n k"]:
    """Returns rows that sum to 1, in float64."""
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or len(probabilities) < fewest or not probabilities.shape[1]:
        raise UserError(
            f"Probabilities need the shape (sounds, classes) with {fewest} or more sounds, "
            f"got {probabilities.shape} for {name}."
        )
    sums = probabilities.sum(axis=1, keepdims=True)
    # Written so that NaN is caught too.
    if not (probabilities >= 0).all() or not (np.abs(sums - 1) <= _SUM_TOLERANCE).all():
        raise UserError(
            f"There are rows for {name} that are no probabilities (the least value is "
            f"{probabilities.min():g}, sums go from {sums.min():g} to {sums.max():g}): "
            "give the classifier's softmax, not its logits or their logarithms."
        )
    return probabilities / sums


def _warnings(scores: Scores, width: int, num_classes: int, num_bins: int) -> list[str]:
    """Returns what too few sounds do to each metric."""
    if scores.num_reference is None:
        target = {"training sounds": scores.num_train}
    else:
        target = {"reference sounds": scores.num_reference}
    counts = {"generated sounds": scores.num_generated} | target
    lines = list(frechet_warnings("fid", counts, width, _PUBLISHED))
    if scores.num_generated < _PER_CLASS * num_classes:
        for name, otherwise in (
            ("inception_score", f"it comes out too low, {scores.num_generated} at most"),
            ("inception_score_of_halves", "it comes out too high, and noisy"),
            ("modified_inception_score", "it comes out noisy"),
            ("am_score", "it comes out too high, and noisy"),
        ):
            lines.append(
                f"{name}: {scores.num_generated} generated sounds for {num_classes} classes, "
                f"{_PER_CLASS * num_classes} or more ({_PER_CLASS} a class) are wanted: "
                f"{otherwise}."
            )
    counts = {"generated sounds": scores.num_generated, "training sounds": scores.num_train}
    lines += [
        f"ndb: {count} {rows} for {num_bins} bins, {_PER_BIN * num_bins} or more ({_PER_BIN} a "
        "bin) are wanted: the test cannot see differences, and it comes out too low."
        for rows, count in counts.items()
        if count < _PER_BIN * num_bins
    ]
    lines += [
        f"{name}: infinite, as some probabilities are exactly 0: take the softmax in float64."
        for name in ("modified_inception_score", "am_score", "inception_score_of_halves")
        if not np.isfinite(getattr(scores, name))
    ]
    return lines
