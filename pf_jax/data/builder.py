"""How every audio dataset is stored: a TFDS builder that needs no TensorFlow.

A recording is 16-bit PCM of one channel, cut into consecutive segments of `SEGMENT` samples, one
segment a record, in order. The table of recordings stands in the dataset's metadata, so opening
reads no audio, and any stretch of any recording is a few records whose numbers are known: the cost
of a window grows with the window, not with the recording.
"""

import abc
import contextlib
import dataclasses
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from jaxtyping import Int16

from pf_jax.data.config import DataConfig
from pf_jax.errors import UserError

SEGMENT = 16_384  # Samples in one record; all but a recording's last segment are full.
SPLITS = ("train", "validation", "test")

# TFDS gathers a split in memory before it writes, and past 1 GB it asks TensorFlow to spill it. So
# a split is written as parts of at most this many records (256 MiB), which are read as one.
_PART_RECORDS = 8_192


@dataclasses.dataclass(frozen=True)
class Recording:
    """One recording on its way into storage.

    Attributes:
        name: Unique within the dataset.
        pcm: Its samples; may be a view of a file.
    """

    name: str
    pcm: Int16[np.ndarray, "time"]


@dataclasses.dataclass(frozen=True)
class Collection:
    """All that is prepared of a dataset.

    Attributes:
        splits: For each name in `SPLITS` its recordings; no split is empty.
        skipped: What was left out: pairs of a file and the reason.
    """

    splits: Mapping[str, Sequence[Recording]]
    skipped: Sequence[tuple[str, str]] = ()


class AudioBuilder(tfds.core.GeneratorBasedBuilder, abc.ABC, skip_registration=True):
    """Prepares a dataset once, in `data_dir/pf_jax/<variant>/<name>/<version>`.

    A subclass says what the recordings are (`collect`), and names with `variant` everything that
    they depend on, such as the sample rate: another variant is prepared beside this one.
    """

    # Of what is stored and how: with another version, data is prepared anew beside the old.
    VERSION = tfds.core.Version("1.1.0")
    # No registered checksums: looking for them would need the package importlib_resources, which
    # TFDS uses but does not ask for on today's Pythons.
    url_infos = None

    def __init__(self, config: DataConfig, variant: str):
        self.config = config
        root = epath.Path(config.data_dir or tfds.core.constants.DATA_DIR).expanduser()
        super().__init__(data_dir=root / "pf_jax" / variant, file_format="array_record")

    @abc.abstractmethod
    def collect(self) -> Collection:
        """Returns the recordings, at the config's sample rate.

        Raises:
            UserError: There is nothing usable.
        """

    def prepare(self) -> None:
        """Writes the dataset unless it is there already.

        TFDS writes into a directory of another name and renames it at the end, so an interrupted
        preparation leaves nothing that looks finished.

        Raises:
            UserError: The data cannot be made, cannot be written, or is not whole.
        """
        try:
            if not epath.Path(self.data_dir).exists():
                logging.info("Preparing the dataset %s in %s", self.name, self.data_dir)
                with _quiet():
                    self.download_and_prepare(file_format="array_record")
        except OSError as error:
            # Another process may have prepared the same data meanwhile; then its copy is as good.
            if not epath.Path(self.data_dir).exists():
                reason = error.strerror or error
                raise UserError(
                    f"Cannot write prepared data to {self.data_dir} ({reason}); "
                    "set data.data_dir to a directory that has room and can be written to."
                ) from error
            self.info.read_from_directory(self.data_dir)
        self._check_whole()

    def open_split(self, split: str) -> Sequence[Mapping[str, np.ndarray]]:
        """Returns the records of a prepared split, in order, for random access."""
        parts = [part for part in self.info.splits if part.startswith(f"{split}_")]
        return self.as_data_source(split="+".join(sorted(parts)))

    def _check_whole(self) -> None:
        """Object stores rename file by file: a copy that was cut short is noticed here."""
        files = [file for part in self.info.splits.values() for file in part.filepaths]
        if not files or not all(epath.Path(file).exists() for file in files):
            raise UserError(f"The prepared data in {self.data_dir} is not whole; delete it.")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "pcm": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
            "recording": np.int64,  # Its number in the table of its split.
            "start": np.int64,  # Of this segment within the recording.
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Iterator]:
        del dl_manager  # The subclasses make or find their recordings themselves.
        collection = self.collect()
        self.info.metadata["skipped"] = list(collection.skipped)
        self.info.metadata["recordings"] = {
            split: [(recording.name, len(recording.pcm)) for recording in recordings]
            for split, recordings in collection.splits.items()
        }
        generators = {}
        for split, recordings in collection.splits.items():
            num_records = sum(-(-len(recording.pcm) // SEGMENT) for recording in recordings)
            # TFDS exhausts one part before it starts the next, so they can share one iterator.
            records = self._generate_examples(recordings)
            for part in range(-(-num_records // _PART_RECORDS)):
                generators[f"{split}_{part:05d}"] = itertools.islice(records, _PART_RECORDS)
        return generators

    def _generate_examples(self, recordings: Sequence[Recording]) -> Iterator[tuple[int, dict]]:
        key = itertools.count()
        for number, recording in enumerate(recordings):
            for start in range(0, len(recording.pcm), SEGMENT):
                pcm = np.asarray(recording.pcm[start : start + SEGMENT])
                yield next(key), {"pcm": pcm, "recording": number, "start": start}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS's announcements and its progress bars, which count records."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
