import io
import pathlib

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
SASHIMI = {"sashimi_mu_law": (audio.sashimi_mu_law_encode, audio.sashimi_mu_law_decode)}
QUANTIZATIONS = [*QUANTIZERS, *SASHIMI]
PCM = np.arange(-32_768, 32_768)

both = pytest.mark.parametrize(("encode", "decode"), QUANTIZERS.values(), ids=QUANTIZERS)
every = pytest.mark.parametrize(
    ("encode", "decode"), (QUANTIZERS | SASHIMI).values(), ids=QUANTIZATIONS
)


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


@every
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


@pytest.fixture(scope="module")
def torch_says():
    """What PyTorch computes in float32; for each stretch, the least sample of each level."""
    with np.load(pathlib.Path(__file__).parent / "fixtures" / "sashimi.npz") as file:
        return dict(file)


def sashimi_by_hand(pcm, low=None, high=None, dtype=np.float32, scale=2**15):
    """The published formulas in NumPy, operation by operation, all of them in one type."""
    x = pcm.astype(dtype) / dtype(scale)
    if low is not None:
        low, high = dtype(low) / dtype(scale), dtype(high) / dtype(scale)
        x = dtype(-1) + dtype(2) * (x - low) / (high - low + dtype(1e-6))
    y = np.sign(x) * (np.log1p(dtype(255) * np.abs(x + dtype(1e-8))) / np.log1p(dtype(255)))
    assert y.dtype == dtype
    return ((y + dtype(1)) / dtype(2) * dtype(256 - 0.01) + dtype(0.005)).astype(int)


def test_sashimi_levels_of_all_16_bit_samples(torch_says):
    assert torch_says["extents"][0].tolist() == [0, 0]
    expected = np.searchsorted(torch_says["thresholds"][0], PCM, side="right")
    found = audio.sashimi_mu_law_encode(PCM / 32_768)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        found, audio.AudioFormat(8_000, "sashimi_mu_law").encode_stored(PCM.astype(np.int16))
    )
    np.testing.assert_array_equal(found, sashimi_by_hand(PCM, dtype=np.float64))
    # The logarithm of some processors is the next float32 in one case that is that near to an edge.
    assert set(PCM[found != sashimi_by_hand(PCM)]) <= {11_011}
    assert found[[0, 32_767, 32_768, 32_769, 65_535]].tolist() == [0, 127, 128, 128, 255]


def test_sashimi_levels_after_a_stretch(torch_says):
    sound = audio.AudioFormat(16_000, "sashimi_mu_law")
    other = 0
    pairs = zip(torch_says["extents"][1:], torch_says["thresholds"][1:], strict=True)
    for (low, high), thresholds in pairs:
        pcm = np.arange(low, high + 1).astype(np.int16)
        expected = np.searchsorted(thresholds, pcm, side="right")
        np.testing.assert_array_equal(sound.encode_stored(pcm, (low, high)), expected)
        for some in np.array_split(pcm, 7):  # Too few for a table.
            np.testing.assert_array_equal(
                sound.encode_stored(some, (low, high)), expected[some.astype(int) - low]
            )
        other += (sashimi_by_hand(pcm, low, high, np.float64) != expected).sum()
    assert other >= 10, "float64 would have been another quantization"


def test_sashimi_stretch_beside_that_of_integers():
    """The other published code stretches integers, for which the 1e-6 is next to nothing."""
    rng = np.random.default_rng(0)
    pcm = np.rint(np.clip(rng.laplace(scale=900, size=200_000), -20_000, 20_000)).astype(np.int16)
    low, high = int(pcm.min()), int(pcm.max())
    ours = audio.AudioFormat(16_000, "sashimi_mu_law").encode_stored(pcm, (low, high)).astype(int)
    other = sashimi_by_hand(pcm, low, high, scale=1)
    assert np.abs(ours - other).max() <= 1
    assert (ours != other).mean() < 2e-3


def test_sashimi_levels_of_a_clip_of_one_value():
    sound = audio.AudioFormat(16_000, "sashimi_mu_law")
    assert sound.encode_stored(np.full(3, 7, np.int16), (7, 7)).tolist() == [0, 0, 0]
    for quantization in QUANTIZERS:
        silent = audio.AudioFormat(16_000, quantization).encode_stored(np.int16([7, 7]), (7, 7))
        assert silent.tolist() == [128, 128]


def test_sashimi_decoder(torch_says):
    found = audio.sashimi_mu_law_decode(LEVELS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch_says["decoded"], rtol=2e-6, atol=0)
    assert found[[0, 128]].tolist() == [-1, 0]
    assert found[255] == pytest.approx((256 ** (127 / 128) - 1) / 255, rel=1e-6)


def test_which_sashimi_levels_come_back():
    waveform = audio.sashimi_mu_law_decode(LEVELS)
    found = audio.sashimi_mu_law_encode(waveform)
    np.testing.assert_array_equal(found, LEVELS - (LEVELS > 129))
    stored = audio.to_pcm(waveform) / 32_768
    lower = LEVELS - audio.sashimi_mu_law_encode(stored)
    assert set(lower) == {0, 1}
    assert lower[[0, 128]].tolist() == [0, 0]


def test_sashimi_differs_from_ours_by_one_level_at_most():
    ours = audio.mu_law_encode(PCM / 32_768).astype(int)
    other = audio.sashimi_mu_law_encode(PCM / 32_768).astype(int)
    assert set(ours - other) == {-1, 0, 1}
    assert (ours != other).mean() == pytest.approx(0.40, abs=0.02)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_pcm_table_equals_the_formula(quantization):
    audio_format = audio.AudioFormat(16_000, quantization)
    pcm = np.arange(-32_768, 32_768).astype(np.int16)
    np.testing.assert_array_equal(
        audio_format.encode_stored(pcm), audio_format.encode(pcm / 32_768)
    )
    assert audio_format.encode_stored(np.zeros((2, 3), np.int16)).tolist() == [[128] * 3] * 2


@every
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_encoders_refuse_samples_that_are_not_finite(encode, decode, bad):
    with pytest.raises(UserError, match="NaN or infinite"):
        encode([0.0, bad])


@every
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


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
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
        ({"sample_rate": 16_000, "quantization": "a_law"}, "mu_law or linear or sashimi_mu_law"),
    ],
)
def test_audio_format_refuses_what_it_does_not_know(fields, message):
    with pytest.raises(UserError, match=message):
        audio.AudioFormat(**fields)


def _companded(x):
    return np.sign(x) * np.log1p(255 * np.abs(x)) / np.log(256)
