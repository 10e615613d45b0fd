"""What `pf_jax.export` writes: the files of a folder, and what it says about itself."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Self

from etils import epath

from pf_jax.errors import UserError
from pf_jax.training import tensors
from pf_jax.training.state import Params
from pf_jax.version import __version__

META, WEIGHTS, CARD = FILES = ("pf_jax.json", "model.safetensors", "README.md")
"""The files of a folder: what it says of itself, its weights, and the model card."""

FORMAT_VERSION = 1
"""Raised whenever older code could no longer read, or would misread, a new folder."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """What an exported folder says that a checkpoint of training does not.

    Attributes:
        sha256: Of the file of weights.
        card_sha256: Of the model card as it was written.
        license: The identifier of the weights' licence, such as "apache-2.0"; empty if none was
            stated.
        parameters: How many numbers the weights are.
        warm_start: Whether training started from the weights of another checkpoint.
        rounded: Whether kernels have been rounded to bfloat16.
        figures: By split, what `experiments.evaluate` found, as JSON has the fields of
            `pf_jax.evaluation.results.Evaluation`.
    """

    sha256: str
    card_sha256: str = ""
    license: str = ""
    parameters: int = 0
    warm_start: bool = False
    rounded: bool = False
    figures: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-ready dictionary, which says the format version too."""
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], made_by: str, path: str) -> Self:
        """From `to_dict`'s dictionary.

        Args:
            values: The dictionary.
            made_by: The version of pf_jax that made it.
            path: Where it is.

        Raises:
            UserError: A newer version wrote it.
            KeyError, TypeError: It is something else.
        """
        if values["format_version"] > FORMAT_VERSION:
            raise UserError(
                f"{path} was made by pf_jax {made_by}, whose exported folders have format version "
                f"{values['format_version']}; this is pf_jax {__version__}, which reads up to "
                f"{FORMAT_VERSION}. Upgrade pf_jax."
            )
        found = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        for field in dataclasses.fields(cls):
            kind = Mapping if field.name == "figures" else field.type
            if not isinstance(found[field.name], kind):
                raise TypeError(f"{field.name} is {found[field.name]!r:.100}")
        return cls(**found)


def sha256(content: bytes) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read_weights(folder: epath.PathLike, exported: Exported, like: Params) -> Params:
    """The weights in an exported folder, as NumPy arrays.

    Args:
        folder: The folder.
        exported: What it says of itself.
        like: What has the shapes and types of the model's weights.

    Raises:
        TensorsError: The file is not the one that was written, or is not of this model.
        OSError: There is none.
    """
    content = (epath.Path(folder) / WEIGHTS).read_bytes()
    if sha256(content) != exported.sha256:
        raise tensors.TensorsError(
            f"{WEIGHTS} is not the file that was written, by its SHA-256; copy it again"
        )
    try:
        return tensors.from_bytes(content, like)
    except tensors.TensorsError as error:
        raise tensors.TensorsError(
            f"{WEIGHTS} does not fit the model that {META} tells of: {error}"
        ) from error
