"""What breaks after it was whole: prepared data, worker processes, kinds of path."""

import multiprocessing
import os
import pathlib
import signal

import fsspec
import numpy as np
import pytest
from etils.epath import backend

from pf_jax.data import DataConfig, open_dataset, train_batches
from pf_jax.errors import UserError
from pf_jax.paths import checked_path


def config(tmp_path, **fields):
    return DataConfig("demo", 1_000, sample_rate=2_000, data_dir=str(tmp_path / "d"), **fields)


@pytest.fixture
def prepared(tmp_path):
    """The directory of a dataset that is whole."""
    open_dataset(config(tmp_path))
    (info,) = (tmp_path / "d").rglob("dataset_info.json")
    return info.parent


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [cut, empty, pathlib.Path.unlink])
@pytest.mark.parametrize(
    "name", ["dataset_info.json", "metadata.json", "demo-train_00000", "demo-test_00000"]
)
def test_damaged_data_is_named(tmp_path, prepared, damage, name):
    (path,) = prepared.glob(f"{name}*")
    damage(path)
    with pytest.raises(UserError, match="is damaged; delete that directory, and it is") as raised:
        open_dataset(config(tmp_path))
    assert str(prepared) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_damage_in_the_middle_is_named_when_it_is_read(tmp_path, prepared):
    (path,) = prepared.glob("demo-train_00000*")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4_000] = bytes(4_000)
    path.write_bytes(content)
    recordings = open_dataset(config(tmp_path)).split("train")
    with pytest.raises(UserError, match="is damaged; delete that directory") as raised:
        _ = [recordings.read(index, 0, length) for index, length in enumerate(recordings.lengths)]
    assert str(prepared) in str(raised.value)


def test_a_dead_worker_is_an_error(tmp_path):
    fields = config(tmp_path, num_workers=2, prefetch=2)
    batches = train_batches(open_dataset(fields), fields, batch_size=2, seed=0)
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    os.kill(workers[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"A data worker died .*lower data.num_workers"):
        _ = [next(batches) for _ in range(50)]


@pytest.mark.parametrize("text", ["foo://bucket/x", "http://host/x"])
def test_kinds_of_path_that_there_are_not(text):
    with pytest.raises(UserError, match=rf"--workdir={text} is no path that can be opened; give"):
        checked_path(text, "--workdir")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("Please install gcsfs"), r'needs a package .*pip install -e "\.\[gcs\]"'),
        (OSError("Name or service not known"), "cannot be reached: OSError: Name or service"),
        (RuntimeError("401, no credentials"), "cannot be reached: RuntimeError: 401"),
    ],
)
def test_a_store_that_cannot_be_used(tmp_path, monkeypatch, error, message):
    def fail(*args, **kwargs):
        raise error

    backend._FileSystemSpecBackend._get_filesystem.cache_clear()
    monkeypatch.setattr(fsspec, "filesystem", fail)
    for fields in (
        {"name": "demo", "data_dir": "gs://bucket/x"},
        {"name": "folder", "path": "gs://bucket/x"},
        {"name": "sc09", "manual_dir": "gs://bucket/x", "data_dir": str(tmp_path)},
    ):
        with pytest.raises(UserError, match=message) as raised:
            open_dataset(DataConfig(window=100, **fields))
        assert "gs://bucket/x" in str(raised.value)
        assert "\n" not in str(raised.value)
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()


def test_a_path_of_this_machine_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(checked_path("~/x", "--workdir")) == str(tmp_path / "x")


def test_a_read_outside_of_a_recording(tmp_path):
    recordings = open_dataset(config(tmp_path)).split("test")
    for index, start, stop in [(-1, 0, 1), (3, 0, 1), (0, -1, 1), (0, 5, 5), (0, 0, 48_001)]:
        with pytest.raises(IndexError):
            recordings.read(index, start, stop)
    assert np.array_equal(recordings.read(0, 47_999, 48_000), recordings.read(0, 0, 48_000)[-1:])
