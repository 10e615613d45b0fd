import dataclasses
import io
import json
import types

import numpy as np
import pytest
from PIL import Image

from pf_jax.evaluation import LiveCurves, live_curves
from pf_jax.evaluation.comparison_charts import Style
from pf_jax.training.logging import RunLog


@dataclasses.dataclass
class Shown:
    """What a notebook shows, and a clock that stands still."""

    now: float = 100.0
    pictures: list = dataclasses.field(default_factory=list)

    def monotonic(self):
        return self.now

    def show(self, png, words):
        self.pictures.append((np.asarray(Image.open(io.BytesIO(png))), words))


@pytest.fixture
def shown(monkeypatch):
    shown = Shown()
    monkeypatch.setattr(live_curves, "time", types.SimpleNamespace(monotonic=shown.monotonic))
    return shown


def has(picture, style):
    color = [int(style.color[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(picture[..., :3].astype(int) - color).max(axis=2) < 12).any()


def record(step, split="train", bits=4.0, **more):
    return {"step": step, "split": split, "bits_per_sample": bits, **more}


def test_draws_what_has_come_when_it_is_time(shown):
    curves = LiveCurves(5_000, seconds=5, show=shown.show)
    curves.draw()
    for step in range(1, 4):
        curves(record(step))
    assert not shown.pictures

    shown.now += 5
    curves(record(1_000, bits=3.25, samples_per_second=12_345.6))
    curves(record(1_000, "validation", bits=3.5))
    ((picture, words),) = shown.pictures
    assert words == (
        "step 1,000 of 5,000, train (blue) 3.250 bits per sample, 12,346 samples a second"
    )
    assert has(picture, Style.of(0))
    assert not has(picture, Style.of(1))

    curves(record(1_001, bits=None))  # A loss that was not finite.
    curves.draw()
    picture, words = shown.pictures[1]
    assert words == "step 1,001 of 5,000, validation (orange) 3.500 bits per sample"
    assert has(picture, Style.of(1))


def test_a_log_tells_whoever_listens_and_nobody_else(tmp_path, capsys):
    heard = []
    metrics = {"loss": 2.0, "bits_per_sample": 3.0, "samples_per_second": 8.0}
    with RunLog(tmp_path, num_steps=4, on_metrics=heard.append) as log:
        log.train(1, metrics)
        log.evaluation(1, {"bits_per_sample": float("nan")})
        log.train(2, metrics)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert heard == lines
    assert heard[:2] == [record(1, bits=3.0) | metrics, record(1, "validation", bits=None)]
    assert capsys.readouterr().err == ""

    # Of a run that goes on, first the lines that are kept.
    again = []
    with RunLog(tmp_path, num_steps=4, resume_step=1, on_metrics=again.append) as log:
        assert again == lines[:2]
        log.message("for people")
        log.train(2, metrics)
    assert again == lines
    assert capsys.readouterr().err == "for people\n"
