"""Four hours of solo piano, a whole minute at a time, by the published Poolformer.

Needs: youtube_mix.zip (its publisher asks for a login), and a machine with a multiple of four GPUs
or TPUs: each minute is split over four.
Takes: each ResBlock is computed again in the backward pass, so that a quarter of a minute fits.
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """The blocks and the optimizer of `sc09`, 7.3 million parameters; SaShiMi's model has 5.8.

    The published run, too, takes minutes of 960,512 samples and splits them over devices. Its pools
    are not known. Those of `sc09` do not divide a minute; of (2, 4, 4, 4), each of four devices has
    1,876 whole groups. Batch and steps are ours, dropout is off, and all else is as on SC09.
    """
    return TrainConfig(
        model=PoolformerConfig(
            widths=(128,) * 5,
            depths=(4,) * 5,
            pool_factors=(2, 4, 4, 4),
            num_heads=32,
            remat=True,
        ),
        data=DataConfig(
            name="youtubemix",
            window=960_512,
            quantization="sashimi_mu_law",
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
        batch_size=4,
        sequence_devices=4,
        num_steps=100_000,
        ema_decay=0.999,
        log_every=100,
        eval_every=2_500,
        checkpoint_every=1_000,
        sample_every=2_500,
        sample_length=32_000,
    )
