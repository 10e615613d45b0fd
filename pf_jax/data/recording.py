"""Recordings on their way into storage, and the decoding of many of them."""

import collections
import concurrent.futures
import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import tqdm
from etils import epath
from jaxtyping import Float64, Shaped

from pf_jax import audio
from pf_jax.errors import UserError

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclasses.dataclass(frozen=True)
class Recording:
    """One recording: a piece of sound, a text, or a picture.

    Attributes:
        name: Unique within the dataset.
        samples: Its samples, int16 for sound and uint8 for all else; may be a view of a file.
        labels: What the source says of it as a whole, by the same names for all recordings.
        events: What the source says of moments in it, a row each, in the columns that the builder
            names; the first is the time in seconds. None where there is no such thing.
    """

    name: str
    samples: Shaped[np.ndarray, "time"]
    labels: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
    events: Float64[np.ndarray, "events columns"] | None = None


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A file that is left out.

    Attributes:
        name: Of the file.
        reason: Why it cannot be used.
    """

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Collection:
    """All that is prepared of a dataset.

    Attributes:
        splits: For each of "train", "validation" and "test" its recordings; no split is empty.
        skipped: What was left out.
    """

    splits: Mapping[str, Sequence[Recording]]
    skipped: Sequence[Skipped] = ()


def decode_sound(name: str, content: bytes, sample_rate: int) -> Recording:
    """Returns the sound in a file of an archive, resampled and mixed to one channel.

    Raises:
        UserError: It is no sound.
    """
    try:
        waveform, _ = audio.read_bytes(name, content, sample_rate)
    except audio.UnusableSoundError as error:
        raise UserError(
            f"{name} in the archive cannot be used ({error.reason}); fetch the archive again."
        ) from error
    return Recording(name, audio.to_pcm(waveform))


def spool(
    items: Iterable[_T],
    decode: Callable[[_T], Recording | Skipped],
    *,
    num_threads: int,
    description: str,
    total: int | None = None,
    place: epath.PathLike | None = None,
) -> tuple[list[Recording], list[Skipped]]:
    """Decodes many recordings in threads into one temporary file, of which they become views.

    So a dataset that is larger than the memory can be sorted and divided before it is stored.

    Args:
        items: What there is to decode; consumed a few ahead of the decoding.
        decode: Makes a recording of one of them, or says why not; all recordings have samples of
            one type.
        num_threads: How many are decoded at once.
        description: What the progress bar says.
        total: How many items there are, where it is known.
        place: A directory with room; None for the system's own.

    Returns:
        The recordings and what was left out, both in the order of the items.

    Raises:
        OSError: The temporary file cannot be written.
    """
    decoded, lengths, skipped = [], [], []
    with tempfile.TemporaryFile(dir=place) as file:
        for item in tqdm.tqdm(
            _in_threads(decode, items, max(1, num_threads)),
            desc=description,
            total=total,
            unit=" files",
            leave=False,
            disable=None,  # Only a terminal shows it.
        ):
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            file.write(item.samples.tobytes())
            lengths.append(len(item.samples))
            # Of the samples, only the type is kept in memory.
            decoded.append(dataclasses.replace(item, samples=item.samples[:0].copy()))
        if not decoded:
            return [], skipped
        file.flush()
        samples = np.memmap(file, decoded[0].samples.dtype, mode="r")  # Outlives the open file.
    pieces = np.split(samples, np.cumsum(lengths)[:-1])
    recordings = [
        dataclasses.replace(recording, samples=piece)
        for recording, piece in zip(decoded, pieces, strict=True)
    ]
    return recordings, skipped


def natural_order(name: str) -> list[tuple[int, int | str]]:
    """A key that sorts names as people do: "9.wav" before "10.wav"."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def _in_threads(function: Callable[[_T], _R], items: Iterable[_T], threads: int) -> Iterator[_R]:
    """Maps a function in some threads, in order, holding no more than a few results."""
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    pending = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
