"""Spectrograms are those of librosa, and of the definition written out in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pf_jax.errors import UserError
from pf_jax.evaluation.classifier.spectrogram import mel_bands, mel_spectrogram
from tests.evaluation.make_torch_fixture import FIXTURES, sounds


@pytest.fixture(scope="module")
def librosa():
    return np.load(FIXTURES / "librosa.npz")


@pytest.mark.parametrize("edges", ["reflect", "constant"])
def test_as_librosa(librosa, edges):
    spectrograms = mel_spectrogram(sounds(), 16_000, edges=edges)
    assert spectrograms.shape == (3, 32, 32)
    assert spectrograms.dtype == np.float32
    assert spectrograms.min() == -80
    np.testing.assert_allclose(spectrograms, librosa[edges], atol=1e-4)
    assert np.abs(librosa["reflect"] - librosa["constant"]).max() > 1  # They can be told apart.


def test_as_librosa_at_another_rate_and_length(librosa):
    spectrograms = mel_spectrogram(sounds()[:, :7_000], 8_000)
    assert spectrograms.shape == (3, 32, 14)
    np.testing.assert_allclose(spectrograms, librosa["at_8000"], atol=1e-4)


def mel(hertz):
    if hertz < 1_000:
        return hertz * 3 / 200
    return 15 + np.log(hertz / 1_000) * 27 / np.log(6.4)


def hertz(mel):
    return mel * 200 / 3 if mel < 15 else 1_000 * np.exp((mel - 15) * np.log(6.4) / 27)


def by_hand(waveform, rate, edges):
    """One clip, frame by frame, band by band, with the discrete Fourier transform written out."""
    mirrored = np.concatenate([waveform[1024:0:-1], waveform, waveform[-2:-1026:-1]])
    zeros = np.zeros(1024)
    padded = mirrored if edges == "reflect" else np.concatenate([zeros, waveform, zeros])
    window = np.sin(np.pi * np.arange(2048) / 2048) ** 2
    angles = np.outer(np.arange(1025), np.arange(2048)) % 2048
    transform = np.exp(-2j * np.pi * angles / 2048)
    corners = [hertz(m) for m in np.linspace(0, mel(rate / 2), 34)]
    frames = []
    for start in range(0, len(padded) - 2047, 512):
        power = np.abs(transform @ (padded[start : start + 2048] * window)) ** 2
        bands = []
        for low, middle, high in zip(corners, corners[1:], corners[2:], strict=False):
            total = 0.0
            for number, value in enumerate(power):
                f = number * rate / 2048
                if low < f <= middle:
                    total += value * (f - low) / (middle - low) * 2 / (high - low)
                elif middle < f < high:
                    total += value * (high - f) / (high - middle) * 2 / (high - low)
            bands.append(total)
        frames.append(bands)
    power = np.maximum(np.array(frames).T, 1e-10)
    decibels = 10 * np.log10(power / power.max())
    return np.maximum(decibels, -80)


@pytest.mark.parametrize("edges", ["reflect", "constant"])
def test_as_the_definition(edges):
    waveform = sounds()[1, :3_000].astype(np.float64)
    expected = by_hand(waveform, 11_025, edges)
    actual = mel_spectrogram(waveform[None], 11_025, edges=edges)[0]
    np.testing.assert_allclose(actual, expected, atol=1e-3)


@settings(deadline=None, max_examples=20)
@given(
    clips=st.integers(0, 40),
    samples=st.integers(1_025, 6_000),
    gain=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
def test_clips_do_not_depend_on_each_other_nor_on_loudness(clips, samples, gain, seed):
    waveforms = np.random.default_rng(seed).standard_normal((clips, samples)).astype(np.float32)
    spectrograms = mel_spectrogram(waveforms, 16_000)
    assert spectrograms.shape == (clips, 32, 1 + samples // 512)
    if clips:
        alone = mel_spectrogram(np.float32(gain) * waveforms[-1:], 16_000)
        np.testing.assert_allclose(alone[0], spectrograms[-1], atol=1e-3)
        np.testing.assert_allclose(spectrograms.max(axis=(1, 2)), 0, atol=1e-5)


def test_silence_is_flat():
    assert not mel_spectrogram(np.zeros((2, 4_000)), 16_000).any()


def test_bands_cover_all_frequencies_and_have_one_area():
    bands = mel_bands(44_100)
    assert (bands[:, 1:-1].sum(axis=0) > 0).all()
    np.testing.assert_allclose(bands.sum(axis=1) * 44_100 / 2048, 1, rtol=0.2)


@pytest.mark.parametrize(
    ("waveforms", "options", "message"),
    [
        (np.zeros((1, 1_024)), {}, "more than 1024 samples to be classified, got 1024"),
        (np.full((1, 2_000), np.nan), {}, "NaN or infinite"),
        (np.zeros((1, 2_000)), {"edges": "wrap"}, "edges must be reflect or constant"),
    ],
)
def test_mistakes(waveforms, options, message):
    with pytest.raises(UserError, match=message):
        mel_spectrogram(waveforms, 16_000, **options)
