"""A prepared dataset, open for reading."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int16, UInt8

from pf_jax.audio import AudioFormat
from pf_jax.data.builder import SEGMENT, AudioBuilder
from pf_jax.errors import UserError
from pf_jax.fields import did_you_mean


class Recordings:
    """The recordings of one split, for random access from any thread.

    Attributes:
        names: What each recording is called.
        lengths: Samples in each recording.
        audio_format: How samples become tokens.
    """

    def __init__(
        self,
        table: Sequence[tuple[str, int]],
        records: Sequence[Mapping[str, np.ndarray]],
        audio_format: AudioFormat,
    ):
        self.names = tuple(name for name, _ in table)
        self.lengths = tuple(length for _, length in table)
        self.audio_format = audio_format
        self._records = records
        self._first_record = np.cumsum([0, *(-(-length // SEGMENT) for length in self.lengths)])

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_samples(self) -> int:
        """Samples in all recordings together."""
        return sum(self.lengths)

    def read(self, index: int, start: int, stop: int) -> Int16[np.ndarray, "stop-start"]:
        """Returns samples `start` to `stop` of a recording as 16-bit PCM.

        Raises:
            IndexError: There is no such recording, or it has no such samples.
        """
        if not 0 <= start < stop <= self.lengths[index]:
            raise IndexError(f"samples {start} to {stop} of {self.lengths[index]}")
        first, last = start // SEGMENT, (stop - 1) // SEGMENT
        at = int(self._first_record[index])
        pieces = [self._records[at + segment]["pcm"] for segment in range(first, last + 1)]
        offset = first * SEGMENT
        return np.concatenate(pieces)[start - offset : stop - offset]

    def tokens(self, index: int) -> UInt8[np.ndarray, "time"]:
        """Returns a whole recording as tokens."""
        return self.audio_format.encode_pcm(self.read(index, 0, self.lengths[index]))


class Dataset:
    """A prepared dataset.

    Attributes:
        name: Which dataset.
        audio_format: How its tokens are sound.
        skipped: What was left out when it was prepared: pairs of a file and the reason.
    """

    def __init__(self, builder: AudioBuilder, audio_format: AudioFormat):
        """Opens what `builder` has prepared."""
        metadata = builder.info.metadata
        self.name = builder.name
        self.audio_format = audio_format
        self.skipped = [(file, reason) for file, reason in metadata["skipped"]]
        self._splits = {
            split: Recordings(table, builder.open_split(split), audio_format)
            for split, table in metadata["recordings"].items()
        }

    @property
    def fingerprint(self) -> str:
        """Another one when any recording comes, goes, changes its length or its split."""
        table = {name: (r.names, r.lengths) for name, r in sorted(self._splits.items())}
        return hashlib.sha256(json.dumps(table).encode()).hexdigest()[:16]

    def split(self, name: str) -> Recordings:
        """Returns the recordings of "train", "validation" or "test".

        Raises:
            UserError: There is no such split.
        """
        if name not in self._splits:
            raise UserError(f"Unknown split {name!r}{did_you_mean(name, self._splits)}")
        return self._splits[name]
