"""The learning curves of a run that is training, drawn again and again in a notebook."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pf_jax.evaluation.comparison_charts import Line, Style, curves_png
from pf_jax.pages import data_uri, text

_BITS = "bits_per_sample"


class LiveCurves:
    """A picture of bits per sample over steps, and a line of numbers below it, kept up to date.

    For `pf_jax.training.train(..., on_metrics=curves)` in a notebook::

        curves = LiveCurves(config.num_steps)
        train(config, workdir, on_metrics=curves)
        curves.draw()

    It draws in the thread that trains, at most once in `seconds` however long a picture takes, so
    that devices hardly wait for it.
    """

    def __init__(
        self,
        num_steps: int,
        *,
        seconds: float = 5.0,
        show: Callable[[bytes, str], None] | None = None,
    ):
        """Draws nothing yet.

        Args:
            num_steps: Steps of the whole run.
            seconds: The least time from the end of one drawing to the next.
            show: Shows a PNG and the line below it; None for IPython's display, where each takes
                the place of the one before.
        """
        self._num_steps = num_steps
        self._seconds = seconds
        self._show = _display() if show is None else show
        self._records: list[dict[str, Any]] = []
        self._drawn: float | None = None

    def __call__(self, record: dict[str, Any]) -> None:
        """Takes a line of `metrics.jsonl`, and draws if it is time to."""
        self._records.append(record)
        if self._drawn is None:  # What an earlier run left comes all at once, and then is drawn.
            self._drawn = time.monotonic()
        if time.monotonic() - self._drawn >= self._seconds:
            self.draw()

    def draw(self) -> None:
        """Draws all that has come so far, if there is anything."""
        lines = []
        for split, style in (("train", Style.of(0)), ("validation", Style.of(1))):
            records = [r for r in self._records if r["split"] == split and r[_BITS] is not None]
            if records:
                x = np.array([record["step"] for record in records])
                y = np.array([record[_BITS] for record in records], float)
                lines.append(Line(x, y, style))
        if lines:
            png, _ = curves_png(lines, x_label="step", y_label="bits per sample")
            self._show(png, self._words())
        self._drawn = time.monotonic()

    def _words(self) -> str:
        """Where training stands."""
        words = [f"step {self._records[-1]['step']:,} of {self._num_steps:,}"]
        last = {record["split"]: record for record in self._records}
        for split, color in (("train", "blue"), ("validation", "orange")):
            if split in last and last[split][_BITS] is not None:
                words.append(f"{split} ({color}) {last[split][_BITS]:.3f} bits per sample")
        if speed := last.get("train", {}).get("samples_per_second"):
            words.append(f"{speed:,.0f} samples a second")
        return ", ".join(words)


def _display() -> Callable[[bytes, str], None]:
    """Shows pictures in the output of a notebook's cell, each in place of the one before."""
    from IPython import display  # Notebooks have it, and nothing else needs it.

    handle = None

    def show(png: bytes, words: str) -> None:
        nonlocal handle
        picture = display.HTML(f'<img width="560" src="{data_uri(png)}"><p>{text(words)}</p>')
        if handle is None:
            handle = display.display(picture, display_id=True)
        else:
            handle.update(picture)

    return show
