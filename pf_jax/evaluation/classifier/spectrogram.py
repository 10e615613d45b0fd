"""Mel spectrograms as the published SC09 classifier has them: what the network sees.

The definition is that of librosa's `melspectrogram` and `power_to_db(ref=max)` with their defaults,
which pytorch-speech-commands takes: frames of 2,048 samples every 512, centred and weighted by a
Hann window, their power in 32 triangular bands on Slaney's mel scale, in decibels below the loudest
of the clip, down to -80. One second at 16 kHz is 32 frames: a picture of 32 x 32.
"""

import functools

import numpy as np
import scipy.fft
from jaxtyping import Float, Float32, Float64

from pf_jax.errors import UserError

NUM_BANDS = 32
FRAME = 2_048
HOP = 512
EDGES = ("reflect", "constant")

_FLOOR = 1e-10  # Power below this is taken for this.
_RANGE = 80.0  # Decibels below the loudest that are told apart.
_CLIPS_AT_ONCE = 16  # Whose frames stand in memory together, a few megabytes.


def mel_spectrogram(
    waveforms: Float[np.ndarray, "clips time"], sample_rate: int, *, edges: str = "reflect"
) -> Float32[np.ndarray, "clips bands frames"]:
    """Mel spectrograms in decibels, `1 + time // 512` frames each.

    Loudness drops out: a clip and the same clip at half the amplitude have one spectrogram. Silence
    is 0 everywhere.

    Args:
        waveforms: Clips of one length, of any amplitude.
        sample_rate: Samples per second.
        edges: What stands before the first sample and after the last: "reflect", the clip in a
            mirror (librosa up to 0.8, with which the published classifier was used), or "constant",
            zeros (librosa from 0.9).

    Returns:
        Decibels from -80 to 0.

    Raises:
        UserError: A sample is NaN or infinite, or a clip is too short to be mirrored.
    """
    waveforms = np.asarray(waveforms, np.float32)
    if edges not in EDGES:
        raise UserError(f"edges must be {' or '.join(EDGES)}, got {edges!r}.")
    if waveforms.shape[-1] <= FRAME // 2:
        raise UserError(
            f"A clip must have more than {FRAME // 2} samples to be classified, got "
            f"{waveforms.shape[-1]}."
        )
    if not np.isfinite(waveforms).all():
        raise UserError("A waveform has samples that are NaN or infinite.")
    bands = np.ascontiguousarray(mel_bands(sample_rate).T, np.float32)
    num_frames = 1 + waveforms.shape[-1] // HOP
    spectrograms = np.empty((len(waveforms), NUM_BANDS, num_frames), np.float32)
    for start in range(0, len(waveforms), _CLIPS_AT_ONCE):
        part = slice(start, start + _CLIPS_AT_ONCE)
        power = _power(waveforms[part], edges).reshape(-1, len(bands)) @ bands
        spectrograms[part] = _decibels(power.reshape(-1, num_frames, NUM_BANDS)).swapaxes(1, 2)
    return spectrograms


@functools.cache
def mel_bands(sample_rate: int) -> Float64[np.ndarray, "bands frequencies"]:
    """The weight of each frequency of a frame in each band: triangles of the same area.

    The corners lie evenly on Slaney's scale (Auditory Toolbox, 1998) from 0 to half the sample
    rate, and each triangle, 1 at its middle corner, is divided by half its width in hertz.
    """
    frequencies = np.linspace(0, sample_rate / 2, 1 + FRAME // 2)
    corners = _hertz(np.linspace(0, _mel(sample_rate / 2), NUM_BANDS + 2))
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising = (frequencies - low) / (middle - low)
    falling = (high - frequencies) / (high - middle)
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (high - low))


# Slaney's scale: 15 mel a kilohertz up to 1 kHz, and from there 27 mel for each factor of 6.4.
_KNEE = 1_000.0
_MEL_PER_HERTZ = 15 / 1_000
_MEL_PER_NEPER = 27 / np.log(6.4)


def _mel(hertz: float) -> float:
    above = max(np.log(hertz / _KNEE), 0.0)
    return min(hertz, _KNEE) * _MEL_PER_HERTZ + above * _MEL_PER_NEPER


def _hertz(mel: np.ndarray) -> np.ndarray:
    knee = _KNEE * _MEL_PER_HERTZ
    above = np.exp(np.maximum(mel - knee, 0) / _MEL_PER_NEPER)
    return np.minimum(mel, knee) / _MEL_PER_HERTZ * above


def _power(waveforms: np.ndarray, edges: str) -> np.ndarray:
    """The power of each frequency of each frame, (clips, frames, frequencies)."""
    half = FRAME // 2
    padded = np.pad(waveforms, ((0, 0), (half, half)), mode=edges)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME, axis=1)[:, ::HOP]
    spectrum = scipy.fft.rfft(frames * _window(), axis=-1)
    return np.square(spectrum.real) + np.square(spectrum.imag)


@functools.cache
def _window() -> np.ndarray:
    """One period of a raised cosine."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)).astype(np.float32)


def _decibels(power: np.ndarray) -> np.ndarray:
    """Decibels below the largest of each clip."""
    decibels = 10 * np.log10(np.maximum(power, _FLOOR))
    decibels -= decibels.max(axis=(1, 2), keepdims=True)
    return np.maximum(decibels, -_RANGE)
