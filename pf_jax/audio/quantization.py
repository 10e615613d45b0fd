"""Between waveforms and 256 levels: mu-law and linear quantization.

Both quantizers are exact on their own levels: `encode(decode(k)) == k` for each of the 256 levels,
also when the decoded waveform was stored as 16-bit PCM in between.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float32, Int, Int16, UInt8

from pf_jax.errors import UserError

NUM_LEVELS = 256
_MU = NUM_LEVELS - 1
_PCM_SCALE = 32_768  # 16-bit PCM stores sample * 2^15; the same scale reads files back exactly.


def mu_law_encode(waveform: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Quantizes a waveform to 256 levels, finely where it is quiet and coarsely where it is loud.

    The continuous law of ITU-T G.711 as used by WaveNet (arXiv 1609.03499, section 2.2), rounded to
    the nearest of 256 levels, with `mu = 255`::

        f(x) = sign(x) ln(1 + mu |x|) / ln(1 + mu),    level = round(mu (f(x) + 1) / 2)

    Args:
        waveform: Samples; values outside [-1, 1] are clipped.

    Returns:
        Levels, 0 to 255; silence is level 128.

    Raises:
        UserError: A sample is NaN or infinite.
    """
    x = _checked(waveform).astype(np.float64)
    compressed = np.sign(x) * np.log1p(_MU * np.abs(x)) / np.log1p(_MU)
    return np.floor((compressed + 1) / 2 * _MU + 0.5).astype(np.uint8)


def mu_law_decode(levels: Int[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Returns the waveform at the centres of mu-law levels, the inverse of `mu_law_encode`.

    With `mu = 255`::

        y = 2 level / mu - 1,    x = sign(y) ((1 + mu)^|y| - 1) / mu

    Args:
        levels: Integers, 0 to 255.

    Returns:
        Samples in [-1, 1].

    Raises:
        UserError: A level is not an integer from 0 to 255.
    """
    return _MU_LAW_CENTRES[_checked_levels(levels)]


def linear_encode(waveform: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Quantizes a waveform to 256 equal steps: `level = floor(128 (x + 1))`.

    Args:
        waveform: Samples; values outside [-1, 1] are clipped.

    Returns:
        Levels, 0 to 255; silence is level 128.

    Raises:
        UserError: A sample is NaN or infinite.
    """
    x = _checked(waveform).astype(np.float64)
    return np.minimum(np.floor((x + 1) * (NUM_LEVELS // 2)), NUM_LEVELS - 1).astype(np.uint8)


def linear_decode(levels: Int[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Returns the middle of each linear step, the inverse of `linear_encode`.

    Args:
        levels: Integers, 0 to 255.

    Returns:
        Samples in (-1, 1).

    Raises:
        UserError: A level is not an integer from 0 to 255.
    """
    return _LINEAR_CENTRES[_checked_levels(levels)]


def to_pcm(waveform: Float[np.ndarray, "*shape"]) -> Int16[np.ndarray, "*shape"]:
    """Rounds a waveform to 16-bit PCM, clipping what lies outside [-1, 1].

    Args:
        waveform: Samples.

    Returns:
        `round(32768 x)`, limited to the range of int16.

    Raises:
        UserError: A sample is NaN or infinite.
    """
    scaled = np.rint(_checked(waveform) * _PCM_SCALE)
    return np.clip(scaled, -_PCM_SCALE, _PCM_SCALE - 1).astype(np.int16)


def from_pcm(pcm: Int16[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Returns 16-bit PCM as a waveform in [-1, 1), exactly."""
    return pcm.astype(np.float32) / np.float32(_PCM_SCALE)


def pcm_table(encode: Callable[[np.ndarray], np.ndarray]) -> UInt8[np.ndarray, "65536"]:
    """Tabulates a quantizer over all 16-bit samples, so that `table[pcm]` quantizes int16 `pcm`.

    Negative samples index from the end of the table, as NumPy does anyway.
    """
    return encode(from_pcm(np.arange(2 * _PCM_SCALE).astype(np.uint16).view(np.int16)))


def _checked(waveform: np.ndarray) -> np.ndarray:
    """Returns a finite waveform, clipped to [-1, 1]."""
    waveform = np.asarray(waveform)
    if not np.isfinite(waveform).all():
        raise UserError("The waveform has samples that are NaN or infinite.")
    return np.clip(waveform, -1, 1)


def _checked_levels(levels: np.ndarray) -> np.ndarray:
    levels = np.asarray(levels)
    if not np.issubdtype(levels.dtype, np.integer):
        raise UserError(f"Levels must be integers from 0 to 255, got {levels.dtype}.")
    if levels.size and (levels.min() < 0 or levels.max() >= NUM_LEVELS):
        raise UserError(
            f"Levels must be integers from 0 to 255, got {levels.min()} to {levels.max()}."
        )
    return levels


def _mu_law_centres() -> np.ndarray:
    y = np.arange(NUM_LEVELS) * (2 / _MU) - 1
    return (np.sign(y) * np.expm1(np.abs(y) * np.log1p(_MU)) / _MU).astype(np.float32)


_MU_LAW_CENTRES = _mu_law_centres()
_LINEAR_CENTRES = ((np.arange(NUM_LEVELS) + 0.5) * (2 / NUM_LEVELS) - 1).astype(np.float32)
