"""The page that compares variants of a model: one HTML file with its pictures and sounds inside."""

from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from pf_jax.evaluation.comparison import Run
from pf_jax.evaluation.comparison_charts import Dot, Line, Style, curves_png, dots_png
from pf_jax.evaluation.comparison_parts import (
    SCRIPT,
    STYLE,
    rows_table,
    section,
    shape,
    sounds_section,
)
from pf_jax.evaluation.comparison_sounds import Sounds
from pf_jax.evaluation.comparison_variants import (
    Result,
    Spread,
    bits_at_seconds,
    bits_at_step,
    mean_curve,
    seconds_at,
    step_at,
    training_seconds,
    training_speed,
)
from pf_jax.pages import figure, page, text, write_page
from pf_jax.training.budget import Budget
from pf_jax.training.config import TrainConfig

_MOST_DEVIATION = 0.03  # Of parameters.
_MOST_LATE = 0.05  # By this share of a budget of time, a run may end too early or too late.


def write_variants(
    path: epath.PathLike,
    results: Sequence[Result],
    budget: Budget,
    config: TrainConfig,
    sounds: Sequence[Sounds] = (),
) -> epath.Path:
    """Writes a page that compares variants, and returns its path.

    Args:
        path: The file to write, in a directory that exists.
        results: What became of each variant.
        budget: What was equal for all.
        config: What was varied.
        sounds: What there is to hear of each; empty for nothing.

    Raises:
        UserError: It cannot be written.
    """
    names = [result.name for result in results]
    body = [
        _warnings(results, budget, config),
        _table(results, budget, config),
        _numbers(results, budget),
        _curves(results),
        sounds_section(names, sounds),
    ]
    facts = {
        "Data": ", ".join(filter(None, (config.data.name, config.data.levels))),
        "Budget": _describe(budget, config),
        "Batch": f"{config.batch_size} windows of {config.data.window:,} samples",
        "Seeds": ", ".join(map(str, _seeds(results))) or "none yet",
        "Devices": ", ".join(
            dict.fromkeys(str(r.measurement["device"]) for r in _measured(results))
        ),
    }
    title = f"Comparison of {len(results)} models"
    content = page(
        title, "".join(body), facts=facts, about=_about(budget, config), style=STYLE, script=SCRIPT
    )
    return write_page(path, content)


def _measured(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if result.measurement]


def _seeds(results: Sequence[Result]) -> list[int]:
    return sorted({run.config.seed for result in results for run in result.runs if run.config})


def _describe(budget: Budget, config: TrainConfig) -> str:
    parts = [] if budget.seconds is None else [f"{budget.seconds:,g} s of training"]
    if budget.steps is not None:
        parts.append(f"{_samples(budget, config):,} samples ({budget.steps:,} steps)")
    return "; ".join(parts)


def _samples(budget: Budget, config: TrainConfig) -> int:
    return budget.steps * config.batch_size * config.data.window


def _about(budget: Budget, config: TrainConfig) -> str:
    sentences = [
        "Bits per sample of the validation split (the loss in nats over ln&nbsp;2), by the moving "
        "average of the weights: fewer are better. Widths are scaled to equal numbers of "
        "parameters. Time is that of training steps with their batches, without compilation, "
        "evaluations and checkpoints; one run at a time.",
        f"All learn at the same rates, {text(config.optimizer.schedule)} after a warm-up, over the "
        "whole of their run, and nothing was tuned for any of them unless its name says so.",
    ]
    if budget.seconds is not None:
        sentences.append(
            "How many steps the time allows, and so the length of the schedule, was set by the "
            "speed of a few steps before the first run."
        )
    sentences.append("&plusmn; is the standard deviation over seeds.")
    return " ".join(sentences)


def _warnings(results: Sequence[Result], budget: Budget, config: TrainConfig) -> str:
    found = [f"{result.name}: {failure}" for result in results for failure in result.failures]
    if far := [r for r in results if abs(r.variant.deviation) > _MOST_DEVIATION]:
        shares = ", ".join(f"{r.name} by {100 * r.variant.deviation:+.1f} %" for r in far)
        found.append(
            f"Parameters are not equal to within {100 * _MOST_DEVIATION:g} %: {shares}. Fewer "
            "heads (model.num_heads) allow finer widths."
        )
    if budget.seconds is not None:
        off = []
        for result in results:
            expected = max(budget.seconds, _seconds_of_steps(result, budget))
            took = result.spread(training_seconds)
            if took and abs(took.mean / expected - 1.0) > _MOST_LATE:
                off.append(f"{result.name} {took.mean:.1f} s instead of {expected:.1f} s")
        if off:
            found.append(
                f"Runs were not as fast as measured before, and took {', '.join(off)}; what is "
                "read at equal time is not at the end of their schedule."
            )
    both = budget.seconds is not None and budget.steps is not None
    if both and config.optimizer.schedule != "constant":
        found.append(
            "Where a number is from before the end of a run, the learning rate had not come "
            "down, which costs bits: compare such numbers with care, give one budget alone, or "
            "train with --config.optimizer.schedule=constant."
        )
    return "".join(f'<p class="warning">{text(sentence)}</p>\n' for sentence in found)


def _seconds_of_steps(result: Result, budget: Budget) -> float:
    """The time that a budget's steps were to take."""
    speed = result.measurement.get("steps_per_clock_second")
    return budget.steps / speed if budget.steps is not None and speed else 0.0


def _table(results: Sequence[Result], budget: Budget, config: TrainConfig) -> str:
    columns: dict[str, list[str]] = {}
    if budget.seconds is not None:
        columns[f"Bits per sample after {budget.seconds:,g} s"] = _bits(
            results,
            lambda run: bits_at_seconds(run, budget.seconds),
            lambda run: step_at(run, budget.seconds),
            lambda step, end: f"step {step:,.0f} of {end:,}",
        )
    if budget.steps is not None:
        columns[f"Bits per sample after {_samples(budget, config):,} samples"] = _bits(
            results,
            lambda run: bits_at_step(run, budget.steps),
            lambda run: float(seconds_at(run, np.array([budget.steps]))[0]),
            lambda seconds, _: f"in {seconds:,.1f} s",
        )
    columns |= {
        "Parameters": [
            f"{r.variant.parameters:,}<br>{100 * r.variant.deviation:+.1f} %" for r in results
        ],
        "Model": [shape(r.variant.config.model) for r in results],
        "Training samples per second": [_spread(r.spread(training_speed), ",.0f") for r in results],
        "Sampling, samples per second of one stream": _measurements(
            results, "sampling_samples_per_second", lambda x: f"{x:,.0f}"
        ),
        "FLOPs of training a sample": _measurements(
            results, "flops_per_sample", lambda x: f"{x:,.0f}"
        ),
        "Memory of a training step": _measurements(results, "step_memory", _bytes),
        "Peak memory of training": [
            "" if (peak := r.spread(lambda run: run.peak_memory)) is None else _bytes(peak.mean)
            for r in results
        ],
        "Runs": [str(len(r.runs)) for r in results],
    }
    notes = (
        "<p>Memory of a step is what the compiled program needs on a device. Peak memory is that "
        "of an accelerator, or on a CPU of the whole process with its libraries. FLOPs leave "
        "products of activations out, such as attention's scores.</p>\n"
    )
    names = [result.name for result in results]
    return f"<h2>Models</h2>\n{rows_table('Name', names, columns)}{notes}"


def _bits(
    results: Sequence[Result],
    get: Callable[[Run], float],
    get_place: Callable[[Run], float],
    describe: Callable[[float, int], str],
) -> list[str]:
    """Cells with the bits of each model and where they are from; the fewest are bold."""
    spreads = [result.spread(get) for result in results]
    best = min((spread.mean for spread in spreads if spread), default=None)
    cells = []
    for result, spread in zip(results, spreads, strict=True):
        if spread is None:
            cells.append("")
            continue
        cell = _spread(spread, ".4f")
        cell = f"<strong>{cell}</strong>" if spread.mean == best else cell
        place = result.spread(get_place)
        if place is not None:
            cell += f"<br>{describe(place.mean, result.num_steps)}"
        cells.append(cell)
    return cells


def _spread(spread: Spread | None, format: str) -> str:
    if spread is None:
        return ""
    deviation = "" if spread.deviation is None else f" &plusmn; {spread.deviation:{format}}"
    return f"{spread.mean:{format}}{deviation}"


def _measurements(
    results: Sequence[Result], name: str, describe: Callable[[float], str]
) -> list[str]:
    values = [result.measurement.get(name) for result in results]
    return ["" if value is None else describe(value) for value in values]


def _bytes(number: float) -> str:
    return f"{number / 1e9:,.2f} GB" if number >= 1e9 else f"{number / 1e6:,.0f} MB"


def _numbers(results: Sequence[Result], budget: Budget) -> str:
    """What the table has of results, as pictures."""
    charts = []
    wanted: list[tuple[str, Callable[[Run], float | None]]] = []
    if budget.seconds is not None:
        caption = f"Bits per sample after {budget.seconds:,g} s of training: fewer are better."
        wanted.append((caption, lambda run: bits_at_seconds(run, budget.seconds)))
    if budget.steps is not None:
        caption = f"Bits per sample after {budget.steps:,} steps: fewer are better."
        wanted.append((caption, lambda run: bits_at_step(run, budget.steps)))
    wanted.append(("Training samples per second.", training_speed))
    for caption, get in wanted:
        charts.append(_dots([result.spread(get) for result in results], caption))
    speeds = [result.measurement.get("sampling_samples_per_second") for result in results]
    caption = "Samples per second when one stream is drawn."
    charts.append(_dots([Spread.of([speed]) for speed in speeds], caption))
    if not any(charts):
        return ""
    names = [result.name for result in results]
    return section("Results", names, "".join(charts), kind="small ")


def _dots(spreads: Sequence[Spread | None], caption: str) -> str:
    dots = [
        Dot(
            spread.mean,
            Style.of(number),
            None if spread.deviation is None else spread.mean - spread.deviation,
            None if spread.deviation is None else spread.mean + spread.deviation,
        )
        for number, spread in enumerate(spreads)
        if spread is not None
    ]
    return figure(dots_png(dots), caption) if len(dots) > 1 else ""


def _curves(results: Sequence[Result]) -> str:
    def samples(run: Run, steps: np.ndarray) -> np.ndarray:
        return steps * float(run.samples_per_step or np.nan)

    charts = []
    for split, get in (
        ("Validation", lambda run: run.validation),
        ("Training", lambda run: run.training),
    ):
        for over, x_label in ((seconds_at, "seconds of training"), (samples, "samples seen")):
            lines = []
            for number, result in enumerate(results):
                groups = [[run] for run in result.runs] if len(result.runs) > 1 else []
                groups += [result.runs] if result.runs else []
                for group in groups:
                    x, y = mean_curve(group, get, over)
                    if np.isfinite(y).any():
                        faint = len(group) < len(result.runs)
                        lines.append(Line(x, y, Style.of(number), is_faint=faint))
            if not all(line.is_faint for line in lines):
                png, is_cut = curves_png(lines, x_label=x_label, y_label="bits per sample")
                caption = f"{split}: bits per sample over {x_label}; thin lines are single seeds."
                caption += " Some points are above the upper edge." if is_cut else ""
                charts.append(figure(png, caption))
    names = [result.name for result in results]
    return section("Learning curves", names, "".join(charts)) if charts else ""
