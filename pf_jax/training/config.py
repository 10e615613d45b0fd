"""What a training run is: one typed description, saved as JSON in every checkpoint."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

from pf_jax import fields
from pf_jax.audio.quantization import NUM_LEVELS
from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.errors import UserError
from pf_jax.training.schedules import SCHEDULES

WEIGHT_DECAY_ON = ("kernels", "all")

SEQUENCE_AXIS = "sequence"
"""The name of the axis of those devices that share sequences."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a schedule after it, clipped by global norm.

    Attributes:
        learning_rate: The highest learning rate, reached after warm-up.
        schedule: What it does then, a name in `pf_jax.training.schedules.SCHEDULES`: "cosine",
            "linear", "constant", "wsd" (stable, then linear decay) or "inverse_sqrt".
        warmup_steps: Steps over which the learning rate rises from 0.
        final_fraction: The last learning rate as a fraction of the highest.
        weight_decay: Decoupled weight decay, in units of the learning rate.
        weight_decay_on: What decays: "kernels", those of linear maps, convolutions and pools, or
            "all" parameters, norms, biases and the decays of recurrences included.
        clip_norm: Gradients with a larger global norm are scaled down to it.
        skip_norm: A step whose gradient has a larger global norm, before clipping, is skipped; 0
            for no such limit. One whose gradient is not finite is always skipped.
        b1: Decay of AdamW's first moment.
        b2: Decay of AdamW's second moment.
    """

    learning_rate: float = 2e-3
    schedule: str = "cosine"
    warmup_steps: int = 500
    final_fraction: float = 0.02
    weight_decay: float = 0.02
    weight_decay_on: str = "kernels"
    clip_norm: float = 1.0
    skip_norm: float = 0.0
    b1: float = 0.9
    b2: float = 0.98

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            UserError: A field has a value of another type, or one that no optimizer can have.
        """
        fields.check_types(self)
        fields.check_intervals(
            self,
            learning_rate="(0, inf)",
            warmup_steps="[0, inf)",
            final_fraction="[0, 1]",
            weight_decay="[0, inf)",
            clip_norm="(0, inf)",
            skip_norm="[0, inf)",
            b1="[0, 1)",
            b2="[0, 1)",
        )
        if self.weight_decay_on not in WEIGHT_DECAY_ON:
            raise UserError(
                f"weight_decay_on must be {' or '.join(WEIGHT_DECAY_ON)}, got "
                f"{self.weight_decay_on!r}."
            )
        if self.schedule not in SCHEDULES:
            raise UserError(
                f"Unknown schedule {self.schedule!r}{fields.did_you_mean(self.schedule, SCHEDULES)}"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        model: The Poolformer.
        data: The dataset and its windows.
        optimizer: The optimizer and its schedule.
        init_from: A checkpoint (of a model of the same shape) whose weights a new run starts from;
            empty for random ones.
        batch_size: Windows in a step, over all devices of all hosts.
        accumulation_steps: Parts that each device takes its share of a batch in, one after the
            other, to need less memory; the result is that of the whole batch.
        sequence_devices: Devices of one host that share each window, where one does not have the
            memory for it; the result is the same.
        num_steps: Steps of the whole run.
        max_skipped: Training ends with an error after so many skipped steps in a row: those whose
            loss or gradient is not finite, or whose gradient is above `optimizer.skip_norm`. A
            skipped step changes no weight.
        patience: Training ends early after so many evaluations in a row without a new lowest
            validation loss; 0 for never.
        ema_decay: Decay of the moving average of the weights, which evaluation and sampling use.
        log_every: Steps between lines in the log.
        eval_every: Steps between evaluations of the whole validation split.
        checkpoint_every: Steps between checkpoints; each evaluation makes one too.
        sample_every: Steps between samples of the model in TensorBoard; 0 for none.
        num_samples: How many there are each time.
        sample_length: Tokens in each; 0 for as many as a window has.
        keep_latest: How many of the latest checkpoints are kept; of two, one may be damaged.
        keep_best: How many of the checkpoints with the lowest validation loss are kept.
        profile: The first and the last step that `jax.profiler` records, such as (10, 12), into
            `profile` in the work directory; empty for none.
        seed: Of the initial weights, dropout and the order of the data.
    """

    model: PoolformerConfig
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    init_from: str = ""
    batch_size: int = 16
    accumulation_steps: int = 1
    sequence_devices: int = 1
    num_steps: int = 100_000
    ema_decay: float = 0.999
    max_skipped: int = 10
    patience: int = 0
    log_every: int = 50
    eval_every: int = 1_000
    checkpoint_every: int = 1_000
    sample_every: int = 0
    num_samples: int = 4
    sample_length: int = 0
    keep_latest: int = 2
    keep_best: int = 1
    profile: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            UserError: A field has a value of another type, or one that no run can have.
        """
        fields.check_types(self)
        fields.check_intervals(
            self,
            batch_size="[1, inf)",
            accumulation_steps="[1, inf)",
            sequence_devices="[1, inf)",
            max_skipped="[1, inf)",
            patience="[0, inf)",
            sample_every="[0, inf)",
            num_samples="[1, inf)",
            sample_length="[0, inf)",
            num_steps="[1, inf)",
            ema_decay="[0, 1)",
            log_every="[1, inf)",
            eval_every="[1, inf)",
            checkpoint_every="[1, inf)",
            keep_latest="[1, inf)",
            keep_best="[0, inf)",
            seed="[0, 4294967295]",  # 32 bits, which is what the shuffling of the data takes.
        )
        if self.profile and not (
            len(self.profile) == 2 and 1 <= self.profile[0] <= self.profile[1]
        ):
            raise UserError(
                f"profile must be a first and a last step such as (10, 12), got {self.profile}."
            )
        if self.model.vocab_size != NUM_LEVELS:
            raise UserError(
                f"model.vocab_size must be {NUM_LEVELS}, the tokens that all data has, got "
                f"{self.model.vocab_size}."
            )

        if self.model.sequence_axis:
            raise UserError(
                "model.sequence_axis belongs to the step and not to a run's model: leave it empty, "
                f"and set sequence_devices instead; got {self.model.sequence_axis!r}."
            )
        period = self.sequence_devices * math.prod(self.model.pool_factors)
        if self.sequence_devices > 1 and self.data.window % period:
            below = self.data.window // period * period
            near = " or ".join(str(n) for n in (below, below + period) if n)
            raise UserError(
                f"data.window={self.data.window} cannot be split over sequence_devices="
                f"{self.sequence_devices}: it must be a multiple of {period}, so that each has "
                f"whole groups of model.pool_factors={self.model.pool_factors}; try {near}."
            )

    @property
    def step_model(self) -> PoolformerConfig:
        """The model as it is in a step: its sequences may be split along `SEQUENCE_AXIS`."""
        axis = SEQUENCE_AXIS if self.sequence_devices > 1 else ""
        return dataclasses.replace(self.model, sequence_axis=axis)

    def to_dict(self) -> dict[str, Any]:
        """The config as a JSON-ready dictionary."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config from `to_dict`'s dictionary, or from JSON.

        Raises:
            UserError: A field is unknown, missing or has an impossible value.
        """
        return fields.from_dict(cls, values)
