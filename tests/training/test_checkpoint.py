"""A path is all that is needed to use a checkpoint, and a bad one is one clear line."""

import dataclasses
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

import pf_jax
from pf_jax.audio import AudioFormat
from pf_jax.data import open_dataset, train_batches
from pf_jax.errors import UserError
from pf_jax.training import checkpoint
from pf_jax.training.saving import Checkpoints
from pf_jax.training.state import split_model

ROOT = pathlib.Path(__file__).parents[2]


def edit_meta(step, **changes):
    path = step / "meta" / "metadata"
    fields = json.loads(path.read_text())
    for name, value in changes.items():
        *sections, last = name.split("__")
        inner = fields
        for section in sections:
            inner = inner[section]
        inner[last] = value
    path.write_text(json.dumps(fields))


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run; its checkpoints are of steps 3, 6, 9 and 12."""
    return shutil.copytree(finished.workdir, tmp_path / "copy")


def test_the_weights_are_the_average_that_was_saved(finished):
    model, meta = pf_jax.load(finished.workdir / "checkpoints" / "12")
    _, params = split_model(model)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, params, finished.state.ema_params)
    different = [
        np.any(a != b)
        for a, b in zip(
            jax.tree.leaves(params), jax.tree.leaves(finished.state.params), strict=True
        )
    ]
    assert any(different)
    assert meta.step == 12
    assert meta.config == finished.config
    assert meta.audio_format == meta.format == AudioFormat(1_000, "mu_law")
    assert meta.path == str(finished.workdir / "checkpoints" / "12")


def test_every_way_to_name_a_checkpoint(finished, monkeypatch):
    workdir = finished.workdir
    monkeypatch.chdir(workdir.parent)
    best = checkpoint.find(workdir)
    for path in (
        *(workdir, str(workdir), f"{workdir}/", workdir.name, f"./{workdir.name}/"),
        *(workdir / "checkpoints", f"{workdir}/checkpoints/", f"{workdir.name}/checkpoints"),
    ):
        assert checkpoint.find(path) == best, path
    for path in (
        *(workdir / "checkpoints" / "6", f"{workdir}/checkpoints/6", f"{workdir}/checkpoints/6/"),
        *(f"{workdir.name}/checkpoints/6", pathlib.Path(workdir.name, "checkpoints", "6")),
    ):
        assert checkpoint.find(path).step == 6, path
    monkeypatch.setenv("HOME", str(workdir.parent))
    assert checkpoint.find(f"~/{workdir.name}") == best


def test_the_best_is_taken_or_else_the_latest(finished, copy, metrics_of):
    measured = {
        line["step"]: line["bits_per_sample"]
        for line in metrics_of(finished.workdir)
        if line["split"] == "validation"
    }
    meta = checkpoint.find(finished.workdir)
    assert meta.validation_bits_per_sample == min(measured.values()) == measured[meta.step]

    steps = copy / "checkpoints"
    edit_meta(steps / "12", evaluations={"9": 0.5, "12": 0.6})  # Neither the first nor the last.
    assert checkpoint.find(copy).step == 9
    for step in steps.iterdir():
        edit_meta(step, evaluations={})
    assert checkpoint.find(copy).step == 12  # By number; as text, "9" would be later.


def test_checkpoints_of_format_1_are_read(finished, copy):
    """They knew their own likelihood only, and had no checksums."""
    for step in (copy / "checkpoints").iterdir():
        path = step / "meta" / "metadata"
        fields = json.loads(path.read_text())
        del fields["evaluations"], fields["checksums"]
        path.write_text(json.dumps(fields | {"format_version": 1}))
    model, meta = pf_jax.load(copy)
    assert meta.step == checkpoint.find(finished.workdir).step
    expected = checkpoint.find(finished.workdir).validation_bits_per_sample
    assert meta.validation_bits_per_sample == expected
    assert jax.jit(model)(np.zeros((1, 3), np.int32)).shape == (1, 3, 256)


@pytest.fixture
def save(finished, tmp_path):
    """Saves steps one by one with these bits per sample; gives the steps that are left."""

    def save(bits_of_steps, **changes):
        config = dataclasses.replace(finished.config, **{"keep_latest": 1} | changes)
        batches = train_batches(
            open_dataset(config.data), config.data, seed=0, batch_size=config.batch_size
        )
        for step, bits in bits_of_steps.items():  # Each as a run that goes on.
            state = finished.state._replace(step=np.array(step))
            with Checkpoints(tmp_path, config, "") as checkpoints:
                if bits is not None:
                    checkpoints.note_evaluation(step, bits)
                checkpoints.save(state, batches)
        return {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}

    return save


@pytest.mark.parametrize(
    ("bits_of_steps", "changes", "kept", "best"),
    [
        ({10: 3.0, 20: 2.0, 30: None, 40: 4.0, 50: 5.0}, {}, {20, 50}, 20),
        ({10: 3.0, 20: 2.0}, {}, {20}, 20),
        ({10: None, 20: None, 30: None}, {}, {30}, 30),
        ({10: 1.0, 20: None, 30: None}, {"keep_latest": 2}, {10, 20, 30}, 10),
        ({10: 1.0, 20: 3.0, 30: 2.0, 40: 4.0}, {"keep_best": 2}, {10, 30, 40}, 10),
        ({10: 1.0, 20: 2.0}, {"keep_best": 0}, {20}, 20),
        ({10: 2.0, 20: float("nan"), 30: float("nan")}, {}, {10, 30}, 10),
        ({10: float("nan"), 20: 2.0, 30: float("inf")}, {}, {20, 30}, 20),
    ],
)
def test_keeps_the_latest_and_the_best(save, tmp_path, bits_of_steps, changes, kept, best):
    assert save(bits_of_steps, **changes) == kept
    assert checkpoint.find(tmp_path).step == best


def test_saving_says_nothing(save, capfd, caplog):
    save({10: None, 20: 2.0})
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


FRESH = """
    import sys
    import jax
    import numpy as np
    import pf_jax

    model, _ = pf_jax.load(sys.argv[1])
    np.save(sys.argv[2], jax.jit(model)(np.load(sys.argv[3])))
    assert not {"tensorflow", "experiments"} & set(sys.modules)
"""


def test_a_fresh_process_needs_the_path_only(finished, tmp_path):
    tokens = np.random.default_rng(0).integers(0, 256, (2, 50))
    np.save(tmp_path / "tokens.npy", tokens)
    workdir = shutil.copytree(finished.workdir, tmp_path / "moved")
    arguments = [workdir, tmp_path / "logits.npy", tmp_path / "tokens.npy"]
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FRESH), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        check=True,
    )
    model, _ = pf_jax.load(finished.workdir)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), jax.jit(model)(tokens))


def remove(*names):
    def damage(step):
        for name in names:
            shutil.rmtree(step / name)

    return damage


def truncate(step):
    for file in (step / "params").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            os.truncate(file, file.stat().st_size // 2)


def garbage(step):
    (step / "meta" / "metadata").write_text('{"format_version": 1, "st')


def meta(**changes):
    return lambda step: edit_meta(step, **changes)


DAMAGE = [
    (remove("params"), "is damaged: "),
    (truncate, "is damaged: "),
    (garbage, "not a readable pf_jax checkpoint"),
    (lambda step: (step / "meta" / "metadata").write_text("[1]"), "is damaged"),
    (lambda step: (step / "meta" / "metadata").write_bytes(b"\xff\0"), "not a readable"),
    (lambda step: (step / "meta" / "metadata").unlink(), "not a readable pf_jax checkpoint"),
    (meta(format_version="1"), "has no version"),
    (meta(format_version=None), "has no version"),
    (meta(config={}), "is of another version: The field model is missing"),
    (meta(config=None), "is of another version"),
    (meta(config__model__hologram=3), "is of another version: Unknown field model.hologram"),
    (meta(config__optimiser=3), "Unknown field optimiser; did you mean optimizer?"),
    (meta(config__model__mixer="s9"), "s9"),
    (
        meta(format_version=3, pf_jax_version="9.9"),
        r"was made by pf_jax 9\.9, whose checkpoints have format version 3; this is pf_jax \S+, "
        r"which reads up to 2\. Upgrade pf_jax\.$",
    ),
]


# Orbax lets go of the reads that it no longer waits for.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_one_clear_line(copy, damage, message):
    step = copy / "checkpoints" / "6"
    damage(step)
    with pytest.raises(UserError, match=message) as caught:
        pf_jax.load(step)
    assert "\n" not in str(caught.value)


def test_paths_of_object_stores_are_left_alone():
    assert str(checkpoint.absolute("gs://bucket/run")) == "gs://bucket/run"


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "file").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk" / "12").mkdir(parents=True)
    (tmp_path / "junk" / "notes.txt").write_text("hello")
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)  # Nothing has been saved yet.
    (tmp_path / "half" / "checkpoints" / "12.orbax-checkpoint-tmp-7" / "meta").mkdir(parents=True)
    for name in ("file", "empty", "junk", "young", "half"):
        is_file = (tmp_path / name).is_file()
        problem = "is not a checkpoint directory" if is_file else "holds no pf_jax checkpoint"
        with pytest.raises(UserError, match=f"{name} {problem}; give") as caught:
            pf_jax.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    for path in (tmp_path / "nothing", str(tmp_path / "file" / "below")):
        with pytest.raises(UserError, match="No such checkpoint directory: "):
            pf_jax.load(path)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_workdir_that_cannot_be_made(finished, tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"^Cannot write \S+: Not a directory\.$"):
        Checkpoints(tmp_path / name, finished.config, "")
