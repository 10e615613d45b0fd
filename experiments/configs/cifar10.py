"""Pictures: 32 x 32 pixels, byte after byte, one picture a window.

Needs: cifar-10-binary.tar.gz (170 MB, downloaded by itself) and one GPU or TPU.
Takes: float32 memory for 64 windows of 3,072 bytes.
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """A model of 6 million parameters; its second level works once a pixel."""
    return TrainConfig(
        model=PoolformerConfig(
            widths=(128, 256),
            depths=(3, 8),
            pool_factors=(3,),
            pool_groups=1,
            embedding="sinusoidal_linear",
            mixer="rglru",
            mixer_expansion=1.0,
            recurrence_output=False,
            radii=(0.9, 0.999),
            convolution="depthwise",
            conv_width=4,
            norm="rms",
            dropout=0.1,
        ),
        data=DataConfig(
            name="cifar10",
            modality="image",
            window=3_072,
            num_threads=4,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2_000),
        batch_size=64,
        num_steps=250_000,
        ema_decay=0.9995,
        log_every=100,
        eval_every=5_000,
        checkpoint_every=2_500,
        sample_every=5_000,
        sample_length=3_072,
    )
