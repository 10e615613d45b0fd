"""A folder of real speech, trained by the commands a user types, beats a Markov model."""

import json
import os
import pathlib
import shutil
import sys

import pytest

from tests import processes

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
    "--config.model.widths=(32,64,128)",
    "--config.model.depths=(1,1,2)",
    "--config.model.pool_factors=(4,4)",
    "--config.data.window=2048",
    "--config.batch_size=3",
    "--config.optimizer.learning_rate=4e-3",
    "--config.optimizer.warmup_steps=30",
    "--config.ema_decay=0.97",
)


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_spoken_digits_beat_a_markov_model(tmp_path):
    command = [sys.executable, "-m", "benchmarks.speech", "--steps=250", f"--workdir={tmp_path}"]
    done = processes.run(
        [*command, "--", *SMALL],
        capture_output=True,
        text=True,
        cwd=ROOT,
        # It computes for longer than it compiles.
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    left_out = dict(result["left_out"])
    assert left_out.keys() == {"odd/empty.wav", "odd/text.wav", "odd/short.wav"}
    assert "empty" in left_out["odd/empty.wav"]
    assert "not a WAV" in left_out["odd/text.wav"]
    assert "too short" in left_out["odd/short.wav"]
    assert result["bits_per_sample"] < result["markov_bits_per_sample"]
