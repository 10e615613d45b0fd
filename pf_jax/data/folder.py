"""The dataset "folder": any directory tree of sound files."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator

import grain
import numpy as np
import tqdm
from etils import epath
from jaxtyping import Int16

from pf_jax import audio
from pf_jax.data.builder import SPLITS, AudioBuilder, Collection, Recording
from pf_jax.data.config import DataConfig
from pf_jax.errors import UserError

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")
MIN_SECONDS = 0.1
MIN_FILES = 10  # With fewer usable files, each file is divided by time.
_HELD_OUT = 0.05  # The share of validation, and of test.


class Folder(AudioBuilder):
    """The sound files under `config.path`, whatever their rates and channels.

    Files that are not sound, have no samples, have NaN or infinite samples, or last less than
    `MIN_SECONDS` are left out (`Dataset.skipped` says why). Silent files are kept.

    With `MIN_FILES` usable files or more, whole files are held out: those whose names come first in
    the order of their SHA-256, 5 % for validation and the next 5 % for test, at least one each. So
    most files keep their split when others come or go. With fewer files, the first 90 % of each
    file are for training, the next 5 % for validation and the last 5 % for test.

    The prepared copy belongs to the path, the sample rate, and the names, sizes and times of the
    files: a changed folder is prepared anew and an unchanged one is opened at once.
    """

    name = "folder"

    def __init__(self, config: DataConfig):
        """Lists the files.

        Raises:
            UserError: `config.path` is not given, is not a directory, or has no sound files.
        """
        self._root = _checked_root(config.path)
        self._files = find_files(self._root)
        if not self._files:
            raise UserError(
                f"data.path={config.path} holds no sound files ({', '.join(EXTENSIONS)}); "
                "give a directory tree of recordings."
            )
        super().__init__(config, _variant(self._root, self._files, config.sample_rate))

    def collect(self) -> Collection:
        """Decodes each file once into a temporary file, of which the recordings are views."""
        skipped, names, lengths = [], [], []
        # Beside the prepared data there will be room, if anywhere.
        place = self.data_dir if os.path.isdir(self.data_dir) else None
        with tempfile.TemporaryFile(dir=place) as spool:
            for name, pcm, reason in tqdm.tqdm(
                self._decoded(),
                desc=f"Reading {self._root}",
                total=len(self._files),
                unit=" files",
                leave=False,
                disable=None,  # Only a terminal shows it.
            ):
                if reason:
                    skipped.append((name, reason))
                else:
                    names.append(name)
                    lengths.append(len(pcm))
                    pcm.tofile(spool)
            if not names:
                name, reason = skipped[0]
                raise UserError(
                    f"No sound file in {self._root} can be used; the first of {len(skipped)} is "
                    f"{name}: {reason}."
                )
            spool.flush()
            samples = np.memmap(spool, np.int16, mode="r")  # Lives on when the file is closed.
        pieces = np.split(samples, np.cumsum(lengths)[:-1])
        recordings = [Recording(name, pcm) for name, pcm in zip(names, pieces, strict=True)]
        divide = split_by_file if len(recordings) >= MIN_FILES else split_by_time
        return Collection(divide(recordings), skipped)

    def _decoded(self) -> Iterator[tuple[str, Int16[np.ndarray, "time"] | None, str]]:
        """Yields name, samples and why not, in order, decoding a few files ahead in threads."""
        threads = max(1, self.config.num_threads)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        yield from grain.MapDataset.source(self._files).map(self._decode).to_iter_dataset(options)

    def _decode(self, name: str) -> tuple[str, Int16[np.ndarray, "time"] | None, str]:
        try:
            waveform, rate = audio.read(self._root / name, self.config.sample_rate)
        except audio.UnusableSoundError as error:
            return name, None, error.reason
        if len(waveform) < MIN_SECONDS * rate:
            return name, None, f"too short ({len(waveform) / rate:.3f} s; {MIN_SECONDS} s or more)"
        return name, audio.to_pcm(waveform), ""


def find_files(root: epath.Path) -> list[str]:
    """Returns the paths of sound files below `root`, relative to it, in a fixed order.

    Extensions count in either case. Names that begin with a dot are passed over, and links to
    directories are not followed.
    """
    found = []
    for directory, subdirectories, files in root.walk():
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        for file in sorted(files):
            if not file.startswith(".") and file.lower().endswith(EXTENSIONS):
                found.append(str((directory / file).relative_to(root)))
    return found


def split_by_file(recordings: list[Recording]) -> dict[str, list[Recording]]:
    """Holds out whole recordings: the first in the order of their names' SHA-256."""
    ordered = sorted(recordings, key=lambda r: hashlib.sha256(os.fsencode(r.name)).digest())
    held_out = max(1, round(_HELD_OUT * len(ordered)))
    validation = {recording.name for recording in ordered[:held_out]}
    test = {recording.name for recording in ordered[held_out : 2 * held_out]}
    return {
        "train": [r for r in recordings if r.name not in validation | test],
        "validation": [r for r in recordings if r.name in validation],
        "test": [r for r in recordings if r.name in test],
    }


def split_by_time(recordings: list[Recording]) -> dict[str, list[Recording]]:
    """Cuts each recording into its first 90 %, the next 5 % and the last 5 %."""
    splits = {split: [] for split in SPLITS}
    for recording in recordings:
        length = len(recording.pcm)
        bounds = (0, round((1 - 2 * _HELD_OUT) * length), round((1 - _HELD_OUT) * length), length)
        for split, start, stop in zip(SPLITS, bounds[:-1], bounds[1:], strict=True):
            name = f"{recording.name}[{start}:{stop}]"
            splits[split].append(Recording(name, recording.pcm[start:stop]))
    return splits


def _checked_root(path: str) -> epath.Path:
    if not path:
        raise UserError("The dataset 'folder' needs data.path, a directory tree of sound files.")
    root = epath.Path(path).expanduser()
    if not root.exists():
        raise UserError(f"data.path={path} does not exist.")
    if not root.is_dir():
        raise UserError(f"data.path={path} is not a directory; give the one that holds the files.")
    return root if "://" in str(root) else root.resolve()


def _variant(root: epath.Path, files: list[str], sample_rate: int) -> str:
    """Names a state of a folder: another name when any file comes, goes or changes."""
    digest = hashlib.sha256(os.fsencode(f"{root}\n"))
    for name in files:
        digest.update(os.fsencode(f"{name}\n{_stamp(root / name)}\n"))
    slug = re.sub("[^a-z0-9]+", "-", root.name.lower()).strip("-")[:32] or "folder"
    return f"{slug}-{sample_rate}hz-{digest.hexdigest()[:16]}"


def _stamp(path: epath.Path) -> tuple[int, int] | None:
    """Returns the size and the time of the last change of a file; None for a broken link."""
    try:
        if os.path.lexists(path):  # Local: os.stat knows the time to the nanosecond.
            status = os.stat(path)
            return status.st_size, status.st_mtime_ns
        status = path.stat()
        return status.length, status.mtime
    except OSError:
        return None
