"""Spoken digits, one second each, by a model that two CPU cores sample in real time.

Needs: Speech Commands 0.02 (2.4 GB, downloaded by itself) and one GPU or TPU.
Takes: float32 memory for 16 windows of a second.
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """A model of 5.8 million parameters, as SaShiMi's, with Griffin's recurrent block.

    Widths grow from level to level, so most of the weights are where a step runs once in 32
    samples. Pools of (4, 4) with depths of (4, 4, 6) learn more in a step, but take twice as long
    for it, and sample at half the speed.
    """
    return TrainConfig(
        model=PoolformerConfig(
            widths=(64, 128, 256),
            depths=(2, 3, 7),
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
        data=DataConfig(
            name="sc09",
            window=16_000,
            quantization="sashimi_mu_law",
            normalization="recording",
            num_threads=8,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=1_000),
        batch_size=16,
        num_steps=500_000,
        ema_decay=0.9995,
        log_every=100,
        eval_every=5_000,
        checkpoint_every=2_500,
        sample_every=5_000,
        sample_length=16_000,
    )
