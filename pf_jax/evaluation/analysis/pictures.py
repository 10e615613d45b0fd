"""The pictures of an analysis, as PNG."""

from collections.abc import Sequence

import numpy as np

from pf_jax.evaluation.analysis.horizons import Horizons
from pf_jax.evaluation.analysis.influence import Influence
from pf_jax.evaluation.analysis.silencing import Silencing
from pf_jax.evaluation.analysis.units import Unit
from pf_jax.pages import figure_png

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_GREY = "#7b7f85"
_DASHED = {"color": "#30343a", "lw": 1.0, "ls": (0, (3, 2))}
_WIDTH = 8.0  # Inches.


def draw_horizons(found: Sequence[Horizons], unit: Unit) -> bytes:
    """A histogram of each level above the other, on one logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 1.1 + 1.15 * len(found)), layout="constrained")
    rows = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    longest = max(max(h.quantile(0.999), h.least.max()) for h in found)
    for axes, h in zip(rows, found, strict=True):
        color = _COLORS[h.level % len(_COLORS)]
        edges, shares = h.histogram()
        axes.stairs(shares, edges, fill=True, color=color, alpha=0.45)
        low, median, high = (h.quantile(share) for share in (0.1, 0.5, 0.9))
        above = 1.15 * shares.max()
        axes.plot([low, high], [above, above], color=color, lw=2.5, solid_capstyle="butt")
        axes.plot(median, above, "o", color=color, ms=6)
        least, edges = _histogram(h.least, edges)
        axes.stairs(least * shares.max() / least.max(), edges, **_DASHED)
        axes.set_ylim(
            0, 1.3 * shares.max()
        )  # Each level by itself: they are to be seen, not added.
        axes.set_yticks([])
        position = "every sample" if h.every == 1 else f"every {h.every:,} samples"
        position = position.replace("sample", unit.name)
        axes.set_ylabel(f"level {h.level}\n{position}", rotation=0, ha="right", va="center")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
    rows[0].set_xscale("log")
    rows[0].set_xlim(0.9, 1.3 * longest)
    rows[0].xaxis.set_major_formatter("{x:,.0f}")
    rows[-1].set_xlabel(f"memory horizon 1 / (1 \N{MINUS SIGN} a) in {unit.name}s")
    _time_axis(rows[0], unit)
    _legend_of_horizons(figure)
    return figure_png(figure, dpi=110)


def draw_influence(found: Influence, every: Sequence[int], unit: Unit) -> bytes:
    """Influence over distance, with a line for the paths through levels 0 to k, for each k.

    Args:
        found: What to draw.
        every: Samples in one position of each level.
        unit: What one token is.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    for level in reversed(range(len(found.rms))):
        rms = found.rms[level]
        shown = rms > 0
        axes.plot(
            found.centres[shown],
            rms[shown],
            color=_COLORS[level % len(_COLORS)],
            lw=2.2 if level == len(found.rms) - 1 else 1.5,
            marker="o",
            ms=3,
            label=paths(level, len(found.rms)),
        )
    axes.set(xscale="log", yscale="log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel(f"distance in {unit.name}s (1 is the one just before)")
    axes.set_ylabel("rms gradient norm (nats)")
    for level, step in enumerate(every):
        if step > 1:
            axes.axvline(step, color=_GREY, lw=1, ls=":")
            axes.annotate(
                f"a position\nof level {level}",
                (step, 0.02),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                xytext=(3, 0),
                color=_GREY,
                fontsize=8,
            )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, title="paths through", title_fontsize=9)
    _time_axis(axes, unit)
    return figure_png(figure, dpi=110)


def draw_silencing(found: Silencing, unit: Unit) -> bytes:
    """A bar for each silenced model: bits per sample above those of the intact one."""
    from matplotlib.figure import Figure

    num_levels = len(found.nats)
    levels = range(1, num_levels)
    figure = Figure(figsize=(_WIDTH, 1.3 + 0.6 * len(levels)), layout="constrained")
    axes = figure.subplots()
    colors = [_COLORS[level % len(_COLORS)] for level in levels]
    errors = np.nan_to_num(found.standard_error)
    axes.barh(levels, found.increase[1:], xerr=errors[1:], height=0.6, color=colors, alpha=0.8)
    for level in levels:
        right = max(found.increase[level], 0) + errors[level]
        axes.annotate(
            f"{found.increase[level]:+.3f}",
            (right, level),
            textcoords="offset points",
            xytext=(5, 0),
            va="center",
        )
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(levels, [f"without {silenced(level, num_levels)}" for level in levels])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    bits = found.bits_per_sample[0]
    axes.set_xlabel(f"bits per {unit.name} above the {bits:.3f} of the intact model")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    return figure_png(figure, dpi=110)


def paths(level: int, num_levels: int) -> str:
    """What to call the paths that go no deeper than a level."""
    if level == num_levels - 1:
        return "all levels" if num_levels > 1 else "the only level"
    return "level 0 alone" if level == 0 else f"levels 0 to {level} alone"


def silenced(level: int, num_levels: int) -> str:
    """What to call a level and all inside it."""
    last = num_levels - 1
    return f"level {level}" if level == last else f"levels {level} to {last}"


def _histogram(values: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts, and their edges: of the same ratio as those given, and as many as it takes."""
    steps = np.log(values / edges[0]) / np.log(edges[1] / edges[0])
    bins = np.floor(steps).astype(int)
    counts = np.bincount(bins - bins.min())
    exponents = np.arange(bins.min(), bins.max() + 2)
    return counts, edges[0] * (edges[1] / edges[0]) ** exponents


def _time_axis(axes, unit: Unit) -> None:
    """A second axis at the top, of time, where there is any."""
    if unit.rate:
        scale = 1e3 / unit.rate
        top = axes.secondary_xaxis("top", functions=(lambda x: x * scale, lambda x: x / scale))
        top.set_xlabel("milliseconds")
        top.xaxis.set_major_formatter("{x:,g}")


def _legend_of_horizons(figure) -> None:
    """What the marks mean, below all levels."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks = [
        (Patch(color=_GREY, alpha=0.45), "on data"),
        (Line2D([], [], color=_GREY, marker="o", lw=2.5), "median, 10 % to 90 %"),
        (Line2D([], [], **_DASHED), "least, gate open (r = 1)"),
    ]
    figure.legend(*zip(*marks, strict=True), loc="outside lower center", ncols=3, fontsize=9)
