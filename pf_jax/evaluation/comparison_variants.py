"""What variants of a model reached within equal budgets, over several seeds."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float64, Num

from pf_jax.errors import UserError
from pf_jax.evaluation.comparison import Curve, Run
from pf_jax.training.budget import Budget
from pf_jax.training.config import TrainConfig
from pf_jax.training.variants import Variant


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number that several runs have.

    Attributes:
        mean: The mean.
        deviation: The standard deviation of a run, from `n - 1`; None for a single run.
        values: Of each run.
    """

    mean: float
    deviation: float | None
    values: tuple[float, ...]

    def __str__(self) -> str:
        """As a person reads it."""
        deviation = "" if self.deviation is None else f" +- {self.deviation:.4f}"
        return f"{self.mean:.4f}{deviation}"

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread | None":
        """That of the values that are known and finite; None where there is none."""
        known = [float(value) for value in values if value is not None and np.isfinite(value)]
        if not known:
            return None
        deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
        return cls(float(np.mean(known)), deviation, tuple(known))


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a variant.

    Attributes:
        variant: The variant.
        measurement: What `experiments.measure` printed before training; empty if it failed.
        runs: Those that came to their end, one of each seed.
        failures: Why others did not, a sentence each.
    """

    variant: Variant
    measurement: Mapping[str, Any]
    runs: Sequence[Run]
    failures: Sequence[str]

    @property
    def name(self) -> str:
        """The name of the variant."""
        return self.variant.name

    @property
    def num_steps(self) -> int | None:
        """The steps of each run; None where no run has ended."""
        return next((run.config.num_steps for run in self.runs if run.config), None)

    def spread(self, get: Callable[[Run], float | None]) -> Spread | None:
        """A number of the runs; None where there is none."""
        return Spread.of([get(run) for run in self.runs])

    def to_dict(self, budget: Budget) -> dict[str, Any]:
        """All numbers, ready for JSON."""
        numbers = {
            "final_bits_per_sample": lambda run: run.validation.values[-1],
            "training_seconds": training_seconds,
            "training_samples_per_second": training_speed,
            "peak_memory": lambda run: run.peak_memory,
        }
        if budget.seconds is not None:
            numbers["bits_per_sample_at_equal_time"] = lambda run: bits_at_seconds(
                run, budget.seconds
            )
        if budget.steps is not None:
            numbers["bits_per_sample_at_equal_samples"] = lambda run: bits_at_step(
                run, budget.steps
            )
        spreads = {name: self.spread(get) for name, get in numbers.items()}
        return {
            "name": self.name,
            "model": self.variant.config.model.to_dict(),
            "optimizer": dataclasses.asdict(self.variant.config.optimizer),
            "parameters": self.variant.parameters,
            "parameter_deviation": self.variant.deviation,
            "num_steps": self.num_steps,
            "measurement": dict(self.measurement),
            **{name: spread and dataclasses.asdict(spread) for name, spread in spreads.items()},
            "runs": [_run_to_dict(run) for run in self.runs],
            "failures": list(self.failures),
        }


def write_results(
    path: epath.PathLike, results: Sequence[Result], budget: Budget, config: TrainConfig
) -> None:
    """Writes all numbers of a comparison as JSON.

    Args:
        path: The file, in a directory that exists.
        results: What became of each variant.
        budget: What was equal for all.
        config: What was varied.

    Raises:
        UserError: It cannot be written.
    """
    content = {
        "config": config.to_dict(),
        "budget": dataclasses.asdict(budget),
        "models": [result.to_dict(budget) for result in results],
    }
    try:
        epath.Path(path).write_text(json.dumps(content, indent=2))
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error


def in_words(result: Result, budget: Budget) -> str:
    """A line of what became of a variant."""
    parts = []
    if budget.seconds is not None:
        spread = result.spread(lambda run: bits_at_seconds(run, budget.seconds))
        parts += [f"{spread} bits per sample after {budget.seconds:g} s"] if spread else []
    if budget.steps is not None:
        spread = result.spread(lambda run: bits_at_step(run, budget.steps))
        parts += [f"{spread} bits per sample after {budget.steps:,} steps"] if spread else []
    parts.append(f"{result.variant.parameters:,} parameters")
    parts += [f"{len(result.failures)} failed"] if result.failures else []
    return f"{result.name}: {', '.join(parts)}"


def training_seconds(run: Run) -> float | None:
    """The time that the whole run took."""
    return float(run.seconds.values[-1]) if len(run.seconds) else None


def training_speed(run: Run) -> float | None:
    """The samples (padding included) per second of the whole run."""
    seconds, per_step = training_seconds(run), run.samples_per_step
    return int(run.seconds.steps[-1]) * per_step / seconds if seconds and per_step else None


def seconds_at(run: Run, steps: Num[np.ndarray, "points"]) -> Float64[np.ndarray, "points"]:
    """The time of training at steps, in between what was logged; NaN if nothing was."""
    if not len(run.seconds):
        return np.full(len(steps), np.nan)
    return np.interp(steps, run.seconds.steps, run.seconds.values)


def step_at(run: Run, seconds: float) -> float:
    """How far a run was at a time, in steps; its last one if it was over by then."""
    if not len(run.seconds):
        return np.nan
    return float(np.interp(seconds, run.seconds.values, run.seconds.steps))


def bits_at_step(run: Run, step: float) -> float:
    """Bits per sample of the validation split, on the line through the evaluations around a step.

    Before the first evaluation and after the last one, it is what that found.
    """
    if not len(run.validation) or np.isnan(step):
        return np.nan
    return float(np.interp(step, run.validation.steps, run.validation.values))


def bits_at_seconds(run: Run, seconds: float) -> float:
    """The same at a time of training."""
    return bits_at_step(run, step_at(run, seconds))


def mean_curve(
    runs: Sequence[Run], get: Callable[[Run], Curve], over: Callable[[Run, np.ndarray], np.ndarray]
) -> tuple[Float64[np.ndarray, "points"], Float64[np.ndarray, "points"]]:
    """The mean of curves, at the steps that all of them have.

    Args:
        runs: The runs, at least one.
        get: The curve of a run.
        over: Where a run's steps are on the horizontal axis.

    Returns:
        Where the points are on both axes, those that are known.
    """
    points = [dict(zip(get(run).steps.tolist(), get(run).values, strict=True)) for run in runs]
    steps = np.array(sorted(set(points[0]).intersection(*points[1:])), np.int64)
    y = np.mean([[of_run[step] for step in steps.tolist()] for of_run in points], axis=0)
    x = np.mean([over(run, steps) for run in runs], axis=0)
    known = np.isfinite(x)
    return x[known], y[known]


def _run_to_dict(run: Run) -> dict[str, Any]:
    curves = {}
    for split, curve in (("training", run.training), ("validation", run.validation)):
        seconds = seconds_at(run, curve.steps)
        curves[split] = {
            "steps": curve.steps.tolist(),
            "seconds": _finite(seconds),
            "bits_per_sample": _finite(curve.values),
        }
    return {"path": str(run.path), "seed": run.config and run.config.seed, **curves}


def _finite(values: np.ndarray) -> list[float | None]:
    """JSON has no NaN."""
    return [float(value) if np.isfinite(value) else None for value in values]
