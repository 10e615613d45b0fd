"""Piano sonatas in clips of eight seconds, by the published Poolformer.

Needs: beethoven.zip (its publisher asks for a login), and a GPU or TPU.
Takes: each ResBlock is computed again in the backward pass, so that a batch fits.
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """The model and the optimizer of `sc09`, 7.3 million parameters; SaShiMi's has 5.8.

    Clips, splits and linear levels are the published ones. Of the published run on this data, no
    other number is known: batch and steps are ours, dropout is off, and all else is as on SC09.
    """
    return TrainConfig(
        model=PoolformerConfig(
            widths=(128,) * 5,
            depths=(4,) * 5,
            pool_factors=(2, 4, 4, 5),
            num_heads=32,
            remat=True,
        ),
        data=DataConfig(
            name="beethoven",
            window=128_000,
            quantization="linear",
            normalization="window",
            num_threads=8,
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            schedule="constant",
            warmup_steps=1_000,
            weight_decay=1e-4,
            weight_decay_on="all",
            clip_norm=200.0,
            skip_norm=1_000.0,
            b2=0.999,
        ),
        batch_size=8,
        num_steps=250_000,
        ema_decay=0.999,
        log_every=100,
        eval_every=5_000,
        checkpoint_every=2_500,
        sample_every=5_000,
        sample_length=32_000,
    )
