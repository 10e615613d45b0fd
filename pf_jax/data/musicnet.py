"""The dataset "musicnet": 330 recordings of classical music, with their notes.

Thickstun, Harchaoui and Kakade: Learning Features of Music from Scratch, arXiv 1611.09827; version
1.0 at Zenodo, https://zenodo.org/records/5120004, licence CC BY 4.0.
"""

import csv
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from pf_jax.data.archive import Source, read_members
from pf_jax.data.builder import Builder
from pf_jax.data.origin import Origin
from pf_jax.data.recording import Collection, Recording, decode_sound, natural_order, spool
from pf_jax.errors import UserError

ARCHIVE = Source(
    "https://zenodo.org/records/5120004/files/musicnet.tar.gz",
    "musicnet.tar.gz",
    size=11_097_394_998,
    checksum="md5:844764911fa0d5b97c97da944a057590",
)
METADATA = Source(
    "https://zenodo.org/records/5120004/files/musicnet_metadata.csv",
    "musicnet_metadata.csv",
    size=43_775,
    checksum="md5:1caef62cee9c875235e62aac368b49d8",
)

# Training recordings that are held out, those that Trabelsi et al. (Deep Complex Networks, arXiv
# 1705.09792) and others after them took: Brahms, Mozart, Beethoven; octet, quartets, trio, piano.
VALIDATION = ("1792", "1876", "2131", "2384", "2514", "2567")

_LABEL_RATE = 44_100  # The times of notes are samples at this rate.
_SPLIT_OF_FOLDER = {"train_data": "train", "test_data": "test"}


class Musicnet(Builder):
    """MusicNet, 34 hours of chamber and piano music, in its own split into train and test.

    `VALIDATION` are taken out of its training recordings. A recording is called by its id. Labels
    are the columns of `musicnet_metadata.csv`; events are the notes, in seconds and beats, with the
    MIDI numbers of instrument (from 1) and pitch. The names of note values are left out.
    """

    name = "musicnet"
    ORIGIN = Origin(
        title="MusicNet 1.0",
        url="https://zenodo.org/records/5120004",
        license="CC BY 4.0",
        citation="Thickstun, Harchaoui and Kakade: Learning Features of Music from Scratch, "
        "arXiv 1611.09827",
    )
    EVENTS = ("start", "end", "instrument", "note", "start_beat", "beats")

    def collect(self) -> Collection:
        """Decodes the archive in one pass; its notes and its sound come in any order."""
        metadata = _read_metadata(self.obtain(METADATA))
        archive = self.obtain(ARCHIVE)
        notes = {}

        def sounds() -> Iterator[tuple[str, bytes]]:
            for name, content in read_members(archive, _is_wanted):
                if name.endswith(".wav"):
                    yield name, content
                else:
                    notes[_id_of(name)] = _read_notes(name, content)

        def decode(member: tuple[str, bytes]) -> Recording:
            return decode_sound(*member, self.config.sample_rate)

        recordings, _ = spool(
            sounds(),
            decode,
            num_threads=self.config.num_threads,
            description="Reading MusicNet",
            total=len(metadata),
            place=self.data_dir,
        )
        splits = {"train": [], "validation": [], "test": []}
        for recording in sorted(recordings, key=lambda r: natural_order(r.name)):
            number = _id_of(recording.name)
            for what, known in (("notes (NUMBER.csv)", notes), (METADATA.filename, metadata)):
                if number not in known:
                    raise UserError(
                        f"{archive} is not whole: of {recording.name} there is nothing in its "
                        f"{what}; fetch {ARCHIVE.url} again."
                    )
            split = _SPLIT_OF_FOLDER[recording.name.split("/")[-2]]
            split = "validation" if number in VALIDATION else split
            splits[split].append(
                Recording(number, recording.samples, metadata[number], notes[number])
            )
        if not all(splits.values()):
            raise UserError(f"{archive} is not whole: it lacks recordings of some split.")
        return Collection(splits)


def _is_wanted(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder.endswith(("_data", "_labels")) and file.endswith((".wav", ".csv"))


def _id_of(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]


def _read_metadata(path: epath.Path) -> dict[str, dict[str, Any]]:
    """Returns the rows of the table of recordings by their id, without it."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {error}.") from error
    rows = list(csv.DictReader(io.StringIO(content)))
    if not rows or None in rows[0] or "id" not in rows[0]:
        raise UserError(
            f"{METADATA.filename} is not the table it should be; fetch {METADATA.url} again."
        )
    return {row.pop("id"): row for row in rows}


def _read_notes(name: str, content: bytes) -> np.ndarray:
    """Returns the notes of a recording in the columns of `Musicnet.EVENTS`, in order of time."""
    try:
        rows = [
            (
                int(row["start_time"]) / _LABEL_RATE,
                int(row["end_time"]) / _LABEL_RATE,
                int(row["instrument"]),
                int(row["note"]),
                float(row["start_beat"]),
                float(row["end_beat"]),  # So it is called, but it is how long the note is.
            )
            for row in csv.DictReader(io.StringIO(content.decode()))
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{name} in the archive is damaged ({error}).") from error
    return np.array(sorted(rows), np.float64).reshape(-1, len(Musicnet.EVENTS))
