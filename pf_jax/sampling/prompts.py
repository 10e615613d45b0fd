"""Prompts: beginnings that a model continues, read from files as its training data was."""

import dataclasses
import math

import numpy as np
from etils import epath
from jaxtyping import UInt8

from pf_jax import audio
from pf_jax.data.config import DataConfig
from pf_jax.errors import UserError
from pf_jax.paths import checked_path


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a model is given to continue.

    Attributes:
        name: The file's name, without its directory.
        tokens: The beginning, as the model was trained on such: one token or more.
    """

    name: str
    tokens: UInt8[np.ndarray, "time"]


def read_prompt(path: epath.PathLike, data: DataConfig, *, seconds: float | None = None) -> Prompt:
    """Reads a file as the tokens that training would have made of it.

    A sound of any rate and any number of channels is resampled to the model's rate, mixed to one
    channel and rounded to 16-bit PCM. What `data.normalization` says is then stretched to [-1, 1]:
    of "recording" the whole file, whether or not all of it is the prompt; of "window" the prompt,
    which is the beginning of the one window that it and its continuation are.

    Args:
        path: A WAV, FLAC, OGG or MP3 file, or a text; local or in an object store.
        data: The data that the model was trained on.
        seconds: Of sound: how much of the file's beginning is the prompt; None, or more than the
            file has, means all of it.

    Raises:
        UserError: The file is missing, empty, not sound, has NaN or infinite samples or only
            silence; `seconds` is not above 0 or the prompt is a text; or the model makes pictures.
    """
    if data.modality == "image":
        raise UserError(
            f"The prompt {path} cannot be used: pictures are not continued from a file; give no "
            "prompt."
        )
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise UserError(
            f"The seconds of a prompt must be a finite number above 0, got {seconds} for {path}."
        )
    if data.modality == "text" and seconds is not None:
        raise UserError(
            f"The prompt {path} is a text, which has no seconds, got {seconds}; leave them out and "
            "give a file with the text to go on from."
        )
    place = checked_path(path, "prompt")
    if data.modality == "text":
        return Prompt(place.name, _read_text(place))
    return Prompt(place.name, _read_sound(place, data, seconds))


def _read_text(path: epath.Path) -> np.ndarray:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read the prompt {path}: {error.strerror or error}.") from error
    if not content:
        raise UserError(f"The prompt {path} is empty; give a text to go on from.")
    return np.frombuffer(content, np.uint8)


def _read_sound(path: epath.Path, data: DataConfig, seconds: float | None) -> np.ndarray:
    try:
        waveform, rate = audio.read(path, data.sample_rate)
    except audio.UnusableSoundError as error:
        raise UserError(f"Cannot use the prompt {path} as sound: {error.reason}.") from error
    recording = audio.to_pcm(waveform)
    length = len(recording)
    if seconds is not None:
        length = min(length, max(1, round(min(length, seconds * rate))))
    pcm = recording[:length]
    if not length:  # A sample or two, of which resampling to a lower rate left none.
        raise UserError(f"The prompt {path} is too short: at {rate} Hz it has no samples.")
    extent = None
    if data.normalization != "none":
        stretched = recording if data.normalization == "recording" else pcm
        extent = int(stretched.min()), int(stretched.max())
    tokens = data.format.encode_stored(pcm, extent)
    if (tokens == tokens[0]).all():
        what = "zero" if not pcm.any() else f"one and the same level, {tokens[0]}, to the model"
        raise UserError(
            f"The prompt {path} is silent: all its samples are {what} (in "
            f"{length / rate:.3g} s from its beginning); give a sound, or more of it."
        )
    return tokens
