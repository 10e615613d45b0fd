"""Files that samples are written to while they are drawn, in memory that does not grow."""

import math
import os
import pathlib
import shutil
import struct
from collections.abc import Callable
from types import TracebackType
from typing import BinaryIO

import numpy as np
from etils import epath
from jaxtyping import Int

from pf_jax.audio import AudioFormat, to_pcm
from pf_jax.errors import UserError
from pf_jax.formats import Format, ImageFormat
from pf_jax.paths import is_remote

MAX_SOUND_TOKENS = 2**31 - 65  # The sizes in a WAV file are bytes in 32 bits, two to a token.
_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")


class SampleFile:
    """A sample that is written as it is drawn, to the file that `format.write` would make of it.

    A sound on this machine grows by each piece, in constant memory, and is whole after each: what
    was appended is in a playable file even if the process is killed. Everything else (text,
    pictures, files in an object store) is gathered at one byte a token, and written by `close`.

    A context manager, which closes also when an error or an interrupt ends it: what was drawn until
    then is kept.
    """

    def __init__(self, path: epath.PathLike, format: Format):
        """Makes the directories that the file needs and, of a sound, the file, without samples.

        Args:
            path: The file, local or anything that `etils.epath` opens; one that is there is
                replaced.
            format: What the tokens mean.

        Raises:
            UserError: The file cannot be written.
        """
        self._path = epath.Path(path)
        grows = isinstance(format, AudioFormat) and not is_remote(path)
        self._writer = (_Growing if grows else _Gathered)(self._path, format)
        self._closed = False

    def __enter__(self) -> "SampleFile":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def append(self, tokens: Int[np.ndarray, "time"]) -> None:
        """Adds tokens at the end.

        Raises:
            UserError: They cannot be written, all or in part; the file keeps what could be.
            ValueError: The file is closed, or the tokens are not one row.
        """
        if self._closed:
            raise ValueError(f"{self._path} is closed: nothing can be appended.")
        tokens = np.asarray(tokens)
        if tokens.ndim != 1:
            raise ValueError(
                f"Tokens must have the shape (time,), got {tokens.shape} for {self._path}."
            )
        self._writer.append(tokens)

    def close(self) -> None:
        """Finishes the file; a second time does nothing.

        Raises:
            UserError: The file cannot be written. What was gathered is not lost: `close` can be
                called again.
        """
        if not self._closed:
            self._writer.close()
            self._closed = True


class _Growing:
    """A WAV file with one channel of 16-bit PCM that is whole after each piece.

    Between the pieces it is closed: thousands of streams are more than a process may have open.
    """

    def __init__(self, path: epath.Path, format: AudioFormat):
        self._path = path
        self._format = format
        self._num_samples = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb", buffering=0) as file:
                self._write_header(file)
        except OSError as error:
            raise _cannot_write(path, error) from error

    def append(self, tokens: np.ndarray) -> None:
        pcm = to_pcm(self._format.decode(tokens)).astype("<i2")
        if self._num_samples + len(pcm) > MAX_SOUND_TOKENS:
            raise UserError(
                f"Cannot write {self._path}: a WAV file holds at most {MAX_SOUND_TOKENS:,} samples."
            )
        try:
            # Without a buffer, what could not be written is known at once.
            with open(self._path, "r+b", buffering=0) as file:
                try:
                    _write_at(file, _HEADER.size + 2 * self._num_samples, pcm.tobytes())
                finally:  # Of a piece that is not written to its end, the beginning counts.
                    self._num_samples = max(0, file.tell() - _HEADER.size) // 2
                    self._write_header(file)
                    # A disk that became full may have taken half a sample.
                    file.truncate(_HEADER.size + 2 * self._num_samples)
        except OSError as error:
            raise _cannot_write(self._path, error) from error

    def close(self) -> None:
        """The file is whole already."""

    def _write_header(self, file: BinaryIO) -> None:
        size, rate = 2 * self._num_samples, self._format.sample_rate
        riff = (b"RIFF", _HEADER.size - 8 + size, b"WAVE")
        fmt = (b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)  # PCM, one channel, 2 bytes a sample.
        _write_at(file, 0, _HEADER.pack(*riff, *fmt, b"data", size))


class _Gathered:
    """A file that `format.write` makes at the end."""

    def __init__(self, path: epath.Path, format: Format):
        self._path = path
        self._format = format
        self._tokens = bytearray()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # Before the work, not after it.
        except OSError as error:
            raise _cannot_write(path, error) from error

    def append(self, tokens: np.ndarray) -> None:
        self._tokens += tokens.astype(np.uint8).tobytes()

    def close(self) -> None:
        self._format.write(self._path, np.frombuffer(bytes(self._tokens), np.uint8))


def check_space(directory: epath.PathLike, num_files: int, num_tokens: int, format: Format) -> None:
    """Refuses, before work starts, what the disk cannot hold.

    Object stores, and file systems that do not say how large they are, are not asked.

    Args:
        directory: Where the files will be; it need not exist yet.
        num_files: How many files.
        num_tokens: How many tokens each of them holds.
        format: What the tokens mean.

    Raises:
        UserError: There is too little space, or one file cannot hold so long a sound.
    """
    if isinstance(format, AudioFormat):
        if num_tokens > MAX_SOUND_TOKENS:
            raise UserError(
                f"A sound of {num_tokens:,} samples ({format.describe(num_tokens)}) is too long: a "
                f"WAV file holds at most {MAX_SOUND_TOKENS:,}; ask for fewer --seconds."
            )
        size = _HEADER.size + 2 * num_tokens
    elif isinstance(format, ImageFormat):
        size = 3 * format.side**2
    else:
        size = num_tokens
    if is_remote(directory):
        return
    path = pathlib.Path(directory).expanduser().absolute()
    place = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
    try:
        usage = shutil.disk_usage(place)
    except OSError:  # Then the first file that is written says what is wrong.
        return
    if usage.total and num_files * size > usage.free:
        raise UserError(
            f"{num_files} x {format.describe(num_tokens)} need {_size(num_files * size, math.ceil)}"
            f", but {directory} has {_size(usage.free, math.floor)} free; ask for less (--seconds, "
            "--num_samples) or write elsewhere (--output)."
        )


def _size(num_bytes: int, rounding: Callable[[float], int]) -> str:
    """Says a size; what is needed is rounded up and what is free down, so that they differ."""
    unit, name = (1e9, "GB") if num_bytes >= 1e9 else (1e6, "MB")
    return f"{rounding(10 * num_bytes / unit) / 10:,.1f} {name}"


def _write_at(file: BinaryIO, position: int, data: bytes) -> None:
    file.seek(position)
    rest = memoryview(data)
    while rest:  # A file without a buffer may take a part, and fail only at the next.
        rest = rest[file.write(rest) :]


def _cannot_write(path: epath.Path, error: OSError) -> UserError:
    return UserError(f"Cannot write {path}: {error.strerror or error}.")
