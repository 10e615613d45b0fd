"""What `experiments.evaluate` has found out about a checkpoint, read back from its JSON file."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from pf_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number that tells how good generated sounds are.

    Attributes:
        title: What it is called.
        place: Where it stands in the file.
        higher_is_better: Whether more of it is better.
    """

    title: str
    place: tuple[str, str]
    higher_is_better: bool = False


METRICS = {
    "fid": Metric("FID", ("distribution", "fid")),
    "inception_score": Metric("Inception score", ("distribution", "inception_score"), True),
    "modified_inception_score": Metric(
        "Modified inception score", ("distribution", "modified_inception_score"), True
    ),
    "am_score": Metric("AM score", ("distribution", "am_score")),
    "ndb": Metric("NDB", ("distribution", "ndb")),
    "ndb_share": Metric("NDB, share of bins", ("distribution", "ndb_share")),
    "mel_frechet_distance": Metric("Mel Fréchet distance", ("mel_frechet_distance", "value")),
}
"""The metrics of generated sounds, by name."""

SECTIONS = {"distribution": "num_generated", "mel_frechet_distance": "num_clips"}
"""The sections of metrics, and in each the number of sounds that they are of."""

LIKELIHOODS = ("carried", "independent")
"""How a recording is scored: its windows one after the other with the state carried over, or each
by itself."""


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Bits per sample of a split.

    Attributes:
        value: The mean.
        low: The lower end of its interval; None if there is none.
        high: The upper end.
        num_samples: Samples that were scored.
        num_recordings: Recordings that they are of.
    """

    value: float
    low: float | None = None
    high: float | None = None
    num_samples: int | None = None
    num_recordings: int | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was found out; what was not is missing, None or empty.

    Attributes:
        step: Steps of training behind the checkpoint.
        dataset: The name of the dataset.
        parameters: How many the model has.
        quantization: Of the levels that the likelihoods are of; empty if they are not of audio.
        normalization: Of the same data.
        likelihoods: Bits per sample, by the names in `LIKELIHOODS`.
        metrics: By the names in `METRICS`.
        warnings: Doubts about metrics, by their section, the first part of `Metric.place`; those
            about likelihoods and all the rest by "bits_per_sample".
        num_sounds: How many generated sounds a section's metrics are of.
        classifier: The path of the classifier whose features some metrics use.
    """

    step: int | None = None
    dataset: str = ""
    parameters: int | None = None
    quantization: str = ""
    normalization: str = ""
    likelihoods: Mapping[str, Likelihood] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    warnings: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    num_sounds: Mapping[str, int] = dataclasses.field(default_factory=dict)
    classifier: str = ""


def read_evaluation(path: epath.PathLike) -> Evaluation:
    """Reads an `evaluation.json`. What it holds besides is passed over.

    Raises:
        UserError: It cannot be read, or is damaged.
    """
    content = read_file(path)
    try:
        return _evaluation(json.loads(content))
    except TypeError as error:
        reason = str(error)
    except (ValueError, OverflowError, RecursionError):
        reason = "it is not JSON"
    raise UserError(
        f"{path} is damaged: {reason}. Run experiments.evaluate again, or take the file away."
    )


def read_file(path: epath.PathLike) -> bytes:
    """Returns what a file contains.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return epath.Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error


def _evaluation(values: Any) -> Evaluation:
    """The evaluation in a file's JSON; raises TypeError where something is of another type."""
    if not isinstance(values, dict):
        raise TypeError("it is not a JSON object")
    bits = _section(values, "bits_per_sample")
    sections = {name: _section(values, name) for name in SECTIONS}
    metrics = {
        name: _number(sections[metric.place[0]], metric.place[1])
        for name, metric in METRICS.items()
    }
    counts = {name: _whole(sections[name], count) for name, count in SECTIONS.items()}
    return Evaluation(
        step=_whole(values, "step"),
        dataset=_text(values, "dataset"),
        parameters=_whole(values, "parameters"),
        quantization=_text(values, "quantization"),
        normalization=_text(values, "normalization"),
        likelihoods={
            name: likelihood
            for name in LIKELIHOODS
            if (likelihood := _likelihood(_section(bits, name))) is not None
        },
        metrics={name: value for name, value in metrics.items() if value is not None},
        warnings={
            name: found
            for name, section in {"bits_per_sample": values, **sections}.items()
            if (found := _warnings(section))
        },
        num_sounds={name: count for name, count in counts.items() if count is not None},
        classifier=_text(_section(sections["distribution"], "classifier"), "path"),
    )


def _likelihood(values: Mapping[str, Any]) -> Likelihood | None:
    value, low, high = (_number(values, name) for name in ("value", "low", "high"))
    if value is None:
        return None
    counts = (_whole(values, name) for name in ("num_samples", "num_recordings"))
    return Likelihood(value, low, high, *counts)


def _warnings(values: Mapping[str, Any]) -> tuple[str, ...]:
    warnings = values.get("warnings") or []
    if not isinstance(warnings, list) or not all(isinstance(w, str) for w in warnings):
        raise TypeError(f"warnings must be a list of texts, got {warnings!r:.100}")
    return tuple(warnings)


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A JSON object in another, empty if it is missing."""
    section = values.get(name)
    if section is not None and not isinstance(section, dict):
        raise TypeError(f"{name} must be an object, got {section!r:.100}")
    return section or {}


def _number(values: Mapping[str, Any], name: str) -> float | None:
    """A number; None if it is missing or not finite."""
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r:.100}")
    return float(value) if math.isfinite(value) else None


def _whole(values: Mapping[str, Any], name: str) -> int | None:
    value = _number(values, name)
    return None if value is None else int(value)


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a text, got {value!r:.100}")
    return value or ""
