"""How far the training of a classifier is: saved at each evaluation, restored when it goes on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp
from etils import epath

from pf_jax import fields
from pf_jax.errors import UserError
from pf_jax.evaluation.classifier.config import ClassifierConfig
from pf_jax.evaluation.classifier.saved import TRAINING, Variables
from pf_jax.training.checkpoint import absolute, brief, placeholder


class Progress(NamedTuple):
    """A training run after some steps.

    Attributes:
        state: What training changes: step, variables and optimizer.
        best: The arrays of the network that told most of the validation split right.
        best_step: The step that had them, 0 before the first evaluation.
        accuracy: The share of the validation split that they told right.
        loss: Their loss there, in nats.
    """

    state: Any
    best: Variables
    best_step: int = 0
    accuracy: float = -1.0
    loss: float = math.inf

    def judged(self, state: Any, step: int, scores: Mapping[str, float]) -> Self:
        """This after a step that was evaluated."""
        accuracy, loss = float(scores["accuracy"]), float(scores["loss"])
        if (accuracy, -loss) <= (self.accuracy, -self.loss):
            return self._replace(state=state)
        return type(self)(state, state.variables, step, accuracy, loss)


class ProgressSaver:
    """The checkpoints of a classifier's training, the two latest, in `workdir/training`."""

    def __init__(
        self,
        workdir: epath.Path,
        config: ClassifierConfig,
        data_fingerprint: str,
        free_fields: Sequence[str],
    ):
        """Opens or makes the directory.

        Args:
            workdir: The directory of the run.
            config: Its config.
            data_fingerprint: Of its data.
            free_fields: Fields of the config that may change when a run goes on.

        Raises:
            UserError: The directory cannot be written.
        """
        self._config = config
        self._fingerprint = data_fingerprint
        self._free_fields = free_fields
        self.directory = absolute(workdir) / TRAINING
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise UserError(f"Cannot write {self.directory}: {error.strerror or error}.") from error

    def save(self, progress: Progress) -> None:
        """Writes a checkpoint in the background."""
        arrays = {"state": progress.state._asdict(), "best": progress.best}
        meta = {
            "kind": "classifier_training",
            "config": self._config.to_dict(),
            "data_fingerprint": self._fingerprint,
            "best": {
                "step": progress.best_step,
                "accuracy": progress.accuracy,
                "loss": progress.loss if math.isfinite(progress.loss) else None,
            },
        }
        try:
            self._manager.save(
                int(progress.state.step),
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(jax.device_get(arrays)),
                    meta=ocp.args.JsonSave(meta),
                ),
                force=True,
            )
        except Exception as error:
            raise self._unwritten(error) from error

    def restore(self, like: Progress) -> Progress:
        """The latest checkpoint; `like` where there is none.

        Raises:
            UserError: The run was started with another config or other data, or the checkpoint is
                damaged.
        """
        step = self._manager.latest_step()
        if step is None:
            return like
        place = self.directory / str(step)
        try:
            meta = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            ).meta
            old = ClassifierConfig.from_dict(meta["config"])
            best, fingerprint = meta["best"], meta["data_fingerprint"]
        except Exception as error:
            raise self._damaged(place, error) from error
        check_same_run(place, old, self._config, self._free_fields)
        if fingerprint != self._fingerprint:
            raise UserError(
                f"{place} was trained on other recordings than {self._config.data.name} now has: "
                "files came, went or changed. Put them back, or give another --workdir."
            )
        arrays = {"state": like.state._asdict(), "best": like.best}
        try:
            arrays = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardRestore(jax.tree.map(placeholder, arrays))
                ),
            ).arrays
        except Exception as error:
            raise self._damaged(place, error) from error
        return Progress(
            state=type(like.state)(**arrays["state"]),
            best=arrays["best"],
            best_step=int(best["step"]),
            accuracy=float(best["accuracy"]),
            loss=math.inf if best["loss"] is None else float(best["loss"]),
        )

    def delete(self) -> None:
        """Removes them all, when the classifier stands in their place."""
        self.directory.rmtree()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        """Waits for what is being written."""
        try:
            self._manager.close()
        except Exception as error:
            if exception_type is None:  # Else the user has to hear of what came first.
                raise self._unwritten(error) from error

    def _unwritten(self, error: Exception) -> UserError:
        return UserError(
            f"A checkpoint in {self.directory} could not be written ({brief(error)}). Mend this "
            "and run the same command again."
        )

    @staticmethod
    def _damaged(place: epath.Path, error: Exception) -> UserError:
        return UserError(
            f"The checkpoint {place} is damaged ({brief(error)}): delete that directory, and the "
            "same command goes on from the one before, or begins anew."
        )


def check_same_run(
    place: epath.PathLike,
    old: ClassifierConfig,
    config: ClassifierConfig,
    free_fields: Sequence[str],
) -> None:
    """Makes sure that what is in a directory was made with a config.

    Raises:
        UserError: It was made with another.
    """
    changed = fields.differences(old.to_dict(), config.to_dict(), free_fields)
    if changed:
        raise UserError(
            f"{place} belongs to a run with another config: {', '.join(changed)}. Give the config "
            "it was started with, or another --workdir."
        )
