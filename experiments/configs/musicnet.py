"""Classical music: the 330 recordings of MusicNet, eight seconds at a time.

Needs: MusicNet (11 GB, downloaded by itself), and a TPU slice; each host runs the same command.
Takes: a slice's memory, so bfloat16, and each ResBlock is computed again in the backward pass.
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """The published model three times as wide, 64 million parameters, with a recipe of ours.

    384 is three times a TPU's 128 lanes, and pools of powers of two divide windows of powers of
    two. A gate's blocks have 8 channels in and 4 out, as published.
    """
    return TrainConfig(
        model=PoolformerConfig(
            widths=(384,) * 5,
            depths=(4,) * 5,
            pool_factors=(2, 4, 4, 4),
            num_heads=96,
            dtype="bfloat16",
            remat=True,
        ),
        data=DataConfig(name="musicnet", sample_rate=16_000, window=131_072, num_threads=16),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2_000, weight_decay=0.05),
        batch_size=32,
        num_steps=250_000,
        ema_decay=0.9999,
        log_every=100,
        eval_every=5_000,
        checkpoint_every=2_500,
        sample_every=5_000,
        sample_length=32_000,
    )
