import math

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from pf_jax.audio.pictures import mel_spectrogram
from pf_jax.data.demo import compose
from pf_jax.errors import UserError
from pf_jax.evaluation.mel_statistics import mel_frechet_distance, mel_statistics

RATE = 8_000


def noise(seconds, seed=0, rate=RATE, amplitude=0.1):
    rng = np.random.default_rng(seed)
    return amplitude * rng.standard_normal(round(seconds * rate))


def music(seed):
    return compose(seed, RATE) / 32_768


def slow_statistics(clip, rate):
    """The definition, with loops."""
    size, hop = round(0.032 * rate), round(0.008 * rate)
    bands = mel_spectrogram(clip, rate, num_bands=24, window_seconds=0.032, hop_seconds=0.008)
    means, deviations, rises = [], [], []
    for band in bands:
        values = []
        for frame, decibels in enumerate(band):
            first, last = frame * hop - size / 2, frame * hop + size / 2
            if first >= 0 and last <= len(clip):
                values.append(float(decibels))
        mean = math.fsum(values) / len(values)
        means.append(mean)
        deviations.append(math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)))
        # Four hops are a window.
        up = [max(0.0, b - a) ** 2 for a, b in zip(values, values[4:], strict=False)]
        rises.append(math.sqrt(math.fsum(up) / len(up)))
    return means + deviations + rises


@settings(deadline=None, max_examples=8)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1_000, 7_919, 16_000]),
    st.sampled_from([0.1, 0.25, 0.5]),
    st.floats(0, 0.99),
)
def test_equals_the_definition_for_each_clip(seed, rate, clip_seconds, remainder):
    length = round(clip_seconds * rate)
    waveform = noise(1, seed, 3 * rate)[: 2 * length + int(remainder * length)]
    statistics = mel_statistics(waveform, rate, clip_seconds=clip_seconds)
    assert statistics.shape == (2, 72)  # What is left over after two clips is left out.
    for clip, row in zip((waveform[:length], waveform[length:]), statistics, strict=True):
        np.testing.assert_allclose(row, slow_statistics(clip[:length], rate), rtol=1e-6, atol=1e-6)


def test_a_clip_gives_the_same_wherever_it_is_cut_from():
    waveform = noise(3)
    alone = mel_statistics(waveform[RATE : 2 * RATE], RATE)
    np.testing.assert_array_equal(mel_statistics(waveform, RATE)[1:2], alone)


def test_what_the_statistics_say():
    silence, steady, pulsed = (np.zeros(RATE), noise(1), noise(1))
    pulsed *= np.arange(RATE) % (RATE // 4) < RATE // 8
    for waveform, mean, deviation, rise in (
        (silence, (-80, -80), (0, 0), (0, 0)),
        (steady, (-40, -10), (1, 8), (1, 8)),
        (pulsed, (-70, -30), (15, 40), (9, 30)),
    ):
        parts = np.split(mel_statistics(waveform, RATE)[0], 3)
        for part, (low, high) in zip(parts, (mean, deviation, rise), strict=True):
            assert (low <= part).all(), waveform
            assert (part <= high).all(), waveform


def test_ten_times_the_amplitude_is_20_db_more():
    soft, loud = (mel_statistics(noise(1, amplitude=a), RATE)[0] for a in (0.05, 0.5))
    np.testing.assert_allclose(loud[:24] - soft[:24], 20, atol=1e-4)
    np.testing.assert_allclose(loud[24:], soft[24:], atol=1e-4)
    # The distance of a set from the same, louder, is that of the means alone.
    clips = np.concatenate([mel_statistics(noise(4, seed), RATE) for seed in range(5)])
    distance, _ = mel_frechet_distance(clips, clips + np.repeat([20, 0], [24, 48]))
    assert distance == pytest.approx(24 * 20**2, rel=1e-9)


def test_distance_is_the_formula():
    rng = np.random.default_rng(0)
    reference, features = rng.normal(size=(90, 6)) * [1, 2, 3, 1, 2, 3], rng.normal(size=(70, 6))
    cov = [np.cov(rows, rowvar=False) for rows in (reference, features)]
    expected = np.sum((reference.mean(axis=0) - features.mean(axis=0)) ** 2)
    expected += np.trace(cov[0] + cov[1] - 2 * np.real(scipy.linalg.sqrtm(cov[0] @ cov[1])))
    distance, warnings = mel_frechet_distance(reference, features)
    assert distance == pytest.approx(expected, rel=1e-9)
    assert warnings == ()
    assert mel_frechet_distance(reference, reference)[0] == pytest.approx(0, abs=1e-9)


def test_music_is_nearer_to_music_than_what_spoils_it():
    reference = np.concatenate([mel_statistics(music(seed), RATE) for seed in range(5)])
    others = [music(seed) for seed in range(5, 10)]
    lowpass = scipy.signal.butter(4, 600, fs=RATE, output="sos")

    def distance(spoil):
        features = np.concatenate([mel_statistics(spoil(waveform), RATE) for waveform in others])
        return mel_frechet_distance(reference, features)[0]

    real = distance(lambda waveform: waveform)
    for spoil, factor in (
        (lambda waveform: waveform[::-1], 1.1),  # The same spectra, but no attacks.
        (lambda waveform: waveform + noise(24, amplitude=0.003), 3),
        (lambda waveform: scipy.signal.sosfilt(lowpass, waveform), 3),
        (lambda waveform: waveform[::2], 10),  # Twice as fast and an octave higher.
        (lambda waveform: noise(24), 50),
        (np.zeros_like, 50),
    ):
        assert distance(spoil) > factor * real


def test_too_few_clips_are_told():
    rng = np.random.default_rng(0)
    for reference, generated, expected in (
        (288, 288, []),
        (288, 287, ["287 generated clips, 288 or more"]),
        (72, 288, ["72 clips of real recordings cannot tell the covariance of 72 features"]),
        (73, 5, ["73 clips of real recordings, 288 or more", "5 generated clips cannot tell"]),
    ):
        distance, warnings = mel_frechet_distance(
            rng.normal(size=(reference, 72)), rng.normal(size=(generated, 72))
        )
        assert distance > 0
        assert len(warnings) == len(expected)
        for line, text in zip(warnings, expected, strict=True):
            assert line.startswith(f"mel_frechet_distance: {text}")


@pytest.mark.parametrize(
    ("waveform", "rate", "clip_seconds", "message"),
    [
        (np.zeros(7_999), RATE, 1.0, r"0.999875 s is shorter than a clip of 1 s"),
        (np.zeros(0), RATE, 1.0, "shorter than a clip"),
        (np.zeros((2, RATE)), RATE, 1.0, r"shape \(time,\)"),
        (np.zeros(RATE, np.int16), RATE, 1.0, "floating-point .* int16"),
        (np.full(RATE, np.nan), RATE, 1.0, "NaN or infinite"),
        (np.zeros(RATE), RATE, 0.05, "0.1 s or longer"),
        (np.zeros(RATE), RATE, math.nan, "0.1 s or longer"),
        (np.zeros(RATE), RATE, math.inf, "0.1 s or longer"),
        (np.zeros(RATE), 999, 1.0, "1000 samples per second"),
    ],
)
def test_recordings_without_statistics(waveform, rate, clip_seconds, message):
    with pytest.raises(UserError, match=message):
        mel_statistics(waveform, rate, clip_seconds=clip_seconds)


def test_sets_that_cannot_be_compared():
    features = np.random.default_rng(0).normal(size=(9, 72))
    with pytest.raises(UserError, match="8000 samples per second and the generated ones 16000"):
        mel_frechet_distance(features, features, sample_rates=(8_000, 16_000))
    assert mel_frechet_distance(features, features, sample_rates=(8_000, 8_000))[0] < 1e-9
    with pytest.raises(UserError, match="got 72 and 71"):
        mel_frechet_distance(features, features[:, 1:])
    with pytest.raises(UserError, match="the real recordings"):
        mel_frechet_distance(features[:1], features)
    with pytest.raises(UserError, match="infinite in the generated recordings"):
        mel_frechet_distance(features, np.full((9, 72), np.nan))
