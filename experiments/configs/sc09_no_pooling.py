"""Spoken digits, one second each, without pooling: `sc09` with all ResBlocks at the full rate.

Needs: Speech Commands 0.02 (2.4 GB, downloaded by itself) and one GPU or TPU.
Takes: each ResBlock is computed again in the backward pass, so that a batch fits.
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """A plain recurrent model of 6.0 million parameters, with as many ResBlocks as `sc09` has.

    Other isotropic models are this one with another mixer: `--config.model.mixer=s4d` (5.8
    million), or `--config.model.mixer=mamba --config.model.mlp=none` (5.3 million).
    """
    return TrainConfig(
        model=PoolformerConfig(
            widths=(192,),
            depths=(17,),
            pool_factors=(),
            remat=True,
        ),
        data=DataConfig(
            name="sc09",
            window=16_000,
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
