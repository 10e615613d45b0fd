"""What an evaluation found, as a JSON-ready dictionary: the one form that files and pages share."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pf_jax.data.dataset import Recordings
from pf_jax.evaluation.bootstrap import FEW_RECORDINGS, bits_interval
from pf_jax.evaluation.likelihood import Likelihood, Positions

_MOST_CLASSES = 100  # A label with more values than that is rather a name.
_MOST_NAMED = 5


def likelihood_results(
    carried: Likelihood,
    independent: Likelihood,
    recordings: Recordings,
    *,
    label_names: Mapping[str, Sequence[str]],
    num_resamples: int,
) -> dict[str, Any]:
    """Returns all that is said of the likelihood of a split.

    Args:
        carried: With the state carried through each recording.
        independent: In independent windows.
        recordings: The split.
        label_names: By name of a label that is a number, what each number is called.
        num_resamples: Of the bootstrap, by which the intervals are found.

    Returns:
        `bits_per_sample`, `by_position`, `by_class`, `hardest` and `easiest` recordings, and
        `warnings`. All likelihoods are in bits per sample.
    """
    both = {"carried": carried, "independent": independent}
    warnings = []
    if len(recordings) < FEW_RECORDINGS:
        warnings.append(
            f"The intervals come from {len(recordings)} recordings: with fewer than "
            f"{FEW_RECORDINGS} they tend to be too narrow."
        )
    bits = carried.nats / carried.num_samples / np.log(2)
    order = np.argsort(-bits, kind="stable")
    return {
        "bits_per_sample": {
            name: _with_interval(found, slice(None), num_resamples) for name, found in both.items()
        },
        "by_position": {
            name: {"octaves": _by_position(found.octaves), "sections": _by_position(found.sections)}
            for name, found in both.items()
        },
        "by_class": _by_class(carried, recordings, label_names, num_resamples),
        "by_recording": [round(float(value), 6) for value in bits],
        "hardest": [_named(recordings, bits, i) for i in order[:_MOST_NAMED]],
        "easiest": [_named(recordings, bits, i) for i in order[::-1][:_MOST_NAMED]],
        "warnings": warnings,
    }


def _with_interval(found: Likelihood, chosen: slice | np.ndarray, num_resamples: int) -> dict:
    nats, num_samples = found.nats[chosen], found.num_samples[chosen]
    interval = bits_interval(nats, num_samples, num_resamples=num_resamples)
    low, high = interval or (None, None)
    return {
        "value": float(nats.sum() / num_samples.sum() / np.log(2)),
        "low": low,
        "high": high,
        "num_samples": int(num_samples.sum()),
        "num_recordings": len(nats),
    }


def _by_position(positions: Positions) -> list[dict[str, Any]]:
    return [
        {
            "start": int(start),
            "stop": int(stop),
            "bits_per_sample": float(bits),
            "count": int(count),
        }
        for start, stop, bits, count in zip(
            positions.edges[:-1],
            positions.edges[1:],
            positions.bits_per_sample(),
            positions.counts,
            strict=True,
        )
        if count
    ]


def _by_class(
    found: Likelihood,
    recordings: Recordings,
    label_names: Mapping[str, Sequence[str]],
    num_resamples: int,
) -> Mapping[str, Mapping[str, dict]]:
    """Of each label that sorts the recordings into classes."""
    by_class = {}
    for label, values in recordings.labels.items():
        classes = sorted(set(values))
        if 2 <= len(classes) <= _MOST_CLASSES and len(classes) < len(values):
            names = label_names.get(label)
            values = np.array(values)
            by_class[label] = {
                names[value] if names else str(value): _with_interval(
                    found, values == value, num_resamples
                )
                for value in classes
            }
    return by_class


def _named(recordings: Recordings, bits: Sequence[float], index: int) -> dict[str, Any]:
    return {"name": recordings.names[index], "bits_per_sample": float(bits[index])}
