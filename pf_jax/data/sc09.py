"""The dataset "sc09": the ten digits of Speech Commands, one second each.

Warden: Speech Commands, arXiv 1804.03209, version 0.02, licence CC BY 4.0; the digits alone, as
Donahue et al. (WaveGAN, arXiv 1802.04208) have them.
"""

from collections.abc import Iterator
from typing import ClassVar

from pf_jax.data.archive import Source, read_members
from pf_jax.data.builder import Builder
from pf_jax.data.origin import Origin
from pf_jax.data.recording import Collection, Recording, decode_sound, spool
from pf_jax.errors import UserError

ARCHIVE = Source(
    "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
    "speech_commands_v0.02.tar.gz",
    size=2_428_923_189,
    checksum="sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_LISTS = {"validation_list.txt": "validation", "testing_list.txt": "test"}


class SC09(Builder):
    """The spoken digits of Speech Commands 0.02: 31,158 clips to train on, 7,750 held out.

    The split is that of the archive's two lists. Clips keep their length, one second at most: a
    window of one second is filled up, and what fills it is never scored. Labels are the digit
    (0 to 9) and the speaker.
    """

    name = "sc09"
    ORIGIN = Origin(
        title="the spoken digits of Speech Commands 0.02",
        url="https://arxiv.org/abs/1804.03209",
        license="CC BY 4.0",
        citation="Warden: Speech Commands, arXiv 1804.03209",
    )
    LABEL_NAMES: ClassVar = {"digit": DIGITS}

    def collect(self) -> Collection:
        """Decodes the digits in one pass; the lists come before or after them."""
        archive = self.obtain(ARCHIVE)
        split_of = {}

        def clips() -> Iterator[tuple[str, bytes]]:
            for name, content in read_members(archive, _is_wanted):
                if name in _LISTS:
                    for clip in content.decode().split():
                        split_of[clip] = _LISTS[name]
                    split_of[name] = ""
                else:
                    yield name, content

        def decode(member: tuple[str, bytes]) -> Recording:
            return decode_sound(*member, self.config.sample_rate)

        recordings, _ = spool(
            clips(),
            decode,
            num_threads=self.config.num_threads,
            description="Reading Speech Commands",
            place=self.data_dir,
        )
        for name in _LISTS:
            if name not in split_of:
                raise UserError(
                    f"{archive} is not whole: it has no {name}; fetch {ARCHIVE.url} again."
                )
        splits = {"train": [], "validation": [], "test": []}
        for recording in sorted(recordings, key=lambda recording: recording.name):
            digit, _, file = recording.name.partition("/")
            labels = {"digit": DIGITS.index(digit), "speaker": file.partition("_")[0]}
            splits[split_of.get(recording.name, "train")].append(
                Recording(recording.name, recording.samples, labels)
            )
        if not all(splits.values()):
            raise UserError(f"{archive} is not whole: it lacks the clips of some split.")
        return Collection(splits)


def _is_wanted(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return name in _LISTS or (folder in DIGITS and file.endswith(".wav"))
