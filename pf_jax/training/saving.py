"""The checkpoints of a run that is being trained: saved in the background, pruned, restored."""

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from pf_jax import fields
from pf_jax.data import TrainBatches
from pf_jax.errors import UserError
from pf_jax.training.checkpoint import (
    CheckpointMeta,
    DamagedCheckpointError,
    absolute,
    brief,
    check_arrays,
    checksum,
    placeholder,
    read_meta,
)
from pf_jax.training.config import TrainConfig
from pf_jax.training.state import TrainState

_BITS = "bits_per_sample"


class Checkpoints:
    """The checkpoints of a run that is being trained: saved in the background, pruned by policy.

    Attributes:
        directory: Where they are.
        evaluations: By step, the validation likelihoods of the run so far, in bits per sample; goes
            into each checkpoint.
        seconds: The time that training has taken by the training clock, without compilation,
            evaluations and the like; goes into each checkpoint, too.
    """

    def __init__(self, workdir: epath.Path, config: TrainConfig, data_fingerprint: str):
        """Opens or makes `workdir/checkpoints`; what a killed run left half-written is removed.

        Raises:
            UserError: The directory cannot be written.
        """
        self._config = config
        self._data_fingerprint = data_fingerprint
        self.directory = absolute(workdir) / "checkpoints"
        self.evaluations: dict[int, float] = {}
        self.seconds = 0.0
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

    def note_evaluation(self, step: int, bits_per_sample: float) -> None:
        """Has the checkpoints from now on know of an evaluation, unless that diverged."""
        if math.isfinite(bits_per_sample):
            self.evaluations[step] = bits_per_sample

    def latest_path(self) -> epath.Path | None:
        """The path of the latest checkpoint; None when there is none."""
        step = self.latest_step()
        return None if step is None else self.directory / str(step)

    def asked_to_stop(self, step: int) -> bool:
        """Whether the cluster's preemption service has all processes stop at this step."""
        return self._manager.reached_preemption(step)

    def save(self, state: TrainState, data_iterator: TrainBatches) -> None:
        """Copies the state to the host and writes it in the background.

        Args:
            state: On the host or one device, without a device axis.
            data_iterator: What the next batch would come from.
        """
        state = jax.device_get(state)
        step = int(state.step)
        items = {"params": state.ema_params, "train_state": _without_average(state)}
        meta = CheckpointMeta(
            step=step,
            config=self._config,
            data_fingerprint=self._data_fingerprint,
            evaluations=self.evaluations,
            seconds=self.seconds,
            checksums={name: checksum(tree) for name, tree in items.items()},
        )
        bits = meta.validation_bits_per_sample
        with self._telling_what_fails():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    data=ocp.args.JsonSave(data_iterator.get_state()),
                    meta=ocp.args.JsonSave(meta.to_dict()),
                    **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
                ),
                metrics={} if bits is None else {_BITS: bits},  # Of None, Orbax would complain.
                force=True,
            )

    def restore(self, like: TrainState, data_iterator: TrainBatches) -> TrainState:
        """The state of the latest checkpoint that can be read; puts the iterator where it was, too.

        Damaged checkpoints after that one are named and moved aside, to `damaged` in the work
        directory.

        Args:
            like: A state with the same structure, shapes and types; returned where there is no
                checkpoint at all.
            data_iterator: An iterator over the same data.

        Raises:
            UserError: The run was started with another config, or no checkpoint can be read.
        """
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self._read(step, like, data_iterator)
            except DamagedCheckpointError as error:
                damaged[step] = str(error)
                continue
            for damaged_step, reason in damaged.items():
                place = self._move_aside(damaged_step)
                logging.warning("%s It was moved to %s, and step %d is next.", reason, place, step)
            return state
        if damaged:
            raise UserError(
                f"{' '.join(damaged.values())} No checkpoint is left to go on from: put a copy "
                "back, or give another --workdir."
            )
        return like

    def _read(self, step: int, like: TrainState, data_iterator: TrainBatches) -> TrainState:
        path = self.directory / str(step)
        meta = read_meta(path)
        _check_same_run(self._config, meta)
        if meta.data_fingerprint != self._data_fingerprint:
            raise UserError(
                f"{path} was trained on other recordings than {self._config.data.name} now has: "
                "files came, went or changed. Put them back, or give another --workdir."
            )
        like = jax.tree.map(placeholder, like)
        items = {"params": like.ema_params, "train_state": _without_average(like)}
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    data=ocp.args.JsonRestore(),
                    **{name: ocp.args.StandardRestore(tree) for name, tree in items.items()},
                ),
            )
            data_iterator.set_state(restored.data)
        except Exception as error:
            raise DamagedCheckpointError(
                f"The checkpoint {path} cannot be read: {brief(error)}."
            ) from error
        for name in items:
            check_arrays(meta, name, restored[name])
        self.evaluations = dict(meta.evaluations)
        self.seconds = meta.seconds
        return TrainState(ema_params=restored.params, **restored.train_state)

    def _move_aside(self, step: int) -> epath.Path:
        """Moves a damaged checkpoint out of the way of the one that will take its number."""
        place = self.directory.parent / "damaged"
        target = place / str(step)
        for number in itertools.count(2):
            if not target.exists():
                break
            target = place / f"{step}_{number}"
        if jax.process_index() == 0:
            with self._telling_what_fails():
                place.mkdir(parents=True, exist_ok=True)
                (self.directory / str(step)).rename(target)
        multihost_utils.sync_global_devices("moved_aside")
        self._manager.reload()
        return target

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
                f"A checkpoint in {self.directory} could not be written ({brief(error)}); earlier "
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


# Fields that may change when a run goes on: they change neither the data nor the meaning of a step
# (a longer run decays its learning rate later).
_FREE_FIELDS = (
    *("num_steps", "log_every", "eval_every", "checkpoint_every", "keep_latest", "keep_best"),
    *("max_skipped", "patience", "sample_every", "num_samples", "sample_length", "profile"),
    *("init_from", "accumulation_steps", "sequence_devices"),
    *("data.path", "data.data_dir", "data.manual_dir", "data.verify_checksums"),
    *("data.num_threads", "data.num_workers", "data.prefetch"),
    *("model.recurrence", "model.remat"),
)


def _check_same_run(config: TrainConfig, meta: CheckpointMeta) -> None:
    changed = fields.differences(meta.config.to_dict(), config.to_dict(), _FREE_FIELDS)
    if changed:
        raise UserError(
            f"{meta.path} belongs to a run with another config: {', '.join(changed)}. Give the "
            "config it was started with, or another --workdir."
        )


def _without_average(state: TrainState) -> dict[str, Any]:
    """All but the averaged weights, which have an item of their own."""
    items = state._asdict()
    del items["ema_params"]
    return items
