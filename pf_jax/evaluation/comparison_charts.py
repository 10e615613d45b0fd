"""Charts that compare training runs, in one look for each run on all of them.

They have no legend inside: the page has one beside them. The ground is transparent, and all that is
drawn can be seen on white and on black.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num

from pf_jax.pages import figure_png

# Seven colours with a contrast of 2.7 or more to white and to near-black, chosen so that the two
# closest are as far apart as can be (26 in CIELAB) also where a kind of cone is missing, by the
# matrices of Machado, Oliveira and Fernandes, 2009.
_COLORS = ("#3663c0", "#e6780b", "#0aaccc", "#cc0a2b", "#860dff", "#b3987d", "#99456f")
_GREY = "#7b7f85"  # Can be read on white and on black.

# Corners of shapes in a square from -1 to 1, y upwards; a dash and a gap, in widths of the line.
_SHAPES = (
    tuple((np.cos(t), np.sin(t)) for t in np.linspace(0, 2 * np.pi, 24, endpoint=False)),
    ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    ((-1, -0.8), (1, -0.8), (0, 1)),
    ((-1, 0), (0, -1), (1, 0), (0, 1)),
    ((-1, 0.8), (0, -1), (1, 0.8)),
)
_DASHES = ((), (4, 1.5), (1, 1))

MOST_POINTS = 150  # Of a curve; of more, means are drawn.
_MOST_FAINT = 3  # Curves whose points are drawn behind their means; more would be a thicket.
_LARGE = 1e4  # From here on numbers on an axis are like 50k.
_SHOWN = 0.9  # The part of a curve's points, its lowest ones, that the scale is made for.


@dataclasses.dataclass(frozen=True)
class Style:
    """How a run looks.

    Attributes:
        color: In hexadecimal.
        dash: Lengths of dash and gap, in widths of the line; empty for a solid line.
        shape: Corners of its marker in a square from -1 to 1, y upwards.
    """

    color: str
    dash: tuple[float, ...]
    shape: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, number: int) -> "Style":
        """That of the run with a number; colour, dash and shape together are the same after 105."""
        return cls(
            _COLORS[number % len(_COLORS)],
            _DASHES[number // len(_COLORS) % len(_DASHES)],
            _SHAPES[number % len(_SHAPES)],
        )


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve to draw.

    Attributes:
        x: Ascending.
        y: NaN makes a gap.
        style: How.
        is_faint: Whether it is one of those that another one is the mean of: thin, and the scale is
            not made for it.
    """

    x: Num[np.ndarray, "points"]
    y: Float[np.ndarray, "points"]
    style: Style
    is_faint: bool = False


@dataclasses.dataclass(frozen=True)
class Dot:
    """A number to draw.

    Attributes:
        value: The number.
        style: How.
        low: The lower end of an interval around it; None for no interval.
        high: The upper end.
        doubted: Whether it is drawn hollow.
    """

    value: float
    style: Style
    low: float | None = None
    high: float | None = None
    doubted: bool = False


def curves_png(lines: Sequence[Line], *, x_label: str, y_label: str) -> tuple[bytes, bool]:
    """Draws curves that are to fall.

    Of a curve with more than 150 points there are means over equally many of them, and of few
    curves the points, too, faintly. The scale leaves out where curves start high above their end.

    Args:
        lines: The curves, each with at least one finite value, and not all of them faint.
        x_label: What the horizontal axis says.
        y_label: What the vertical axis says.

    Returns:
        A PNG, and whether something is above its upper edge.
    """
    from matplotlib.ticker import EngFormatter

    figure, axes = _figure(3.2)
    averages = [_average(line) for line in lines]
    for line, (x, y) in zip(lines, averages, strict=True):
        style = line.style
        if line.is_faint:
            axes.plot(x, y, color=style.color, linewidth=0.8, alpha=0.45, zorder=1.5)
            continue
        if len(x) < len(line.x) and len(lines) <= _MOST_FAINT:
            axes.plot(line.x, line.y, color=style.color, linewidth=0.6, alpha=0.3, zorder=1)
        axes.plot(
            x,
            y,
            color=style.color,
            linewidth=1.8,
            linestyle=(0, style.dash) if style.dash else "-",
            marker=style.shape,
            markersize=6,
            markevery=max(1, len(x) // 8),
        )
    low, high = _limits(
        [y for line, (_, y) in zip(lines, averages, strict=True) if not line.is_faint]
    )
    axes.set_ylim(low, high)
    axes.set_xlabel(x_label, color=_GREY)
    axes.set_ylabel(y_label, color=_GREY)
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 1.5M rather than 1,500,000.
    cut = any(np.nanmax(line.y) > high for line in lines)
    return figure_png(figure, dpi=220), cut


def dots_png(dots: Sequence[Dot]) -> bytes:
    """Draws numbers, one row below the other.

    Args:
        dots: At least one.
    """
    from matplotlib.ticker import EngFormatter

    figure, axes = _figure(0.4 + 0.3 * len(dots))
    for row, dot in enumerate(dots):
        color = dot.style.color
        if dot.low is not None and dot.high is not None:
            ends = [dot.low, dot.high]
            axes.plot(ends, [row, row], color=color, linewidth=2, marker="|", markersize=9)
        face = "none" if dot.doubted else color
        corners = [*dot.style.shape, dot.style.shape[0]]  # Closed, to be drawn hollow.
        axes.plot(dot.value, row, color=color, marker=corners, mfc=face, mew=1.5, markersize=9)
    axes.set_ylim(len(dots) - 0.5, -0.5)
    axes.set_yticks([])
    axes.margins(x=0.08)
    if max(abs(dot.value) for dot in dots) >= _LARGE:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.locator_params(axis="x", nbins=6)
    return figure_png(figure, dpi=220)


def _figure(height: float):
    """An empty figure and its axes; so narrow that the letters can be read on a phone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, height), facecolor="none", layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.tick_params(colors=_GREY, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.xaxis.get_offset_text().set_color(_GREY)
    axes.yaxis.get_offset_text().set_color(_GREY)
    axes.grid(color=_GREY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _average(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Means over groups of points where there are too many; what is NaN does not count."""
    size = -(-len(line.x) // MOST_POINTS)
    if size == 1:
        return line.x, line.y
    starts = np.arange(0, len(line.x), size)
    known = np.isfinite(line.y)
    counts = np.add.reduceat(known.astype(float), starts)
    sums = np.add.reduceat(np.where(known, line.y, 0.0), starts)
    sizes = np.diff([*starts, len(line.x)])
    x = np.add.reduceat(line.x.astype(float), starts) / sizes
    return x, np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)


def _limits(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """Where the vertical axis begins and ends."""
    finite = [y[np.isfinite(y)] for y in curves]
    low = min(y.min() for y in finite if len(y))
    high = max(np.quantile(y, _SHOWN) for y in finite if len(y))
    top = max(y.max() for y in finite if len(y))
    if top - low < 1.5 * (high - low):  # Then to leave something out would not pay.
        high = top
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin
