"""Sets of sounds against real ones: which files, which rates, and what is measured."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest
import soundfile

from pf_jax import UserError
from pf_jax.audio import AudioFormat
from pf_jax.data import DataConfig, Recordings, open_dataset
from pf_jax.data.builder import SEGMENT
from pf_jax.evaluation.classifier import load_classifier
from pf_jax.evaluation.distribution import Outputs, frechet_distance, score
from pf_jax.evaluation.mel_statistics import mel_statistics
from pf_jax.evaluation.sounds import (
    classify_split,
    compare_by_classifier,
    compare_by_mel,
    no_progress,
    read_sounds,
    sound_files,
)
from tests import processes

RATE = 4_000


class Music:
    """A dataset in memory; both splits are of noise, the test split of a darker one."""

    format = AudioFormat(RATE)

    def __init__(self):
        rng = np.random.default_rng(0)
        self.pcm = {
            name: [
                (8_000 * np.convolve(rng.normal(size=n), np.ones(width) / width, "same")).astype(
                    np.int16
                )
                for n in rng.integers(10 * RATE, 20 * RATE, 3)
            ]
            for name, width in (("train", 2), ("test", 3))
        }

    def split(self, name):
        pcm = self.pcm[name]
        records = [
            {"samples": p[at : at + SEGMENT]} for p in pcm for at in range(0, len(p), SEGMENT)
        ]
        table = {
            "name": [str(i) for i in range(len(pcm))],
            "length": [len(p) for p in pcm],
            "low": [int(p.min()) for p in pcm],
            "high": [int(p.max()) for p in pcm],
            "labels": {},
        }
        return Recordings(table, records)


def write(path, waveform, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, rate, subtype="PCM_16")


def test_files_are_found_and_their_rates_compared(tmp_path):
    for name in ("b.wav", "a.flac", "deeper/c.WAV"):
        write(tmp_path / name, np.zeros(10) + 0.1)
    (tmp_path / "notes.txt").touch()
    files = sound_files(tmp_path)
    assert [path.name for path in files] == ["a.flac", "b.wav", "c.WAV"]
    assert [len(waveform) for waveform in read_sounds(files, RATE)] == [10, 10, 10]
    write(tmp_path / "d.wav", np.zeros(10), 8_000)
    with pytest.raises(UserError, match=r"d\.wav has 8,000 .* of 4,000: resample it first"):
        list(read_sounds(sound_files(tmp_path), RATE))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no sound files"):
        sound_files(tmp_path / "empty")
    with pytest.raises(UserError, match="is not a directory"):
        sound_files(tmp_path / "b.wav")


def test_mel_statistics_are_of_sounds_as_the_model_meets_them(tmp_path):
    music, config = Music(), DataConfig("music", window=7 * RATE, sample_rate=RATE)
    rng = np.random.default_rng(1)
    sounds = [0.1 * rng.normal(size=n) for n in (20 * RATE, RATE // 2, 10 * RATE)]
    for number, sound in enumerate(sounds):
        write(tmp_path / f"{number}.wav", sound)
    result = compare_by_mel(sound_files(tmp_path), music, config, music.format, "test")

    def of_split(name):
        quantized = [music.format.decode(music.format.encode(p / 2**15)) for p in music.pcm[name]]
        windows = [p[i : i + config.window] for p in quantized for i in range(0, len(p), 7 * RATE)]
        return np.concatenate([mel_statistics(w, RATE) for w in windows if len(w) >= RATE])

    heard = [soundfile.read(tmp_path / f"{number}.wav")[0] for number in (0, 2)]
    heard = np.concatenate([mel_statistics(sound, RATE) for sound in heard])
    assert result["value"] == pytest.approx(frechet_distance(of_split("test"), heard), rel=1e-5)
    of_train = frechet_distance(of_split("test"), of_split("train"))
    assert result["train"] == pytest.approx(of_train, rel=1e-5)
    assert result["num_clips"] == 30
    assert any("generated clips" in warning for warning in result["warnings"])
    short = compare_by_mel(sound_files(tmp_path)[1:2], music, config, music.format, "test")
    assert short["value"] is None
    assert "0 clips of a second" in short["warnings"][0]


def test_a_classifier_tells_the_training_clips_from_noise(trained, tmp_path):
    dataset = open_dataset(trained.config.data)
    classifier = load_classifier(trained.workdir)
    train = dataset.split("train")
    for number in range(len(train)):
        pcm = train.read(number, 0, train.lengths[number])
        write(tmp_path / "real" / f"{number:03d}.wav", pcm, 16_000)
    rng = np.random.default_rng(2)
    for number in range(60):
        write(tmp_path / "noise" / f"{number:02d}.wav", 0.1 * rng.normal(size=3_000), 16_000)
    real, noise = (
        compare_by_classifier(
            sound_files(tmp_path / name), classifier, dataset, seed=0, progress=no_progress
        )
        for name in ("real", "noise")
    )
    outputs = classify_split(classifier, dataset, "train")
    assert isinstance(outputs, Outputs)
    assert real["fid"] == pytest.approx(0, abs=1e-6)
    assert real["ndb"] == 0
    expected = score(classify_split(classifier, dataset, "test"), outputs).to_dict()
    assert noise["test"] == real["test"]
    for name, value in expected.items():
        if isinstance(value, int | float):
            assert real["test"][name] == pytest.approx(value, rel=1e-5)
    assert noise["fid"] > 5 * real["test"]["fid"]
    assert noise["inception_score"] < real["inception_score"]
    assert real["classifier"]["accuracy"] == classifier.accuracy
    assert any("60 generated sounds" in warning for warning in noise["warnings"])

    other = dataclasses.replace(trained.config.data, sample_rate=8_000)
    with pytest.raises(UserError, match=r"hears 16000 samples per second.*8000"):
        compare_by_classifier([], classifier, open_dataset(other), seed=0, progress=no_progress)


def test_a_folder_is_measured_by_one_command(trained, tmp_path):
    rng = np.random.default_rng(3)
    for number in range(12):
        write(tmp_path / "sounds" / f"{number}.wav", 0.1 * rng.normal(size=2_048), 16_000)
    done = processes.run(
        [
            *(sys.executable, "-m", "experiments.evaluate", f"--samples={tmp_path / 'sounds'}"),
            *(f"--classifier={trained.workdir}", f"--output={tmp_path / 'out'}"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["distribution"]
    assert found["num_generated"] == 12
    assert f"{found['fid']:.4g}" in done.stdout
    assert "warning: fid: 12 generated sounds" in done.stderr
    page = (tmp_path / "out" / "index.html").read_text()
    assert f"{found['am_score']:.4g}" in page
    assert f"{found['test']['fid']:.4g}" in page
