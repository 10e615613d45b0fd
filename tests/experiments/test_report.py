"""Two small runs, trained, on one page; and what the command says to each mistake."""

import base64
import io
import json
import os
import pathlib
import re
import sys

import numpy as np
import pytest
import soundfile

from pf_jax.config import PoolformerConfig
from pf_jax.data import DataConfig
from pf_jax.training import OptimizerConfig, TrainConfig, train
from tests import processes
from tests.evaluation.runs import EVALUATION, Page, write_evaluation, write_log

ROOT = pathlib.Path(__file__).parents[2]
RATE = 1_000

# Runs the command for each of the command lines, all in one process.
SERVER = """
import contextlib, io, json, sys
from absl import flags
from absl.testing import flagsaver
from experiments import cli, report

answers = []
for arguments in json.load(sys.stdin):
    out, err, status = io.StringIO(), io.StringIO(), 0
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        flags.FLAGS.unparse_flags()
        try:
            cli.run(report.main, ["report", *arguments], words="RUN [RUN ...]")
        except SystemExit as stop:
            status = stop.code or 0
    answers.append((status, out.getvalue(), err.getvalue()))
json.dump(answers, sys.stdout)
"""


def report(*arguments, program=("-m", "experiments.report"), **options):
    return processes.run(
        [sys.executable, *program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Holds `a/run` and `b/run`, of which the first has been evaluated and sampled from."""
    root = tmp_path_factory.mktemp("runs")
    rng, time = np.random.default_rng(0), np.arange(1_536) / RATE
    (root / "sounds").mkdir()
    for number in range(8):
        tone = 0.5 * np.sin(2 * np.pi * rng.uniform(50, 200) * time)
        soundfile.write(root / "sounds" / f"{number}.wav", tone, RATE)
    for seed, name in enumerate("ab"):
        config = TrainConfig(
            model=PoolformerConfig(
                widths=(8, 16), depths=((0, 1), 1), pool_factors=(4,), pool_groups=1, num_heads=2
            ),
            data=DataConfig(
                name="folder",
                path=str(root / "sounds"),
                sample_rate=RATE,
                window=256,
                data_dir=str(root / "data"),
            ),
            optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
            batch_size=8,
            num_steps=6,
            log_every=1,
            eval_every=3,
            seed=seed,
        )
        train(config, root / name / "run")
    write_evaluation(root / "a" / "run", EVALUATION | {"step": 6})
    for number in range(3):
        (root / "a" / "run" / "samples").mkdir(exist_ok=True)
        soundfile.write(root / "a" / "run" / "samples" / f"{number}.wav", tone, RATE)
    return root


@pytest.fixture(scope="module")
def reported(root):
    done = report(
        *(root / "a" / "run", "--seconds=0.1", f"--output={root / 'new' / 'page.html'}"),
        *(root / "b" / "run", "--most_seconds", "1"),
    )
    assert done.returncode == 0, done.stderr
    return done, Page(root / "new" / "page.html")


def log_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        split: {line["step"]: line for line in lines if line["split"] == split}
        for split in ("train", "validation")
    }


def test_the_numbers_are_those_of_the_logs(root, reported):
    done, page = reported
    for name in ("a", "b"):
        log = log_of(root / name / "run")
        evaluations = {s: line["bits_per_sample"] for s, line in log["validation"].items()}
        step = min(evaluations, key=evaluations.get)
        best = f"{evaluations[step]:.4f}"
        run = f"{name}/run"
        assert f"{run}: step 6, best validation {best} bits per sample" in done.stdout
        assert page.column("Best validation bits per sample")[run] == f"{best} at step {step}"
        assert page.column("Step")[run] == "6 of 6"
        speeds = [line.get("samples_per_second") for line in log["train"].values()]
        speeds = [speed for speed in speeds if speed is not None]
        assert page.column("Training samples per second")[run] == f"{np.median(speeds):,.0f}"
    assert f"Look and listen: {root / 'new' / 'page.html'}" in done.stdout
    assert page.column("Test bits per sample, independent")["a/run"].startswith("1.6250")
    assert ["seed", "0", "1"] in page.rows
    assert "not comparable" not in page.text
    assert len(page.all("img")) == 4 + 4  # Curves, and a picture of each sound.


def test_sounds_are_found_or_drawn(root, reported):
    done, page = reported
    assert re.fullmatch(r"Drawing sounds from \S+b/run/checkpoints/\d \.\.\.\n", done.stderr)
    head = "data:audio/wav;base64,"
    players = page.all("audio")
    sounds = [
        soundfile.read(io.BytesIO(base64.b64decode(p["src"].removeprefix(head)))) for p in players
    ]
    assert [(len(waveform), rate) for waveform, rate in sounds] == [(RATE, RATE)] * 2 + [
        (RATE // 10, RATE)
    ] * 2
    written, _ = soundfile.read(root / "a" / "run" / "samples" / "0.wav")
    np.testing.assert_allclose(sounds[0][0], written[:RATE], atol=1e-4)
    assert np.ptp(sounds[2][0]) > 0
    assert np.any(sounds[2][0] != sounds[3][0])
    labels = [p["aria-label"] for p in players]
    assert labels[:2] == [f"samples/{n}.wav, the first 1.00 s of 1.54 s" for n in range(2)]
    assert re.fullmatch(r"sound 2 drawn from step \d, 0.10 s", labels[3])


def test_mistakes_and_what_is_none(root, tmp_path):
    a = str(root / "a" / "run")
    write_log(tmp_path / "log", (1, "train", {"loss": 5.0}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    write_log(tmp_path / "damaged", (1, "train", {"loss": 5.0}))
    write_evaluation(tmp_path / "damaged", [])
    good = [a, f"{tmp_path}/log", "--num_samples=0", f"--output={tmp_path}/page.html"]
    mistakes = [
        ([], ["No run was given"]),
        (["--num_samples=0"], ["No run was given"]),
        ([f"{tmp_path}/nowhere"], ["nowhere does not exist"]),
        ([f"{tmp_path}/file"], ["file is a file"]),
        ([f"{tmp_path}/empty"], ["empty", "neither metrics.jsonl nor checkpoints/STEP"]),
        ([f"{a}/checkpoints"], ["neither metrics.jsonl nor checkpoints/STEP"]),
        ([a, a], ["given 2 times"]),
        ([f"{tmp_path}/damaged"], ["damaged/evaluation/test/evaluation.json is damaged"]),
        ([*good, "--output="], ["--output"]),
        ([*good, f"--output={tmp_path}"], ["is a directory"]),
        ([*good, f"--output={tmp_path}/file/page.html"], ["Cannot write", "file"]),
        ([*good, "--seconds=0"], ["--seconds must be above 0, got 0.0"]),
        ([*good, "--most_seconds=nan"], ["--most_seconds must be above 0, got nan"]),
        ([*good, "--most_megabytes=-1"], ["--most_megabytes must be above 0, got -1.0"]),
        ([*good, "--num_samples=-1"], ["--num_samples must be a non-negative integer"]),
        ([*good, "--sample=1"], ["Unknown flag --sample"]),
    ]
    done = report(
        program=("-c", SERVER), input=json.dumps([good, *(arguments for arguments, _ in mistakes)])
    )
    assert done.returncode == 0, done.stderr
    (status, out, err), *answers = json.loads(done.stdout)
    assert (status, err) == (0, "")
    assert "log: step 1, never evaluated" in out
    page = Page(tmp_path / "page.html")
    assert not page.all("audio")
    assert page.column("Step").keys() == {"run", "log"}
    for (arguments, parts), (status, out, err) in zip(mistakes, answers, strict=True):
        assert (status, out) == (2, ""), arguments
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        for part in parts:
            assert part in err
