"""The runs of a comparison: each a process of its own, so that what ends one leaves the others.

In the directory of a comparison, `plan.json` says what is compared. Each variant has a directory
with `measurement.json`, what `experiments.measure` found, and a training run in `seedN/`, whose
`config.py` and `output.log` are what `experiments.train` was given and what it said.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import pprint
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from pf_jax import fields
from pf_jax.errors import UserError
from pf_jax.evaluation.comparison import Run, read_run
from pf_jax.evaluation.comparison_variants import Result
from pf_jax.training.budget import Budget, within
from pf_jax.training.config import TrainConfig
from pf_jax.training.variants import Variant

_ROOT = pathlib.Path(__file__).parents[1]
_PLAN = "plan.json"
_LOG = "output.log"

_CONFIG_FILE = '''\
"""{what} in a comparison; written by experiments.compare."""

from pf_jax.training.config import TrainConfig

_FIELDS = {fields}


def get_config() -> TrainConfig:
    """The experiment."""
    return TrainConfig.from_dict(_FIELDS)
'''


class Ended(NamedTuple):
    """A process that has ended.

    Attributes:
        reason: Why it failed; empty if it did not.
        output: What it wrote to the standard output.
    """

    reason: str
    output: str


Launch = Callable[[Sequence[str], pathlib.Path], Ended]
"""Runs `python -m` with arguments, while errors are appended to a file."""


def launch(arguments: Sequence[str], log: pathlib.Path) -> Ended:
    """Runs `python -m` with arguments; SIGTERM and Ctrl-C end it before they end this process.

    Args:
        arguments: The module and its flags.
        log: A file that its errors and messages are appended to.
    """
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    start = log.stat().st_size if log.exists() else 0
    with log.open("ab") as errors, _interrupted_by_sigterm():
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        try:
            output, _ = process.communicate()
        except BaseException:
            process.send_signal(signal.SIGTERM)  # Has it save a checkpoint first.
            process.communicate()
            raise
    if process.returncode == 0:
        return Ended("", output)
    said = log.read_bytes()[start:].decode(errors="replace")
    return Ended(_reason(process.returncode, said), output)


@dataclasses.dataclass(frozen=True)
class Trials:
    """The runs of a comparison.

    Attributes:
        directory: Of the comparison.
        budget: How long each run is.
        seeds: One for each run of a variant.
        num_evaluations: Of each run, about.
        measuring_seconds: How long the speed of training is measured, and that of sampling.
        tell: Is told before something that takes long, and what came out of it.
        launch: How a process is run.
    """

    directory: pathlib.Path
    budget: Budget
    seeds: Sequence[int]
    num_evaluations: int
    measuring_seconds: float
    tell: Callable[[str], None]
    launch: Launch = launch

    def claim(self, plan: dict[str, Any]) -> None:
        """Makes the directory that of a comparison.

        Args:
            plan: What must be the same when the comparison goes on, ready for JSON.

        Raises:
            UserError: It is that of another comparison, of something else, or cannot be written.
        """
        file = self.directory / _PLAN
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if file.exists():
                _check_same(_read_plan(file), plan, self.directory)
            elif any(self.directory.iterdir()):
                raise UserError(
                    f"{self.directory} is not empty, and holds no comparison: give another "
                    "--workdir."
                )
            else:
                file.write_text(json.dumps(plan, indent=2))
        except OSError as error:
            place = error.filename or self.directory
            raise UserError(f"Cannot write {place}: {error.strerror or error}.") from error

    def run(self, variants: Sequence[Variant]) -> Iterator[list[Result]]:
        """Measures the variants and trains them, one run after the other, seed by seed.

        What was done before is not done again. What fails is told of in the results.

        Yields:
            The results so far, after each run.
        """
        measurements, reasons = {}, {variant.name: {} for variant in variants}
        for variant in variants:
            measurement, reason = self._measure(variant)
            measurements[variant.name] = measurement
            if reason:
                reasons[variant.name][None] = f"It could not be measured: {reason}"
        runs: dict[str, dict[int, Run]] = {variant.name: {} for variant in variants}

        def results() -> list[Result]:
            return [
                Result(
                    variant,
                    measurements[variant.name],
                    tuple(runs[variant.name].values()),
                    tuple(reasons[variant.name].values()),
                )
                for variant in variants
            ]

        yield results()
        for seed in self.seeds:
            for variant in variants:
                if not measurements[variant.name]:
                    continue
                run, reason = self._train(variant, seed, measurements[variant.name])
                if run is not None:
                    runs[variant.name][seed] = run
                else:
                    reasons[variant.name][seed] = f"The run of seed {seed} failed: {reason}"
                yield results()

    def draw(self, run: Run, num_samples: int, seconds: float) -> str:
        """Draws sounds from a run into its directory, unless there are some.

        Returns:
            Why it failed; empty if it did not.
        """
        place = pathlib.Path(run.path) / "samples"
        if len(list(place.glob("*.wav"))) >= num_samples:
            return ""
        self.tell(f"{run.name}: drawing {num_samples} sounds")
        arguments = ["experiments.sample", f"--checkpoint={run.path}", f"--output={place}"]
        arguments += [f"--num_samples={num_samples}", f"--seconds={seconds}"]
        return self.launch(arguments, place.parent / _LOG).reason

    def _measure(self, variant: Variant) -> tuple[dict[str, Any], str]:
        """What `experiments.measure` found, and why it failed."""
        directory = self.directory / variant.directory
        directory.mkdir(exist_ok=True)
        kept = directory / "measurement.json"
        if kept.exists():
            with contextlib.suppress(ValueError, KeyError, UserError):
                known = json.loads(kept.read_text())
                if TrainConfig.from_dict(known["config"]) == variant.config:
                    return known["measurement"], ""
        self.tell(f"{variant.name}: measuring its speed")
        file = directory / "config.py"
        _write_config(file, variant.config, variant.name)
        arguments = [f"--config={file}", f"--seconds={self.measuring_seconds}"]
        ended = self.launch(["experiments.measure", *arguments], directory / _LOG)
        if ended.reason:
            self.tell(f"{variant.name}: {ended.reason}")
            return {}, ended.reason
        measurement = json.loads(ended.output.splitlines()[-1])
        content = {"config": variant.config.to_dict(), "measurement": measurement}
        temporary = kept.with_suffix(".tmp")  # A file that is there is whole.
        temporary.write_text(json.dumps(content, indent=2))
        temporary.replace(kept)
        return measurement, ""

    def _train(
        self, variant: Variant, seed: int, measurement: dict[str, Any]
    ) -> tuple[Run | None, str]:
        """The run of a seed if it came to its end, and why it did not."""
        name = f"{variant.name}, seed {seed}"
        speed = measurement["steps_per_clock_second"]
        config = dataclasses.replace(variant.config, seed=seed)
        config = within(config, self.budget, speed, self.num_evaluations)
        directory = self.directory / variant.directory / f"seed{seed}"
        if (run := _finished(directory, name, config)) is not None:
            return run, ""
        seconds = config.num_steps / speed
        self.tell(f"{name}: training {config.num_steps:,} steps, about {seconds:,.0f} s")
        directory.mkdir(exist_ok=True)
        file = directory / "config.py"
        _write_config(file, config, name)
        arguments = ["experiments.train", f"--config={file}", f"--workdir={directory}"]
        reason = self.launch(arguments, directory / _LOG).reason
        run = None if reason else _finished(directory, name, config)
        if run is None:
            reason = reason or "it was stopped before its end."
            self.tell(f"{name}: {reason}")
        else:
            self.tell(f"{name}: {run.validation.values[-1]:.4f} bits per sample at its end")
        return run, reason


def _finished(directory: pathlib.Path, name: str, config: TrainConfig) -> Run | None:
    """A run if it has come to its end."""
    last = config.num_steps
    if not (directory / "checkpoints" / str(last)).exists():
        return None
    run = read_run(directory, name)
    return run if last in run.validation.steps else None


def _write_config(file: pathlib.Path, config: TrainConfig, what: str) -> None:
    text = pprint.pformat(config.to_dict(), sort_dicts=False)
    file.write_text(_CONFIG_FILE.format(what=what.replace("\\", ""), fields=text))


def _read_plan(file: pathlib.Path) -> dict[str, Any]:
    """The plan in a file; fields of configs that have come since have their defaults."""
    try:
        plan = json.loads(file.read_text())
        return plan | {"config": TrainConfig.from_dict(plan["config"]).to_dict()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}): give another --workdir.") from error


def _check_same(old: dict[str, Any], new: dict[str, Any], directory: pathlib.Path) -> None:
    """Raises UserError if a comparison would go on as another one."""
    changed = fields.differences(old, new)
    if changed:
        raise UserError(
            f"{directory} holds another comparison: {', '.join(changed)}. Give what it was started "
            "with (models and seeds may be added), or another --workdir."
        )


def _reason(status: int, said: str) -> str:
    """Why a process failed, in one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    if status == -signal.SIGKILL:
        return "it was killed; there may not have been enough memory."
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}."
    return lines[-1][:300] if lines else f"it ended with status {status}."


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Has SIGTERM do what Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
