import os
import pathlib

import numpy as np
import pytest
import soundfile

from pf_jax.data import DataConfig, folder, open_dataset
from pf_jax.data.recording import Recording
from pf_jax.errors import UserError

RATE = 16_000


def config(tmp_path, path=None, **fields):
    fields = {"window": 1_000, "sample_rate": RATE, "data_dir": str(tmp_path / "data")} | fields
    return DataConfig("folder", path=str(path or tmp_path / "sounds"), **fields)


def write(path, seconds, rate=RATE, channels=1, frequency=440.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    tone = 0.5 * np.sin(2 * np.pi * frequency * time)
    soundfile.write(path, np.stack([tone] * channels, axis=1), rate)


def samples(dataset):
    """Returns {(split, name): pcm}."""
    return {
        (split, name): dataset.split(split).read(i, 0, dataset.split(split).lengths[i])
        for split in ("train", "validation", "test")
        for i, name in enumerate(dataset.split(split).names)
    }


def test_a_folder_with_quirks(tmp_path, monkeypatch):
    sounds = tmp_path / "sounds"
    for i in range(6):
        write(sounds / "digits" / f"plain {i}.wav", 0.5, frequency=300 + 50 * i)
    write(sounds / "rate.wav", 0.5, rate=22_050)
    write(sounds / "renamed.wav", 0.5)
    (sounds / "renamed.wav").rename(sounds / os.fsdecode(b"not utf-8 \xff.wav"))
    write(sounds / "deep" / "er" / "stereo.WAV", 0.5, channels=2)
    write(sounds / "slow.wav", 0.5, rate=8_000)
    write(sounds / "lossless.flac", 0.5)
    write(sounds / "vorbis.Ogg", 0.5)
    write(sounds / "layer three.mp3", 0.5, rate=44_100)
    soundfile.write(sounds / "silent.wav", np.zeros(RATE), RATE)
    (sounds / "empty.wav").write_bytes(b"")
    (sounds / "text.wav").write_text("Not a sound.")
    soundfile.write(sounds / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    write(sounds / "blip.wav", 0.01)
    os.symlink(sounds / "nowhere", sounds / "broken link.wav")
    write(sounds / ".hidden.wav", 0.5)
    write(sounds / ".cache" / "hidden.wav", 0.5)
    (sounds / "notes.txt").write_text("Passed over without a word.")
    (sounds / "telephone.M4A").write_text("Named.")
    write(sounds / "apple.aiff", 0.5)

    dataset = open_dataset(config(tmp_path))
    reasons = dict(dataset.skipped)
    assert set(reasons) == {
        *("empty.wav", "text.wav", "nan.wav", "blip.wav", "broken link.wav", "telephone.M4A")
    }
    assert reasons["empty.wav"] == "the file is empty"
    assert "not a WAV" in reasons["text.wav"]
    assert "NaN" in reasons["nan.wav"]
    assert "convert it to FLAC or WAV" in reasons["telephone.M4A"]
    assert "too short (0.010 s" in reasons["blip.wav"]
    assert "No such file" in reasons["broken link.wav"]
    found = samples(dataset)
    names = [name for _, name in found]
    assert len(names) == len(set(names)) == 15, "each usable file is in one split"
    assert {split for split, _ in found} == {"train", "validation", "test"}
    for (_, name), pcm in found.items():
        tolerance = 0.1 if name.endswith(("mp3", "Ogg")) else 0
        seconds = 1 if name == "silent.wav" else 0.5
        assert abs(len(pcm) / RATE - seconds) <= tolerance, name
        loudness = np.sqrt(np.mean((pcm / 32_768) ** 2))
        assert loudness == pytest.approx(0 if name == "silent.wav" else 0.5 / 2**0.5, abs=0.03)

    monkeypatch.delattr(folder.Folder, "collect")  # An unchanged folder is not prepared again.
    assert open_dataset(config(tmp_path)).skipped == dataset.skipped


def test_few_files_are_divided_by_time(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path / "sounds" / f"{name}.wav", 1.0)
    dataset = open_dataset(config(tmp_path))
    found = samples(dataset)
    whole, _ = soundfile.read(tmp_path / "sounds" / "b.wav", dtype="int16")
    np.testing.assert_array_equal(found["train", "b.wav[0:14400]"], whole[:14_400])
    np.testing.assert_array_equal(found["validation", "b.wav[14400:15200]"], whole[14_400:15_200])
    np.testing.assert_array_equal(found["test", "b.wav[15200:16000]"], whole[15_200:])
    assert len(found) == 9


def test_the_shortest_file_fills_every_split(tmp_path):
    write(tmp_path / "sounds" / "a.wav", 0.1, rate=1_000)
    dataset = open_dataset(config(tmp_path, sample_rate=1_000))
    assert sorted(len(pcm) for pcm in samples(dataset).values()) == [5, 5, 90]


@pytest.mark.parametrize("count", [10, 11, 30, 200])
def test_splits_by_file(count):
    recordings = [Recording(f"file {i}.wav", np.zeros(3, np.int16)) for i in range(count)]
    splits = folder.split_by_file(recordings)
    names = {split: [r.name for r in rs] for split, rs in splits.items()}
    assert sorted(n for ns in names.values() for n in ns) == sorted(r.name for r in recordings)
    assert len(names["validation"]) == len(names["test"]) == max(1, round(count / 20))
    reordered = folder.split_by_file(recordings[::-1])
    for split, expected in names.items():
        assert {r.name for r in reordered[split]} == set(expected)


@pytest.mark.parametrize("change", ["content", "new file", "removed", "renamed"])
def test_a_changed_folder_is_prepared_anew(tmp_path, change):
    sounds = tmp_path / "sounds"
    for name in ("a", "b"):
        write(sounds / f"{name}.wav", 0.5)
    before = samples(open_dataset(config(tmp_path)))
    if change == "content":
        write(sounds / "a.wav", 0.5, frequency=880.0)  # The same size, within a second.
    elif change == "new file":
        write(sounds / "c.wav", 0.5)
    elif change == "removed":
        (sounds / "a.wav").unlink()
    else:
        (sounds / "a.wav").rename(sounds / "c.wav")
    after = samples(open_dataset(config(tmp_path)))
    assert after.keys() != before.keys() or any(
        not np.array_equal(after[key], before[key]) for key in after
    )


def test_rates_are_kept_apart(tmp_path):
    write(tmp_path / "sounds" / "a.wav", 1.0)
    slow = open_dataset(config(tmp_path, sample_rate=8_000))
    fast = open_dataset(config(tmp_path))
    assert fast.split("train").num_samples == 2 * slow.split("train").num_samples == 14_400


def test_a_relative_path_and_the_home_directory(tmp_path, monkeypatch):
    write(tmp_path / "sounds" / "a.wav", 0.5)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    places = {
        str(folder.Folder(config(tmp_path, path)).data_dir)
        for path in ("sounds", "./sounds/", "~/sounds", str(tmp_path / "sounds"))
    }
    assert len(places) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "needs data.path"),
        ("nowhere", "does not exist"),
        ("file.wav", "not a directory"),
        ("no sounds", "holds no sound files"),
        ("no good", "can be used; the first of 2 is a.wav: the file is empty"),
    ],
)
def test_folders_without_sound(tmp_path, path, message):
    (tmp_path / "file.wav").write_text("")
    (tmp_path / "no sounds").mkdir()
    (tmp_path / "no good").mkdir()
    (tmp_path / "no good" / "a.wav").write_text("")
    (tmp_path / "no good" / "b.mp3").write_text("text")
    full = str(tmp_path / path) if path else ""
    bad = DataConfig("folder", window=10, path=full, data_dir=str(tmp_path / "data"))
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(bad)
    assert "\n" not in str(caught.value)
    assert not list(pathlib.Path(tmp_path).rglob("dataset_info.json"))
