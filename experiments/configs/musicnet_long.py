"""Classical music, a minute at a time: windows of 2^20 samples, each split over four devices.

Needs: MusicNet (11 GB, downloaded by itself), and a TPU slice whose hosts have a multiple of four
devices, such as v5e:16x16, whose 256 chips then take 64 windows at once; each host runs the same
command.
Takes: a slice's memory, so bfloat16, and each ResBlock is computed again in the backward pass.
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """The model of `musicnet`, 64 million parameters, which here learns from a minute back."""
    return TrainConfig(
        model=PoolformerConfig(
            widths=(384,) * 5,
            depths=(4,) * 5,
            pool_factors=(2, 4, 4, 4),
            num_heads=96,
            dtype="bfloat16",
            remat=True,
        ),
        data=DataConfig(name="musicnet", sample_rate=16_000, window=2**20, num_threads=16),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2_000, weight_decay=0.05),
        batch_size=64,
        sequence_devices=4,
        num_steps=100_000,
        ema_decay=0.9999,
        log_every=100,
        eval_every=5_000,
        checkpoint_every=1_000,
        sample_every=5_000,
        sample_length=32_000,
    )
