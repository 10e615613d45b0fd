"""The time of training: without what is not training, and going on where a run goes on."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax.numpy as jnp
import pytest

from pf_jax.training import checkpoint, memory, train, watch
from pf_jax.training.watch import Watch


class Log:
    """Keeps what it is told."""

    def __init__(self):
        self.lines = {}

    def train(self, step, metrics):
        self.lines[step] = metrics

    def advance(self, step):
        pass


@pytest.fixture
def clock(monkeypatch):
    clock = types.SimpleNamespace(now=1_000.0)
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(watch, "training_clock", lambda: clock.now)
    return clock


def test_compilation_and_pauses_are_not_training(tiny_config, clock):
    config = dataclasses.replace(tiny_config, log_every=1)
    log, checkpoints = Log(), types.SimpleNamespace(seconds=7.0)
    watcher = Watch(config, checkpoints, log)
    metrics = {name: jnp.ones(1) for name in ("loss", "gradient_norm")}
    metrics |= {"stop": jnp.zeros(1, bool), "skipped_in_a_row": jnp.zeros(1, int)}
    # The first step compiles for 100 s, and each takes 2 s; after the third there is a pause.
    for step, seconds in enumerate((102.0, 2.0, 2.0, 2.0), 1):
        watcher.next(step, {}, metrics)
        clock.now += seconds
        watcher.look_at_last()
        if step == 3:
            clock.now += 50.0
            watcher.restart(step)
    # The first step is known to have taken as long as the second when that is over.
    assert [log.lines[step]["seconds"] for step in (1, 2, 3, 4)] == [7.0, 11.0, 13.0, 15.0]
    speed = config.batch_size * config.data.window / 2.0
    assert [log.lines[s].get("samples_per_second") for s in (1, 2, 3, 4)] == [None] + [speed] * 3


def test_the_time_of_a_run_goes_on_where_it_does(finished, tmp_path):
    def seconds(workdir, split):
        lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: line["seconds"] for line in lines if line["split"] == split}

    logged = seconds(finished.workdir, "train")
    assert list(logged) == list(range(1, 13))
    assert sorted(logged.values()) == list(logged.values())
    assert 0.0 == logged[1] < logged[2]
    assert seconds(finished.workdir, "validation") == {6: logged[6], 12: logged[12]}
    latest = checkpoint.find(finished.workdir / "checkpoints" / "12")
    assert latest.seconds == logged[12]

    shutil.copytree(finished.workdir, tmp_path / "run")
    for step in ("9", "12"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / step)
    train(finished.config, tmp_path / "run")
    after = seconds(tmp_path / "run", "train")
    assert after[6] == after[7] == logged[6] < after[8]


def test_peak_memory_is_that_of_this_process_and_not_of_its_parent():
    code = "from pf_jax.training.memory import peak_memory; print(peak_memory())"
    large = "import subprocess, sys; x = b'x' * 2**30; subprocess.run(sys.argv[1:])"
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", large, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert 2**26 < int(done.stdout) < 2**30


def test_peak_memory_of_accelerators_is_what_they_tell(monkeypatch):
    def device(platform, stats):
        return types.SimpleNamespace(platform=platform, memory_stats=lambda: stats)

    told = [device("gpu", {"peak_bytes_in_use": n}) for n in (3, 5)]
    monkeypatch.setattr(memory.jax, "local_devices", lambda: told)
    assert memory.peak_memory() == 5
    monkeypatch.setattr(memory.jax, "local_devices", lambda: [device("tpu", None)])
    assert memory.peak_memory() is None
