"""Notes of a scale, made on the spot: the whole path from data to samples in minutes on a CPU.

Needs: nothing; the dataset is procedural and prepared in seconds.
Takes: two to four minutes on two CPU cores (`make demo` does it, and prints its speed).
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """A model of about a million parameters that ends well below a Markov model."""
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
        data=DataConfig(name="demo", sample_rate=8_000, window=4_096),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=100),
        batch_size=2,
        num_steps=600,
        ema_decay=0.99,
        log_every=20,
        eval_every=300,
        checkpoint_every=150,
    )
