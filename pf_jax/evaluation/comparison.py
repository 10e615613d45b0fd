"""Training runs read back from their directories, to be compared with each other.

A run is what `pf_jax.training.train` leaves: `metrics.jsonl` and `checkpoints/`. What was found out
about it later lies beside them: `evaluation/SPLIT/evaluation.json`. Any part may be missing, and
the run may still be going on.
"""

import collections
import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float64, Int64

from pf_jax import fields
from pf_jax.errors import UserError
from pf_jax.evaluation.results import SECTIONS, Evaluation, read_evaluation, read_file
from pf_jax.paths import checked_path, is_remote
from pf_jax.training import checkpoint
from pf_jax.training.checkpoint import CheckpointMeta, DamagedCheckpointError
from pf_jax.training.config import TrainConfig
from pf_jax.training.summary import level_costs

_LOG = "metrics.jsonl"
_NATS_TO_BITS = 1.0 / math.log(2.0)

# Where one of them differs, tokens are others, and so is what a bit per sample means.
_MEANING_OF_TOKENS = (
    "data.modality",
    "data.sample_rate",
    "data.quantization",
    "data.normalization",
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A number over the steps of training.

    Attributes:
        steps: Ascending, each once.
        values: The number; NaN where it was not finite.
    """

    steps: Int64[np.ndarray, "points"]
    values: Float64[np.ndarray, "points"]

    @classmethod
    def of(cls, points: Mapping[int, float]) -> "Curve":
        """The curve through the values of steps."""
        ordered = sorted(points.items())
        return cls(
            np.array([step for step, _ in ordered], np.int64),
            np.array([value for _, value in ordered], np.float64),
        )

    def __len__(self) -> int:
        return len(self.steps)


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        path: Its directory.
        name: A short name, another one for each run of a comparison.
        meta: What the checkpoint says that `pf_jax.load` would take, the one with the best
            validation likelihood; None if there is no checkpoint.
        step: The last step that is known of.
        training: Loss in bits per sample.
        validation: Bits per sample of the validation split.
        samples_per_second: The median speed of training; None if it was not logged.
        evaluations: What `experiments.evaluate` found, by split.
        seconds: The time of training, without compilation and evaluations; empty if not logged.
        peak_memory: Bytes that training took at most, see `pf_jax.training.memory.peak_memory`;
            None if it was not logged.
    """

    path: epath.Path
    name: str
    meta: CheckpointMeta | None
    step: int
    training: Curve
    validation: Curve
    samples_per_second: float | None
    evaluations: Mapping[str, Evaluation]
    seconds: Curve = dataclasses.field(default_factory=lambda: Curve.of({}))
    peak_memory: float | None = None

    @property
    def config(self) -> TrainConfig | None:
        """What it was trained with; None if there is no checkpoint to tell."""
        return self.meta and self.meta.config

    @property
    def best(self) -> tuple[int, float] | None:
        """The step with the fewest bits per sample of the validation split, and these bits."""
        if not np.isfinite(self.validation.values).any():
            return None
        index = int(np.nanargmin(self.validation.values))
        return int(self.validation.steps[index]), float(self.validation.values[index])

    @property
    def samples_per_step(self) -> int | None:
        """Samples (padding included) that a step trains on."""
        config = self.config
        return config and config.batch_size * config.data.window

    @property
    def dataset(self) -> str:
        """The name of the dataset, empty if it is not known."""
        if self.config is not None:
            return self.config.data.name
        return next((e.dataset for e in self.evaluations.values() if e.dataset), "")

    @property
    def parameters(self) -> int | None:
        """How many the model has."""
        if self.config is not None:
            return sum(cost.parameters for cost in level_costs(self.config.model))
        known = (e.parameters for e in self.evaluations.values())
        return next((number for number in known if number is not None), None)


def read_runs(paths: Sequence[epath.PathLike]) -> list[Run]:
    """Reads runs, in the order given.

    Args:
        paths: Their directories, local or gs://.

    Raises:
        UserError: No run was given, or the same one twice; or a run cannot be read.
    """
    if not paths:
        raise UserError("No run was given: name at least one training run's --workdir.")
    runs = [checked_path(path, "RUN") for path in paths]
    # A name is of the path as it was given, where a link's target might mean nothing to the user.
    runs = [run if is_remote(run) else epath.Path(os.path.abspath(run)) for run in runs]
    places = collections.Counter(
        str(run) if is_remote(run) else os.path.realpath(run) for run in runs
    )
    (place, times), *_ = places.most_common(1)
    if times > 1:
        raise UserError(f"The run {place} was given {times} times: name each run once.")
    return [read_run(run, name) for run, name in zip(runs, short_names(runs), strict=True)]


def read_run(path: epath.PathLike, name: str) -> Run:
    """Reads a run.

    Args:
        path: Its directory, local or gs://.
        name: What to call it.

    Raises:
        UserError: There is no such directory, it holds no run, or something in it is damaged.
    """
    path = epath.Path(path)
    if not path.is_dir():
        reason = "is a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {reason}; give the directory of a training run, its --workdir.")
    metas = _read_metas(path)
    log = _read_log(path / _LOG) if (path / _LOG).exists() else None
    if log is None and not metas:
        raise UserError(
            f"{path} is not the directory of a training run: there is neither {_LOG} nor "
            "checkpoints/STEP in it."
        )
    lines = log or []
    # A checkpoint may know of evaluations that a log in an object store is still to be told of.
    validation = {step: bits for meta in metas for step, bits in meta.evaluations.items()}
    speeds = _finite(lines, "samples_per_second")
    return Run(
        path=path,
        name=name,
        meta=metas[0] if metas else None,
        step=max([line["step"] for line in lines] + [meta.step for meta in metas], default=0),
        training=_curve(lines, "train"),
        validation=_curve(lines, "validation", validation),
        samples_per_second=float(np.median(speeds)) if speeds else None,
        evaluations=_read_evaluations(path / "evaluation"),
        seconds=Curve.of({line["step"]: line["seconds"] for line in lines if "seconds" in line}),
        peak_memory=max(_finite(lines, "peak_memory"), default=None),
    )


def short_names(paths: Sequence[epath.PathLike]) -> list[str]:
    """The shortest end of each path that is the end of no other, or the whole path if all are.

    Args:
        paths: Paths of which no two are equal.

    Returns:
        A name for each; no two are equal.
    """
    parts = [str(path).split("/") for path in paths]
    ends = collections.Counter(tuple(p[-length:]) for p in parts for length in range(1, len(p) + 1))
    names = []
    for p in parts:
        lengths = (n for n in range(1, len(p) + 1) if ends[tuple(p[-n:])] == 1)
        names.append("/".join(p[-next(lengths, len(p)) :]))
    return names


def config_differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The fields of the configs that differ.

    Returns:
        By the dotted name of the field its value in each run, None for a run without a checkpoint.
    """
    known = [run.config for run in runs if run.config is not None]
    return {
        name: [None if run.config is None else _get(run.config, name) for run in runs]
        for name in fields.leaves(TrainConfig)
        if len({_get(config, name) for config in known}) > 1
    }


def incomparable(runs: Sequence[Run]) -> list[str]:
    """Why numbers of the runs cannot be compared, or not in all fairness: a sentence each."""
    known = [run for run in runs if run.meta is not None]
    reasons = _differing(
        "Bits per sample and metrics are not comparable: the data differ",
        {run.name: run.meta.data_fingerprint for run in known},
    )
    for name in _MEANING_OF_TOKENS:
        reasons += _differing(
            f"Bits per sample are not comparable: {name} differs",
            {run.name: _get(run.config, name) for run in known},
        )
    reasons += _differing(
        "A window of validation data is scored by itself, so that longer ones have an advantage: "
        "data.window differs",
        {run.name: run.config.data.window for run in known},
    )
    reasons += _unfair_metrics(runs)
    if 1 < len(runs) != len(known):
        unknown = ", ".join(run.name for run in runs if run.meta is None) if known else "all runs"
        reasons.append(f"Without a checkpoint, the data and the config are not known: {unknown}.")
    return reasons


def _unfair_metrics(runs: Sequence[Run]) -> list[str]:
    reasons = []
    for split in {split: None for run in runs for split in run.evaluations}:
        found = {run.name: run.evaluations[split] for run in runs if split in run.evaluations}
        reasons += _differing(
            f"FID and the scores of the {split} split are not comparable: the classifiers differ",
            {name: e.classifier for name, e in found.items() if e.classifier},
        )
        for section in SECTIONS:
            counts = {name: e.num_sounds.get(section) for name, e in found.items()}
            reasons += _differing(
                f"Metrics of the {split} split depend on how many sounds they are of, and in "
                f"{section} the numbers differ",
                {name: count for name, count in counts.items() if count is not None},
            )
    return reasons


def _differing(what: str, values: Mapping[str, Any]) -> list[str]:
    """A sentence with the names of the runs that have each value, or none if all have the same."""
    groups: dict[Any, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    shown = {value: f"{value:,}" if isinstance(value, int) else value for value in groups}
    words = "; ".join(f"{shown[value]}: {', '.join(names)}" for value, names in groups.items())
    return [f"{what} ({words})."] if len(groups) > 1 else []


def _get(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _curve(
    lines: Sequence[Mapping[str, Any]], split: str, points: Mapping[int, float] | None = None
) -> Curve:
    """The bits per sample of a split in the log, which is right where `points` say otherwise."""
    points = dict(points or {})
    for line in lines:
        if line["split"] != split:
            continue
        if "loss" in line:
            points[line["step"]] = line["loss"] * _NATS_TO_BITS
        elif "bits_per_sample" in line:
            points[line["step"]] = line["bits_per_sample"]
    return Curve.of(points)


def _finite(lines: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The finite numbers of a name that were logged in training."""
    numbers = [line.get(name, math.nan) for line in lines if line["split"] == "train"]
    return list(filter(math.isfinite, numbers))


def _read_log(path: epath.Path) -> list[dict[str, Any]]:
    """The lines of a log, with NaN for a number that was not finite.

    The last line may be torn: the run was killed, or is just writing it.
    """
    lines = read_file(path).split(b"\n")
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entries.append(_log_entry(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            if number == len(lines):  # There is no end of line behind it.
                break
            raise UserError(
                f"Line {number} of {path} is damaged: it is not a JSON object with a step, a split "
                "and numbers. Take the line out, or restore the file."
            ) from None
    return entries


def _log_entry(values: dict[str, Any]) -> dict[str, Any]:
    step, split = values.pop("step"), values.pop("split")
    if type(step) is not int or step < 0 or not isinstance(split, str):
        raise TypeError
    numbers = {name: math.nan if v is None else float(v) for name, v in values.items()}
    return {"step": step, "split": split, **numbers}


def _read_metas(path: epath.Path) -> list[CheckpointMeta]:
    """What the best checkpoint says of itself, and the latest; nothing if there is none."""
    try:
        return _find_metas(path)
    except DamagedCheckpointError:
        return _find_metas(path)  # A run that goes on may have just deleted it.


def _find_metas(path: epath.Path) -> list[CheckpointMeta]:
    found = [p.parent.parent for p in (path / "checkpoints").glob("*/meta/metadata")]
    found = [p for p in found if p.name.isdigit()]
    if not found:
        return []
    latest = max(found, key=lambda p: int(p.name))
    return [checkpoint.find(path), checkpoint.find(latest)]


def _read_evaluations(path: epath.Path) -> dict[str, Evaluation]:
    """By split, the test split first."""
    files = {file.parent.name: file for file in path.glob("*/evaluation.json")}
    splits = sorted(files, key=lambda split: (split != "test", split))
    return {split: read_evaluation(files[split]) for split in splits}
