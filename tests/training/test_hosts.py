"""Two processes of four devices train as one of eight does, and survive what kills them."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import pf_jax
from pf_jax import UserError
from pf_jax.config import PoolformerConfig
from pf_jax.data import open_dataset, train_batches
from pf_jax.training import hosts, train
from tests import processes

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 24
DEVICES = "--xla_force_host_platform_device_count"
# JAX's cache of compiled programs is for the first process only; the other compiles every time.
QUICK = os.environ["XLA_FLAGS"]
# XLA adds up eight devices of one process in another order than four and four of two. After 36
# steps of 1e-2 that has moved no weight by more than 3e-7.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def config(tiny_config):
    """Of 3.75 steps to the epoch, with dropout; each device takes its two windows one by one."""
    return dataclasses.replace(
        tiny_config,
        model=PoolformerConfig(widths=(8,), depths=(1,), pool_factors=(), num_heads=2, dropout=0.1),
        batch_size=16,
        accumulation_steps=2,
        num_steps=STEPS,
        keep_latest=STEPS,
    )


class Command:
    """`python -m experiments.train` with the config, in one process of eight devices or in more.

    Attributes:
        processes: Those that were started.
    """

    def __init__(self, directory: pathlib.Path, config):
        self.processes: list[subprocess.Popen] = []
        self._directory = directory
        self._config = directory / "config.py"
        self._config.write_text(
            "from pf_jax.training import TrainConfig\n"
            f"def get_config(): return TrainConfig.from_dict({config.to_dict()!r})\n"
        )

    def start(self, workdir: pathlib.Path, count: int = 2) -> list[subprocess.Popen]:
        """Starts a run of some processes with eight devices in all."""
        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
        started = []
        for number in range(count):
            flags = [f"--num_processes={count}"]
            if count > 1:
                flags += [f"--coordinator=localhost:{port}", f"--process_id={number}"]
            errors = self._directory / f"errors_{len(self.processes)}.txt"
            with errors.open("w") as stderr:
                process = processes.Popen(
                    [
                        *(sys.executable, "-m", "experiments.train"),
                        *(f"--config={self._config}", f"--workdir={workdir}", *flags),
                    ],
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    cwd=ROOT,
                    env=os.environ | {"XLA_FLAGS": f"{DEVICES}={8 // count} {QUICK}"},
                )
            process.errors = errors
            started.append(process)
            self.processes.append(process)
        return started

    def run(self, workdir: pathlib.Path, count: int = 2) -> list[str]:
        """Runs to the end, and gives what each process said."""
        started = self.start(workdir, count)
        return [ended_well(process) for process in started]


def ended_well(process: subprocess.Popen) -> str:
    status = process.wait(timeout=120)
    errors = process.errors.read_text()
    assert status == 0, errors[:5_000]
    return errors


def wait_for_step(workdir: pathlib.Path, step: int, processes: list[subprocess.Popen]) -> None:
    """Waits until a step is logged that is not left from before."""
    deadline = time.monotonic() + 120
    while (last := last_step(workdir)) < step:
        for process in processes:
            assert process.poll() is None, process.errors.read_text()[:5_000]
        assert time.monotonic() < deadline, last
        time.sleep(0.005)


def last_step(workdir: pathlib.Path) -> int:
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else []
    lines = [line for line in lines if line.endswith(b"\n")]
    return json.loads(lines[-1])["step"] if lines else 0


@pytest.fixture(scope="module")
def command(tmp_path_factory, config):
    command = Command(tmp_path_factory.mktemp("hosts"), config)
    yield command
    for process in command.processes:
        process.kill()
        process.wait()


@dataclasses.dataclass(frozen=True)
class Runs:
    """What was run once for all tests.

    Attributes:
        two: Two processes, undisturbed.
        eight: One process, undisturbed.
        disturbed: Two processes, killed and stopped again and again.
        said: What the processes of each said, in the last start.
        first_pid: Of the first of the two undisturbed processes.
        survivor: How the first process ended after the second was killed.
        survivor_said: Its last words.
        asked: At which step the disturbed run was when one process was asked to stop.
        stopped_said: What both of its processes said.
        after_stop: Steps of the checkpoints when both had stopped.
    """

    two: pathlib.Path
    eight: pathlib.Path
    disturbed: pathlib.Path
    said: dict[str, list[str]]
    first_pid: int
    survivor: int
    survivor_said: str
    asked: int
    stopped_said: list[str]
    after_stop: list[int]


@pytest.fixture(scope="module")
def runs(command, tmp_path_factory) -> Runs:
    root = tmp_path_factory.mktemp("runs_of_hosts")
    two, eight, disturbed = root / "two", root / "eight", root / "disturbed"
    said = {}

    # The second is killed alone: what the first one does then, it may do while others train.
    first, second = command.start(disturbed)
    wait_for_step(disturbed, 5, [first, second])
    second.kill()

    said["eight"] = command.run(eight, count=1)
    processes = command.start(two)
    said["two"] = [ended_well(process) for process in processes]
    survivor = first.wait(timeout=120)
    survivor_said = first.errors.read_text()

    # Both at once.
    before = last_step(disturbed)
    processes = command.start(disturbed)
    wait_for_step(disturbed, max(10, before + 1), processes)
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()

    # One of them is asked to stop, and not the one that writes.
    before = last_step(disturbed)
    processes = command.start(disturbed)
    wait_for_step(disturbed, before + 1, processes)
    asked = last_step(disturbed)
    processes[1].send_signal(signal.SIGTERM)
    stopped_said = [ended_well(process) for process in processes]
    after_stop = steps_of(disturbed)

    said["disturbed"] = command.run(disturbed)
    return Runs(
        two=two,
        eight=eight,
        disturbed=disturbed,
        said=said,
        first_pid=command.processes[3].pid,
        survivor=survivor,
        survivor_said=survivor_said,
        asked=asked,
        stopped_said=stopped_said,
        after_stop=after_stop,
    )


def steps_of(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def arrays_of(workdir, step=STEPS):
    """All arrays of a checkpoint, and the position in the data."""
    directory = workdir / "checkpoints" / str(step)
    read = ocp.StandardCheckpointer().restore
    trees = [read(directory / item) for item in ("params", "train_state")]
    position = json.loads((directory / "data" / "metadata").read_text())
    return trees, position


def assert_close(workdir, expected, metrics_of):
    (trees, position), (expected_trees, expected_position) = map(arrays_of, (workdir, expected))
    jax.tree.map(functools.partial(np.testing.assert_allclose, **ROUNDING), trees, expected_trees)
    assert position == expected_position
    for line, other in zip(metrics_of(workdir), metrics_of(expected), strict=True):
        assert_similar(line, other, rel=1e-5)


def assert_similar(line, other, rel):
    """Compares two lines of metrics."""
    numbers, other_numbers = (
        {name: value for name, value in each.items() if name != "split"} for each in (line, other)
    )
    assert line["split"] == other["split"]
    assert numbers == pytest.approx(other_numbers, rel=rel)


def copy_until(workdir, step, target):
    """A copy of a run as it was when it had saved the checkpoint of a step."""
    shutil.copytree(workdir, target)
    for later in steps_of(target):
        if later > step:
            shutil.rmtree(target / "checkpoints" / str(later))
    return target


def test_processes_share_out_the_batches_of_one(config):
    dataset = open_dataset(config.data)
    share = functools.partial(train_batches, dataset, config.data, batch_size=16, seed=0)
    one = share(num_local_devices=8)
    two = [share(num_local_devices=4, process_index=i, process_count=2) for i in range(2)]
    for _ in range(8):  # Over two epochs.
        expected, *halves = (next(batches) for batches in (one, *two))
        for name in ("tokens", "length"):
            halves_of_it = [half[name] for half in halves]
            np.testing.assert_array_equal(np.concatenate(halves_of_it), expected[name])


def test_two_processes_train_as_one(runs, metrics_of):
    # Whichever windows a step had, its loss would be another one in the second digit.
    assert_close(runs.two, runs.eight, metrics_of)
    lines = metrics_of(runs.two)
    assert [line["step"] for line in lines if line["split"] == "train"] == [*range(1, STEPS + 1)]
    assert lines[-1]["bits_per_sample"] < lines[0]["bits_per_sample"] - 0.5
    assert "Devices: 8 x cpu of 2 processes." in runs.said["two"][0]
    assert "Devices: 8 x cpu.\n" in runs.said["eight"][0]


def test_only_the_first_process_writes_logs(runs):
    first, second = runs.said["two"]
    assert f"step {STEPS}, validation" in first
    assert "experiments.sample --checkpoint" in first
    assert "step" not in second
    assert "bits" not in second
    (events,) = (runs.two / "tensorboard").iterdir()
    assert events.name.endswith(f".{runs.first_pid}")
    assert sorted(path.name for path in runs.two.iterdir()) == [
        *("checkpoints", "metrics.jsonl", "tensorboard")
    ]


def test_a_process_whose_other_was_killed_ends(runs):
    assert runs.survivor != 0  # That it ended is what the fixture waited for.
    assert "unhealthy" in runs.survivor_said or "Gloo" in runs.survivor_said


def test_one_that_is_asked_to_stop_stops_both(runs):
    first, second = runs.stopped_said
    (stopped,) = map(int, re.findall(r"Stopped after step (\d+); the same command goes on", first))
    assert runs.asked <= stopped < STEPS
    assert runs.after_stop[-1] == stopped
    assert "Traceback" not in first + second
    assert f"Goes on from the checkpoint of step {stopped}." in runs.said["disturbed"][0]


def test_a_run_that_was_killed_and_stopped_ends_as_one_that_was_not(runs, metrics_of):
    regular = [*range(3, STEPS + 1, 3)]
    for step in {*regular} & {*steps_of(runs.disturbed)}:
        (trees, position), (expected_trees, expected_position) = (
            arrays_of(workdir, step) for workdir in (runs.disturbed, runs.two)
        )
        jax.tree.map(np.testing.assert_array_equal, trees, expected_trees)
        assert position == expected_position
    assert STEPS in steps_of(runs.disturbed)
    assert steps_of(runs.two) == regular
    assert metrics_of(runs.disturbed) == metrics_of(runs.two)


def test_a_checkpoint_of_two_processes_samples_and_trains_on_one_device(
    runs, config, tmp_path, metrics_of
):
    assert jax.device_count() == 1
    workdir = copy_until(runs.two, STEPS - 3, tmp_path / "one")
    model, meta = pf_jax.load(workdir / "checkpoints" / str(STEPS - 3))
    assert meta.step == STEPS - 3
    (params, _), _ = arrays_of(runs.two, STEPS - 3)
    expected = jax.tree.leaves(params)
    loaded = jax.tree.leaves(pf_jax.training.state.split_model(model)[1])
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    tokens, likelihoods = pf_jax.generate(model, jax.random.key(0), num_samples=2, num_steps=50)
    assert tokens.shape == (2, 50)
    assert np.isfinite(likelihoods).all()

    state = train(config, workdir)
    assert state.step == STEPS
    # Of other masks of dropout, which depend on the device.
    last, expected = metrics_of(workdir)[-1], metrics_of(runs.two)[-1]
    assert_similar(last, expected, rel=0.05)
    assert metrics_of(workdir)[:-4] == metrics_of(runs.two)[:-4]


@pytest.mark.parametrize(("origin", "count"), [("two", 1), ("eight", 2)])
def test_a_run_goes_on_in_another_number_of_processes(
    origin, count, runs, command, tmp_path, metrics_of
):
    # Step 13 is in the middle of the fourth epoch.
    workdir = copy_until(getattr(runs, origin), 12, tmp_path / "moved")
    first, *_ = command.run(workdir, count)
    assert "Goes on from the checkpoint of step 12." in first
    assert_close(workdir, runs.two, metrics_of)
    assert_close(workdir, runs.eight, metrics_of)


@pytest.fixture
def port():
    with socket.create_server(("", 0)) as free:
        return free.getsockname()[1]


def test_what_is_wrong_in_the_first_process_ends_all(config, tmp_path):
    data = dataclasses.replace(config.data, path=str(tmp_path / "gone"))
    command = Command(tmp_path, dataclasses.replace(config, data=data))
    first, other = command.start(tmp_path / "run")
    assert first.wait(60) == other.wait(60) == 2
    assert first.errors.read_text().splitlines()[-1] == (
        f"error: data.path={tmp_path}/gone does not exist."
    )
    assert other.errors.read_text().splitlines()[-1] == (
        f"error: The first process cannot go on: data.path={tmp_path}/gone does not exist."
    )


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(hosts, "_SECONDS_TO_MEET", 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", None, None), r"--num_processes and --process_id is missing"),
        (("localhost:1", 2, None), r"--process_id is missing"),
        ((None, 2, 1), r"--coordinator is missing"),
        ((None, None, 0), r"--coordinator and --num_processes is missing"),
        (("localhost:1", 2, 2), r"--process_id must be in \[0, 2\).*got 2"),
        (("localhost:1", 2, -1), r"--process_id must be in \[0, 2\).*got -1"),
        (("localhost", 2, 1), r"--coordinator must be HOST:PORT, got 'localhost'"),
        (("localhost:", 2, 1), r"--coordinator must be HOST:PORT, got 'localhost:'"),
        ((":1234", 2, 1), r"--coordinator must be HOST:PORT, got ':1234'"),
        (("localhost:http", 2, 0), r"--coordinator must be HOST:PORT, got 'localhost:http'"),
        (("localhost:70000", 2, 0), r"--coordinator must be HOST:PORT, got 'localhost:70000'"),
        (("nowhere.invalid:1234", 2, 1), r"--coordinator=nowhere\.invalid:1234 cannot be reached"),
    ],
)
def test_what_is_wrong_with_the_flags(hasty, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        hosts.join(*arguments)
    assert "\n" not in str(caught.value)


def test_a_first_process_that_does_not_come(hasty, port):
    with pytest.raises(UserError, match=rf"--coordinator=localhost:{port} cannot be reached: "):
        hosts.join(f"localhost:{port}", 2, 1)


def test_another_process_that_does_not_come(hasty, port):
    with pytest.raises(UserError, match=r"of 3 processes these have not come: --process_id=1, 2"):
        hosts.join(f"localhost:{port}", 3, 0)


def test_a_port_that_is_taken(hasty):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=r"cannot be listened at: Address already in use"):
            hosts.join(f"localhost:{port}", 2, 0)


def test_one_process_needs_nobody():
    hosts.join(num_processes=1)
    assert jax.process_count() == 1
