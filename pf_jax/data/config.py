"""What a training run says about its data."""

import dataclasses

from pf_jax import fields
from pf_jax.audio import AudioFormat


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data of an experiment.

    Attributes:
        name: Which dataset, one of `pf_jax.data.DATASETS`.
        window: Samples in one training or evaluation window.
        path: For `name="folder"`: the directory tree of sound files.
        sample_rate: Samples per second; recordings at other rates are resampled.
        quantization: How a waveform becomes 256 levels: "mu_law" or "linear".
        data_dir: Where prepared data is kept; empty for TFDS's own place.
        num_threads: Threads that read and quantize windows; 0 reads in the caller's thread.
        prefetch: Batches that are made ready ahead of time; 0 for none.

    Raises:
        UserError: A number is out of range, or the quantization is unknown.
    """

    name: str
    window: int
    path: str = ""
    sample_rate: int = 16_000
    quantization: str = "mu_law"
    data_dir: str = ""
    num_threads: int = 2
    prefetch: int = 4

    def __post_init__(self):
        fields.check_types(self)
        fields.check_intervals(self, window="[1, inf]", num_threads="[0, inf]", prefetch="[0, inf]")
        _ = self.audio_format  # Which checks the other two.

    @property
    def audio_format(self) -> AudioFormat:
        """How tokens of this data are sound."""
        return AudioFormat(self.sample_rate, self.quantization)
