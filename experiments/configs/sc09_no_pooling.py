"""Spoken digits, one second each, without pooling: `sc09` with all ResBlocks at the full rate.

Needs: Speech Commands 0.02 (2.4 GB, downloaded by itself) and one GPU or TPU.
Takes: each ResBlock is computed again in the backward pass, so that a batch fits; if it does not,
`--config.accumulation_steps=4` takes it in parts.
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """A plain recurrent model of 7.3 million parameters, with as many blocks as `sc09` has.

    Other isotropic models are this one with another mixer: `--config.model.mixer=s4d` (5.7
    million), or `--config.model.mixer=mamba --config.model.mlp=none` (5.6 million).
    """
    return TrainConfig(
        model=PoolformerConfig(
            widths=(128,),
            depths=(36,),
            pool_factors=(),
            num_heads=32,
            dropout=0.2,
            remat=True,
        ),
        data=DataConfig(
            name="sc09",
            window=16_000,
            quantization="sashimi_mu_law",
            normalization="recording",
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
        batch_size=32,
        num_steps=487_000,
        ema_decay=0.999,
        log_every=100,
        eval_every=5_000,
        checkpoint_every=2_500,
        sample_every=5_000,
        sample_length=16_000,
    )
