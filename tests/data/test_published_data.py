"""Splits, windows and levels are those of the data behind published figures."""

import numpy as np
import pytest

from pf_jax.audio import sashimi_mu_law_encode
from pf_jax.data import beethoven
from pf_jax.data.recording import Recording
from pf_jax.data.windows import Windows
from tests.data.archives import config

# Of each split, the first and the last file of the published data.
PUBLISHED_FILES = {
    "beethoven": (
        "{}.wav",
        {"train": (0, 3_807), "validation": (3_808, 4_067), "test": (4_068, 4_327)},
    ),
    "youtubemix": (
        "out{:03d}.wav",
        {"train": (0, 211), "validation": (212, 225), "test": (226, 240)},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED_FILES)
def test_piano_splits_are_the_published_ones(opened, monkeypatch, name, caplog):
    pattern, splits = PUBLISHED_FILES[name]
    count = splits["test"][1] + 1
    one = np.zeros(1, np.int16)
    recordings = [Recording(pattern.format(i), one) for i in reversed(range(count))]
    monkeypatch.setattr(beethoven, "spool", lambda *args, **kwargs: (recordings, []))
    dataset, _ = opened(name)
    for split, (first, last) in splits.items():
        expected = [pattern.format(i) for i in range(first, last + 1)]
        assert list(dataset.split(split).names) == expected
    assert "do not compare" not in caplog.text


def test_piano_splits_of_another_number_of_files(opened, monkeypatch):
    """88, 6 and 6 %, rounded down as SaShiMi's code does."""
    recordings = [Recording(f"{i}.wav", np.zeros(1, np.int16)) for i in range(107)]
    monkeypatch.setattr(beethoven, "spool", lambda *args, **kwargs: (recordings, []))
    dataset, _ = opened("beethoven")
    assert [len(dataset.split(s)) for s in ("train", "validation", "test")] == [94, 6, 7]


def test_windows_of_a_whole_published_minute(opened, monkeypatch, tmp_path):
    """A shorter minute is filled up; what a longer one has left over is a window of its own."""
    minute = 960_512
    rng = np.random.default_rng(0)
    lengths = dict.fromkeys(range(33), 10) | {
        0: minute,
        1: minute - 3,
        29: minute - 5,
        31: minute + 7,
    }
    recordings = [
        Recording(f"out{i:03d}.wav", rng.integers(-9_000, 9_000, n).astype(np.int16))
        for i, n in lengths.items()
    ]
    monkeypatch.setattr(beethoven, "spool", lambda *args, **kwargs: (recordings, []))
    dataset, _ = opened("youtubemix")
    fields = config(tmp_path, "youtubemix", window=minute, quantization="sashimi_mu_law")
    found = {s: Windows(dataset.split(s), fields) for s in ("train", "validation", "test")}
    assert {split: len(windows) for split, windows in found.items()} == {
        **{"train": 29, "validation": 2, "test": 3}
    }

    tokens, numbers = found["train"].fixed(np.arange(2))
    assert tokens.shape == (2, minute)
    assert numbers.tolist() == [minute, minute - 3]
    assert (tokens[1, -3:] == 128).all()
    for row, recording in enumerate(recordings[:2]):
        expected = sashimi_mu_law_encode(recording.samples / 32_768)
        np.testing.assert_array_equal(tokens[row, : len(expected)], expected)
    # Where all of a recording is one window, training sees it from its beginning, too.
    drawn, drawn_numbers = found["train"].random(np.arange(2), np.array([0.9, 0.1]))
    np.testing.assert_array_equal(drawn, tokens)
    np.testing.assert_array_equal(drawn_numbers, numbers)

    tokens, numbers = found["test"].fixed(np.arange(3))
    assert numbers.tolist() == [minute, 7, 10]
    expected = sashimi_mu_law_encode(recordings[31].samples / 32_768)
    np.testing.assert_array_equal(np.concatenate([tokens[0], tokens[1, :7]]), expected)


def test_sc09_clips_are_filled_up_and_stretched_each_by_itself(opened, tmp_path):
    """Whole clips in windows of a second, their levels by the published formulas."""
    dataset, expected = opened("sc09")
    fields = config(
        tmp_path, "sc09", window=16_000, normalization="recording", quantization="sashimi_mu_law"
    )
    recordings = dataset.split("train")
    tokens, numbers = Windows(recordings, fields).fixed(np.arange(20))
    assert tokens.shape == (20, 16_000)
    assert set(numbers) == {16_000, 11_146}
    for row, number, name in zip(tokens, numbers, recordings.names, strict=True):
        assert (row[number:] == 128).all()
        x = expected[name] / 32_768
        x = 2 * (x - x.min()) / (x.max() - x.min() + 1e-6) - 1
        y = np.sign(x) * np.log1p(255 * np.abs(x + 1e-8)) / np.log(256)
        levels = np.floor(255.99 * (y + 1) / 2 + 0.005)
        assert np.abs(row[:number] - levels).max() <= 1
        assert (row[:number] != levels).mean() < 1e-3, "float64 differs hardly ever"


def test_beethoven_levels_are_linear(opened, tmp_path):
    dataset, expected = opened("beethoven")
    fields = config(tmp_path, "beethoven", window=128_000, quantization="linear")
    recordings = dataset.split("test")
    tokens, numbers = Windows(recordings, fields).fixed(np.arange(3))
    assert numbers.tolist() == [800, 800, 793]
    for row, number, name in zip(tokens, numbers, recordings.names, strict=True):
        x = expected[name] / 32_768
        np.testing.assert_array_equal(row[:number], np.clip(np.floor(256 * (x / 2 + 0.5)), 0, 255))
