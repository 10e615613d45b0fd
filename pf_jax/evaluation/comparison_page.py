"""The page that compares training runs: one HTML file with its pictures and sounds inside."""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from pf_jax.evaluation.comparison import Curve, Run, config_differences, incomparable
from pf_jax.evaluation.comparison_charts import MOST_POINTS, Dot, Line, Style, curves_png, dots_png
from pf_jax.evaluation.comparison_sounds import Player, Sounds
from pf_jax.evaluation.results import LIKELIHOODS, METRICS, Likelihood
from pf_jax.pages import data_uri, figure, page, table, text, write_page

_UNKNOWN = "&ndash;"
_BREAKS = re.compile("[/_-]")  # Where a name may go on in the next line.

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
        _sounds(runs, sounds),
        _configs(runs),
    ]
    many = f"Comparison of {len(runs)} training runs"
    title = many if len(runs) > 1 else f"Training run {runs[0].name}"
    return write_page(path, page(title, "".join(body), style=_STYLE, script=_SCRIPT))


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
        "Model": [_model(run) for run in runs],
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
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    head = "".join(f'<th scope="col">{title}</th>' for title in ("Run", *columns))
    rows = []
    for number, run in enumerate(runs):
        cells = "".join(
            f'<td class="number">{cells[number] or _UNKNOWN}</td>' for cells in columns.values()
        )
        rows.append(f'<tr><th scope="row">{_name(number, run)}</th>{cells}</tr>\n')
    return (
        f"<h2>Runs</h2>\n<p>{_ABOUT}</p>\n"
        f'<div class="scroll" tabindex="0"><table class="runs">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n</table></div>\n{notes.list()}"
    )


def _name(number: int, run: Run) -> str:
    name = _BREAKS.sub(r"\g<0><wbr>", text(run.name))
    return f'<span class="name">{_swatch(number)}<span>{name}</span></span>'


def _swatch(number: int) -> str:
    """How a run looks in charts."""
    style = Style.of(number)
    dash = " ".join(f"{2 * length:g}" for length in style.dash)
    corners = " ".join(f"{14 + 4.5 * x:.1f},{6 - 4.5 * y:.1f}" for x, y in style.shape)
    return (
        '<svg class="swatch" viewBox="0 0 28 12" width="28" height="12" aria-hidden="true">'
        f'<line x1="0" y1="6" x2="28" y2="6" stroke="{style.color}" stroke-width="2" '
        f'stroke-dasharray="{dash or "none"}"/><polygon points="{corners}" fill="{style.color}"/>'
        "</svg>"
    )


def _count(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}"


def _model(run: Run) -> str:
    if run.config is None:
        return ""
    model = run.config.model
    widths = ", ".join(map(str, model.widths))
    levels = f"{model.num_levels} {'level' if model.num_levels == 1 else 'levels'}"
    pools = ", ".join(map(str, model.pool_factors)) or "none"
    return f"{levels}<br>widths {widths}<br>pools {pools}"


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
    return _section("Learning curves", runs, "".join(charts))


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
    return _section("Metrics", runs, "".join(charts), kind="small ")


def _dot_chart(dots: Sequence[Dot], what: str, better: str) -> str:
    if len(dots) < 2:
        return ""
    caption = f"{what[0].upper()}{what[1:]}: {better} better."
    if any(dot.doubted for dot in dots):
        caption += " Hollow: there are warnings."
    return figure(dots_png(dots), caption)


def _section(title: str, runs: Sequence[Run], charts: str, kind: str = "") -> str:
    """Charts below one legend, which stays in sight as long as they are."""
    legend = "".join(f"<li>{_name(number, run)}</li>" for number, run in enumerate(runs))
    return (
        f'<section>\n<h2>{title}</h2>\n<ul class="legend">{legend}</ul>\n'
        f'<div class="{kind}charts">\n{charts}</div>\n</section>\n'
    )


def _sounds(runs: Sequence[Run], sounds: Sequence[Sounds]) -> str:
    parts = []
    for number, (run, of_run) in enumerate(zip(runs, sounds, strict=False)):
        players = "".join(map(_player, of_run.players))
        remarks = "".join(f"<p>{text(remark)}</p>\n" for remark in of_run.remarks)
        if players or remarks:
            parts.append(
                f'<h3>{_name(number, run)}</h3>\n<div class="players">\n{players}</div>\n{remarks}'
            )
    if not parts:
        return ""
    about = (
        "Waveforms, all with one scale, above their mel spectrograms, from &minus;80&nbsp;dB "
        "(black) to 0&nbsp;dB (bright)."
    )
    return f"<h2>Sounds</h2>\n<p>{about}</p>\n{''.join(parts)}"


def _player(player: Player) -> str:
    clip = player.clip
    length = f"{clip.seconds:.2f} s"
    if not math.isclose(clip.seconds, clip.whole_seconds):
        length = f"the first {length} of {clip.whole_seconds:.2f} s"
    words = text(f"{clip.source}, {length}")
    return (
        f'<figure><audio controls preload="metadata" src="{data_uri(player.wav, "audio/wav")}" '
        f'aria-label="{words}"></audio><img alt="Waveform and mel spectrogram of {words}" '
        f'src="{data_uri(player.png)}"><figcaption>{words}</figcaption></figure>\n'
    )


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


_STYLE = """
h3 { margin: 1.2rem 0 .4rem; font-size: 1rem; overflow-wrap: anywhere; }
.runs thead th { vertical-align: bottom; font-size: .85rem; max-width: 9rem;
  min-width: 4.5rem; }
.runs th[scope=row], .runs thead th:first-child { position: sticky; left: 0; z-index: 1;
  background: var(--paper); min-width: min(13rem, 40vw); max-width: 45vw; overflow-wrap: anywhere; }
.runs td { line-height: 1.3; }
.name { display: inline-flex; gap: .5em; overflow-wrap: anywhere; }
.swatch { flex: none; margin-top: .3em; }
.mark, .mark a { color: var(--mark); text-decoration: none; font-size: .95em; }
.notes { margin-top: 0; max-width: 90ch; font-size: .9rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: 0; padding: .4rem 0;
  list-style: none; position: sticky; top: 0; z-index: 2; background: var(--paper);
  max-height: 30vh; overflow-y: auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr));
  gap: .6rem 2rem; align-items: start; }
.small.charts { grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
.charts figure { margin: .4rem 0; max-width: 42rem; }
.players { display: grid; gap: .6rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); }
.players figure { margin: 0; }
.players audio { display: block; width: 100%; height: 2.4rem; margin-bottom: .4rem; }
figure img { background: none; width: 100%; }
@media (max-width: 48rem) { body { padding: .8rem; } }
"""

# No two sounds at once.
_SCRIPT = """
"use strict";
const players = [...document.querySelectorAll("audio")];
for (const player of players) {
  player.addEventListener("play", () => players.forEach(p => p === player || p.pause()));
}
"""
