"""Reading, resampling and writing sound files."""

import io
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from etils import epath
from jaxtyping import Float, Float32

from pf_jax.audio.quantization import to_pcm
from pf_jax.errors import UserError

_BLOCK = 2**20  # Samples decoded at once.


class UnusableSoundError(UserError):
    """A file that cannot be used as sound.

    Attributes:
        path: The file, as it was given.
        reason: Why it cannot be used, without the path.
    """

    def __init__(self, path: epath.PathLike, reason: str):
        super().__init__(f"Cannot use {path} as sound: {reason}.")
        self.path = path
        self.reason = reason


def read(
    path: epath.PathLike, sample_rate: int | None = None
) -> tuple[Float32[np.ndarray, "time"], int]:
    """Reads a WAV, FLAC, OGG or MP3 file as one channel.

    Channels are mixed to their mean. The whole of that is held in memory.

    Args:
        path: The file, local or anything that `etils.epath` opens (such as `gs://`).
        sample_rate: Samples per second to resample to; None keeps the file's own.

    Returns:
        The waveform, and its samples per second. Resampling and lossy formats may overshoot
        [-1, 1] a little; nothing is clipped here.

    Raises:
        UnusableSoundError: The file is missing, empty, not sound, or has NaN or infinite samples.
    """
    try:
        with epath.Path(path).open("rb") as file:
            waveform, file_rate = _decode(path, file)
    except OSError as error:
        raise UnusableSoundError(path, _reason(error)) from error
    return _resampled(waveform, file_rate, sample_rate)


def read_bytes(
    name: str, content: bytes, sample_rate: int | None = None
) -> tuple[Float32[np.ndarray, "time"], int]:
    """Reads what a sound file contains, as `read` does.

    Args:
        name: What an error calls it.
        content: The bytes of the file.
        sample_rate: Samples per second to resample to; None keeps the file's own.

    Returns:
        The waveform, and its samples per second.

    Raises:
        UnusableSoundError: As `read`.
    """
    return _resampled(*_decode(name, io.BytesIO(content)), sample_rate)


def write(path: epath.PathLike, waveform: Float[np.ndarray, "time"], sample_rate: int) -> None:
    """Writes a WAV file with one channel of 16-bit PCM, and the directories that it needs.

    Args:
        path: The file to write, local or anything that `etils.epath` opens.
        waveform: Samples; values outside [-1, 1] are clipped.
        sample_rate: Samples per second.

    Raises:
        UserError: The waveform is not one row of finite samples, or the file cannot be written.
    """
    pcm = to_pcm(waveform)
    if pcm.ndim != 1:
        raise UserError(f"A waveform must have the shape (time,), got {pcm.shape} for {path}.")
    path = epath.Path(path)
    wav = io.BytesIO()
    try:
        soundfile.write(wav, pcm, sample_rate, format="WAV", subtype="PCM_16")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav.getvalue())
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"Cannot write {path}: {_reason(error)}.") from error


def _resampled(
    waveform: np.ndarray, file_rate: int, sample_rate: int | None
) -> tuple[np.ndarray, int]:
    if sample_rate is None or sample_rate == file_rate:
        return waveform, file_rate
    return soxr.resample(waveform, file_rate, sample_rate, quality="HQ"), sample_rate


def _decode(path: epath.PathLike, file: BinaryIO) -> tuple[np.ndarray, int]:
    """Returns the waveform in an open file, mixed to one channel, and its samples per second."""
    if not file.read(1):
        raise UnusableSoundError(path, "the file is empty")
    file.seek(0)
    try:
        with soundfile.SoundFile(file) as sound:
            sample_rate = sound.samplerate
            blocks = sound.blocks(_BLOCK, dtype="float32", always_2d=True)
            # Mixed block by block, so that the channels are never in memory together.
            mixed = [block.mean(axis=1) for block in blocks]
    except soundfile.SoundFileError as error:
        raise UnusableSoundError(
            path, f"not a WAV, FLAC, OGG or MP3 file ({_reason(error)})"
        ) from error
    waveform = np.concatenate([np.zeros(0, np.float32), *mixed])
    if not len(waveform):
        raise UnusableSoundError(path, "it has no samples")
    if not np.isfinite(waveform).all():
        raise UnusableSoundError(path, "it has samples that are NaN or infinite")
    return waveform, sample_rate


def _reason(error: Exception) -> str:
    """Returns what went wrong in a few words on one line, without the path."""
    text = getattr(error, "strerror", None) or getattr(error, "error_string", None) or str(error)
    return " ".join(text.split()).rstrip(".")
