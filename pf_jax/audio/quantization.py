"""Between waveforms and 256 levels: mu-law, linear, and SaShiMi's published mu-law.

The mu-law and the linear quantizer invert their own decoders: `encode(decode(k)) == k` for each of
the 256 levels, also when the decoded waveform was stored as 16-bit PCM in between. The published
mu-law does not, see `sashimi_mu_law_decode`.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int16, UInt8

from pf_jax.errors import UserError

NUM_LEVELS = 256
_MU = NUM_LEVELS - 1
_LOG_LEVELS = np.float32(np.log1p(_MU))
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


def sashimi_mu_law_encode(waveform: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Quantizes a waveform to 256 levels as SaShiMi's published code does.

    The law is that of `mu_law_encode`, but levels are rounded down (state-spaces/s4,
    `src/dataloaders/audio.py`; the code of Poolformer's author computes the same). With
    `mu = 255`::

        f(x) = sign(x) ln(1 + mu |x + 1e-8|) / ln(1 + mu)
        level = floor(255.99 (f(x) + 1) / 2 + 0.005)

    It is computed in float32 and in the published order of operations, so the levels are the
    published ones. Each of the 65,536 samples of 16-bit PCM has the same level in float64; of
    samples that were stretched before (`sashimi_stretch_pcm`), float64 would change about one in
    100,000. PyTorch agrees on all of them where it has AVX2; elsewhere its logarithm may be off by
    one unit in the last place, and then sample 11,011 has level 231 instead of 230.

    `sashimi_mu_law_encode(sashimi_mu_law_decode(k))` is `k` for `k <= 129`, and `k - 1` above.

    Args:
        waveform: Samples; values outside [-1, 1] are clipped.

    Returns:
        Levels, 0 to 255; silence is level 128.

    Raises:
        UserError: A sample is NaN or infinite.
    """
    x = _checked(waveform).astype(np.float32)
    inner = np.float32(_MU) * np.abs(x + np.float32(1e-8))
    # The logarithm in float64, rounded: float32's own differs from one processor to the next.
    compressed = np.sign(x) * (np.log1p(inner, dtype=np.float64).astype(np.float32) / _LOG_LEVELS)
    scaled = (compressed + np.float32(1)) / np.float32(2) * np.float32(255.99)
    return np.floor(scaled + np.float32(0.005)).astype(np.uint8)


def sashimi_mu_law_decode(levels: Int[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Returns the waveform that SaShiMi's published code makes of its mu-law levels.

    With `mu = 255`::

        y = level / 128 - 1,    x = sign(y) ((1 + mu)^|y| - 1) / mu

    Level 128 is exactly zero, level 0 is -1 and level 255 is 0.957. A decoded sample lies at the
    edge of its step, not at its centre. So `sashimi_mu_law_encode` returns level `k` for `k <= 129`
    and `k - 1` above, and either of `k` and `k - 1` if the waveform was stored as 16-bit PCM in
    between: a sound that a model wrote is not the same sequence of tokens when it is read back.

    Args:
        levels: Integers, 0 to 255.

    Returns:
        Samples in [-1, 1).

    Raises:
        UserError: A level is not an integer from 0 to 255.
    """
    return _SASHIMI_EDGES[_checked_levels(levels)]


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


def from_pcm(pcm: Int[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Returns 16-bit PCM as a waveform in [-1, 1), exactly."""
    return pcm.astype(np.float32) / np.float32(_PCM_SCALE)


def stretch_pcm(
    pcm: Int[np.ndarray, "*shape"], low: int, high: int
) -> Float64[np.ndarray, "*shape"]:
    """Stretches 16-bit PCM linearly, so that `low` becomes -1 and `high` becomes 1.

    Args:
        pcm: Samples from `low` to `high`.
        low: Becomes -1.
        high: Becomes 1; if it equals `low`, all samples become 0, which is silence.
    """
    if low == high:
        return np.zeros(np.shape(pcm))
    return (pcm.astype(np.float64) - low) * (2 / (high - low)) - 1


def sashimi_stretch_pcm(
    pcm: Int[np.ndarray, "*shape"], low: int, high: int
) -> Float32[np.ndarray, "*shape"]:
    """Stretches 16-bit PCM to [-1, 1] as SaShiMi's published code does.

    In float32 and of samples `x = pcm / 2^15`, with `low` and `high` on the same scale::

        2 (x - low) / (high - low + 1e-6) - 1

    The code of Poolformer's author stretches integers, for which 1e-6 is next to nothing; of speech
    that changes the level of 0.015 % of the samples, by one.

    Args:
        pcm: Samples from `low` to `high`.
        low: Becomes -1.
        high: Becomes 1, nearly; if it equals `low`, all samples become -1.
    """
    x, least, greatest = (from_pcm(np.asarray(values)) for values in (pcm, low, high))
    return np.float32(2) * (x - least) / (greatest - least + np.float32(1e-6)) - np.float32(1)


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


def _expanded(y: np.ndarray) -> np.ndarray:
    """Inverts the mu-law on [-1, 1]."""
    return (np.sign(y) * np.expm1(np.abs(y) * np.log1p(_MU)) / _MU).astype(np.float32)


_MU_LAW_CENTRES = _expanded(np.arange(NUM_LEVELS) * (2 / _MU) - 1)
_SASHIMI_EDGES = _expanded(np.arange(NUM_LEVELS) * (2 / NUM_LEVELS) - 1)
_LINEAR_CENTRES = ((np.arange(NUM_LEVELS) + 0.5) * (2 / NUM_LEVELS) - 1).astype(np.float32)
