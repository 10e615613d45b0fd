"""How every dataset is stored: a TFDS builder that needs no TensorFlow.

A recording is cut into consecutive segments of `SEGMENT` samples, one segment a record, in order.
The table of recordings stands in the dataset's metadata, so opening reads no samples, and any
stretch of any recording is a few records whose numbers are known: the cost of a window grows with
the window, not with the recording.
"""

import abc
import collections
import contextlib
import hashlib
import io
import itertools
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import filelock
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from google.protobuf.json_format import ParseError

from pf_jax.data.archive import Source, obtain
from pf_jax.data.config import DataConfig
from pf_jax.data.origin import Origin
from pf_jax.data.recording import Collection, Recording
from pf_jax.errors import UserError
from pf_jax.paths import checked_path, is_remote

SEGMENT = 16_384  # Samples in one record; all but a recording's last segment are full.
SPLITS = ("train", "validation", "test")

# TFDS gathers a split in memory before it writes, and past 1 GB it asks TensorFlow to spill it. So
# a split is written as parts of at most this many records (256 MiB), which are read as one.
_PART_RECORDS = 8_192
_MARKER = "dataset_info.json"  # The last file that goes to an object store.


class Builder(tfds.core.GeneratorBasedBuilder, abc.ABC, skip_registration=True):
    """Prepares a dataset once, in `data_dir/pf_jax/<variant>/<name>/<version>`.

    A subclass says what the recordings are (`collect`), and names with `variant` everything that
    they depend on, such as the sample rate: another variant is prepared beside this one.

    Data in an object store is prepared in, and read from, a copy on this machine: in
    `~/.cache/pf_jax/data`, or `$XDG_CACHE_HOME/pf_jax/data`.

    Attributes:
        MODALITY: What the recordings are, a value of `DataConfig.modality`.
        EVENTS: The columns of `Recording.events`; empty where there are none.
        LABEL_NAMES: By name of a label that is a number, what each number is called.
        ORIGIN: Who published it; None of recordings that are the user's own.
    """

    # Of what is stored and how: with another version, data is prepared anew beside the old.
    VERSION = tfds.core.Version("2.0.0")
    MODALITY: ClassVar[str] = "audio"
    EVENTS: ClassVar[tuple[str, ...]] = ()
    LABEL_NAMES: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    ORIGIN: ClassVar[Origin | None] = None
    # No registered checksums: looking for them would need the package importlib_resources, which
    # TFDS uses but does not ask for on today's Pythons.
    url_infos = None

    def __init__(self, config: DataConfig, variant: str | None = None):
        """Opens the place of the dataset, and writes nothing.

        Args:
            config: The config.
            variant: What the recordings depend on; by default the sample rate of sound.
        """
        if config.modality != self.MODALITY:
            raise UserError(
                f"The dataset {self.name!r} is {self.MODALITY}: data.modality must be "
                f"{self.MODALITY!r}, got {config.modality!r}."
            )
        self.config = config
        place = checked_path(config.data_dir or tfds.core.constants.DATA_DIR, "data.data_dir")
        self._place = place
        self._root = _cache_of(place) if is_remote(place) else place
        if variant is None:
            variant = f"{config.sample_rate}hz" if self.MODALITY == "audio" else self.MODALITY
        directory = self._root / "pf_jax" / variant
        self._target = directory / self.name / str(self.VERSION)
        with self._telling_of_damage():
            super().__init__(data_dir=directory, file_format="array_record")
        relative = self._target.relative_to(self._root)
        self._remote = place / relative if is_remote(place) else None

    @abc.abstractmethod
    def collect(self) -> Collection:
        """Returns the recordings, at the config's sample rate.

        Raises:
            UserError: There is nothing usable.
        """

    def obtain(self, source: Source) -> epath.Path:
        """Returns a file that the user has in a manual folder, or downloads it.

        Raises:
            UserError: It is not to be had, or is not what its publisher offers.
        """
        downloads = self._root / "downloads"
        places = [self._place / "downloads" / "manual"]  # As TFDS has it.
        if self.config.manual_dir:
            manual = checked_path(self.config.manual_dir, "data.manual_dir")
            if not manual.is_dir():
                raise UserError(f"data.manual_dir={self.config.manual_dir} is not a directory.")
            places = [manual, *places]
        return obtain(source, places, downloads, verify=self.config.verify_checksums)

    def prepare(self) -> None:
        """Writes the dataset unless it is there already.

        TFDS writes into a directory of another name and renames it at the end, so an interrupted
        preparation leaves nothing that looks finished. Processes on one machine, or on machines
        that share the directory, wait for the one that came first.

        Raises:
            UserError: The data cannot be made, cannot be written, or is not whole.
        """
        try:
            if not self._target.exists():
                self._target.parent.mkdir(parents=True, exist_ok=True)
                with filelock.FileLock(self._target.parent / f".{self._target.name}.lock"):
                    self._prepare_alone()
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "writ" not in str(error):
                raise  # It is not ArrayRecord that could not write, as it says of a full disk.
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())
            raise UserError(
                f"Cannot write prepared data to {self._target} ({reason}); "
                "set data.data_dir to a directory that has room and can be written to."
            ) from error
        self._check_whole()
        if self._remote and not (self._remote / _MARKER).exists():
            self._upload()

    def open_split(self, split: str) -> Sequence[Mapping[str, np.ndarray]]:
        """Returns the records of a prepared split, in order, for random access.

        They know nothing of this builder, so they can go to another process.
        """
        parts = [part for part in self.info.splits if part.startswith(f"{split}_")]
        reader = tfds.builder_from_directory(self._target)
        with self._telling_of_damage():
            records = reader.as_data_source(split="+".join(sorted(parts)))
            _ = records[0], records[len(records) - 1]  # Files that were cut short are noticed now.
        return records

    @property
    def directory(self) -> str:
        """Where the prepared data is read from."""
        return str(self._target)

    @contextlib.contextmanager
    def _telling_of_damage(self) -> Iterator[None]:
        """Turns what reading damaged data raises into one line for the user."""
        try:
            yield
        except (OSError, RuntimeError, ValueError, KeyError, IndexError, ParseError) as error:
            raise UserError(
                f"The prepared data in {self._target} is damaged; delete that directory, and it is "
                f"prepared anew ({type(error).__name__}: {' '.join(str(error).split())[:200]})."
            ) from error

    def _prepare_alone(self) -> None:
        """Prepares the data, or fetches it; no other process is doing the same."""
        for litter in self._target.parent.glob("incomplete.*"):  # Of those that were killed.
            shutil.rmtree(litter, ignore_errors=True)
        if self._target.exists():
            return
        if self._remote and (self._remote / _MARKER).exists():
            logging.info("Copying the dataset %s from %s", self.name, self._remote)
            partial = self._target.parent / "incomplete.copy"
            _copy(self._remote, partial)
            os.rename(partial, self._target)
            return
        logging.info("Preparing the dataset %s in %s", self.name, self._target)
        with _quiet():
            self.download_and_prepare(file_format="array_record")

    def _upload(self) -> None:
        """Copies what was prepared here to the object store, or what an earlier run left to do."""
        try:
            _copy(self._target, self._remote)
        except Exception as error:  # Each store's library has errors of its own.
            raise UserError(
                f"Cannot copy prepared data to {self._remote} ({' '.join(str(error).split())}); "
                "mend that and run the same command again: it goes on from there."
            ) from error

    def _check_whole(self) -> None:
        """Notices a copy of which somebody has deleted or damaged a part."""
        with self._telling_of_damage():
            self.info.read_from_directory(self._target)
            files = [file for part in self.info.splits.values() for file in part.filepaths]
            missing = [str(file) for file in files if not epath.Path(file).exists()]
            if missing or not files or "recordings" not in self.info.metadata:
                raise ValueError(f"missing are {missing or 'the table of recordings'}")

    def _info(self) -> tfds.core.DatasetInfo:
        dtype = np.int16 if self.MODALITY == "audio" else np.uint8
        features = {
            "samples": tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes"),
            "recording": np.int64,  # Its number in the table of its split.
            "start": np.int64,  # Of this segment within the recording.
        }
        if self.EVENTS:
            shape = (None, len(self.EVENTS))
            features["events"] = tfds.features.Tensor(
                shape=shape, dtype=np.float64, encoding="bytes"
            )
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
        del dl_manager  # It knows only some checksums, and retries for minutes without a network.
        collection = self.collect()
        self.info.metadata["skipped"] = [(file.name, file.reason) for file in collection.skipped]
        self.info.metadata["recordings"] = {
            split: _table(recordings) for split, recordings in collection.splits.items()
        }
        generators = {}
        for split, recordings in collection.splits.items():
            num_records = sum(-(-len(recording.samples) // SEGMENT) for recording in recordings)
            # TFDS exhausts one part before it starts the next, so they can share one iterator.
            records = self._generate_examples(recordings)
            for part in range(-(-num_records // _PART_RECORDS)):
                generators[f"{split}_{part:05d}"] = itertools.islice(records, _PART_RECORDS)
        return generators

    def _generate_examples(self, recordings: Sequence[Recording]) -> Iterator[tuple[int, dict]]:
        key = itertools.count()
        for number, recording in enumerate(recordings):
            events = self._events_by_segment(recording)
            for segment, start in enumerate(range(0, len(recording.samples), SEGMENT)):
                samples = np.asarray(recording.samples[start : start + SEGMENT])
                record = {"samples": samples, "recording": number, "start": start}
                yield next(key), record | ({"events": events[segment]} if self.EVENTS else {})

    def _events_by_segment(self, recording: Recording) -> Mapping[int, np.ndarray]:
        """Files each event under the segment in which it begins."""
        none = np.zeros((0, len(self.EVENTS)))
        by_segment = collections.defaultdict(lambda: none)
        if recording.events is not None and len(recording.events):
            last = (len(recording.samples) - 1) // SEGMENT
            starts = recording.events[:, 0] * self.config.sample_rate // SEGMENT
            segments = np.clip(starts, 0, last).astype(int)
            for segment in np.unique(segments):
                by_segment[segment] = recording.events[segments == segment]
        return by_segment


def _table(recordings: Sequence[Recording]) -> dict[str, list]:
    """What is known of each recording of a split, by columns, as JSON has it."""
    labels = {name for recording in recordings for name in recording.labels}
    return {
        "name": [recording.name for recording in recordings],
        "length": [len(recording.samples) for recording in recordings],
        "low": [int(recording.samples.min()) for recording in recordings],
        "high": [int(recording.samples.max()) for recording in recordings],
        "labels": {name: [r.labels[name] for r in recordings] for name in sorted(labels)},
    }


def _cache_of(place: epath.Path) -> epath.Path:
    """The directory on this machine that stands for one in an object store."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    key = hashlib.sha256(str(place).encode()).hexdigest()[:16]
    return epath.Path(cache / "pf_jax" / "data" / key)


def _copy(source: epath.Path, target: epath.Path) -> None:
    """Copies the files of a directory; the one that marks it as whole comes last."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir(), key=lambda file: (file.name == _MARKER, file.name)):
        file.copy(target / file.name, overwrite=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS's announcements and its progress bars, which count records."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
