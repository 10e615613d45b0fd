"""How far a mean over recordings would move with other recordings."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

FEW_RECORDINGS = 20
"""With fewer, an interval is rather a hint: the bootstrap then tends to be too narrow."""

_BLOCK = 2**22  # Resampled values held at once.


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


def bits_interval(
    nats: Float64[np.ndarray, "recordings"],
    num_samples: Int64[np.ndarray, "recordings"],
    *,
    num_resamples: int = 2_000,
    seed: int = 0,
) -> Interval | None:
    """The interval of bits per sample, by the bootstrap over recordings (Efron, 1979).

    Recordings are drawn with replacement, as many as there are, and the bits of the drawn ones
    divided by their samples; the interval is from the 2.5 % to the 97.5 % quantile of that. Samples
    of one recording are anything but independent, so they are drawn together.

    Args:
        nats: `-log p` of each recording.
        num_samples: Its real samples.
        num_resamples: How often recordings are drawn.
        seed: Of the drawing.

    Returns:
        The interval in bits per sample; None of a single recording, which says nothing of others.
    """
    if len(nats) < 2:
        return None
    import scipy.stats

    result = scipy.stats.bootstrap(
        (nats, num_samples.astype(np.float64)),
        _bits_per_sample,
        paired=True,
        vectorized=True,
        n_resamples=num_resamples,
        batch=max(1, _BLOCK // len(nats)),
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Interval(*map(float, result.confidence_interval))


def _bits_per_sample(nats: np.ndarray, num_samples: np.ndarray, axis: int = -1) -> np.ndarray:
    return nats.sum(axis) / num_samples.sum(axis) / math.log(2)
