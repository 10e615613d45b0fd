"""What a training run says about its data."""

import dataclasses


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
        num_threads: Threads that read and quantize windows.
        prefetch: Batches that are made ready ahead of time.
    """

    name: str
    window: int
    path: str = ""
    sample_rate: int = 16_000
    quantization: str = "mu_law"
    data_dir: str = ""
    num_threads: int = 2
    prefetch: int = 4
