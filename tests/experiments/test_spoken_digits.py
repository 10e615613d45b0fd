"""Speech that is made on the spot passes for Speech Commands."""

import shutil

import numpy as np
import pytest

from benchmarks import spoken_digits
from experiments import cli
from pf_jax.data import open_dataset


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_spoken_digits_are_an_archive_that_sc09_reads(tmp_path):
    names = spoken_digits.voices(12)
    assert len(set(names)) == 12
    np.testing.assert_array_equal(
        spoken_digits.speak("seven", names[0], 0), spoken_digits.speak("seven", names[0], 0)
    )
    spoken_digits.write_archive(tmp_path / "archive", names[:3], takes=1)
    config = cli.load_config(
        "digits_classifier",
        {
            "data.manual_dir": str(tmp_path / "archive"),
            "data.data_dir": str(tmp_path / "data"),
            "data.verify_checksums": False,
        },
    )
    dataset = open_dataset(config.data)
    speakers = set()
    for split in ("train", "validation", "test"):
        recordings = dataset.split(split)
        assert sorted(recordings.labels["digit"]) == list(range(10))
        assert set(recordings.lengths) == {16_000}
        (speaker,) = set(recordings.labels["speaker"])
        speakers.add(speaker)
        loudness = [np.abs(recordings.read(i, 0, 16_000).astype(int)).max() for i in range(10)]
        assert min(loudness) > 0.05 * 2**15
    assert len(speakers) == 3  # No voice is in two splits.
