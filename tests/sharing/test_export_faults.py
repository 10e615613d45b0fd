"""Damaged folders, and places where there is something already: one clear line, and no loss."""

import errno
import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy

import pf_jax
from pf_jax.errors import UserError
from tests.sharing.runs import STEP, about, assert_same, weights


def edit_tensors(**changes):
    """Changes tensors as somebody does who knows about the checksum."""

    def edit(place):
        path = place / "model.safetensors"
        tensors = dict(safetensors.numpy.load(path.read_bytes()))
        for name, value in changes.items():
            if value is None:
                del tensors[name]
            else:
                tensors[name] = value
        path.write_bytes(safetensors.numpy.save(tensors))
        edit_about(export__sha256=hashlib.sha256(path.read_bytes()).hexdigest())(place)

    return edit


def edit_about(**changes):
    def edit(place):
        fields = about(place)
        for name, value in changes.items():
            *sections, last = name.split("__")
            inner = fields
            for section in sections:
                inner = inner[section]
            inner[last] = value
        (place / "pf_jax.json").write_text(json.dumps(fields))

    return edit


def cut(place):
    content = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(content[:-100])


def cut_knowingly(place):
    cut(place)
    content = (place / "model.safetensors").read_bytes()
    edit_about(export__sha256=hashlib.sha256(content).hexdigest())(place)


def flip(place):
    content = bytearray((place / "model.safetensors").read_bytes())
    content[-50] ^= 1
    (place / "model.safetensors").write_bytes(content)


NOT_WRITTEN = r"is damaged: model\.safetensors is not the file that was written"
DAMAGE = [
    (cut, NOT_WRITTEN),
    (flip, NOT_WRITTEN),
    (cut_knowingly, "it is no whole file of safetensors"),
    (lambda place: (place / "model.safetensors").unlink(), "is damaged: FileNotFoundError"),
    (edit_tensors(**{"head.bias": None}), r"it lacks the tensor head\.bias"),
    (edit_tensors(tail=np.zeros(3)), "it has the tensor tail, which the model has not"),
    (
        edit_tensors(**{"head.bias": np.zeros(3, np.float32)}),
        r"head\.bias has the shape \(3,\) and not \(256,\)",
    ),
    (
        edit_tensors(**{"head.bias": np.zeros(256)}),
        r"head\.bias is of the type F64 and not float32",
    ),
    (edit_about(config__model__widths=[4, 16]), r"has the shape \(8,\) and not \(16,\)"),
    (
        lambda place: (place / "pf_jax.json").write_text('{"step'),
        "not a readable pf_jax checkpoint",
    ),
    (lambda place: (place / "pf_jax.json").write_text("{}"), "its metadata has no version"),
    (edit_about(export=None), "is damaged"),
    (edit_about(export={}), "is damaged"),
    (edit_about(export__rounded="no"), "is damaged"),
    (edit_about(export__format_version="1"), "is damaged"),
    (
        edit_about(export__format_version=2, pf_jax_version="9.9"),
        r"was made by pf_jax 9\.9, whose exported folders have format version 2; .* Upgrade pf_jax",
    ),
    (edit_about(format_version=3, pf_jax_version="9.9"), r"pf_jax 9\.9, .* Upgrade pf_jax"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_one_clear_line(copy, damage, message):
    damage(copy)
    with pytest.raises(UserError, match=message) as caught:
        pf_jax.load(copy)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


def test_what_is_in_the_place_is_never_lost(trained, copy, tmp_path):
    run, _ = trained
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    pf_jax.export(run, tmp_path / "empty")
    assert about(tmp_path / "empty")["step"] == STEP

    def refused(place, message):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match=message) as caught:
            pf_jax.export(run, place)
        assert "\n" not in str(caught.value)
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    refused(tmp_path / "file", "file is a file")
    refused(tmp_path / "file" / "below", "Cannot write .*Not a directory")
    refused(tmp_path, "exists already and is not an export")
    refused(run, "exists already and is not an export")
    (copy / "notes.txt").write_text("mine")
    refused(copy, r"holds notes\.txt, which no export makes")
    (copy / "notes.txt").unlink()
    (copy / "README.md").write_text((copy / "README.md").read_text() + "Mine.\n")
    refused(copy, r"README\.md was changed since")
    (copy / "README.md").unlink()
    flip(copy)
    pf_jax.export(run, copy, license="mit")  # A damaged one is mended.
    assert_same(weights(copy), trained[1].ema_params)
    assert about(copy)["export"]["license"] == "mit"


@pytest.mark.parametrize("when", ["writing", "moving"])
def test_a_full_disk_leaves_the_earlier_export(trained, copy, monkeypatch, when):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    full = OSError(errno.ENOSPC, "No space left on device")
    write, rename = type(copy).write_bytes, type(copy).rename

    def failing_write(path, content):
        if path.name == "model.safetensors":
            write(path, content[:100])
            raise full
        return write(path, content)

    def failing_rename(path, target):
        if path.name.endswith(".partial"):
            raise full
        return rename(path, target)

    if when == "writing":
        monkeypatch.setattr(type(copy), "write_bytes", failing_write)
    else:
        monkeypatch.setattr(type(copy), "rename", failing_rename)
    with pytest.raises(UserError, match=r"^Cannot write \S+model: No space left on device\.$"):
        pf_jax.export(trained[0], copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert [path.name for path in copy.parent.iterdir()] == ["model"]


def test_what_cannot_be_exported(trained, tmp_path):
    run, _ = trained
    (tmp_path / "junk").mkdir()
    classifier = tmp_path / "classifier" / "classifier" / "meta"
    classifier.mkdir(parents=True)
    (classifier / "metadata").write_text('{"kind": "classifier"}')
    for path, changes, message in (
        (tmp_path / "junk", {}, "holds no pf_jax checkpoint"),
        (tmp_path / "nothing", {}, "No such checkpoint directory"),
        (tmp_path / "classifier", {}, "is a classifier of sounds, not a Poolformer"),
        (run, {"license": "all rights\nreserved"}, "license must be an identifier"),
        (run, {"dtype": "float16"}, "dtype must be float32 or bfloat16, got 'float16'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            pf_jax.export(path, tmp_path / "model", **changes)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()
