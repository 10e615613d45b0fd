"""The page that compares training runs: one HTML file with its pictures and sounds inside."""

from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from pf_jax.evaluation.comparison import Curve, Run, config_differences, incomparable
from pf_jax.evaluation.comparison_charts import MOST_POINTS, Dot, Line, Style, curves_png, dots_png
from pf_jax.evaluation.comparison_parts import (
    SCRIPT,
    STYLE,
    rows_table,
    section,
    shape,
    sounds_section,
)
from pf_jax.evaluation.comparison_sounds import Sounds
from pf_jax.evaluation.results import LIKELIHOODS, METRICS, Likelihood
from pf_jax.pages import figure, page, table, text, write_page

_ABOUT = (
    "Bits per sample (the loss in nats over ln&nbsp;2): fewer are better. Best validation: the "
    "lowest of all evaluations during training. Carried: with the state carried on from window to "
    "window. Independent: each window by itself. Below a likelihood stands its interval."
)


def write_comparison(
    path: epath.PathLike, runs: Sequence[Run], sounds: Sequence[Sounds] = ()
) -> epath.Path:
    """Writes a page that compares runs, and returns its path.

    It has a table of all runs with what makes them incomparable above it, their learning curves,
    their metrics where two runs or more have them, their sounds, and the fields of their configs
    that differ. It needs no other file and no network.

    Args:
        path: The file to write, in a directory that exists.
        runs: At least one, with different names.
        sounds: What there is to hear of each; empty for nothing.

    Raises:
        UserError: It cannot be written.
    """
    body = [
        _warnings(runs),
        _runs(runs),
        _curves(runs),
        _metrics(runs),
        sounds_section(_names(runs), sounds),
        _configs(runs),
    ]
    many = f"Comparison of {len(runs)} training runs"
    title = many if len(runs) > 1 else f"Training run {runs[0].name}"
    return write_page(path, page(title, "".join(body), style=STYLE, script=SCRIPT))


class _Notes:
    """Numbered notes on cells of a table."""

    def __init__(self):
        self._numbers: dict[str, int] = {}

    def mark(self, notes: Sequence[str]) -> str:
        """Returns the mark that refers to notes, if there are any; the same note has one number."""
        numbers = {n: self._numbers.setdefault(n, len(self._numbers) + 1) for n in notes}
        links = ", ".join(
            f'<a href="#note-{number}" title="{text(note)}">{number}</a>'
            for note, number in numbers.items()
        )
        sign = '<span role="img" aria-label="warning">&#9888;&#xfe0e;</span>'
        return f' <span class="mark">{sign}{links}</span>' if links else ""

    def list(self) -> str:
        """Returns all notes."""
        items = "".join(
            f'<li id="note-{number}">{text(note)}</li>\n' for note, number in self._numbers.items()
        )
        return f'<ol class="notes">\n{items}</ol>\n' if items else ""


def _warnings(runs: Sequence[Run]) -> str:
    return "".join(f'<p class="warning">{text(reason)}</p>\n' for reason in incomparable(runs))


def _runs(runs: Sequence[Run]) -> str:
    """The table with a row for each run; a column that all leave empty is left out."""
    notes = _Notes()
    columns = {
        "Dataset": [text(run.dataset) for run in runs],
        "Parameters": [_count(run.parameters) for run in runs],
        "Model": ["" if run.config is None else shape(run.config.model) for run in runs],
        "Step": [_step(run) for run in runs],
        "Training samples per second": [_count(run.samples_per_second) for run in runs],
        "Best validation bits per sample": [_best(run) for run in runs],
    }
    splits = sorted({s for run in runs for s in run.evaluations}, key=lambda s: (s != "test", s))
    for split in splits:
        what = text(split.capitalize())
        for kind in LIKELIHOODS:
            cells = [_likelihood(run, split, kind, notes) for run in runs]
            columns[f"{what} bits per sample, {kind}"] = cells
        for name, metric in METRICS.items():
            columns[f"{metric.title}, {text(split)}"] = [
                _metric(run, split, name, notes) for run in runs
            ]
    table = rows_table("Run", _names(runs), columns)
    return f"<h2>Runs</h2>\n<p>{_ABOUT}</p>\n{table}{notes.list()}"


def _names(runs: Sequence[Run]) -> list[str]:
    return [run.name for run in runs]


def _count(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}"


def _step(run: Run) -> str:
    whole = f"<br>of {run.config.num_steps:,}" if run.config is not None else ""
    return f"{run.step:,}{whole}"


def _best(run: Run) -> str:
    return f"{run.best[1]:.4f}<br>at step {run.best[0]:,}" if run.best else ""


def _likelihood(run: Run, split: str, kind: str, notes: _Notes) -> str:
    found = _found(run, split, kind)
    if found is None:
        return ""
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f"<br>{found.low:.4f} to {found.high:.4f}"
    return f"{found.value:.4f}{notes.mark(_stale(run, split))}{interval}"


def _found(run: Run, split: str, kind: str) -> Likelihood | None:
    evaluation = run.evaluations.get(split)
    return evaluation and evaluation.likelihoods.get(kind)


def _metric(run: Run, split: str, name: str, notes: _Notes) -> str:
    evaluation = run.evaluations.get(split)
    value = evaluation and evaluation.metrics.get(name)
    if value is None:
        return ""
    shown = f"{value:,.0f}" if name == "ndb" else f"{value:.4g}"
    doubts = [f"{run.name}, {split}: {doubt}" for doubt in _doubts(run, split, name)]
    return f"{shown}{notes.mark([*_stale(run, split), *doubts])}"


def _doubts(run: Run, split: str, name: str) -> Sequence[str]:
    """The warnings that stand beside a metric."""
    return run.evaluations[split].warnings.get(METRICS[name].place[0], ())


def _stale(run: Run, split: str) -> list[str]:
    """A note where an evaluation is of another checkpoint than the best one is by now."""
    step = run.evaluations[split].step
    if run.meta is None or step is None or step == run.meta.step:
        return []
    return [
        f"{run.name}, {split}: evaluated at step {step:,}, while the best checkpoint is that of "
        f"step {run.meta.step:,}."
    ]


def _curves(runs: Sequence[Run]) -> str:
    charts = []
    for split, get in (
        ("Training", lambda run: run.training),
        ("Validation", lambda run: run.validation),
    ):
        for over_samples in (False, True):
            charts.append(_curve_chart(runs, split, get, over_samples))
    if not any(charts):
        return ""
    return section("Learning curves", _names(runs), "".join(charts))


def _curve_chart(
    runs: Sequence[Run], split: str, get: Callable[[Run], Curve], over_samples: bool
) -> str:
    lines, missing, is_averaged = [], [], False
    for number, run in enumerate(runs):
        curve, factor = get(run), run.samples_per_step if over_samples else 1
        if not np.isfinite(curve.values).any():
            continue
        if factor is None:
            missing.append(run.name)
            continue
        lines.append(Line(curve.steps * float(factor), curve.values, Style.of(number)))
    if not lines:
        return ""
    x_label = "samples seen" if over_samples else "step"
    png, is_cut = curves_png(lines, x_label=x_label, y_label="bits per sample")
    is_averaged = any(len(line.x) > MOST_POINTS for line in lines)
    caption = [f"{split}: bits per sample over {'samples seen' if over_samples else 'steps'}."]
    if is_averaged:
        caption.append("Of long curves, means of several points.")
    if is_cut:
        caption.append("Some points are above the upper edge.")
    if missing:
        caption.append(f"Not here, since its batch size is not known: {', '.join(missing)}.")
    return figure(png, " ".join(caption))


def _metrics(runs: Sequence[Run]) -> str:
    """A chart for each number that at least two runs have."""
    charts = []
    for split in dict.fromkeys(split for run in runs for split in run.evaluations):
        for kind in LIKELIHOODS:
            dots = [
                Dot(found.value, Style.of(number), found.low, found.high)
                for number, run in enumerate(runs)
                if (found := _found(run, split, kind)) is not None
            ]
            charts.append(_dot_chart(dots, f"{split} bits per sample, {kind}", "fewer are"))
        for name, metric in METRICS.items():
            dots = [
                Dot(
                    evaluation.metrics[name],
                    Style.of(number),
                    doubted=bool(_doubts(run, split, name)),
                )
                for number, run in enumerate(runs)
                if (evaluation := run.evaluations.get(split)) and name in evaluation.metrics
            ]
            better = "more is" if metric.higher_is_better else "less is"
            charts.append(_dot_chart(dots, f"{metric.title}, {split}", better))
    if not any(charts):
        return ""
    return section("Metrics", _names(runs), "".join(charts), kind="small ")


def _dot_chart(dots: Sequence[Dot], what: str, better: str) -> str:
    if len(dots) < 2:
        return ""
    caption = f"{what[0].upper()}{what[1:]}: {better} better."
    if any(dot.doubted for dot in dots):
        caption += " Hollow: there are warnings."
    return figure(dots_png(dots), caption)


def _configs(runs: Sequence[Run]) -> str:
    if sum(run.config is not None for run in runs) < 2:
        return ""
    differences = config_differences(runs)
    if not differences:
        return "<h2>Configs</h2>\n<p>All configs that are known are equal.</p>\n"
    rows = [[name, *map(_field, values)] for name, values in differences.items()]
    caption = "The fields that differ."
    return "<h2>Configs</h2>\n" + table(["field", *(r.name for r in runs)], rows, caption=caption)


def _field(value: object) -> str:
    if value is None:
        return "unknown"
    return value if isinstance(value, str) and value else repr(value)
