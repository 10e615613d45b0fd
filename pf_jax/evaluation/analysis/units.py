"""Distances in the units of people."""

import dataclasses

from pf_jax.audio import AudioFormat
from pf_jax.formats import Format


@dataclasses.dataclass(frozen=True)
class Unit:
    """What one token is.

    Attributes:
        name: "sample" of sound, "byte" of all else.
        rate: Samples per second; None where time means nothing.
    """

    name: str
    rate: int | None

    @classmethod
    def of(cls, format: Format) -> "Unit":
        """Returns the unit of a format."""
        is_audio = isinstance(format, AudioFormat)
        return cls("sample", format.sample_rate) if is_audio else cls("byte", None)

    def amount(self, number: float) -> str:
        """Returns a number of tokens in words, of sound with the time that it takes."""
        plural = self.name if number == 1 else f"{self.name}s"
        time = f" ({self.time(number)})" if self.rate else ""
        return f"{rounded(number)} {plural}{time}"

    def time(self, number: float) -> str:
        """Returns the time that a number of samples takes, in ms or s; "" if there is none."""
        if not self.rate:
            return ""
        seconds = number / self.rate
        return f"{rounded(seconds)} s" if seconds >= 1 else f"{rounded(1e3 * seconds)} ms"


def rounded(number: float) -> str:
    """Returns a number with three digits that mean something, and none of them in an exponent."""
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}" if abs(number) >= 1e-4 or number == 0 else f"{number:.1e}"
