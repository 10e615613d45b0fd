"""The page of an analysis, its pictures and its numbers."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from pf_jax import pages
from pf_jax.config import PoolformerConfig
from pf_jax.errors import UserError
from pf_jax.evaluation.analysis import sentences
from pf_jax.evaluation.analysis.horizons import Horizons
from pf_jax.evaluation.analysis.influence import Influence
from pf_jax.evaluation.analysis.parts import samples_per_position
from pf_jax.evaluation.analysis.pictures import (
    draw_horizons,
    draw_influence,
    draw_silencing,
    paths,
    silenced,
)
from pf_jax.evaluation.analysis.silencing import Silencing
from pf_jax.evaluation.analysis.units import Unit, rounded

_QUANTILES = (0.1, 0.5, 0.9)


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What was measured of one model.

    Attributes:
        config: The model's.
        unit: What one token is.
        horizons: Of the levels that have any.
        influence: Of the past on the loss.
        silencing: The loss without the inner levels.
    """

    config: PoolformerConfig
    unit: Unit
    horizons: list[Horizons]
    influence: Influence
    silencing: Silencing

    @property
    def every(self) -> list[int]:
        """Samples in one position of each level."""
        return [samples_per_position(self.config, k) for k in range(self.config.num_levels)]

    def sentences(self) -> dict[str, str]:
        """What each picture shows, by its name."""
        return {
            "horizons": sentences.of_horizons(self.horizons, self.unit),
            "influence": sentences.of_influence(self.influence, self.unit),
            "silenced": sentences.of_silencing(self.silencing, self.unit),
        }

    def to_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON."""
        return {
            "unit": self.unit.name,
            "sample_rate": self.unit.rate,
            "samples_per_position": self.every,
            "sentences": self.sentences(),
            "horizons": [_horizons_dict(h) for h in self.horizons],
            "influence": {
                "distance_from": self.influence.edges[:-1].tolist(),
                "distance_to": (self.influence.edges[1:] - 1).tolist(),
                "pairs": self.influence.pairs.tolist(),
                "rms_through_levels_0_to": self.influence.rms.tolist(),
            },
            "silencing": {
                "num_windows": len(self.silencing.num_samples),
                "num_samples": int(self.silencing.num_samples.sum()),
                "bits_per_sample": self.silencing.bits_per_sample.tolist(),
                "increase": self.silencing.increase.tolist(),
                "standard_error": [
                    None if np.isnan(e) else float(e) for e in self.silencing.standard_error
                ],
            },
        }

    def pictures(self) -> dict[str, bytes]:
        """PNG files by name, of what there is to draw."""
        drawn = {"influence": draw_influence(self.influence, self.every, self.unit)}
        if self.horizons:
            drawn["horizons"] = draw_horizons(self.horizons, self.unit)
        if self.config.num_levels > 1:
            drawn["silenced"] = draw_silencing(self.silencing, self.unit)
        return drawn


def write_report(
    directory: epath.PathLike,
    analysis: Analysis,
    *,
    title: str,
    facts: Mapping[str, str],
    warning: str = "",
) -> epath.Path:
    """Writes `index.html`, a PNG file for each picture, and `analysis.json`.

    Args:
        directory: Where they go; it exists.
        analysis: What was measured.
        title: The heading of the page.
        facts: Pairs to show below it, and to keep with the numbers.
        warning: Anything that makes the numbers doubtful.

    Returns:
        The path of the page.

    Raises:
        UserError: A file cannot be written.
    """
    directory = epath.Path(directory)
    drawn = analysis.pictures()
    for name, png in drawn.items():
        _write(directory / f"{name}.png", png)
    numbers = {"facts": dict(facts), "warning": warning, **analysis.to_dict()}
    _write(directory / "analysis.json", json.dumps(numbers, indent=1, allow_nan=False).encode())
    body = "".join(
        f"<h2>{heading}</h2>\n<p>{pages.text(analysis.sentences()[name])}</p>\n"
        + (pages.figure(drawn[name], _CAPTIONS[name]) if name in drawn else "")
        + _tables(name, analysis)
        for name, heading in _HEADINGS.items()
    )
    if warning:
        body = f'<p class="warning">{pages.text(warning)}</p>\n{body}'
    about = 'All numbers: <a href="analysis.json">analysis.json</a>.'
    page = pages.page(title, body, facts=facts, about=about)
    return pages.write_page(directory / "index.html", page)


_HEADINGS = {
    "horizons": "How far each level's recurrence remembers",
    "influence": "How much the past moves the present loss",
    "silenced": "What the inner levels are worth",
}

_CAPTIONS = {
    "horizons": (
        "Memory horizons 1 / (1 - a), with a the factor by which a recurrent state decays in one "
        "position, times the length of a position. Filled: over all channels and real positions "
        "of the data. Dashed: over channels, at an open gate (r = 1), which is the shortest that "
        "each can be; gates lengthen it. Heights are scaled to each level."
    ),
    "influence": (
        "Root mean square, over pairs of a target and a single past token, of the norm of the "
        "gradient of the target's loss in nats with respect to the past token's embedding. "
        "Distance 1 is the token just before the target. Targets are drawn from the second halves "
        "of windows. The lower lines take in only those paths of the same gradient that go no "
        "deeper than a level; paths can cancel each other, so that the lines need not add up."
    ),
    "silenced": (
        "What is added to the loss where the output of UpPool below a level is set to zero, so "
        "that nothing comes from the levels inside. Whiskers: one standard error, as if windows "
        "were independent of each other. The model was not trained to do without: this is what it "
        "has put there, not what a smaller model would lack."
    ),
}


def _tables(name: str, analysis: Analysis) -> str:
    if name == "horizons" and analysis.horizons:
        return _horizons_table(analysis.horizons, analysis.unit)
    if name == "silenced":
        return _silencing_table(analysis.silencing, analysis.unit)
    if name == "influence":
        return _influence_table(analysis.influence, analysis.unit)
    return ""


def _horizons_table(found: list[Horizons], unit: Unit) -> str:
    header = ["level", "a position", "10 %", "median", "90 %", "median, positions", "least, median"]
    rows = [
        [
            h.level,
            unit.amount(h.every),
            *(unit.amount(h.quantile(share)) for share in _QUANTILES),
            rounded(h.quantile(0.5) / h.every),
            unit.amount(float(np.median(h.least))),
        ]
        for h in found
    ]
    return pages.table(header, rows, caption="Horizons; least: over channels, at r = 1.")


def _influence_table(found: Influence, unit: Unit) -> str:
    """Some of the bins: about one a factor of two."""
    num_levels = len(found.rms)
    last, shown = 0.0, []
    for i, distance in enumerate(found.edges[:-1]):
        if distance >= 2 * last or i == len(found.pairs) - 1:
            shown.append(i)
            last = distance
    rows = []
    for i in shown:
        low, high = int(found.edges[i]), int(found.edges[i + 1]) - 1
        distance = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        rows.append([distance, *(f"{rms:.2e}" for rms in found.rms[:, i]), f"{found.pairs[i]:,}"])
    header = [f"distance, {unit.name}s", *(paths(k, num_levels) for k in range(num_levels))]
    return pages.table([*header, "pairs"], rows, caption="Root mean square gradient norms.")


def _silencing_table(found: Silencing, unit: Unit) -> str:
    rows = [["nothing", f"{found.bits_per_sample[0]:.4f}", "", ""]]
    for level in range(1, len(found.nats)):
        error = found.standard_error[level]
        rows.append(
            [
                silenced(level, len(found.nats)),
                f"{found.bits_per_sample[level]:.4f}",
                f"{found.increase[level]:+.4f}",
                "" if np.isnan(error) else f"{error:.4f}",
            ]
        )
    return pages.table(["silenced", f"bits per {unit.name}", "more", "standard error"], rows)


def _horizons_dict(h: Horizons) -> dict[str, Any]:
    edges, shares = h.histogram()
    return {
        "level": h.level,
        "samples_per_position": h.every,
        "number": int(h.counts.sum()),
        "quantiles": {str(share): h.quantile(share) for share in _QUANTILES},
        "least_quantiles": {str(share): float(np.quantile(h.least, share)) for share in _QUANTILES},
        "histogram": {"edges": edges.tolist(), "shares": shares.tolist()},
    }


def _write(path: epath.Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
