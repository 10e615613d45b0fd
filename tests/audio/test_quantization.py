import io

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from pf_jax import audio
from pf_jax.errors import UserError

LEVELS = np.arange(256)
QUANTIZERS = {
    "mu_law": (audio.mu_law_encode, audio.mu_law_decode),
    "linear": (audio.linear_encode, audio.linear_decode),
}
both = pytest.mark.parametrize(("encode", "decode"), QUANTIZERS.values(), ids=QUANTIZERS)


@both
def test_every_level_comes_back(encode, decode):
    waveform = decode(LEVELS)
    assert waveform.dtype == np.float32
    assert np.abs(waveform).max() <= 1
    np.testing.assert_array_equal(encode(waveform), LEVELS)
    assert encode(waveform).dtype == np.uint8


@both
def test_every_level_comes_back_through_a_wav_file(encode, decode):
    file = io.BytesIO()
    soundfile.write(file, audio.to_pcm(decode(LEVELS)), 16_000, format="WAV", subtype="PCM_16")
    file.seek(0)
    waveform, _ = soundfile.read(file, dtype="float32")
    np.testing.assert_array_equal(encode(waveform), LEVELS)


@both
@given(samples=st.lists(st.floats(-1.5, 1.5), min_size=2, max_size=50))
def test_louder_never_means_a_lower_level(encode, decode, samples):
    samples = np.sort(samples)
    levels = encode(samples).astype(int)
    assert (np.diff(levels) >= 0).all()
    np.testing.assert_array_equal(encode(np.clip(samples, -1, 1)), levels)


@given(sample=st.floats(-1, 1))
def test_quantization_error_is_at_most_half_a_step(sample):
    assert abs(float(audio.linear_decode(audio.linear_encode(sample))) - sample) <= 1 / 256 + 1e-9
    nearest = np.argmin(np.abs(_companded(audio.mu_law_decode(LEVELS)) - _companded(sample)))
    assert abs(int(audio.mu_law_encode(sample)) - nearest) <= 1  # Equally near: either will do.
    assert abs(
        _companded(audio.mu_law_decode(audio.mu_law_encode(sample))) - _companded(sample)
    ) <= (1 / 255 + 1e-6)


def test_mu_law_is_the_published_formula():
    # WaveNet, section 2.2, evaluated by hand at a few points: round(127.5 (f(x) + 1)).
    assert audio.mu_law_encode([-1.0, 0.0, 1.0]).tolist() == [0, 128, 255]
    assert audio.mu_law_encode(0.1) == round(127.5 * (np.log(26.5) / np.log(256) + 1))
    assert audio.mu_law_encode(-0.1) == round(127.5 * (1 - np.log(26.5) / np.log(256)))


def test_linear_levels_are_the_top_byte_of_the_pcm():
    pcm = np.arange(-32_768, 32_768).astype(np.int16)
    np.testing.assert_array_equal(audio.linear_encode(pcm / 32_768), (pcm >> 8) + 128)


@pytest.mark.parametrize("quantization", QUANTIZERS)
def test_pcm_table_equals_the_formula(quantization):
    audio_format = audio.AudioFormat(16_000, quantization)
    pcm = np.arange(-32_768, 32_768).astype(np.int16)
    np.testing.assert_array_equal(
        audio_format.encode_stored(pcm), audio_format.encode(pcm / 32_768)
    )
    assert audio_format.encode_stored(np.zeros((2, 3), np.int16)).tolist() == [[128] * 3] * 2


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_encoders_refuse_samples_that_are_not_finite(encode, decode, bad):
    with pytest.raises(UserError, match="NaN or infinite"):
        encode([0.0, bad])


@both
@pytest.mark.parametrize("bad", [[-1], [256], [0.5]])
def test_decoders_refuse_what_is_no_level(encode, decode, bad):
    with pytest.raises(UserError, match="integers from 0 to 255"):
        decode(bad)


@both
def test_jax_arrays_scalars_and_shapes(encode, decode):
    tokens = jnp.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(encode(jnp.asarray(decode(tokens))), tokens)
    assert encode(0.5).shape == decode(3).shape == ()
    assert encode(np.zeros((0, 2))).shape == decode(np.zeros((0, 2), int)).shape == (0, 2)


@pytest.mark.parametrize("quantization", QUANTIZERS)
def test_padding_is_silence(quantization):
    assert audio.AudioFormat(22_050, quantization).padding == 128


@pytest.mark.parametrize(
    ("samples", "text"), [(8_000, "1.0 s"), (8_000 * 119, "119.0 s"), (8_000 * 7_199, "120.0 min")]
)
def test_describes_how_long_it_is(samples, text):
    assert audio.AudioFormat(8_000).describe(samples) == text
    assert audio.AudioFormat(8_000).describe(8_000 * 7_200) == "2.0 h"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sample_rate": 0, "quantization": "mu_law"}, "sample_rate"),
        ({"sample_rate": 16_000.5, "quantization": "mu_law"}, "sample_rate"),
        ({"sample_rate": 16_000, "quantization": "a_law"}, "mu_law or linear"),
    ],
)
def test_audio_format_refuses_what_it_does_not_know(fields, message):
    with pytest.raises(UserError, match=message):
        audio.AudioFormat(**fields)


def _companded(x):
    return np.sign(x) * np.log1p(255 * np.abs(x)) / np.log(256)
