"""The dataset "enwik8": the first 100 million bytes of Wikipedia, as text.

Mahoney: About the Test Data, http://mattmahoney.net/dc/textdata.html.
"""

import numpy as np

from pf_jax.data.archive import Source, read_members
from pf_jax.data.builder import Builder
from pf_jax.data.origin import Origin
from pf_jax.data.recording import Collection, Recording
from pf_jax.errors import UserError

ARCHIVE = Source(
    "http://mattmahoney.net/dc/enwik8.zip",
    "enwik8.zip",
    size=36_445_475,
    checksum="sha256:547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
)


class Enwik8(Builder):
    """Bytes of Wikipedia: the first 90 % for training, then 5 % for validation and 5 % for test."""

    name = "enwik8"
    ORIGIN = Origin(
        title="enwik8, the first 100 million bytes of Wikipedia",
        url="http://mattmahoney.net/dc/textdata.html",
        citation="Mahoney: About the Test Data",
    )
    MODALITY = "text"

    def collect(self) -> Collection:
        """Reads the one file in the archive, and cuts it in three."""
        archive = self.obtain(ARCHIVE)
        for _, content in read_members(archive, lambda name: name == "enwik8"):
            text = np.frombuffer(content, np.uint8)
            if len(text) < 20:
                break
            bounds = 0, 90 * len(text) // 100, 95 * len(text) // 100, len(text)
            splits = zip(("train", "validation", "test"), bounds[:-1], bounds[1:], strict=True)
            return Collection(
                {
                    split: [Recording(f"enwik8[{start}:{stop}]", text[start:stop])]
                    for split, start, stop in splits
                }
            )
        raise UserError(f"{archive} has no text in a file enwik8; fetch {ARCHIVE.url} again.")
