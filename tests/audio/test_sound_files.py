import numpy as np
import pytest
import soundfile

from pf_jax import audio
from pf_jax.errors import UserError


def sine(frequency, sample_rate, seconds=0.5, amplitude=0.5):
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    return amplitude * np.sin(2 * np.pi * frequency * time)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "some" / "new" / "directory" / "sound.wav"
    waveform = sine(440, 16_000).astype(np.float32)
    audio.write(path, waveform, 16_000)
    read, rate = audio.read(str(path))
    assert rate == 16_000
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, audio.to_pcm(waveform) / np.float32(32_768))
    info = soundfile.info(path)
    assert (info.channels, info.subtype, info.samplerate) == (1, "PCM_16", 16_000)


def test_writing_clips(tmp_path):
    audio.write(tmp_path / "loud.wav", [2.0, -2.0, 0.0], 16_000)
    read, _ = audio.read(tmp_path / "loud.wav")
    np.testing.assert_array_equal(read, np.float32([32_767 / 32_768, -1, 0]))


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
def test_formats_are_read_and_mixed_to_the_mean_of_their_channels(tmp_path, extension):
    path = tmp_path / f"sound.{extension}"
    left, right = sine(440, 44_100, amplitude=0.6), sine(880, 44_100, amplitude=0.2)
    soundfile.write(path, np.stack([left, right], axis=1), 44_100)
    waveform, rate = audio.read(path)
    assert rate == 44_100
    inner = slice(4_000, 20_000)  # Lossy formats are inexact at the ends.
    tolerance = {"wav": 1e-4, "flac": 1e-4, "ogg": 0.05, "mp3": 0.05}[extension]
    np.testing.assert_allclose(
        waveform[inner], ((left + right) / 2).astype(np.float32)[inner], atol=tolerance
    )


@pytest.mark.parametrize(("source", "target"), [(22_050, 16_000), (8_000, 16_000), (48_000, 8_000)])
def test_resampling_keeps_a_sine(tmp_path, source, target):
    soundfile.write(tmp_path / "sine.wav", sine(1_000, source), source, subtype="FLOAT")
    waveform, rate = audio.read(tmp_path / "sine.wav", sample_rate=target)
    expected = sine(1_000, target)
    assert rate == target
    assert waveform.shape == expected.shape
    inner = slice(target // 10, -target // 10)  # The filter rings at the ends.
    np.testing.assert_allclose(waveform[inner], expected[inner], atol=2e-4)


def test_resampling_removes_what_the_new_rate_cannot_hold(tmp_path):
    soundfile.write(tmp_path / "high.wav", sine(7_000, 48_000), 48_000, subtype="FLOAT")
    waveform, _ = audio.read(tmp_path / "high.wav", sample_rate=8_000)
    assert np.abs(waveform[800:-800]).max() < 1e-3


def make_unusable(path, kind):
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("This is no sound.\n" * 20)
    elif kind == "no samples":
        soundfile.write(path, np.zeros(0), 16_000)
    elif kind == "cut short":
        soundfile.write(path, np.zeros(1_000), 16_000)
        path.write_bytes(path.read_bytes()[:20])
    elif kind == "not a number":
        soundfile.write(path, np.array([0, np.nan, 0]), 16_000, subtype="FLOAT")
    elif kind == "infinite":
        soundfile.write(path, np.array([0, np.inf, 0]), 16_000, subtype="FLOAT")
    elif kind == "directory":
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "No such file"),
        ("empty", "the file is empty"),
        ("text", "not a WAV, FLAC, OGG or MP3 file"),
        ("cut short", "not a WAV, FLAC, OGG or MP3 file|no samples"),
        ("no samples", "no samples"),
        ("not a number", "NaN or infinite"),
        ("infinite", "NaN or infinite"),
        ("directory", "directory"),
    ],
)
def test_unusable_files_are_named_with_the_reason(tmp_path, kind, reason):
    path = tmp_path / "bad.wav"
    make_unusable(path, kind)
    with pytest.raises(UserError, match=reason) as caught:
        audio.read(path, 16_000)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) not in caught.value.reason


def test_writing_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"Cannot write .*sound\.wav: "):
        audio.write(tmp_path / "file" / "sound.wav", np.zeros(10), 16_000)
    with pytest.raises(UserError, match="shape"):
        audio.write(tmp_path / "sound.wav", np.zeros((2, 10)), 16_000)
    with pytest.raises(UserError, match="NaN"):
        audio.write(tmp_path / "sound.wav", [np.nan], 16_000)
