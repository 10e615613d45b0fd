"""A prepared dataset, open for reading."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped

from pf_jax.data.builder import SEGMENT, Builder
from pf_jax.errors import UserError
from pf_jax.fields import did_you_mean
from pf_jax.formats import Format


class Recordings:
    """The recordings of one split, for random access from any thread.

    Attributes:
        names: What each recording is called.
        lengths: Samples in each recording.
        extents: The least and the greatest sample of each recording.
        labels: By name, what the source says of each recording as a whole.
    """

    def __init__(
        self,
        table: Mapping[str, Any],
        records: Sequence[Mapping[str, np.ndarray]],
        place: str = "memory",
    ):
        """Opens recordings.

        Args:
            table: What is known of each, by columns.
            records: Their segments, in order.
            place: Where they are kept, for errors.
        """
        self.names = tuple(table["name"])
        self.lengths = tuple(table["length"])
        self.extents = tuple(zip(table["low"], table["high"], strict=True))
        self.labels = {name: tuple(values) for name, values in table["labels"].items()}
        self._records = records
        self._place = place
        self._first_record = np.cumsum([0, *(-(-length // SEGMENT) for length in self.lengths)])

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_samples(self) -> int:
        """Samples in all recordings together."""
        return sum(self.lengths)

    def read(self, index: int, start: int, stop: int) -> Shaped[np.ndarray, "stop-start"]:
        """Returns samples `start` to `stop` of a recording: 16-bit PCM, or bytes of all else.

        Raises:
            IndexError: There is no such recording, or it has no such samples.
            UserError: The prepared data is damaged.
        """
        if not (0 <= index < len(self) and 0 <= start < stop <= self.lengths[index]):
            raise IndexError(f"samples {start} to {stop} of recording {index} of {len(self)}")
        first, last = start // SEGMENT, (stop - 1) // SEGMENT
        at = int(self._first_record[index])
        pieces = self._fields("samples", range(at + first, at + last + 1))
        offset = first * SEGMENT
        return np.concatenate(pieces)[start - offset : stop - offset]

    def events(self, index: int) -> Float64[np.ndarray, "events columns"]:
        """Returns what the source says of moments in a recording, in the order of time.

        The columns are the `Dataset.event_columns`; times are in seconds.

        Raises:
            KeyError: The dataset has no such thing.
            UserError: The prepared data is damaged.
        """
        records = range(int(self._first_record[index]), int(self._first_record[index + 1]))
        return np.concatenate(self._fields("events", records))

    def _fields(self, name: str, numbers: Iterable[int]) -> list[np.ndarray]:
        """Reads one field of some records."""
        try:
            return [self._records[number][name] for number in numbers]
        except (RuntimeError, ValueError, OSError) as error:  # As ArrayRecord and protobuf say it.
            raise UserError(
                f"The prepared data in {self._place} is damaged; delete that directory, and it is "
                f"prepared anew ({' '.join(str(error).split())[:200]})."
            ) from error


class Dataset:
    """A prepared dataset.

    Attributes:
        name: Which dataset.
        format: How its tokens are sound, text or pictures.
        event_columns: What each row of `Recordings.events` says; empty where there are none.
        label_names: By name of a label that is a number, what each number is called.
        skipped: What was left out when it was prepared: pairs of a file and the reason.
    """

    def __init__(self, builder: Builder):
        """Opens what `builder` has prepared."""
        metadata = builder.info.metadata
        self.name = builder.name
        self.format: Format = builder.config.format
        self.event_columns = builder.EVENTS
        self.label_names = dict(builder.LABEL_NAMES)
        self.skipped = [(file, reason) for file, reason in metadata["skipped"]]
        self._splits = {
            split: Recordings(table, builder.open_split(split), builder.directory)
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
