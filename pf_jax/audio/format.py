"""What tokens mean as sound: the one place that maps between waveforms and tokens."""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Float32, Int, Int16, UInt8

from pf_jax import fields
from pf_jax.audio import io, quantization
from pf_jax.errors import UserError


class _Quantizer(NamedTuple):
    """The functions of one quantization; `stretch` is what normalization does to 16-bit PCM."""

    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    stretch: Callable[[np.ndarray, int, int], np.ndarray] = quantization.stretch_pcm


_QUANTIZERS = {
    "mu_law": _Quantizer(quantization.mu_law_encode, quantization.mu_law_decode),
    "linear": _Quantizer(quantization.linear_encode, quantization.linear_decode),
    "sashimi_mu_law": _Quantizer(
        quantization.sashimi_mu_law_encode,
        quantization.sashimi_mu_law_decode,
        quantization.sashimi_stretch_pcm,
    ),
}


@dataclasses.dataclass(frozen=True)
class AudioFormat:
    """How a sequence of tokens is a waveform; stored in each checkpoint.

    Attributes:
        sample_rate: Samples per second, 1,000 to 768,000.
        quantization: How a sample becomes one of 256 levels: "mu_law", "linear", or
            "sashimi_mu_law", the mu-law behind published figures of SC09 and YouTubeMix.

    Raises:
        UserError: A value is out of range or the quantization is unknown.
    """

    sample_rate: int
    quantization: str = "mu_law"
    extension: ClassVar[str] = ".wav"

    def __post_init__(self):
        fields.check_types(self)
        fields.check_intervals(self, sample_rate="[1000, 768000]")
        if self.quantization not in _QUANTIZERS:
            known = " or ".join(_QUANTIZERS)
            raise UserError(f"quantization must be {known}, got {self.quantization!r}.")

    def encode(self, waveform: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
        """Returns the tokens of a waveform in [-1, 1]."""
        return _QUANTIZERS[self.quantization].encode(waveform)

    def decode(self, tokens: Int[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
        """Returns the waveform in [-1, 1] of tokens from 0 to 255."""
        return _QUANTIZERS[self.quantization].decode(tokens)

    def encode_stored(
        self, stored: Int16[np.ndarray, "*shape"], extent: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "*shape"]:
        """Returns the tokens of 16-bit PCM: `encode` by a table, fast enough to train from.

        Args:
            stored: 16-bit PCM.
            extent: Samples that are stretched linearly to -1 and 1, as the published figures of
                SC09 have it; two equal ones make silence, but level 0 with "sashimi_mu_law", as
                in SaShiMi's code. None stretches nothing.
        """
        if extent is None:
            return _pcm_table(self.quantization)[stored]
        low, high = map(int, extent)  # Of int16, a difference would overflow.
        if high - low < np.size(stored):  # Then it pays to tabulate.
            return self._stretched(np.arange(low, high + 1), low, high)[stored - np.int32(low)]
        return self._stretched(stored, low, high)

    def _stretched(self, pcm: np.ndarray, low: int, high: int) -> np.ndarray:
        return self.encode(_QUANTIZERS[self.quantization].stretch(pcm, low, high))

    @property
    def padding(self) -> int:
        """The token of a sample that is zero."""
        return int(self.encode(0.0))

    def write(self, path: epath.PathLike, tokens: Int[np.ndarray, "time"]) -> None:
        """Writes tokens as a WAV file.

        Raises:
            UserError: The file cannot be written.
        """
        io.write(path, self.decode(tokens), self.sample_rate)

    def describe(self, num_tokens: int) -> str:
        """Returns how long so many samples last."""
        seconds = num_tokens / self.sample_rate
        for unit, length in (("h", 3_600), ("min", 60)):
            if seconds >= 2 * length:
                return f"{seconds / length:.1f} {unit}"
        return f"{seconds:.1f} s"


@functools.cache
def _pcm_table(name: str) -> np.ndarray:
    return quantization.pcm_table(_QUANTIZERS[name].encode)
