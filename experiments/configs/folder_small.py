"""One's own recordings by a small model at 8 kHz: first sounds in minutes, without a GPU.

Needs: `--config.data.path=DIRECTORY`, a few minutes of audio.
Takes: about ten minutes on two CPU cores; the longer `--config.num_steps`, the better.
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """The model of the demo, of about a million parameters."""
    return TrainConfig(
        model=PoolformerConfig(
            widths=(32, 96, 192),
            depths=(1, 1, 2),
            pool_factors=(8, 4),
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
        data=DataConfig(name="folder", sample_rate=8_000, window=4_096),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=100),
        batch_size=2,
        num_steps=4_000,
        ema_decay=0.99,
        log_every=50,
        eval_every=500,
        checkpoint_every=250,
    )
