"""The dataset "folder": any directory tree of sound files."""

import hashlib
import os
import re

from etils import epath

from pf_jax import audio
from pf_jax.data.builder import SPLITS, Builder
from pf_jax.data.config import DataConfig
from pf_jax.data.recording import Collection, Recording, Skipped, spool
from pf_jax.errors import UserError
from pf_jax.paths import checked_path, is_remote

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aif", ".aiff")
UNREADABLE = (".m4a", ".aac", ".mp4", ".wma", ".ape", ".mid", ".midi")  # Named, and left out.
MIN_SECONDS = 0.1
MIN_FILES = 10  # With fewer usable files, each file is divided by time.
_HELD_OUT = 0.05  # The share of validation, and of test.


class Folder(Builder):
    """The sound files under `config.path`, whatever their rates and channels.

    Files that are not sound or of another format than `EXTENSIONS`, have no samples, have NaN or
    infinite samples, or last less than `MIN_SECONDS` are left out (`Dataset.skipped` says why).
    Silent files are kept.

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
        self._folder = _checked_root(config.path)
        self._files = find_files(self._folder)
        if not self._files:
            raise UserError(
                f"data.path={config.path} holds no sound files ({', '.join(EXTENSIONS)}); "
                "give a directory tree of recordings."
            )
        super().__init__(config, _variant(self._folder, self._files, config.sample_rate))

    def collect(self) -> Collection:
        """Decodes each file once."""
        recordings, skipped = spool(
            self._files,
            self._decode,
            num_threads=self.config.num_threads,
            description=f"Reading {self._folder}",
            total=len(self._files),
            place=self.data_dir,
        )
        if not recordings:
            raise UserError(
                f"No sound file in {self._folder} can be used; the first of {len(skipped)} "
                f"is {skipped[0].name}: {skipped[0].reason}."
            )
        divide = split_by_file if len(recordings) >= MIN_FILES else split_by_time
        return Collection(divide(recordings), skipped)

    def _decode(self, name: str) -> Recording | Skipped:
        if name.lower().endswith(UNREADABLE):
            return Skipped(name, "a format that is not read here; convert it to FLAC or WAV")
        try:
            waveform, rate = audio.read(self._folder / name, self.config.sample_rate)
        except audio.UnusableSoundError as error:
            return Skipped(name, error.reason)
        if len(waveform) < MIN_SECONDS * rate:
            seconds = len(waveform) / rate
            return Skipped(name, f"too short ({seconds:.3f} s; {MIN_SECONDS} s or more)")
        return Recording(name, audio.to_pcm(waveform))


def find_files(root: epath.Path) -> list[str]:
    """Returns the paths of sound files below `root`, relative to it, in a fixed order.

    Extensions count in either case, those of formats that cannot be read too. Names that begin with
    a dot are passed over, and links to directories are not followed.
    """
    found = []
    for directory, subdirectories, files in root.walk():
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        for file in sorted(files):
            if not file.startswith(".") and file.lower().endswith(EXTENSIONS + UNREADABLE):
                found.append(_relative(directory / file, root))
    return found


def _relative(path: epath.Path, root: epath.Path) -> str:
    """The path below a root; in an object store, `walk` leaves out the scheme."""
    path, root = (str(p).rpartition("://")[2].strip("/") for p in (path, root))
    return os.path.relpath(path, root)


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
        length = len(recording.samples)
        bounds = (0, round((1 - 2 * _HELD_OUT) * length), round((1 - _HELD_OUT) * length), length)
        for split, start, stop in zip(SPLITS, bounds[:-1], bounds[1:], strict=True):
            name = f"{recording.name}[{start}:{stop}]"
            splits[split].append(Recording(name, recording.samples[start:stop]))
    return splits


def _checked_root(path: str) -> epath.Path:
    if not path:
        raise UserError("The dataset 'folder' needs data.path, a directory tree of sound files.")
    root = checked_path(path, "data.path")
    if not root.exists():
        raise UserError(f"data.path={path} does not exist.")
    if not root.is_dir():
        raise UserError(f"data.path={path} is not a directory; give the one that holds the files.")
    return root if is_remote(root) else root.resolve()


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
