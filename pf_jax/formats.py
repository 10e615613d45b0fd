"""What tokens mean: sound, text or pictures.

All have 256 tokens. `pf_jax.audio.AudioFormat` is the format of sound; here are the others, and the
door that all go through.
"""

import dataclasses
import io
import math
from typing import ClassVar, Protocol

import numpy as np
from etils import epath
from jaxtyping import Int, Shaped, UInt8

from pf_jax.errors import UserError


class Format(Protocol):
    """How a sequence of tokens is a thing for people, and how stored data is tokens.

    Attributes:
        extension: Of the files that `write` makes.
        padding: The token that fills up a window; no loss is ever taken there.
    """

    extension: str
    padding: int

    def encode_stored(
        self, stored: Shaped[np.ndarray, "time"], extent: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "time"]:
        """Returns the tokens of data as datasets store it.

        Args:
            stored: What a dataset stores: 16-bit PCM of sound, otherwise bytes.
            extent: Of sound: the samples that are stretched to -1 and 1; None stretches nothing.
        """

    def write(self, path: epath.PathLike, tokens: Int[np.ndarray, "time"]) -> None:
        """Writes one sequence as a file, and the directories that it needs.

        Raises:
            UserError: The file cannot be written.
        """

    def describe(self, num_tokens: int) -> str:
        """Returns how much so many tokens are, in the units of people."""


@dataclasses.dataclass(frozen=True)
class TextFormat:
    """Tokens are the bytes of a text in UTF-8."""

    extension: ClassVar[str] = ".txt"
    padding: ClassVar[int] = 0

    def encode_stored(self, stored: np.ndarray, extent: None = None) -> UInt8[np.ndarray, "time"]:
        """Returns the bytes themselves."""
        del extent
        return stored

    def decode(self, tokens: Int[np.ndarray, "time"]) -> str:
        """Returns the text; bytes that are not UTF-8 become the replacement character."""
        return np.asarray(tokens).astype(np.uint8).tobytes().decode(errors="replace")

    def write(self, path: epath.PathLike, tokens: Int[np.ndarray, "time"]) -> None:
        """Writes the bytes, exactly."""
        _write_bytes(path, np.asarray(tokens).astype(np.uint8).tobytes())

    def describe(self, num_tokens: int) -> str:
        """Returns the size of a text."""
        return f"{num_tokens / 1e6:.3g} MB"


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """Tokens are the bytes of a square picture: rows from the top, in them pixels, in them RGB.

    Attributes:
        side: Pixels in a row, and in a column.
    """

    side: int
    extension: ClassVar[str] = ".png"
    padding: ClassVar[int] = 0

    @classmethod
    def of_length(cls, num_tokens: int) -> "ImageFormat":
        """Returns the format of pictures of so many tokens.

        Raises:
            UserError: No square RGB picture has so many.
        """
        side = math.isqrt(num_tokens // 3)
        if side < 1 or 3 * side * side != num_tokens:
            raise UserError(
                "The window of images must be one image of side x side pixels, "
                f"3 * side * side tokens (3072 for 32 x 32), got window={num_tokens}."
            )
        return cls(side)

    def encode_stored(self, stored: np.ndarray, extent: None = None) -> UInt8[np.ndarray, "time"]:
        """Returns the bytes themselves."""
        del extent
        return stored

    def decode(self, tokens: Int[np.ndarray, "time"]) -> UInt8[np.ndarray, "side side 3"]:
        """Returns the picture; what is missing at its end is black."""
        tokens = np.asarray(tokens).astype(np.uint8)[: 3 * self.side**2]
        pixels = np.pad(tokens, (0, 3 * self.side**2 - len(tokens)))
        return pixels.reshape(self.side, self.side, 3)

    def write(self, path: epath.PathLike, tokens: Int[np.ndarray, "time"]) -> None:
        """Writes the picture as PNG."""
        from PIL import Image  # Only pictures need it.

        png = io.BytesIO()
        Image.fromarray(self.decode(tokens)).save(png, format="PNG")
        _write_bytes(path, png.getvalue())

    def describe(self, num_tokens: int) -> str:
        """Returns the number of pictures."""
        return f"{num_tokens / (3 * self.side**2):,.0f} images"


def _write_bytes(path: epath.PathLike, data: bytes) -> None:
    path = epath.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
