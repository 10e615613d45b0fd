"""Piano sonatas in pieces of eight seconds, each of which is a window.

Needs: beethoven.zip (its publisher asks for a login) and one GPU or TPU.
Takes: each ResBlock is computed again in the backward pass, so that a batch fits.
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """A model of 5.6 million parameters, beside SaShiMi's 5.8; linear quantization as there."""
    return TrainConfig(
        model=PoolformerConfig(
            widths=(64, 128, 256),
            depths=(4, 4, 6),
            pool_factors=(4, 4),
            remat=True,
        ),
        data=DataConfig(
            name="beethoven",
            window=128_000,
            quantization="linear",
            normalization="window",
            num_threads=8,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=1_000),
        batch_size=8,
        num_steps=250_000,
        ema_decay=0.9995,
        log_every=100,
        eval_every=5_000,
        checkpoint_every=2_500,
        sample_every=5_000,
        sample_length=32_000,
    )
