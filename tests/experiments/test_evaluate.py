"""What `experiments.evaluate` finds, however the work is shared; and what it says to mistakes."""

import json
import math
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.special
import soundfile

import pf_jax
from pf_jax.data import open_dataset
from pf_jax.data.windows import Windows
from tests import processes

ROOT = pathlib.Path(__file__).parents[2]
RATE = 8_000
DEVICES = "--xla_force_host_platform_device_count"


def start(name, *arguments, devices=1):
    return processes.Popen(
        [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": f"{DEVICES}={devices} {os.environ.get('XLA_FLAGS', '')}"},
    )


def command(name, *arguments, devices=1):
    process = start(name, *arguments, devices=devices)
    out, errors = process.communicate()
    return process.returncode, out, errors


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a folder of tones of different lengths, up to six windows long."""
    root = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    (root / "music").mkdir()
    for number in range(60):
        time = np.arange(rng.integers(900, 3_000)) / RATE
        tone = 0.5 * np.sin(2 * np.pi * rng.uniform(100, 900) * time)
        soundfile.write(root / "music" / f"tone {number}.wav", tone, RATE)
    status, _, errors = command(
        *("train", "--config=folder", f"--workdir={root / 'run'}"),
        f"--config.data.path={root / 'music'}",
        f"--config.data.data_dir={root / 'data'}",
        f"--config.data.sample_rate={RATE}",
        *("--config.model.widths=8,16", "--config.model.depths=(0,1),1"),
        *("--config.model.pool_factors=(8,)", "--config.model.num_heads=2"),
        *("--config.num_steps=4", "--config.eval_every=4", "--config.checkpoint_every=4"),
        *("--config.data.window=500", "--config.batch_size=4"),
    )
    assert status == 0, errors
    return root / "run"


@pytest.fixture(scope="module")
def evaluated(run):
    """The results of the plain command, and what it said."""
    status, out, errors = command("evaluate", f"--checkpoint={run}")
    assert status == 0, errors
    return json.loads((run / "evaluation" / "test" / "evaluation.json").read_text()), out


def test_likelihoods_are_those_of_the_parallel_form(run, evaluated):
    results, out = evaluated
    model, meta = pf_jax.load(run)
    forward = jax.jit(model)
    windows = Windows(open_dataset(meta.config.data).split("test"), meta.config.data)
    nats = {"carried": 0.0, "independent": 0.0}
    for number in range(len(windows.recordings)):
        tokens = windows.tokens(number).astype(np.int32)
        # Of one length each, so that there are few programs: what comes later changes nothing.
        for name, step in (("carried", 3_000), ("independent", 500)):
            for at in range(0, len(tokens), step):
                piece = tokens[at : at + step]
                logits = forward(np.pad(piece, (0, step - len(piece)))[None])[0, : len(piece)]
                log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
                nats[name] -= log_p[np.arange(len(piece)), piece].sum()
    for name, total in nats.items():
        found = results["bits_per_sample"][name]
        bits = total / windows.recordings.num_samples / math.log(2)
        assert found["value"] == pytest.approx(bits, rel=1e-6)
        assert found["low"] <= found["value"] <= found["high"]
        assert found["num_samples"] == windows.recordings.num_samples
        assert found["num_recordings"] == len(windows.recordings) == 3
        assert f"{bits:.4f} bits per sample" in out
    assert (results["quantization"], results["normalization"]) == ("mu_law", "none")
    assert "mu_law levels, normalization: none" in out
    assert any("3 recordings" in warning for warning in results["warnings"])
    page = (run / "evaluation" / "test" / "index.html").read_text()
    assert f"{nats['carried'] / windows.recordings.num_samples / math.log(2):.4f}" in page
    assert "mu_law levels, normalization: none" in page
    assert "http" not in page


def test_the_validation_split_is_as_training_found_it(run, tmp_path):
    status, _, errors = command(
        "evaluate", f"--checkpoint={run}", "--split=validation", f"--output={tmp_path}"
    )
    assert status == 0, errors
    results = json.loads((tmp_path / "evaluation.json").read_text())
    found = results["bits_per_sample"]["independent"]["value"]
    assert found == pytest.approx(results["validation_bits_per_sample"], rel=1e-6)
    assert not (run / "evaluation" / "validation").exists()


@pytest.mark.parametrize(("processes", "devices", "batch_size"), [(1, 4, 7), (2, 2, 2)])
def test_sharing_the_work_changes_nothing(run, evaluated, tmp_path, processes, devices, batch_size):
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    arguments = (f"--checkpoint={run}", f"--output={tmp_path}", f"--batch_size={batch_size}")
    started = [
        start(
            "evaluate",
            *arguments,
            *(f"--coordinator=localhost:{port}", f"--num_processes={processes}"),
            f"--process_id={number}",
            devices=devices,
        )
        for number in range(processes)
    ]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    shared = json.loads((tmp_path / "evaluation.json").read_text())
    alone, _ = evaluated
    np.testing.assert_allclose(shared["by_recording"], alone["by_recording"], rtol=1e-6)
    for name in ("carried", "independent"):
        found, expected = (r["bits_per_sample"][name] for r in (shared, alone))
        assert found == pytest.approx(expected, rel=1e-6)
        for bins, entries in alone["by_position"][name].items():
            assert shared["by_position"][name][bins] == [
                pytest.approx(entry, rel=1e-5) for entry in entries
            ]


def test_mistakes_are_told_in_one_line(run, tmp_path):
    file = tmp_path / "file"
    file.touch()
    for arguments, message in {
        (): r"--checkpoint is missing",
        (f"--samples={tmp_path}",): r"give one of them",
        (f"--checkpoint={tmp_path / 'no'}",): r"No such checkpoint",
        (f"--checkpoint={run}", "--split=tets"): r"--split",
        (f"--checkpoint={run}", f"--output={file / 'x'}"): r"Cannot write .*--output",
        (
            f"--checkpoint={run}",
            f"--data_path={tmp_path / 'gone'}",
        ): r"gone does not exist. Say where",
        (f"--checkpoint={run}", "--seconds=1"): r"--seconds says something about --num_samples",
        (f"--checkpoint={run}", "--num_samples=0"): r"--num_samples must be above 0",
        (f"--checkpoint={run}", f"--classifier={tmp_path}"): r"--config=sc09_classifier",
    }.items():
        status, _, errors = command("evaluate", *arguments)
        assert status == 2, (arguments, errors)
        assert re.search(message, errors), (message, errors)
        assert len(errors.splitlines()) == 1, errors
