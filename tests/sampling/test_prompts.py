import numpy as np
import pytest
import soundfile
import soxr

from pf_jax.audio import AudioFormat, mu_law_encode
from pf_jax.data import DataConfig, open_dataset
from pf_jax.data.windows import Windows
from pf_jax.errors import UserError
from pf_jax.sampling.prompts import read_prompt

RATE = 16_000
AUDIO = DataConfig("folder", window=4_000)


def tone(rate, seconds=0.5, frequency=440.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("quantization", ["mu_law", "linear"])
def test_what_a_model_wrote_comes_back_token_for_token(tmp_path, quantization):
    tokens = np.random.default_rng(0).permutation(np.tile(np.arange(256), 20))
    AudioFormat(RATE, quantization).write(tmp_path / "x.wav", tokens)
    data = DataConfig("folder", window=100, quantization=quantization)
    prompt = read_prompt(str(tmp_path / "x.wav"), data)
    assert prompt.name == "x.wav"
    assert prompt.tokens.dtype == np.uint8
    np.testing.assert_array_equal(prompt.tokens, tokens)
    first = read_prompt(tmp_path / "x.wav", data, seconds=0.1)
    np.testing.assert_array_equal(first.tokens, tokens[:1_600])
    longer = read_prompt(tmp_path / "x.wav", data, seconds=1e308)
    np.testing.assert_array_equal(longer.tokens, tokens)


def test_stereo_at_another_rate(tmp_path):
    left, right = tone(44_100), tone(44_100, frequency=880, amplitude=0.3)
    soundfile.write(tmp_path / "x.wav", np.stack([left, right], 1), 44_100, subtype="FLOAT")
    tokens = read_prompt(tmp_path / "x.wav", AUDIO).tokens
    expected = (tone(RATE) + tone(RATE, frequency=880, amplitude=0.3)) / 2
    assert len(tokens) == RATE // 2
    inner = slice(1_000, -1_000)  # The filter rings at the ends.
    error = AudioFormat(RATE).decode(tokens)[inner] - expected[inner]
    assert np.abs(error).max() < 0.02  # Half a level of mu-law where it is loud.
    half = read_prompt(tmp_path / "x.wav", AUDIO, seconds=0.25).tokens
    np.testing.assert_array_equal(half, tokens[:4_000])


@pytest.mark.parametrize("extension", ["flac", "ogg", "mp3"])
def test_formats(tmp_path, extension):
    soundfile.write(tmp_path / f"x.{extension}", tone(44_100), 44_100)
    tokens = read_prompt(tmp_path / f"x.{extension}", AUDIO).tokens
    decoded = AudioFormat(RATE).decode(tokens)[1_000:7_000]
    np.testing.assert_allclose(decoded, tone(RATE)[1_000:7_000], atol=0.06)


def test_overshoot_is_clipped(tmp_path):
    waveform = np.array([1.5, -1.5, 0.0, 0.5], np.float32)
    soundfile.write(tmp_path / "x.wav", waveform, RATE, subtype="FLOAT")
    tokens = read_prompt(tmp_path / "x.wav", AUDIO).tokens
    np.testing.assert_array_equal(tokens, mu_law_encode(np.clip(waveform, -1, 1)))
    stretched = DataConfig("folder", window=4, normalization="recording")
    assert read_prompt(tmp_path / "x.wav", stretched).tokens[0] == 255


def make_folder(directory):
    """Ten files at another rate, which grow louder, and whose ends are louder than their starts."""
    directory.mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        rising = np.linspace(0.1, 0.3 + 0.07 * i, 22_050)
        noise = rising * rng.uniform(-0.6, 1, 22_050)
        soundfile.write(directory / f"{i}.wav", np.stack([noise, noise / 2], 1), 22_050)


@pytest.mark.parametrize("normalization", ["none", "recording", "window"])
@pytest.mark.parametrize("quantization", ["mu_law", "linear", "sashimi_mu_law"])
def test_a_prompt_is_what_training_sees(tmp_path, normalization, quantization):
    """Of each recording, the first window as the data pipeline makes it."""
    make_folder(tmp_path / "sounds")
    data = DataConfig(
        "folder",
        window=4_000,
        path=str(tmp_path / "sounds"),
        data_dir=str(tmp_path / "data"),
        quantization=quantization,
        normalization=normalization,
    )
    recordings = open_dataset(data).split("train")
    windows = Windows(recordings, data)
    assert len(recordings) == 8
    for index, name in enumerate(recordings.names):
        prompt = read_prompt(tmp_path / "sounds" / name, data, seconds=0.25)
        np.testing.assert_array_equal(prompt.tokens, windows.tokens(index)[:4_000])
        if normalization != "window":
            prompt = read_prompt(tmp_path / "sounds" / name, data)
            np.testing.assert_array_equal(prompt.tokens, windows.tokens(index))


def test_a_prompt_longer_than_a_window_is_stretched_as_one(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.linspace(-0.1, 0.3, 1_000), RATE, subtype="FLOAT")
    data = DataConfig("folder", window=100, quantization="linear", normalization="window")
    tokens = read_prompt(tmp_path / "x.wav", data).tokens.astype(int)
    assert (tokens[0], tokens[-1]) == (0, 255)
    assert (np.diff(tokens) >= 0).all()


def test_text_is_bytes(tmp_path):
    (tmp_path / "x.txt").write_bytes("Ærø".encode() + b"\xff")
    data = DataConfig("enwik8", window=100, modality="text")
    prompt = read_prompt(tmp_path / "x.txt", data)
    assert prompt.name == "x.txt"
    assert prompt.tokens.dtype == np.uint8
    np.testing.assert_array_equal(prompt.tokens, [0xC3, 0x86, 0x72, 0xC3, 0xB8, 0xFF])
    with pytest.raises(UserError, match="has no seconds, got 2"):
        read_prompt(tmp_path / "x.txt", data, seconds=2)
    (tmp_path / "empty").touch()
    for name, reason in (("empty", "is empty"), ("none", "No such file"), ("", "Is a directory")):
        with pytest.raises(UserError, match=rf"prompt {tmp_path / name}.*{reason}[^\n]*\.$"):
            read_prompt(tmp_path / name, data)


def test_pictures_are_not_continued(tmp_path):
    with pytest.raises(UserError, match=r"prompt .*x\.png .*pictures are not continued"):
        read_prompt(tmp_path / "x.png", DataConfig("cifar10", 3_072, modality="image"))


def make_unusable(path, kind):
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("This is no sound.\n" * 20)
    elif kind == "no samples":
        soundfile.write(path, np.zeros(0), RATE)
    elif kind == "not a number":
        soundfile.write(path, np.array([0, np.nan, 0]), RATE, subtype="FLOAT")
    elif kind == "directory":
        path.mkdir()
    elif kind == "silent":
        soundfile.write(path, np.zeros(RATE), RATE)
    elif kind == "level":
        soundfile.write(path, np.full(RATE, 0.25), RATE)
    elif kind == "a whisper":
        soundfile.write(path, (1 + np.arange(RATE) % 50).astype(np.int16), RATE)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "Cannot use the prompt PATH as sound: No such file"),
        ("empty", "Cannot use the prompt PATH as sound: the file is empty"),
        ("text", "Cannot use the prompt PATH as sound: not a WAV, FLAC, OGG or MP3 file"),
        ("no samples", "Cannot use the prompt PATH as sound: it has no samples"),
        ("not a number", "Cannot use the prompt PATH as sound: .*NaN"),
        ("directory", "Cannot use the prompt PATH as sound: .*directory"),
        ("silent", "The prompt PATH is silent: all its samples are zero"),
        ("level", "The prompt PATH is silent: all its samples are one and the same level"),
        ("a whisper", "The prompt PATH is silent: all its samples are one and the same level"),
    ],
)
@pytest.mark.parametrize("normalization", ["none", "recording", "window"])
def test_unusable_sounds(tmp_path, kind, reason, normalization):
    if kind == "a whisper" and normalization != "none":
        pytest.skip("Stretched, it is no whisper.")
    make_unusable(tmp_path / "bad.wav", kind)
    data = DataConfig("x", window=100, quantization="linear", normalization=normalization)
    reason = reason.replace("PATH", str(tmp_path / "bad.wav"))
    with pytest.raises(UserError, match=rf"^{reason}[^\n]*\.$"):
        read_prompt(tmp_path / "bad.wav", data)


def test_a_silent_beginning(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.concatenate([np.zeros(RATE), tone(RATE)]), RATE)
    assert len(read_prompt(tmp_path / "x.wav", AUDIO).tokens) == 24_000
    with pytest.raises(UserError, match=r"silent: .*0\.5 s from its beginning.*more of it"):
        read_prompt(tmp_path / "x.wav", AUDIO, seconds=0.5)


def test_so_short_that_resampling_leaves_nothing(tmp_path):
    waveform = np.array([0.5])
    assert not len(soxr.resample(waveform, 96_000, RATE))
    soundfile.write(tmp_path / "x.wav", waveform, 96_000)
    with pytest.raises(UserError, match="too short"):
        read_prompt(tmp_path / "x.wav", AUDIO)


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf")])
def test_seconds(tmp_path, seconds):
    soundfile.write(tmp_path / "x.wav", tone(RATE), RATE)
    with pytest.raises(UserError, match="seconds of a prompt must be a finite number above 0"):
        read_prompt(tmp_path / "x.wav", AUDIO, seconds=seconds)
