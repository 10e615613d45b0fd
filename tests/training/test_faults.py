"""What goes wrong while a run is trained, injected; what it says then; and what is left of it."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import sys
import textwrap

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pf_jax.errors import UserError
from pf_jax.training import checkpoint, loop, parallel, train
from tests import processes

ROOT = pathlib.Path(__file__).parents[2]

# Orbax lets go of the reads that it no longer waits for.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run; its checkpoints are of steps 3, 6, 9 and 12."""
    return shutil.copytree(finished.workdir, tmp_path / "copy")


@pytest.fixture
def poisoned(monkeypatch):
    """A function that makes the gradients of some steps NaN, in the step itself."""

    def poison(*steps):
        original = parallel.train_step

        def train_step(state, batch, stop, **kwargs):
            bad = jax.numpy.isin(state.step + 1, jax.numpy.array(steps))
            # NaN weights in the forward pass; the state that is kept is the sound one.
            params = jax.tree.map(lambda p: jax.numpy.where(bad, np.nan, p), state.params)
            new, metrics = original(state._replace(params=params), batch, stop, **kwargs)
            kept = jax.tree.map(lambda n, o: jax.numpy.where(bad, o, n), new.params, state.params)
            return new._replace(params=kept), metrics

        monkeypatch.setattr(parallel, "train_step", train_step)

    return poison


def test_steps_that_are_not_finite_are_skipped_counted_and_logged(
    finished, tmp_path, poisoned, metrics_of, capsys
):
    poisoned(5, 6, 9)
    config = dataclasses.replace(finished.config, max_skipped=3)
    state = train(config, tmp_path)
    assert (state.step, state.skipped, state.skipped_in_a_row) == (12, 3, 0)
    said = capsys.readouterr().err
    assert re.findall(r"Step (\d+) was skipped: the loss is nan", said) == ["5", "6", "9"]
    assert "Step 12, 3 of them skipped" in said
    lines = {line["step"]: line for line in metrics_of(tmp_path) if line["split"] == "train"}
    assert [lines[step]["skipped"] for step in (4, 5, 6, 7, 9, 12)] == [0, 1, 2, 2, 3, 3]
    assert lines[5]["loss"] is None
    assert lines[7]["loss"] < 6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    # Steps 1 to 4 are those of the undisturbed run; the learning rate then lags behind.
    before = {line["step"]: line for line in metrics_of(finished.workdir)}
    assert lines[4]["loss"] == before[4]["loss"]
    assert lines[7]["learning_rate"] == before[5]["learning_rate"]


def test_too_many_in_a_row_end_the_run(finished, tmp_path, poisoned, capsys):
    poisoned(8, 9, 10, 11)
    config = dataclasses.replace(finished.config, max_skipped=2)
    with pytest.raises(UserError, match="Training has diverged: 2 steps in a row") as raised:
        train(config, tmp_path)
    message = str(raised.value)
    assert f"last good checkpoint is {tmp_path}/checkpoints/" in message
    assert f"--config.init_from={tmp_path}/checkpoints/" in message
    assert "\n" not in message
    (file,) = (tmp_path / "bad_batches").iterdir()
    assert file.name == "step_9_process_0.npz"
    assert str(file) in message
    # It is the batch that step 9 had.
    batches = loop.train_batches(
        loop.open_dataset(config.data), config.data, seed=0, batch_size=config.batch_size
    )
    expected = [next(batches) for _ in range(9)][-1]
    with np.load(file) as saved:
        for name, values in expected.items():
            np.testing.assert_array_equal(saved[name], values)
    model, meta = checkpoint.load(tmp_path)
    assert meta.step in (3, 6)
    assert np.isfinite(jax.jit(model)(expected["tokens"][0])).all()


def arrays(step, item):
    return [p for p in (step / item).rglob("*") if p.is_file() and p.parent.name == "d"]


def flip(step, item):
    """Flips a bit of a number in the middle of the arrays, as a bad disk would."""
    read = ocp.StandardCheckpointer()
    tree = read.restore(step / item)
    leaves, structure = jax.tree.flatten(tree)
    largest = max(range(len(leaves)), key=lambda i: leaves[i].size)
    leaves[largest] = np.array(leaves[largest])
    leaves[largest].view(np.uint8).reshape(-1)[leaves[largest].nbytes // 2] ^= 1
    shutil.rmtree(step / item)
    read.save(step / item, jax.tree.unflatten(structure, leaves))
    read.wait_until_finished()


def cut(step, item):
    for file in arrays(step, item):
        os.truncate(file, file.stat().st_size // 2)


DAMAGE = {
    "half an array": lambda step: cut(step, "train_state"),
    "a flipped bit of the optimizer": lambda step: flip(step, "train_state"),
    "a flipped bit of the average": lambda step: flip(step, "params"),
    "no position in the data": lambda step: (step / "data" / "metadata").unlink(),
    "no metadata": lambda step: (step / "meta" / "metadata").unlink(),
    "half the metadata": lambda step: os.truncate(step / "meta" / "metadata", 100),
    "no arrays": lambda step: shutil.rmtree(step / "params"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(finished, copy, damage, caplog, metrics_of):
    DAMAGE[damage](copy / "checkpoints" / "12")
    state = train(finished.config, copy)
    jax.tree.map(np.testing.assert_array_equal, state, finished.state)
    (warning,) = [record.getMessage() for record in caplog.records if "moved to" in record.message]
    assert f"{copy}/checkpoints/12" in warning
    assert f"It was moved to {copy}/damaged/12, and step 9 is next." in warning
    assert "\n" not in warning
    assert (copy / "damaged" / "12").is_dir()
    assert (copy / "checkpoints" / "12").is_dir(), "made again"
    assert metrics_of(copy) == metrics_of(finished.workdir)


def test_several_damaged_checkpoints(finished, copy, caplog):
    for step in ("12", "9", "6"):
        DAMAGE["no metadata"](copy / "checkpoints" / step)
    state = train(finished.config, copy)
    jax.tree.map(np.testing.assert_array_equal, state, finished.state)
    assert sorted(p.name for p in (copy / "damaged").iterdir()) == ["12", "6", "9"]


def test_a_run_without_any_sound_checkpoint_is_not_begun_anew(finished, copy):
    for step in (copy / "checkpoints").iterdir():
        DAMAGE["half an array"](step)
    with pytest.raises(UserError, match="No checkpoint is left to go on from") as raised:
        train(finished.config, copy)
    assert str(raised.value).count("cannot be read") == 4
    assert "\n" not in str(raised.value)
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["12", "3", "6", "9"]


FULL_DISK = """
    import json, resource, signal, sys
    from pf_jax.errors import UserError
    from pf_jax.training import TrainConfig, loop

    save, saved = loop.Checkpoints.save, []

    def full(self, state, batches):
        saved.append(1)
        if len(saved) == 2:  # From now on no file can hold more; the first one has been written.
            self._manager.wait_until_finished()
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))
        save(self, state, batches)

    loop.Checkpoints.save = full
    try:
        loop.train(TrainConfig.from_dict(json.loads(sys.argv[1])), sys.argv[2])
    except UserError as error:
        sys.exit(f"one clear line: {error}")
"""


def test_a_full_disk_while_saving(finished, tmp_path, capfd):
    done = processes.run(
        [
            *(sys.executable, "-c", textwrap.dedent(FULL_DISK)),
            *(json.dumps(finished.config.to_dict()), str(tmp_path / "run")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = done.stderr.strip().splitlines()
    last = next((line for line in lines if line.startswith("one clear line: ")), done.stderr)
    assert "could not be written" in last, done.stderr
    assert "earlier ones are whole" in last
    assert "File too large" in last
    state = train(finished.config, tmp_path / "run")  # With room again.
    assert "Goes on from the checkpoint of step 3." in capfd.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, state, finished.state)
    left = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert left == {"3", "6", "9", "12"}
