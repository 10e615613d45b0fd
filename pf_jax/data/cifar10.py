"""The dataset "cifar10": 60,000 pictures of 32 x 32 pixels, as sequences of bytes.

Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009;
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import numpy as np

from pf_jax.data.archive import Source, read_members
from pf_jax.data.builder import Builder
from pf_jax.data.config import DataConfig
from pf_jax.data.origin import Origin
from pf_jax.data.recording import Collection, Recording
from pf_jax.errors import UserError

ARCHIVE = Source(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar-10-binary.tar.gz",
    size=170_052_171,
    checksum="sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
_FOLDER = "cifar-10-batches-bin/"
_TRAIN = tuple(f"{_FOLDER}data_batch_{number}.bin" for number in range(1, 6))
_TEST = f"{_FOLDER}test_batch.bin"
_NAMES = f"{_FOLDER}batches.meta.txt"
_SIDE = 32
_BYTES = 3 * _SIDE * _SIDE


class Cifar10(Builder):
    """Small pictures of ten kinds; rows from the top, in them pixels, in them red, green, blue.

    The first 90 % of the training pictures are for training, the others for validation. The label
    is the name of what is seen.
    """

    name = "cifar10"
    ORIGIN = Origin(
        title="CIFAR-10",
        url="https://www.cs.toronto.edu/~kriz/cifar.html",
        citation="Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009",
    )
    MODALITY = "image"

    def __init__(self, config: DataConfig):
        """Opens the place of the dataset.

        Raises:
            UserError: A window is not one picture.
        """
        super().__init__(config)
        if config.window != _BYTES:
            raise UserError(
                f"A window of cifar10 is one picture: data.window must be {_BYTES}, got "
                f"{config.window}."
            )

    def collect(self) -> Collection:
        """Reads the six files of records: a label, then the red plane, the green and the blue."""
        archive = self.obtain(ARCHIVE)
        wanted = (*_TRAIN, _TEST, _NAMES)
        files = dict(read_members(archive, lambda name: name in wanted))
        for name in wanted:
            whole = name == _NAMES or len(files.get(name, b"")) % (1 + _BYTES) == 0
            if not files.get(name) or not whole:
                raise UserError(
                    f"{archive} is not whole: {name} is missing or cut short; "
                    f"fetch {ARCHIVE.url} again."
                )
        kinds = files[_NAMES].decode().split()
        train = [picture for name in _TRAIN for picture in _pictures(name, files[name], kinds)]
        first = 9 * len(train) // 10
        test = _pictures(_TEST, files[_TEST], kinds)
        return Collection({"train": train[:first], "validation": train[first:], "test": test})


def _pictures(name: str, content: bytes, kinds: list[str]) -> list[Recording]:
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + _BYTES)
    planes = records[:, 1:].reshape(-1, 3, _SIDE * _SIDE)
    pixels = planes.swapaxes(1, 2).reshape(-1, _BYTES)
    batch = name.rpartition("/")[2].removesuffix(".bin")
    return [
        Recording(f"{batch}[{number}]", picture, {"kind": kinds[label]})
        for number, (label, picture) in enumerate(zip(records[:, 0], pixels, strict=True))
    ]
