"""Each dataset from an archive that looks like its own, against what was written into that."""

import importlib
import os
import sys

import numpy as np
import pytest
import scipy.signal

from experiments import cli
from pf_jax.data import (
    archive,
    beethoven,
    cifar10,
    enwik8,
    musicnet,
    open_dataset,
    sc09,
    youtubemix,
)
from pf_jax.data.archive import Source
from pf_jax.data.recording import Collection, Recording
from pf_jax.errors import UserError
from pf_jax.training import train
from tests import processes
from tests.data import archives
from tests.data.archives import config

FILES = {
    "musicnet": ("musicnet.tar.gz", "musicnet_metadata.csv"),
    "sc09": ("speech_commands_v0.02.tar.gz",),
    "beethoven": ("beethoven.zip",),
    "youtubemix": ("youtube_mix.zip",),
    "enwik8": ("enwik8.zip",),
    "cifar10": ("cifar-10-binary.tar.gz",),
}
AUDIO = ("musicnet", "sc09", "beethoven", "youtubemix")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(archive.pooch, "retrieve", lambda *args, **kwargs: pytest.fail("network"))


def everything(dataset):
    """Returns {split: {name: samples}}."""
    splits = {split: dataset.split(split) for split in ("train", "validation", "test")}
    return {
        split: {
            name: recordings.read(i, 0, recordings.lengths[i])
            for i, name in enumerate(recordings.names)
        }
        for split, recordings in splits.items()
    }


def test_musicnet(opened):
    dataset, expected = opened("musicnet")
    found = everything(dataset)
    assert list(found["train"]) == ["1727", "1788", "10000"], "in the order of their numbers"
    assert list(found["validation"]) == ["1876", "2131", "2567"]
    assert list(found["test"]) == ["1819", "2303"]
    assert dataset.event_columns == ("start", "end", "instrument", "note", "start_beat", "beats")
    for split, recordings in found.items():
        source = dataset.split(split)
        for index, (number, pcm) in enumerate(recordings.items()):
            waveform, notes, row = expected[number]
            assert pcm.dtype == np.int16
            assert len(pcm) == pytest.approx(len(waveform) * 160 / 441, abs=1)
            # SciPy's resampler has another filter: compare away from the ends.
            other = scipy.signal.resample_poly(waveform.astype(float), 160, 441)
            inside = slice(500, len(pcm) - 500)
            np.testing.assert_allclose(pcm[inside] / 32_768, other[: len(pcm)][inside], atol=2e-3)
            events = sorted((a / 44_100, b / 44_100, *rest) for a, b, *rest in notes)
            np.testing.assert_array_equal(source.events(index), events)
            labels = {name: values[index] for name, values in source.labels.items()}
            assert labels["composer"] == "Dvořák"
            assert labels["composition"] == "Serenade, in E"
            assert sorted(labels.values()) == sorted(row[1:])


def test_sc09(opened):
    dataset, expected = opened("sc09")
    found = everything(dataset)
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    wanted = {name: pcm for name, pcm in expected.items() if name.split("/")[0] in digits}
    assert {n for names in found.values() for n in names} == set(wanted)
    assert [len(names) for names in found.values()] == [20, 10, 10]
    assert all("/a69b9b3e_" in name for name in found["validation"])
    assert all("/c50f55b8_" in name for name in found["test"])
    for split, recordings in found.items():
        labels = dataset.split(split).labels
        for index, (name, pcm) in enumerate(recordings.items()):
            np.testing.assert_array_equal(pcm, wanted[name])
            assert labels["digit"][index] == digits.index(name.split("/")[0])
            assert labels["speaker"][index] == name.split("/")[1][:8]


@pytest.mark.parametrize(
    ("name", "counts"), [("beethoven", (44, 3, 3)), ("youtubemix", (29, 2, 2))]
)
def test_piano(opened, name, counts, caplog):
    dataset, expected = opened(name)
    assert "sound files, published figures are of" in caplog.text
    found = everything(dataset)
    assert tuple(len(recordings) for recordings in found.values()) == counts
    in_order = [n for recordings in found.values() for n in recordings]
    assert in_order == list(expected), "9 comes before 10"
    for recordings in found.values():
        for file, pcm in recordings.items():
            np.testing.assert_array_equal(pcm, expected[file])


def test_enwik8(opened):
    dataset, expected = opened("enwik8", size=50_003)
    (train,), (validation,), (test,) = (list(s.values()) for s in everything(dataset).values())
    assert (len(train), len(validation), len(test)) == (45_002, 2_500, 2_501)
    assert b"".join(map(bytes, (train, validation, test))) == expected
    assert train.dtype == np.uint8


def test_cifar10(opened):
    dataset, expected = opened("cifar10")
    found = everything(dataset)
    assert [len(recordings) for recordings in found.values()] == [90, 10, 20]
    assert list(found["train"])[19:21] == ["data_batch_1[19]", "data_batch_2[0]"]
    for split, recordings in found.items():
        for index, (name, pixels) in enumerate(recordings.items()):
            batch, number = name.rstrip("]").split("[")
            kinds, pictures = expected[batch]
            np.testing.assert_array_equal(pixels.reshape(32, 32, 3), pictures[int(number)])
            np.testing.assert_array_equal(dataset.format.decode(pixels), pictures[int(number)])
            assert dataset.split(split).labels["kind"][index] == kinds[int(number)]


@pytest.mark.parametrize("name", FILES)
def test_tfds_own_manual_folder(tmp_path, name):
    manual = tmp_path / "data" / "downloads" / "manual"
    manual.mkdir(parents=True)
    getattr(archives, name)(manual)
    assert open_dataset(config(tmp_path, name, manual_dir="")).split("test").num_samples > 0


def test_no_such_manual_folder(tmp_path):
    with pytest.raises(UserError, match=r"data\.manual_dir=.*manual is not a directory"):
        open_dataset(config(tmp_path, "sc09"))


@pytest.mark.parametrize("name", FILES)
def test_the_real_checksums_are_asked_for(tmp_path, name):
    (tmp_path / "manual").mkdir()
    getattr(archives, name)(tmp_path / "manual")
    sources = [
        source
        for source in vars(importlib.import_module(f"pf_jax.data.{name}")).values()
        if isinstance(source, Source)
    ]
    assert sorted(s.filename for s in sources) == sorted(FILES[name])
    assert all(source.url.endswith(f"/{source.filename}") for source in sources)
    strict = config(tmp_path, name, verify_checksums=True)
    if any(source.checksum for source in sources):
        with pytest.raises(UserError, match="is not the file that was expected: it has"):
            open_dataset(strict)
    else:
        open_dataset(strict)


def test_the_lists_and_numbers_that_are_fixed_here():
    """Another validation split, or a wrong checksum, would be noticed by nobody else."""
    assert musicnet.VALIDATION == ("1792", "1876", "2131", "2384", "2514", "2567")
    assert (*(4_328, 241),) == (
        beethoven.Beethoven.PUBLISHED_FILES,
        youtubemix.YouTubeMix.PUBLISHED_FILES,
    )
    known = [module.ARCHIVE for module in (musicnet, sc09, enwik8, cifar10)]
    assert [(source.size, source.checksum[-8:]) for source in known] == [
        (11_097_394_998, "4a057590"),
        (2_428_923_189, "9868ff58"),
        (36_445_475, "932534bc"),
        (170_052_171, "59bca1dd"),
    ]


def test_notes_late_in_a_long_recording(opened, tmp_path, monkeypatch):
    """Each stays with the part of the recording in which it begins, or else with the last."""
    times = np.array([[0.1], [1.3], [3.99], [4.0], [7.5], [99.0]])
    events = np.hstack([times, times + 1, np.zeros((6, 4))])
    samples = np.arange(8 * 16_000, dtype=np.int16)
    monkeypatch.setattr(
        musicnet.Musicnet,
        "collect",
        lambda self: Collection(
            {s: [Recording("x", samples, {}, events)] for s in ("train", "validation", "test")}
        ),
    )
    dataset, _ = opened("musicnet")
    recordings = dataset.split("train")
    np.testing.assert_array_equal(recordings.events(0), events)
    by_segment = [len(record["events"]) for record in recordings._records]
    assert by_segment == [1, 1, 0, 2, 0, 0, 0, 2]


MISSING = [
    ("musicnet", "train_labels/1727.csv", r"1727.wav there is nothing in its notes"),
    ("musicnet", "test_data", "lacks recordings of some split"),
    ("sc09", "validation_list.txt", "it has no validation_list.txt"),
    ("sc09", "testing_list.txt", "it has no testing_list.txt"),
    ("sc09", "c50f55b8", "lacks the clips of some split"),
    ("beethoven", ".wav", "has only 0 sound files"),
    ("cifar10", "data_batch_3", "data_batch_3.bin is missing or cut short"),
    ("cifar10", "batches.meta", "batches.meta.txt is missing or cut short"),
]


@pytest.mark.parametrize(("name", "part", "message"), MISSING)
def test_an_archive_that_lacks_something(opened, tmp_path, name, part, message):
    with pytest.raises(UserError, match=message) as raised:
        opened(name, edit=archives.without(part))
    assert FILES[name][0] in str(raised.value)
    assert not list(tmp_path.rglob("incomplete*"))
    opened(name)  # The next attempt starts clean.


def test_a_recording_that_is_not_in_the_table(opened, tmp_path):
    (tmp_path / "manual").mkdir()
    archives.musicnet(tmp_path / "manual")
    table = tmp_path / "manual" / "musicnet_metadata.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if not line.startswith("1788,")))
    with pytest.raises(UserError, match=r"1788.wav there is nothing in its musicnet_metadata.csv"):
        open_dataset(config(tmp_path, "musicnet"))
    table.write_text("<html>Not found</html>")
    with pytest.raises(UserError, match=r"musicnet_metadata.csv is not the table it should be"):
        open_dataset(config(tmp_path, "musicnet"))


def test_a_file_in_an_archive_that_is_no_sound(opened):
    def edit(members):
        return [*members, ("beethoven/50.wav", b"This is no sound.")]

    with pytest.raises(UserError, match=r"beethoven/50.wav in the archive cannot be used \(not a"):
        opened("beethoven", edit=edit)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_archive_and_then_a_whole_one(opened, tmp_path, name):
    (tmp_path / "manual").mkdir()
    getattr(archives, name)(tmp_path / "manual")
    path = tmp_path / "manual" / FILES[name][0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="is damaged or cut short") as raised:
        open_dataset(config(tmp_path, name))
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.rglob("*.array_record*"))
    opened(name)


def test_an_evil_archive(opened, tmp_path):
    with pytest.raises(UserError, match=r"'../../evil.wav', which leads out of the archive"):
        opened("youtubemix", edit=lambda members: [*members, ("../../evil.wav", b"evil")])
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("name", ["sc09", "cifar10"])
def test_a_full_disk_while_preparing(tmp_path, name):
    """No file may grow past 100 kB: once that hits the temporary file, once the prepared one."""
    (tmp_path / "manual").mkdir()
    getattr(archives, name)(tmp_path / "manual")
    fields = config(tmp_path, name)
    script = (
        "import resource, signal, sys\n"
        "from pf_jax.data import DataConfig, open_dataset\n"
        "from pf_jax.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        f"    open_dataset({fields!r})\n"
        "except UserError as error:\n"
        "    sys.exit(f'one clear line: {error}')\n"
    )
    done = processes.run([sys.executable, "-c", script], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("one clear line: Cannot write prepared data to"), done.stderr
    assert "File too large" in last
    assert "set data.data_dir to a directory that has room" in last
    assert not list(tmp_path.rglob("*.array_record*"))
    assert open_dataset(fields).split("train").num_samples > 0


@pytest.mark.parametrize("name", FILES)
def test_each_preset_trains_on_its_data(tmp_path, name, monkeypatch):
    (tmp_path / "manual").mkdir()
    getattr(archives, name)(tmp_path / "manual")
    overrides = {
        "model.widths": (8, 8),
        "model.depths": ((0, 0), 1),
        "model.pool_factors": (4,),
        "model.num_heads": 2,
        "data.data_dir": str(tmp_path / "data"),
        "data.manual_dir": str(tmp_path / "manual"),
        "data.verify_checksums": False,
        "batch_size": 2,
        "sequence_devices": 1,
        "num_steps": 3,
    }
    if name != "cifar10":
        overrides["data.window"] = 1_024
    state = train(cli.load_config(name, overrides), tmp_path / "run")
    assert state.step == 3
    if name not in ("sc09", "enwik8", "cifar10"):  # One of each kind that samples are of.
        return
    samples = tmp_path / "samples"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = ["-m", "experiments.sample", "--num_samples=1", "--num_steps=64"]
    processes.run(
        [sys.executable, *command, f"--checkpoint={tmp_path}/run", f"--output={samples}"],
        check=True,
        env=environment,
    )
    extension = {"enwik8": "txt", "cifar10": "png"}.get(name, "wav")
    assert sorted(os.listdir(samples)) == ["index.html", f"sample_000.{extension}"]
