"""The dataset "beethoven": the piano sonatas, in pieces of eight seconds.

As Mehri et al. (SampleRNN, arXiv 1612.07837) chose it, in the archive of Goel et al. (SaShiMi,
arXiv 2202.09729): https://huggingface.co/datasets/krandiash/beethoven.
"""

from absl import logging

from pf_jax.data.archive import Source, read_members
from pf_jax.data.builder import Builder
from pf_jax.data.origin import Origin
from pf_jax.data.recording import Collection, Recording, decode_sound, natural_order, spool
from pf_jax.errors import UserError

# Its publisher gives no checksum; each file in it has one, and their number is known.
ARCHIVE = Source(
    "https://huggingface.co/datasets/krandiash/beethoven/resolve/main/beethoven.zip",
    "beethoven.zip",
    note="Its publisher asks you to log in and to agree to share your contact, at "
    "https://huggingface.co/datasets/krandiash/beethoven; then it is downloaded by itself when the "
    "environment variable HF_TOKEN is your token.",
)


class Beethoven(Builder):
    """Ten hours of piano sonatas: 3,808 files to train on, 260 each for validation and test.

    The files in their natural order (9 before 10): the first 88 % are for training, the next 6 %
    for validation, the last 6 % for test, rounded as SaShiMi's code rounds them: files 0 to 3,807,
    3,808 to 4,067 and 4,068 to 4,327. Each has at most 128,000 samples.
    """

    name = "beethoven"
    ORIGIN = Origin(
        title="Beethoven's piano sonatas, in the archive of SaShiMi",
        url="https://huggingface.co/datasets/krandiash/beethoven",
        citation="Mehri et al.: SampleRNN, arXiv 1612.07837; Goel et al.: SaShiMi, "
        "arXiv 2202.09729",
    )
    SOURCE = ARCHIVE
    PUBLISHED_FILES = 4_328

    def collect(self) -> Collection:
        """Decodes the archive."""
        archive = self.obtain(self.SOURCE)

        def decode(member: tuple[str, bytes]) -> Recording:
            return decode_sound(*member, self.config.sample_rate)

        recordings, _ = spool(
            read_members(archive, lambda name: name.lower().endswith(".wav")),
            decode,
            num_threads=self.config.num_threads,
            description=f"Reading {self.SOURCE.filename}",
            total=self.PUBLISHED_FILES,
            place=self.data_dir,
        )
        recordings.sort(key=lambda recording: natural_order(recording.name))
        count = len(recordings)
        if count != self.PUBLISHED_FILES:
            logging.warning(
                "%s has %d sound files, published figures are of %d: they do not compare.",
                archive,
                count,
                self.PUBLISHED_FILES,
            )
        first, last = int(0.88 * count), int(0.94 * count)
        splits = {
            "train": recordings[:first],
            "validation": recordings[first:last],
            "test": recordings[last:],
        }
        if not all(splits.values()):
            raise UserError(f"{archive} has only {count} sound files; fetch {self.SOURCE.url}.")
        return Collection(splits)
