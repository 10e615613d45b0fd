"""What the training of a classifier is: one typed description, saved as JSON beside it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from pf_jax import fields
from pf_jax.data.config import DataConfig
from pf_jax.errors import UserError
from pf_jax.evaluation.classifier.resnext import ResNeXtConfig
from pf_jax.evaluation.classifier.spectrogram import EDGES, FRAME
from pf_jax.training.config import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """How clips are changed at random in training; each by an amount of its own.

    The spectrogram is relative to its loudest place, so that a gain alone would change nothing: it
    makes the noise and the quantization weigh more.

    Attributes:
        shift: Moved in time by up to so many seconds to either side; zeros come in.
        speed: Played up to this fraction faster or slower, pitch and all.
        gain: Made quieter by up to so many decibels.
        noise: White noise of up to this amplitude (standard deviation, full scale being 1), evenly
            on a scale of decibels over the 60 below it.
        quantization: The probability that a clip is quantized as `data` has it, which is what the
            clips of a model that is to be judged are.
        masked_bands: Up to so many neighbouring bands are put to the floor, once a clip.
        masked_frames: Up to so many neighbouring frames are put to the floor, once a clip.
    """

    shift: float = 0.1
    speed: float = 0.1
    gain: float = 20.0
    noise: float = 0.01
    quantization: float = 0.5
    masked_bands: int = 0
    masked_frames: int = 0

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            UserError: A field has a value of another type, or one that makes no sense.
        """
        fields.check_types(self)
        fields.check_intervals(
            self,
            shift="[0, inf)",
            speed="[0, 1)",
            gain="[0, inf)",
            noise="[0, inf)",
            quantization="[0, 1]",
            masked_bands="[0, 31]",
            masked_frames="[0, inf)",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """One training run of a classifier of sounds.

    Attributes:
        model: The network.
        data: The dataset; a clip is `data.window` samples. Clips are taken as they are recorded:
            `data.normalization` has no meaning here, and `data.quantization` only for augmentation.
        label: What is told apart, a label of the dataset's recordings such as "digit".
        edges: What stands before and after a clip: see `mel_spectrogram`.
        augmentation: How clips are changed at random in training.
        optimizer: AdamW and its schedule; `skip_norm` has no effect here.
        batch_size: Clips in a step.
        num_steps: Steps of the whole run.
        log_every: Steps between lines in the log.
        eval_every: Steps between evaluations of the whole validation split, of which the best one's
            weights are kept; each makes a checkpoint.
        seed: Of the initial weights, the order of the data and its augmentation.
    """

    model: ResNeXtConfig = dataclasses.field(default_factory=ResNeXtConfig)
    data: DataConfig
    label: str
    edges: str = "reflect"
    augmentation: AugmentationConfig = AugmentationConfig()
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    batch_size: int = 128
    num_steps: int = 20_000
    log_every: int = 50
    eval_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            UserError: A field has a value of another type, or one that no run can have.
        """
        fields.check_types(self)
        fields.check_intervals(
            self,
            batch_size="[2, inf)",  # Of one clip, there would be no statistics.
            num_steps="[1, inf)",
            log_every="[1, inf)",
            eval_every="[1, inf)",
            seed="[0, 4294967295]",
        )
        if self.edges not in EDGES:
            raise UserError(f"edges must be {' or '.join(EDGES)}, got {self.edges!r}.")
        if self.data.modality != "audio":
            raise UserError(
                f"A classifier hears sounds: data.modality must be 'audio', got "
                f"{self.data.modality!r}."
            )
        if self.data.window <= FRAME // 2:
            raise UserError(
                f"data.window must be above {FRAME // 2}, the samples of half a frame of the "
                f"spectrogram, got {self.data.window}."
            )

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
