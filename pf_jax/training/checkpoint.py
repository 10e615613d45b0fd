"""Checkpoints: Orbax arrays, and beside them as JSON all that is needed to use them.

A run's directory holds `checkpoints/STEP/` with four items:

* `params`: the moving average of the weights, which is what evaluation and sampling use;
* `train_state`: step, random key, weights and optimizer, to resume from;
* `data`: JSON with the position in the training data;
* `meta`: JSON with the format version, the training config (with the model's, and the data's with
  the audio format), and the validation likelihood.

Arrays are saved as those of one device; the number of devices is free to change.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from pf_jax.audio import AudioFormat
from pf_jax.data import TrainBatches
from pf_jax.errors import UserError
from pf_jax.formats import Format
from pf_jax.poolformer import Poolformer
from pf_jax.training.config import TrainConfig
from pf_jax.training.state import TrainState, abstract_model, merge_model, split_model
from pf_jax.version import __version__

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
        validation_bits_per_sample: Its likelihood on the validation split, where it was measured.
        path: Where it was loaded from; empty before it is saved.
    """

    step: int
    config: TrainConfig
    data_fingerprint: str
    validation_bits_per_sample: float | None = None
    path: str = ""

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
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any], path: str) -> Self:
        """From `to_dict`'s dictionary.

        Raises:
            UserError: It was written by a newer version, or is not the metadata of a checkpoint.
        """
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
        return cls(
            step=fields["step"],
            config=config,
            data_fingerprint=fields["data_fingerprint"],
            validation_bits_per_sample=fields["validation_bits_per_sample"],
            path=path,
        )


class Checkpoints:
    """The checkpoints of a run that is being trained: saved in the background, pruned by policy."""

    def __init__(self, workdir: epath.Path, config: TrainConfig, data_fingerprint: str):
        """Opens or makes `workdir/checkpoints`; what a killed run left half-written is removed.

        Raises:
            UserError: The directory cannot be written.
        """
        self._config = config
        self._data_fingerprint = data_fingerprint
        self.directory = _absolute(workdir) / "checkpoints"
        keep = [preservation_policy.LatestN(config.keep_latest), _KeepBest(config.keep_best)]
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[_BITS],  # Has Orbax keep metrics, no more than that.
            preservation_policy=preservation_policy.AnyPreservationPolicy(keep),
        )
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise UserError(f"Cannot write {self.directory}: {error.strerror or error}.") from error

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint; None when there is none."""
        return self._manager.latest_step()

    def save(
        self,
        state: TrainState,
        data_iterator: TrainBatches,
        validation_bits_per_sample: float | None = None,
    ) -> None:
        """Copies the state to the host and writes it in the background.

        Args:
            state: On the host or one device, without a device axis.
            data_iterator: What the next batch would come from.
            validation_bits_per_sample: Of these weights, where it was measured.
        """
        state = jax.device_get(state)
        step = int(state.step)
        bits = validation_bits_per_sample
        if bits is not None and not math.isfinite(bits):
            bits = None  # A model that diverged is never the best.
        meta = CheckpointMeta(step, self._config, self._data_fingerprint, bits)
        with self._telling_what_fails():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.ema_params),
                    train_state=ocp.args.StandardSave(_without_average(state)),
                    data=ocp.args.JsonSave(data_iterator.get_state()),
                    meta=ocp.args.JsonSave(meta.to_dict()),
                ),
                metrics={} if bits is None else {_BITS: bits},  # Of None, Orbax would complain.
                force=True,
            )

    def restore(self, like: TrainState, data_iterator: TrainBatches) -> TrainState:
        """The latest state, as NumPy arrays; also puts the iterator where it was.

        Args:
            like: A state with the same structure, shapes and types.
            data_iterator: An iterator over the same data.

        Raises:
            UserError: The run was started with another config, or the checkpoint is unreadable.
        """
        step = self._manager.latest_step()
        path = self.directory / str(step)
        meta = read_meta(path)
        _check_same_run(self._config, meta)
        if meta.data_fingerprint != self._data_fingerprint:
            raise UserError(
                f"{path} was trained on other recordings than {self._config.data.name} now has: "
                "files came, went or changed. Put them back, or give another --workdir."
            )
        like = jax.tree.map(_placeholder, like)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(like.ema_params),
                    train_state=ocp.args.StandardRestore(_without_average(like)),
                    data=ocp.args.JsonRestore(),
                ),
            )
            data_iterator.set_state(restored.data)
        except Exception as error:
            raise UserError(f"The checkpoint {path} cannot be read: {_brief(error)}") from error
        return TrainState(ema_params=restored.params, **restored.train_state)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *exception) -> None:
        """Waits for what is being written."""
        if exception[0] is not None:
            with contextlib.suppress(Exception):  # The user has to hear of what came first.
                self._manager.close()
            return
        with self._telling_what_fails():
            self._manager.close()

    @contextlib.contextmanager
    def _telling_what_fails(self) -> Iterator[None]:
        """Turns what goes wrong in writing, or went wrong in the background, into one line."""
        try:
            yield
        except Exception as error:
            raise UserError(
                f"A checkpoint in {self.directory} could not be written ({_brief(error)}); earlier "
                "ones are whole. Mend this and run the same command again."
            ) from error


class _KeepBest(preservation_policy.PreservationPolicy):
    """Keeps the checkpoints with the lowest bits per sample, of those that were measured."""

    def __init__(self, number: int):
        self._number = number

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Says for each checkpoint whether it is kept."""
        measured = [c for c in checkpoints if c.metrics]
        measured.sort(key=lambda c: c.metrics[_BITS])
        best = {c.step for c in measured[: self._number]}
        return [c.step in best for c in checkpoints]


def load(path: epath.PathLike) -> tuple[Poolformer, CheckpointMeta]:
    """Loads a model from a checkpoint; nothing else needs to be known.

    Args:
        path: A run's directory (the checkpoint with the best validation likelihood is taken, or
            where none was measured the latest), its `checkpoints` directory, or one step in it.

    Returns:
        The model with the averaged weights, and what the checkpoint says about itself.

    Raises:
        UserError: There is no checkpoint at `path`, it was made by a newer version, or it is
            damaged.
    """
    meta = find(path)
    graphdef, abstract = split_model(abstract_model(meta.config.model))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            params = checkpointer.restore(
                epath.Path(meta.path) / "params", jax.tree.map(_placeholder, abstract)
            )
    except Exception as error:
        raise UserError(f"The checkpoint {meta.path} is damaged: {_brief(error)}") from error
    return merge_model(graphdef, jax.tree.map(jax.numpy.asarray, params)), meta


def find(path: epath.PathLike) -> CheckpointMeta:
    """What the checkpoint says about itself that `load` would load.

    A step without its metadata is passed over: a killed run was just deleting it.

    Raises:
        UserError: As `load`.
    """
    root = _absolute(path)
    if not root.exists():
        raise UserError(f"No such checkpoint directory: {path}.")
    if not root.is_dir():
        raise UserError(f"{path} is not a checkpoint directory; give a training run's --workdir.")
    if (root / "meta").exists():
        return read_meta(root)
    steps = root / "checkpoints" if (root / "checkpoints").exists() else root
    found = [p.parent.parent for p in steps.glob("*/meta/metadata")]
    found = [p for p in found if p.name.isdigit()]
    if not found:
        raise UserError(
            f"{path} holds no pf_jax checkpoint; give the --workdir of a training run that has "
            "saved one, or one step inside its checkpoints directory."
        )
    metas = [read_meta(p) for p in sorted(found, key=lambda p: int(p.name))]
    measured = [m for m in metas if m.validation_bits_per_sample is not None]
    if measured:
        return min(measured, key=lambda m: m.validation_bits_per_sample)
    return metas[-1]


def read_meta(step_path: epath.Path) -> CheckpointMeta:
    """What one checkpoint says about itself.

    Raises:
        UserError: It is not a pf_jax checkpoint, is damaged, or was made by a newer version.
    """
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            fields = checkpointer.restore(step_path / "meta")
    except Exception as error:
        raise UserError(
            f"{step_path} is not a readable pf_jax checkpoint: {_brief(error)}"
        ) from error
    try:
        return CheckpointMeta.from_dict(fields, str(step_path))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"The metadata of {step_path} is damaged: {error!r}.") from error


# Fields that may change when a run goes on: they change neither the data nor the meaning of a step
# (a longer run decays its learning rate later).
_FREE_FIELDS = (
    *("num_steps", "log_every", "eval_every", "checkpoint_every", "keep_latest", "keep_best"),
    *("data.path", "data.data_dir", "data.manual_dir", "data.verify_checksums"),
    *("data.num_threads", "data.num_workers", "data.prefetch"),
    *("model.recurrence", "model.remat"),
)


def _check_same_run(config: TrainConfig, meta: CheckpointMeta) -> None:
    old, new = _flat(meta.config.to_dict()), _flat(config.to_dict())
    changed = [k for k in new if k not in _FREE_FIELDS and old.get(k) != new[k]]
    if changed:
        differences = ", ".join(f"{k} was {old.get(k)!r} and is now {new[k]!r}" for k in changed)
        raise UserError(
            f"{meta.path} belongs to a run with another config: {differences}. Give the config it "
            "was started with, or another --workdir."
        )


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in fields.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        flat |= {prefix + name: value} if inner is None else inner
    return flat


def _without_average(state: TrainState) -> dict[str, Any]:
    """All but the averaged weights, which have an item of their own."""
    fields = state._asdict()
    del fields["ema_params"]
    return fields


def _placeholder(leaf: Any) -> np.ndarray:
    """A NumPy array of a leaf's shape and type that takes no memory: restores to NumPy."""
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _absolute(path: epath.PathLike) -> epath.Path:
    """As Orbax wants it; an object store's path is absolute already."""
    path = epath.Path(path)
    return path if "://" in str(path) else path.expanduser().resolve()


def _brief(error: Exception) -> str:
    """The first line of an error, for a message to the user."""
    lines = str(error).strip().splitlines()
    logging.debug("%s", error)
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
