"""Checkpoints: Orbax arrays, and beside them as JSON all that is needed to use them.

A run's directory holds `checkpoints/STEP/` with four items:

* `params`: the moving average of the weights, which is what evaluation and sampling use;
* `train_state`: step, random key, weights and optimizer, to resume from;
* `data`: JSON with the position in the training data;
* `meta`: JSON with the format version, the training config (with the model's, and the data's with
  the audio format), the validation likelihoods so far, and checksums of the arrays.

Arrays are saved as those of one device; the numbers of devices and processes are free to change.

A folder that `pf_jax.export` made is a checkpoint, too, for all but going on with its training: its
`params` are a file of safetensors, and its `meta` is `pf_jax.json`.
"""

import dataclasses
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import nnx

from pf_jax.audio import AudioFormat
from pf_jax.errors import UserError
from pf_jax.formats import Format
from pf_jax.paths import checked_path
from pf_jax.poolformer import Poolformer
from pf_jax.training import exported
from pf_jax.training.config import TrainConfig
from pf_jax.training.exported import Exported
from pf_jax.training.state import Params, TrainState, abstract_model, merge_model, split_model
from pf_jax.training.tensors import TensorsError
from pf_jax.version import __version__

_REASONS = re.compile(
    "No space left on device|File too large|Disk quota exceeded|Permission denied"
)

FORMAT_VERSION = 2
"""Raised whenever older code could no longer read, or would misread, a new checkpoint."""

_BITS = "bits_per_sample"


@dataclasses.dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint says about itself.

    Attributes:
        step: The number of training steps behind it.
        config: The config it was trained with.
        data_fingerprint: Of the recordings it was trained on.
        evaluations: By step, the likelihood on the validation split, in bits per sample, that this
            and earlier checkpoints of the run were measured to have.
        checksums: Of the arrays, by item; empty for none.
        seconds: The time that training took, without compilation, evaluations and the like; 0 in
            checkpoints of versions that did not take it.
        exported: Of a folder that `pf_jax.export` made, what that says besides; else None.
        path: Where it was loaded from; empty before it is saved.
    """

    step: int
    config: TrainConfig
    data_fingerprint: str
    evaluations: Mapping[int, float] = dataclasses.field(default_factory=dict)
    checksums: Mapping[str, int] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    exported: Exported | None = None
    path: str = ""

    @property
    def validation_bits_per_sample(self) -> float | None:
        """Its likelihood on the validation split, where it was measured."""
        return self.evaluations.get(self.step)

    @property
    def run(self) -> epath.Path:
        """The directory of its run, which has `evaluation`; of an exported folder, that itself."""
        step = epath.Path(self.path)
        in_run = step.parent.name == "checkpoints" and not self.exported
        return step.parent.parent if in_run else step

    @property
    def format(self) -> Format:
        """How the model's tokens are sound, text or pictures."""
        return self.config.data.format

    @property
    def audio_format(self) -> AudioFormat:
        """What the model's tokens sound like.

        Raises:
            UserError: It is no model of sound.
        """
        if not isinstance(self.format, AudioFormat):
            raise UserError(f"The model in {self.path} is one of {self.config.data.modality}.")
        return self.format

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-ready dictionary, which says the format version too."""
        return {
            "format_version": FORMAT_VERSION,
            "pf_jax_version": __version__,
            "step": self.step,
            "config": self.config.to_dict(),
            "data_fingerprint": self.data_fingerprint,
            "validation_bits_per_sample": self.validation_bits_per_sample,
            "evaluations": {str(step): bits for step, bits in self.evaluations.items()},
            "checksums": dict(self.checksums),
            "seconds": self.seconds,
            **({"export": self.exported.to_dict()} if self.exported else {}),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any], path: str) -> Self:
        """From `to_dict`'s dictionary.

        Raises:
            UserError: It was written by a newer version, or is not the metadata of a checkpoint.
        """
        if fields.get("kind") == "classifier":
            raise UserError(
                f"{path} is a classifier of sounds, not a Poolformer: "
                "pf_jax.evaluation.classifier.load_classifier opens it."
            )
        version = fields.get("format_version")
        if not isinstance(version, int):
            raise UserError(f"{path} is not a pf_jax checkpoint: its metadata has no version.")
        if version > FORMAT_VERSION:
            raise UserError(
                f"{path} was made by pf_jax {fields.get('pf_jax_version')}, whose checkpoints have "
                f"format version {version}; this is pf_jax {__version__}, which reads up to "
                f"{FORMAT_VERSION}. Upgrade pf_jax."
            )
        try:
            config = TrainConfig.from_dict(fields["config"])
        except UserError as error:
            raise UserError(f"The config in {path} is of another version: {error}") from error
        evaluations = fields.get("evaluations", {})
        if version < 2 and fields["validation_bits_per_sample"] is not None:
            evaluations = {fields["step"]: fields["validation_bits_per_sample"]}
        export = fields.get("export")
        return cls(
            step=fields["step"],
            config=config,
            data_fingerprint=fields["data_fingerprint"],
            evaluations={int(step): bits for step, bits in evaluations.items()},
            checksums=fields.get("checksums", {}),
            seconds=fields.get("seconds", 0.0),
            exported=export and Exported.from_dict(export, fields["pf_jax_version"], path),
            path=path,
        )


class DamagedCheckpointError(UserError):
    """A checkpoint that cannot be read."""


def load(path: epath.PathLike) -> tuple[Poolformer, CheckpointMeta]:
    """Loads a model from a checkpoint; nothing else needs to be known.

    Args:
        path: A run's directory (the checkpoint with the best validation likelihood is taken, or
            where none was measured the latest), its `checkpoints` directory, or one step in it; or
            a folder that `pf_jax.export` made.

    Returns:
        The model with the averaged weights, and what the checkpoint says about itself.

    Raises:
        UserError: There is no checkpoint at `path`, it was made by a newer version, or it is
            damaged.
    """
    meta = find(path)
    graphdef, params = load_weights(meta)
    return merge_model(graphdef, jax.tree.map(jax.numpy.asarray, params)), meta


def load_weights(meta: CheckpointMeta) -> tuple[nnx.GraphDef, Params]:
    """The structure of a checkpoint's model and its averaged weights, as NumPy arrays.

    Raises:
        DamagedCheckpointError: It cannot be read.
    """
    graphdef, abstract = split_model(abstract_model(meta.config.model))
    try:
        if meta.exported:
            params = exported.read_weights(meta.path, meta.exported, abstract)
        else:
            with ocp.StandardCheckpointer() as checkpointer:
                params = checkpointer.restore(
                    epath.Path(meta.path) / "params", jax.tree.map(placeholder, abstract)
                )
    except Exception as error:
        reason = str(error) if isinstance(error, TensorsError) else brief(error)
        raise DamagedCheckpointError(f"The checkpoint {meta.path} is damaged: {reason}.") from error
    check_arrays(meta, "params", params)
    return graphdef, params


def warm_start(state: TrainState, config: TrainConfig) -> TrainState:
    """The state of a new run, with the weights of the checkpoint that its config starts from.

    Raises:
        UserError: There is no such checkpoint, or its model has another shape.
    """
    meta = find(config.init_from)
    _, params = load_weights(meta)
    names = [
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (params, state.params)
    ]
    if names[0] != names[1]:
        old, new = meta.config.model.to_dict(), config.model.to_dict()
        differences = [
            f"{k} is {old[k]!r} there and {new[k]!r} here" for k in new if old[k] != new[k]
        ]
        raise UserError(
            f"init_from={config.init_from} has a model of another shape: {', '.join(differences)}."
        )
    return state._replace(params=params, ema_params=params)


def find(path: epath.PathLike) -> CheckpointMeta:
    """What the checkpoint says about itself that `load` would load.

    A step without its metadata is passed over: a killed run was just deleting it.

    Raises:
        UserError: As `load`.
    """
    root = absolute(checked_path(path, "checkpoint"))
    if not root.exists():
        raise UserError(f"No such checkpoint directory: {path}.")
    if not root.is_dir():
        raise UserError(
            f"{path} is not a checkpoint directory; give a training run's --workdir, or the folder "
            "that experiments.export made."
        )
    if (root / "meta").exists() or (root / exported.META).exists():
        return read_meta(root)
    if (root / "classifier" / "meta").exists():
        return read_meta(root / "classifier")
    steps = root / "checkpoints" if (root / "checkpoints").exists() else root
    found = [p.parent.parent for p in steps.glob("*/meta/metadata")]
    found = [p for p in found if p.name.isdigit()]
    if not found:
        raise UserError(
            f"{path} holds no pf_jax checkpoint; give the --workdir of a training run that has "
            "saved one, or one step inside its checkpoints directory."
        )
    metas = [read_meta(p) for p in sorted(found, key=lambda p: int(p.name))]
    # The latest knows of evaluations that were made up for after an earlier one was saved, too.
    bits = {step: value for meta in metas for step, value in meta.evaluations.items()}
    return min((m for m in metas if m.step in bits), key=lambda m: bits[m.step], default=metas[-1])


def read_meta(step_path: epath.Path) -> CheckpointMeta:
    """What one checkpoint, or one exported folder, says about itself.

    Raises:
        UserError: It is not a pf_jax checkpoint, is damaged, or was made by a newer version.
    """
    is_export = (step_path / exported.META).exists()
    try:
        if is_export:
            fields = json.loads((step_path / exported.META).read_text())
        else:
            with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
                fields = checkpointer.restore(step_path / "meta")
    except Exception as error:
        raise DamagedCheckpointError(
            f"{step_path} is not a readable pf_jax checkpoint: {brief(error)}."
        ) from error
    try:
        meta = CheckpointMeta.from_dict(fields, str(step_path))
        if is_export and meta.exported is None:
            raise KeyError("export")
        return meta
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedCheckpointError(
            f"The metadata of {step_path} is damaged: {error!r}."
        ) from error


def checksum(tree: Any) -> int:
    """The CRC-32 of all arrays of a tree, in order."""
    crc = 0
    for leaf in jax.tree.leaves(tree):
        crc = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8), crc)
    return crc


def check_arrays(meta: CheckpointMeta, name: str, tree: Any) -> None:
    """Compares the arrays of an item with the checksum that was saved with them.

    Raises:
        DamagedCheckpointError: They are others.
    """
    if name in meta.checksums and meta.checksums[name] != checksum(tree):
        raise DamagedCheckpointError(
            f"The checkpoint {meta.path} is damaged: the arrays of {name!r} are not those that "
            "were saved."
        )


def placeholder(leaf: Any) -> np.ndarray:
    """A NumPy array of a leaf's shape and type that takes no memory: restores to NumPy."""
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def absolute(path: epath.PathLike) -> epath.Path:
    """As Orbax wants it; an object store's path is absolute already."""
    path = epath.Path(path)
    return path if "://" in str(path) else path.expanduser().resolve()


def brief(error: Exception) -> str:
    """What an error says, as part of one line for the user; the whole goes to the debug log."""
    logging.debug("%s", error)
    text = " ".join(str(error).split())
    if match := _REASONS.search(text):  # TensorStore says it at the end of a long story.
        return match[0]
    return f"{type(error).__name__}: {text.partition(' [tensorstore_spec')[0][:300].rstrip('.')}"
