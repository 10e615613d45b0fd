"""Whatever ends a run, the same command goes on to the same end, bit for bit."""

import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pf_jax.data import open_dataset
from pf_jax.data.windows import Windows
from pf_jax.errors import UserError
from pf_jax.training import checkpoint, loop, train
from pf_jax.training.saving import Checkpoints
from tests import processes

ROOT = pathlib.Path(__file__).parents[2]
# For a longer campaign: PF_JAX_TEST_KILLS=100 pytest tests/training/test_resume.py -k kill
KILLS = int(os.environ.get("PF_JAX_TEST_KILLS", "4"))


def arrays_of(workdir, step=12):
    """All arrays of a checkpoint, and the position in the data."""
    directory = workdir / "checkpoints" / str(step)
    read = ocp.StandardCheckpointer().restore
    trees = [read(directory / item) for item in ("params", "train_state")]
    position = json.loads((directory / "data" / "metadata").read_text())
    return trees, position


def assert_same_end(workdir, finished, metrics_of):
    (trees, position), (expected_trees, expected_position) = map(
        arrays_of, (workdir, finished.workdir)
    )
    jax.tree.map(np.testing.assert_array_equal, trees, expected_trees)
    assert position == expected_position
    assert metrics_of(workdir) == metrics_of(finished.workdir)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(finished.workdir, tmp_path / "copy")


def test_the_undisturbed_run(finished, metrics_of, tiny_config):
    windows = Windows(open_dataset(tiny_config.data).split("train"), tiny_config.data)
    steps_an_epoch = len(windows) / tiny_config.batch_size
    assert steps_an_epoch == 7.5  # So that the interruptions below are in the middle of an epoch.
    lines = metrics_of(finished.workdir)
    assert [line["step"] for line in lines if line["split"] == "train"] == [*range(1, 13)]
    assert [line["step"] for line in lines if line["split"] == "validation"] == [6, 12]
    assert sorted(p.name for p in (finished.workdir / "checkpoints").iterdir()) == sorted(
        ["3", "6", "9", "12"]
    )
    assert finished.state.step == 12
    assert finished.traces == 1, "the step was compiled more than once"
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(finished.initial)), "not donated"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on(
    number, finished, metrics_of, tmp_path, monkeypatch, capsys
):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    record = loop.RunLog.train

    def interrupted(log, step, metrics):
        record(log, step, metrics)
        if step == 4:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(loop.RunLog, "train", interrupted)
        state = train(finished.config, tmp_path)
    assert state.step == 5  # Which the devices had begun when step 4 was looked at.
    assert "Stopped after step 5; the same command goes on" in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "5").is_dir()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers

    state = train(finished.config, tmp_path)
    assert "Goes on from the checkpoint of step 5." in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, state, finished.state)
    assert_same_end(tmp_path, finished, metrics_of)


def test_signals_as_a_program(tmp_path, tiny_config):
    (tmp_path / "config.py").write_text(
        "from pf_jax.training import TrainConfig\n"
        f"def get_config(): return TrainConfig.from_dict({tiny_config.to_dict()!r})\n"
    )
    command = [sys.executable, "-m", "experiments.train", f"--config={tmp_path / 'config.py'}"]
    command += ["--config.num_steps=1_000_000", "--config.eval_every=1_000_000"]
    runs = {
        number: processes.Popen(
            [*command, f"--workdir={tmp_path / number.name}"],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    for number, process in runs.items():
        metrics = tmp_path / number.name / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 5):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
    for number, process in runs.items():
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "Traceback" not in err
        (step,) = re.findall(r"Stopped after step (\d+); the same command goes on from there", err)
        meta = checkpoint.find(tmp_path / number.name)
        assert meta.step == int(step)


# Trains until a SIGKILL some time after a place in the loop was reached.
KILLED = """
    import json, os, signal, sys, threading
    from pf_jax.training import TrainConfig, loop

    config, workdir, place, occurrence, delay = json.loads(sys.argv[1])
    owner, name = {
        "start": (loop, "open_dataset"),
        "step": (loop.RunLog, "advance"),
        "save": (loop.Checkpoints, "save"),
        "evaluation": (loop, "_evaluate"),
    }[place]
    function, calls = getattr(owner, name), []

    def armed(*args, **kwargs):
        calls.append(1)
        if len(calls) == occurrence:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return function(*args, **kwargs)

    setattr(owner, name, armed)
    loop.train(TrainConfig.from_dict(config), workdir)
"""
# How often a place is reached in a whole run, and how long it lasts about.
PLACES = {"start": (1, 5.0), "step": (12, 0.02), "save": (4, 0.3), "evaluation": (2, 0.03)}


def test_kill_9_at_random_moments(finished, metrics_of, tmp_path):
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    config = dataclasses.replace(finished.config, keep_latest=1)  # Old ones are deleted meanwhile.
    history, tail = [f"seed {seed}"], []
    for number in range(KILLS):
        place = list(PLACES)[number] if number < len(PLACES) else rng.choice(list(PLACES))
        most, duration = PLACES[place]
        where = place, rng.randint(1, most), rng.uniform(0, duration)
        job = json.dumps([config.to_dict(), str(tmp_path), *where])
        process = processes.run(
            [sys.executable, "-c", textwrap.dedent(KILLED), job],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        history.append(f"{where}: status {process.returncode}")
        tail = process.stderr[-2_000:]
        # A run that goes on from late in the run may end before it comes to the place.
        assert process.returncode in (0, -signal.SIGKILL), (history, tail)
        steps = (tmp_path / "checkpoints").glob("*/meta/metadata")
        if any(p.parent.parent.name.isdigit() for p in steps):
            assert checkpoint.find(tmp_path).step <= 12, history
    state = train(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, state, finished.state)
    assert_same_end(tmp_path, finished, metrics_of)
    left = [p.name for p in (tmp_path / "checkpoints").iterdir() if not p.name.isdigit()]
    assert not left, (history, left)


def test_the_same_command_on_a_finished_run_does_no_harm(finished, copy, capsys):
    before = {p: p.read_bytes() for p in (copy / "checkpoints").rglob("*") if p.is_file()}
    metrics = (copy / "metrics.jsonl").read_bytes()
    state = train(finished.config, copy)
    jax.tree.map(np.testing.assert_array_equal, state, finished.state)
    assert metrics == (copy / "metrics.jsonl").read_bytes()
    assert before == {p: p.read_bytes() for p in (copy / "checkpoints").rglob("*") if p.is_file()}
    assert "step 12" in capsys.readouterr().err


MORE_STEPS = """
    import json, sys
    import jax
    from pf_jax.training import TrainConfig, train

    config, workdir = json.loads(sys.argv[1])
    assert jax.local_device_count() == 8
    assert train(TrainConfig.from_dict(config), workdir).step == config["num_steps"]
"""


def test_more_steps_on_more_devices(finished, copy, metrics_of):
    config = dataclasses.replace(finished.config, num_steps=14)
    processes.run(
        [
            *(sys.executable, "-c", textwrap.dedent(MORE_STEPS)),
            json.dumps([config.to_dict(), str(copy)]),
        ],
        env=processes.with_devices(8),
        cwd=ROOT,
        check=True,
    )
    before, after = metrics_of(finished.workdir), metrics_of(copy)
    assert after[: len(before)] == before
    assert [line["step"] for line in after[len(before) :]] == [13, 14, 14]
    assert arrays_of(copy, 14)[1]["next_batch"] == 14


CHANGES = [
    ("model", "widths", (8, 32), r"model\.widths was \(8, 16\) and is now \(8, 32\)"),
    ("model", "dropout", 0.2, r"model\.dropout was 0\.1 and is now 0\.2"),
    ("data", "window", 128, r"data\.window was 256 and is now 128"),
    ("data", "quantization", "linear", r"data\.quantization was 'mu_law' and is now 'linear'"),
    ("optimizer", "learning_rate", 0.5, r"optimizer\.learning_rate was 0\.01 and is now 0\.5"),
    ("", "seed", 1, r"seed was 0 and is now 1"),
    ("", "batch_size", 16, r"batch_size was 8 and is now 16"),
    ("", "ema_decay", 0.5, r"ema_decay was 0\.9 and is now 0\.5"),
]


@pytest.mark.parametrize(("section", "field", "value", "message"), CHANGES)
def test_another_config_is_refused(finished, section, field, value, message):
    if section:
        inner = dataclasses.replace(getattr(finished.config, section), **{field: value})
        config = dataclasses.replace(finished.config, **{section: inner})
    else:
        config = dataclasses.replace(finished.config, **{field: value})
    with (
        Checkpoints(finished.workdir, config, "") as checkpoints,
        pytest.raises(UserError, match=message) as caught,
    ):
        checkpoints.restore(None, None)
    assert str(caught.value).count(" was ") == 2  # The difference, and "was started with".
    assert "\n" not in str(caught.value)


def test_other_recordings_are_refused(finished):
    with (
        Checkpoints(finished.workdir, finished.config, "another") as checkpoints,
        pytest.raises(UserError, match="trained on other recordings than folder now has"),
    ):
        checkpoints.restore(None, None)


def test_a_refused_run_is_left_as_it_was(finished, copy):
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="seed was 0 and is now 1"):
        train(dataclasses.replace(finished.config, seed=1), copy)
    assert before == {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}


@pytest.mark.parametrize("torn", [["meta/metadata"], ["meta"], ["metrics"], ["params"], None])
def test_a_checkpoint_that_was_being_deleted_harms_nothing(finished, copy, torn):
    """As `kill -9` leaves it: the deletion of an old step is not atomic."""
    step = copy / "checkpoints" / "3"
    for name in torn or [str(p.relative_to(step)) for p in step.rglob("*") if p.is_file()]:
        path = step / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert checkpoint.find(copy).step in (6, 12)
    config = dataclasses.replace(finished.config, keep_latest=1)
    with Checkpoints(copy, config, "") as checkpoints:
        assert checkpoints.latest_step() == 12
        checkpoints.save(finished.state._replace(step=np.array(13)), iterator(finished.config))
    assert not step.exists()


def iterator(config):
    return loop.train_batches(
        open_dataset(config.data), config.data, seed=0, batch_size=config.batch_size
    )
