"""Spoken digits with SaShiMi's backbone and S4D: what Poolformer is compared with.

Needs: Speech Commands 0.02 (2.4 GB, downloaded by itself) and one GPU or TPU.
Takes: float32 memory for 32 windows of a second.
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """A model of 5.2 million parameters, as the code of state-spaces/s4 has with S4D.

    Goel et al. (2022, arXiv 2202.09729): no blocks before a pool, 8 after it, each a state space
    and an MLP. The batch size and the rate, at which S4D's own parameters learn in any case, are
    those of that code; it trains with S4, of which S4D keeps the diagonal.
    """
    return TrainConfig(
        model=PoolformerConfig(
            widths=(64, 128, 256),
            depths=((0, 8), (0, 8), 8),
            pool_factors=(4, 4),
            pool_groups=1,
            sashimi_backbone=True,
            embedding="learned",
            mixer="s4d",
            mlp="plain_mlp",
            norm="layer",
            norm_epsilon=1e-5,
        ),
        data=DataConfig(
            name="sc09",
            window=16_000,
            quantization="sashimi_mu_law",
            normalization="recording",
            num_threads=8,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1_000),
        batch_size=32,
        num_steps=500_000,
        ema_decay=0.9995,
        log_every=100,
        eval_every=5_000,
        checkpoint_every=2_500,
        sample_every=5_000,
        sample_length=16_000,
    )
