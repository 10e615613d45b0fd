"""What a training run says about its data."""

import dataclasses

from pf_jax import fields
from pf_jax.audio import AudioFormat
from pf_jax.errors import UserError
from pf_jax.formats import Format, ImageFormat, TextFormat

MODALITIES = ("audio", "text", "image")
NORMALIZATIONS = ("none", "recording", "window")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data of an experiment.

    Attributes:
        name: Which dataset, one of `pf_jax.data.DATASETS`.
        window: Tokens in one training or evaluation window; of images, exactly one image.
        path: For `name="folder"`: the directory tree of sound files.
        modality: What the tokens are: "audio", "text" or "image".
        sample_rate: Of audio: samples per second; recordings at other rates are resampled.
        quantization: Of audio: how a waveform becomes 256 levels: "mu_law", "linear", or
            "sashimi_mu_law". The last is the mu-law behind the likelihoods published for SC09 and
            YouTubeMix; bits per sample of different quantizations do not compare.
        normalization: Of audio: what is stretched linearly from its least and greatest sample to
            [-1, 1] before it is quantized: "none", each whole "recording", or each "window" by
            itself. The likelihoods published for SC09, Beethoven and YouTubeMix are of windows.
        data_dir: Where prepared data is kept, a directory or an object store's path (gs://); empty
            for TFDS's own place.
        manual_dir: Where archives are that need not be downloaded, such as `musicnet.tar.gz`.
        verify_checksums: Whether archives must be bit for bit those that their publishers offer.
        num_threads: Threads that read and quantize windows; 0 reads in the caller's thread.
        num_workers: Processes that do so, each with its threads; 0 for this process alone.
        prefetch: Batches that are made ready ahead of time, by each worker; 0 for none.

    Raises:
        UserError: A number is out of range, or a choice is unknown.
    """

    name: str
    window: int
    path: str = ""
    modality: str = "audio"
    sample_rate: int = 16_000
    quantization: str = "mu_law"
    normalization: str = "none"
    data_dir: str = ""
    manual_dir: str = ""
    verify_checksums: bool = True
    num_threads: int = 2
    num_workers: int = 0
    prefetch: int = 4

    def __post_init__(self):
        fields.check_types(self)
        fields.check_intervals(
            self,
            window="[1, inf]",
            num_threads="[0, inf]",
            num_workers="[0, inf]",
            prefetch="[0, inf]",
        )
        for name, choices in (("modality", MODALITIES), ("normalization", NORMALIZATIONS)):
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"{name} must be {' or '.join(choices)}, got {value!r}.")
        _ = self.format  # Which checks the others.

    @property
    def format(self) -> Format:
        """How tokens of this data are sound, text or pictures."""
        if self.modality == "text":
            return TextFormat()
        if self.modality == "image":
            return ImageFormat.of_length(self.window)
        return AudioFormat(self.sample_rate, self.quantization)

    @property
    def levels(self) -> str:
        """The quantization and normalization that bits per sample are of; empty if not audio."""
        if self.modality != "audio":
            return ""
        return describe_levels(self.quantization, self.normalization)


def describe_levels(quantization: str, normalization: str) -> str:
    """Names what bits per sample are of, as in "mu_law levels, normalization: none"."""
    return f"{quantization} levels, normalization: {normalization}"
