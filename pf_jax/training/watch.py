"""What is looked at after each step: its loss, its speed, and whether it was skipped."""

import io
import math
import time

import jax
import numpy as np

from pf_jax.errors import UserError
from pf_jax.training import summary
from pf_jax.training.clock import training_clock
from pf_jax.training.config import TrainConfig
from pf_jax.training.hosts import first_replica
from pf_jax.training.logging import RunLog
from pf_jax.training.memory import peak_memory
from pf_jax.training.saving import Checkpoints
from pf_jax.training.step import Batch

_NATS_TO_BITS = 1.0 / math.log(2.0)


class Watch:
    """Looks at what each step measured, once it is there: logs it, and ends what has diverged."""

    def __init__(
        self,
        config: TrainConfig,
        checkpoints: Checkpoints,
        log: RunLog,
    ):
        self._config = config
        self._checkpoints = checkpoints
        self._log = log
        self._last = None
        self._clock = None
        self._ended = None  # When the last step that was looked at did.
        self._is_first = True

    def next(self, step: int, batch: Batch, metrics: dict[str, jax.Array]) -> None:
        """Takes note of a step that devices have begun."""
        self._last = (step, batch, metrics)

    def look_at_last(self) -> bool:
        """Waits for the last step that was noted, if any, and looks at it, once.

        Returns:
            Whether a process was asked to stop when it began.

        Raises:
            UserError: Too many steps in a row were skipped.
        """
        if self._last is None:
            return False
        (step, batch, metrics), self._last = self._last, None
        values = {name: value.item() for name, value in first_replica(metrics).items()}
        self._take_time()
        stop = bool(values.pop("stop"))
        in_a_row = values.pop("skipped_in_a_row")
        if in_a_row:
            self._tell_of_skipped(step, batch, values, in_a_row)
        self._log.advance(step)
        if step == self._config.num_steps or step % self._config.log_every == 0:
            bits = {"bits_per_sample": values["loss"] * _NATS_TO_BITS}
            self._log.train(step, values | bits | self._cost() | self._speed(step))
        return stop

    def restart(self, step: int) -> None:
        """Measures time and speed anew, after something else than training took time."""
        self._ended = training_clock()
        self._clock = (step, time.monotonic())

    def out_of_patience(self) -> bool:
        """Whether the last evaluations were all worse than one before."""
        bits = [bits for _, bits in sorted(self._checkpoints.evaluations.items())]
        since_best = len(bits) - 1 - int(np.argmin(bits)) if bits else 0
        return 0 < self._config.patience <= since_best

    def _take_time(self) -> None:
        """Adds what a step took to the time of the run.

        The first step of a process has compilation in it, and counts as much as the second.
        """
        now = training_clock()
        if self._ended is not None:
            self._checkpoints.seconds += (now - self._ended) * (2 if self._is_first else 1)
            self._is_first = False
        self._ended = now

    def _cost(self) -> dict[str, float]:
        """What the run has taken so far."""
        memory = peak_memory()
        known = {} if memory is None else {"peak_memory": memory}
        return {"seconds": self._checkpoints.seconds} | known

    def _speed(self, step: int) -> dict[str, float]:
        """Samples per second since the last time; none the first time, which has compilation."""
        last = self._clock
        self._clock = (step, time.monotonic())
        if last is None or last[0] == step:
            return {}
        samples = (step - last[0]) * self._config.batch_size * self._config.data.window
        speed = samples / (self._clock[1] - last[1])
        utilization = summary.model_flops_utilization(
            speed, self._config.model, jax.device_count(), jax.devices()[0].device_kind
        )
        known = {} if utilization is None else {"model_flops_utilization": utilization}
        return {"samples_per_second": speed} | known

    def _tell_of_skipped(
        self, step: int, batch: Batch, values: dict[str, float], in_a_row: int
    ) -> None:
        what = f"the loss is {values['loss']} and the gradient norm {values['gradient_norm']}"
        self._log.message(f"Step {step} was skipped: {what}.")
        if in_a_row < self._config.max_skipped:
            return
        kept = io.BytesIO()
        np.savez_compressed(kept, **batch)
        workdir = self._checkpoints.directory.parent
        file = workdir / "bad_batches" / f"step_{step}_process_{jax.process_index()}.npz"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(kept.getvalue())
        except OSError as error:  # The user has to hear of what ends the run, all the same.
            file = f"no file ({error.strerror or error})"
        latest = self._checkpoints.latest_path()
        advice = "with a lower optimizer.learning_rate"
        if latest is not None:
            advice = f"from there ({advice}): --config.init_from={latest}"
        raise UserError(
            f"Training has diverged: {in_a_row} steps in a row were skipped to step {step}, where "
            f"{what}. "
            f"The last good checkpoint is {latest or 'none'}, the batch of this step is in {file}. "
            f"Train in another --workdir {advice}."
        )
