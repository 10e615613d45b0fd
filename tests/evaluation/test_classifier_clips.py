"""Clips, their batches, and what augmentation does to them."""

import dataclasses
import itertools

import numpy as np
import pytest

from pf_jax.data import open_dataset
from pf_jax.data.dataset import Recordings
from pf_jax.evaluation.classifier import AugmentationConfig, mel_spectrogram
from pf_jax.evaluation.classifier.clips import (
    Clips,
    augment,
    eval_batches,
    mask,
    open_clips,
    train_batches,
)

NOTHING = AugmentationConfig(shift=0, speed=0, gain=0, noise=0, quantization=0)


@pytest.fixture(scope="module")
def clips(toy_config):
    return open_clips(open_dataset(toy_config.data), toy_config)[1]


def augmented(toy_config, waveforms, seed=0, **changes):
    how = dataclasses.replace(NOTHING, **changes)
    config = dataclasses.replace(toy_config, augmentation=how)
    return augment(waveforms.copy(), config, np.random.default_rng(seed))


def test_long_recordings_are_many_clips():
    lengths = (5, 12, 6)
    samples = [np.arange(length, dtype=np.int16) * 256 + 1 for length in lengths]
    table = {
        "name": ["a", "b", "c"],
        "length": list(lengths),
        "low": [0] * 3,
        "high": [0] * 3,
        "labels": {},
    }
    clips = Clips(Recordings(table, [{"samples": s} for s in samples]), np.array([2, 0, 1]), 5)
    assert len(clips) == 1 + 3 + 2
    assert clips.labels.tolist() == [2, 0, 0, 0, 1, 1]
    for index, (recording, start) in enumerate([(0, 0), (1, 0), (1, 5), (1, 10), (2, 0), (2, 5)]):
        piece = samples[recording][start : start + 5] / 32_768
        np.testing.assert_array_equal(clips.read([index])[0], np.pad(piece, (0, 5 - len(piece))))


def test_evaluation_hears_each_clip_once(toy_config, clips):
    config = dataclasses.replace(toy_config, batch_size=7)
    batches = list(eval_batches(clips["validation"], config))
    labels = np.concatenate([batch["label"] for batch in batches])
    assert labels[:10].tolist() == clips["validation"].labels.tolist()
    assert labels[10:].tolist() == [-1] * 4
    spectrograms = np.concatenate([batch["spectrogram"] for batch in batches])[:10]
    wanted = mel_spectrogram(clips["validation"].read(range(10)), 16_000)
    np.testing.assert_allclose(spectrograms, wanted, atol=1e-4)


def test_training_goes_through_all_clips_and_starts_anywhere(toy_config, clips):
    first = list(itertools.islice(train_batches(clips["train"], toy_config), 6))
    for epoch in range(3):  # Of 100 clips in batches of 50.
        labels = np.concatenate([batch["label"] for batch in first[2 * epoch : 2 * epoch + 2]])
        assert sorted(labels) == sorted(clips["train"].labels)
    assert any(np.any(first[i]["label"] != first[i + 2]["label"]) for i in range(4))
    later = next(train_batches(clips["train"], toy_config, 3))
    for name in later:
        np.testing.assert_array_equal(later[name], first[3][name])


def test_no_augmentation_changes_nothing(toy_config, clips):
    waveforms = clips["train"].read(range(5))
    np.testing.assert_array_equal(augmented(toy_config, waveforms), waveforms)
    spectrograms = mel_spectrogram(waveforms, 16_000)
    np.testing.assert_array_equal(
        mask(spectrograms, NOTHING, np.random.default_rng(0)), spectrograms
    )


def test_a_shift_moves_and_zeros_come_in(toy_config):
    pulse = np.zeros((200, 2_048), np.float32)
    pulse[:, 1_000] = 1
    moved = augmented(toy_config, pulse, shift=0.05)  # 800 samples.
    places = (moved * np.arange(2_048)).sum(axis=1) - 1_000
    assert places.min() < -600
    assert places.max() > 600
    assert np.abs(places).max() <= 801
    np.testing.assert_allclose(moved.sum(axis=1), 1, atol=1e-4)  # Halves of it on two samples.


def test_speed_changes_the_pitch(toy_config):
    tone = np.sin(2 * np.pi * 100 * np.arange(2_048) / 2_048)[None].repeat(50, 0)
    spectra = np.abs(np.fft.rfft(augmented(toy_config, tone.astype("f4"), speed=0.2)))
    pitches = spectra.argmax(axis=1)
    assert 80 <= pitches.min() < 90
    assert 110 < pitches.max() <= 120


def test_gain_noise_and_quantization(toy_config):
    ones = np.ones((500, 100), np.float32)
    quieter = augmented(toy_config, ones, gain=20)
    assert 0.1 <= quieter.min() < 0.12
    assert 0.85 < quieter.max() <= 1
    assert (quieter == quieter[:, :1]).all()
    noise = augmented(toy_config, 0 * ones, noise=0.1).std(axis=1)
    assert 0.05 < noise.max() < 0.15
    assert noise.min() < 3e-4
    halves = augmented(toy_config, 0.501 * ones, quantization=0.5)
    levels = toy_config.data.format
    quantized = levels.decode(levels.encode(np.float32(0.501)))
    share = np.mean(halves[:, 0] == quantized)
    assert 0.4 < share < 0.6
    assert set(halves.ravel()) == {np.float32(quantized), np.float32(0.501)}


def test_masks_are_stripes():
    how = dataclasses.replace(NOTHING, masked_bands=6, masked_frames=3)
    masked = mask(np.zeros((300, 32, 5), np.float32), how, np.random.default_rng(0)) == -80
    bands, frames = masked.all(axis=2).sum(axis=1), masked.all(axis=1).sum(axis=1)
    assert set(bands) == set(range(7))
    assert set(frames) == set(range(4))
    for clip, num_bands, num_frames in zip(masked, bands, frames, strict=True):
        assert clip.sum() == num_bands * 5 + num_frames * 32 - num_bands * num_frames
        rows = np.flatnonzero(clip.all(axis=1))
        assert len(rows) == 0 or rows[-1] - rows[0] == len(rows) - 1
