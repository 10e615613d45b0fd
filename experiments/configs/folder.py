"""One's own recordings: any directory tree of WAV, FLAC, OGG and MP3 files.

Needs: `--config.data.path=DIRECTORY`, a few minutes of audio at least, hours for good samples.
Takes: one GPU or TPU; without, `folder_small` is the one to begin with.
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """A model of about 5 million parameters that hears a second of audio at 16 kHz."""
    return TrainConfig(
        model=PoolformerConfig(
            widths=(64, 160, 320),
            depths=(2, 2, 3),
            pool_factors=(16, 8),
            pool_groups=1,
            embedding="sinusoidal_linear",
            mixer="rglru",
            mixer_expansion=1.0,
            recurrence_output=False,
            radii=(0.9, 0.999),
            convolution="depthwise",
            conv_width=4,
            norm="rms",
        ),
        data=DataConfig(name="folder", sample_rate=16_000, window=16_384),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=500),
        batch_size=8,
        num_steps=50_000,
        log_every=50,
        eval_every=1_000,
        checkpoint_every=500,
        sample_every=1_000,
        sample_length=16_000,
    )
