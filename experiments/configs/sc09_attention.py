"""Spoken digits, one second each, by attention in place of the recurrence; else as `sc09`.

Needs: Speech Commands 0.02 (2.4 GB, downloaded by itself) and one GPU or TPU.
Takes: float32 memory for 16 windows of a second.
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """A model of 5.9 million parameters, beside the 5.8 of `sc09`.

    Looking back on 512 positions is 32 ms at the outermost level, a quarter of a second at the next
    and more than a whole window at the innermost.
    """
    return TrainConfig(
        model=PoolformerConfig(
            widths=(64, 128, 256),
            depths=(2, 4, 6),
            pool_factors=(8, 4),
            mixer="attention",
            attention_window=512,
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
