"""gs:// paths, in a store that is a directory here and names things as Google's does."""

import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry

from pf_jax import audio
from pf_jax.data import DataConfig, demo, open_dataset
from pf_jax.errors import UserError
from tests.data import archives


@pytest.fixture(autouse=True)
def bucket(monkeypatch, tmp_path):
    """The directory that is the bucket; the cache is another one."""

    class Store(DirFileSystem):
        protocol = ("gcs", "gs")

        def __init__(self, **options):
            super().__init__(str(tmp_path / "store"), LocalFileSystem(auto_mkdir=True))

        @classmethod
        def _strip_protocol(cls, path):
            return str(path).rpartition("://")[2].strip("/")

        def walk(self, path, *args, **kwargs):
            return super().walk(self._strip_protocol(path), *args, **kwargs)

    get = backend._FileSystemSpecBackend._get_filesystem
    get.cache_clear()
    monkeypatch.setitem(_registry, "gcs", Store)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "store" / "bucket"
    get.cache_clear()


def test_prepared_data_goes_to_the_store_and_comes_from_there(bucket, tmp_path, monkeypatch):
    config = DataConfig("demo", 100, sample_rate=2_000, data_dir="gs://bucket/data")
    pcm = open_dataset(config).split("test").read(2, 0, 48_000)
    np.testing.assert_array_equal(pcm, demo.compose((2, 2), 2_000))
    kept = bucket / "data" / "pf_jax" / "2000hz" / "demo" / "2.0.0"
    assert (kept / "dataset_info.json").exists()

    monkeypatch.delattr(demo.Demo, "collect")
    open_dataset(config)  # The copy on this machine is there.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    monkeypatch.setattr(demo.Demo, "__abstractmethods__", frozenset())
    np.testing.assert_array_equal(open_dataset(config).split("test").read(2, 0, 48_000), pcm)


def test_an_upload_that_was_cut_short_is_made_again(bucket, tmp_path, monkeypatch):
    config = DataConfig("demo", 100, sample_rate=2_000, data_dir="gs://bucket/data")
    open_dataset(config)
    kept = bucket / "data" / "pf_jax" / "2000hz" / "demo" / "2.0.0"
    (kept / "dataset_info.json").unlink()  # It comes last.
    next(kept.glob("*test*")).unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    assert open_dataset(config).split("test").num_samples == 144_000
    assert (kept / "dataset_info.json").exists()
    assert list(kept.glob("*test*"))


def test_an_upload_that_failed_is_finished_by_the_next_run(bucket, tmp_path, monkeypatch):
    config = DataConfig("demo", 100, sample_rate=2_000, data_dir="gs://bucket/data")
    kept = bucket / "data" / "pf_jax" / "2000hz" / "demo" / "2.0.0"
    written = []
    local = type(epath.Path("x"))
    copy = local.copy

    def failing_copy(source, *args, **kwargs):
        if len(written) == 3:
            raise ConnectionResetError("connection reset")
        written.append(1)
        return copy(source, *args, **kwargs)

    monkeypatch.setattr(local, "copy", failing_copy)
    with pytest.raises(UserError, match=r"Cannot copy .*gs://bucket/data.*connection reset"):
        open_dataset(config)
    assert not (kept / "dataset_info.json").exists(), "what marks it as whole comes last"
    written.extend([0] * 10)
    open_dataset(config)
    assert (kept / "dataset_info.json").exists()
    assert sorted(p.name for p in kept.iterdir()) == sorted(
        p.name for p in next((tmp_path / "cache").rglob("dataset_info.json")).parent.iterdir()
    )


def test_two_places_in_a_store_are_two_copies_here(bucket, tmp_path):
    for number, place in enumerate(("one", "two")):
        (bucket / place / "downloads" / "manual").mkdir(parents=True)
        archives.enwik8(bucket / place / "downloads" / "manual", size=10_000 * (number + 1))
        config = DataConfig(
            "enwik8",
            100,
            modality="text",
            data_dir=f"gs://bucket/{place}",
            verify_checksums=False,
        )
        assert open_dataset(config).split("train").num_samples == 9_000 * (number + 1)


def test_a_folder_of_sounds_in_a_store(bucket, tmp_path):
    rng = np.random.default_rng(0)
    expected = {}
    for number in range(12):
        name = f"deep/{number}.wav" if number % 2 else f"{number}.wav"
        expected[name] = rng.uniform(-1, 1, 1_000).astype(np.float32)
        audio.write(epath.Path("gs://bucket/sounds") / name, expected[name], 2_000)
    assert (bucket / "sounds" / "deep" / "11.wav").exists()
    config = DataConfig(
        "folder", 100, path="gs://bucket/sounds", sample_rate=2_000, data_dir=str(tmp_path / "d")
    )
    dataset = open_dataset(config)
    found = {}
    for split in ("train", "validation", "test"):
        recordings = dataset.split(split)
        found |= {name: recordings.read(i, 0, 1_000) for i, name in enumerate(recordings.names)}
    assert set(found) == set(expected)
    for name, pcm in found.items():
        np.testing.assert_array_equal(pcm, audio.to_pcm(expected[name]))


def test_archives_in_a_store(bucket, tmp_path):
    (bucket / "archives").mkdir(parents=True)
    expected = archives.sc09(bucket / "archives")
    config = DataConfig(
        "sc09",
        100,
        manual_dir="gs://bucket/archives",
        data_dir=str(tmp_path / "d"),
        verify_checksums=False,
    )
    recordings = open_dataset(config).split("test")
    np.testing.assert_array_equal(
        recordings.read(0, 0, recordings.lengths[0]), expected[recordings.names[0]]
    )
