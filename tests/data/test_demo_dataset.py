import numpy as np
import pytest

from pf_jax.data import DataConfig, demo, open_dataset

RATE = 8_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    place = str(tmp_path_factory.mktemp("data"))
    return open_dataset(DataConfig("demo", window=4_096, sample_rate=RATE, data_dir=place))


def test_is_the_same_each_time(dataset):
    train = dataset.split("train")
    np.testing.assert_array_equal(train.read(7, 0, train.lengths[7]), demo.compose((0, 7), RATE))


def test_minutes_of_each_split(dataset):
    minutes = {s: dataset.split(s).num_samples / RATE / 60 for s in ("train", "validation", "test")}
    assert minutes == {"train": 12.0, "validation": 1.2, "test": 1.2}
    assert dataset.skipped == []


def test_no_recording_is_in_two_splits(dataset):
    starts = [
        dataset.split(split).read(index, 0, 16_000).tobytes()
        for split in ("train", "validation", "test")
        for index in range(len(dataset.split(split)))
    ]
    assert len(set(starts)) == len(starts)


@pytest.mark.parametrize("sample_rate", [2_000, 16_000])
def test_other_rates_are_the_same_music(sample_rate):
    slow, fast = demo.compose(3, 8_000), demo.compose(3, sample_rate)
    assert len(fast) / sample_rate == len(slow) / 8_000 == 24
    envelope = [
        np.abs(pcm.astype(float)).reshape(-1, rate // 4).mean(axis=1)
        for pcm, rate in ((slow, 8_000), (fast, sample_rate))
    ]
    assert np.corrcoef(*envelope)[0, 1] > 0.95


def test_sounds_like_notes():
    """Each note is one of the scale, starts and ends without a click, and decays."""
    pcm = demo.compose(0, RATE) / 32_768
    assert 0.3 < np.abs(pcm).max() < 1
    scale = [110 * 2 ** (octave + s / 12) for octave in range(4) for s in (0, 3, 5, 7, 10)]
    for start in range(0, len(pcm) - 2_000, 2_000):
        spectrum = np.abs(np.fft.rfft(pcm[start : start + 2_000] * np.hanning(2_000), 16_000))
        peak = np.argmax(spectrum) * RATE / 16_000
        assert min(abs(1_200 * np.log2(peak / f)) for f in scale) < 35, f"{peak} Hz at {start}"
    for start in range(0, len(pcm) - 256, 128):
        spectrum = np.abs(np.fft.rfft(pcm[start : start + 256] * np.blackman(256))) ** 2
        # Above the fourth harmonic of the highest note, nothing but clicks could be.
        assert spectrum[120:].sum() < 1e-4 * (spectrum.sum() + 1e-2), f"a click near {start}"
    last = pcm[-2 * RATE :]  # The last bar is one note that fades away.
    loudness = np.sqrt((last.reshape(8, -1) ** 2).mean(axis=1))
    assert (np.diff(loudness) < 0).all()
