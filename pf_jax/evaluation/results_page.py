"""The page of an evaluation: its numbers as tables and pictures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from pf_jax.data.config import describe_levels
from pf_jax.evaluation.results import METRICS
from pf_jax.pages import figure, figure_png, page, table, text, write_page

_MANY = 20  # Recordings, of which the single one says less than all together.

CARRIED, INDEPENDENT = "#0072b2", "#d55e00"  # Told apart by all eyes.


def write_results(path: epath.Path, results: Mapping[str, Any]) -> epath.Path:
    """Writes the page of what `experiments.evaluate` found, and returns its path.

    Raises:
        UserError: It cannot be written.
    """
    facts = {
        "checkpoint": results.get("checkpoint"),
        "training step": f"{results['step']:,}" if "step" in results else None,
        "parameters": f"{results['parameters']:,}" if "parameters" in results else None,
        "data": f"{results['dataset']}, {results['split']} split" if "split" in results else None,
        "levels": describe_levels(results["quantization"], results["normalization"])
        if results.get("quantization")
        else None,
        "sounds": results.get("sounds"),
    }
    parts = [
        "".join(f'<p class="warning">{text(warning)}</p>\n' for warning in _warnings(results)),
        _likelihood(results) if "bits_per_sample" in results else "",
        _distribution(results),
    ]
    facts = {name: fact for name, fact in facts.items() if fact}
    return write_page(path, page("Evaluation", "".join(parts), facts=facts))


def _warnings(results: Mapping[str, Any]) -> list[str]:
    parts = (results, results.get("distribution", {}), results.get("mel_frechet_distance", {}))
    return [warning for part in parts for warning in part.get("warnings", ())]


def _likelihood(results: Mapping[str, Any]) -> str:
    window = results["window"]
    names = {
        "carried": "state carried through each recording",
        "independent": f"independent windows of {window:,}, as most published figures are",
    }
    bits = results["bits_per_sample"]
    rows = [
        (names[name], *_numbers(bits[name]), f"{bits[name]['num_samples']:,}") for name in names
    ]
    parts = [
        "<h2>Likelihood</h2>\n",
        table(
            ("Bits per sample", "mean", "95 % interval", "samples"),
            rows,
            caption="Lower is better; each real sample is scored once. The interval is that of the "
            "bootstrap over recordings. Figures of another quantization or normalization do not "
            "compare.",
        ),
        figure(
            figure_png(_draw_positions(results["by_position"])),
            "Bits per sample by position, counted from where a sequence starts: the recording, or "
            "the window. Left in bins that double, right in equal parts of a window.",
        ),
    ]
    if len(results["by_recording"]) >= _MANY:
        drawn = _draw_recordings(results["by_recording"])
        parts.append(
            figure(figure_png(drawn), "How many recordings have how many bits per sample.")
        )
    for label, classes in results["by_class"].items():
        parts.append(
            figure(
                figure_png(_draw_classes(label, classes)),
                f"Bits per sample by {label}, with 95 % intervals.",
            )
        )
    for name in ("hardest", "easiest") if len(results["by_recording"]) >= _MANY else ():
        rows = [(entry["name"], f"{entry['bits_per_sample']:.4f}") for entry in results[name]]
        parts.append(table((f"The {name} recordings", "bits per sample"), rows))
    return "".join(parts)


def _distribution(results: Mapping[str, Any]) -> str:
    parts = []
    if found := results.get("distribution"):
        shares = found["classifier"]["accuracy"].items()
        accuracy = ", ".join(f"{split} {100 * share:.1f} %" for split, share in shares)
        rows = [
            (label, _short(found.get(name)), _short(found["test"].get(name)))
            for name, label in metric_labels("distribution").items()
        ]
        rows.append(
            ("How many", f"{found['num_generated']:,}", f"{found['test']['num_generated']:,}")
        )
        parts.append(
            table(
                ("Against the training split", "these sounds", "the test split"),
                rows,
                caption=f"By the classifier {found['classifier']['path']}, whose accuracy is: "
                f"{accuracy or 'unknown'}.",
            )
        )
    if found := results.get("mel_frechet_distance"):
        label = "Fréchet distance of mel statistics (lower is better)"
        rows = [
            (label, _short(found["value"]), _short(found["train"])),
            ("Clips", f"{found['num_clips']:,}", ""),
        ]
        header = (f"Against the {results['split']} split", "these sounds", "the training split")
        parts.append(table(header, rows, caption="Without labels, and without a network."))
    return f"<h2>Sounds</h2>\n{''.join(parts)}" if parts else ""


def metric_labels(section: str) -> dict[str, str]:
    """What the metrics of a section of the results are called, and which way is better."""
    return {
        metric.place[1]: f"{metric.title} ({'higher' if metric.higher_is_better else 'lower'} is "
        "better)"
        for metric in METRICS.values()
        if metric.place[0] == section
    }


def _numbers(found: Mapping[str, Any]) -> tuple[str, str]:
    interval = "unknown" if found["low"] is None else f"{found['low']:.4f} to {found['high']:.4f}"
    return f"{found['value']:.4f}", interval


def _short(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _draw_positions(by_position: Mapping[str, Mapping[str, Sequence[Mapping]]]):
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    lines = (("independent", "octaves", left), ("carried", "octaves", left))
    for name, bins, axes in (*lines, ("independent", "sections", right)):
        found = by_position[name][bins]
        edges = [entry["start"] for entry in found] + [found[-1]["stop"]]
        # The first position has a place on an axis of logarithms, too.
        edges = [max(edge, 0.5) for edge in edges] if axes is left else edges
        color, label = CARRIED, "state carried"
        if name == "independent":
            color, label = INDEPENDENT, "independent windows"
        values = [entry["bits_per_sample"] for entry in found]
        axes.stairs(values, edges, baseline=None, color=color, label=label, linewidth=1.5)
    left.set_xscale("log", base=2)
    left.set_ylabel("bits per sample")
    for axes in (left, right):
        axes.set_xlabel("position (samples)")
        axes.grid(alpha=0.3)
    right.locator_params(axis="x", nbins=6)
    left.legend(frameon=False)
    return drawn


def _draw_recordings(bits: Sequence[float]):
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10, 2.6), layout="constrained")
    axes = drawn.subplots()
    axes.hist(bits, bins=max(5, min(60, round(2 * math.sqrt(len(bits))))), color=CARRIED)
    axes.set_xlabel("bits per sample")
    axes.set_ylabel("recordings")
    axes.grid(alpha=0.3)
    return drawn


def _draw_classes(label: str, classes: Mapping[str, Mapping[str, Any]]):
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10, 0.8 + 0.24 * len(classes)), layout="constrained")
    axes = drawn.subplots()
    for row, found in enumerate(classes.values()):
        if found["low"] is not None:
            axes.plot([found["low"], found["high"]], [row, row], color=CARRIED, linewidth=2)
        axes.plot(found["value"], row, "o", color=CARRIED)
    names = [f"{name} ({found['num_recordings']:,})" for name, found in classes.items()]
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylabel(label)
    axes.invert_yaxis()
    axes.set_xlabel("bits per sample")
    axes.grid(alpha=0.3)
    return drawn
