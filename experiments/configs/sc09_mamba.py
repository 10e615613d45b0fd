"""Spoken digits by Mamba's blocks in SaShiMi's backbone, as in the paper on Mamba (table 4).

Needs: Speech Commands 0.02 (2.4 GB, downloaded by itself) and one GPU or TPU.
Takes: each ResBlock is computed again in the backward pass, so that a batch fits.
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """A model of 6.2 million parameters; the paper (arXiv 2312.00752) says 6.1.

    Appendix E.4.2 has 8 blocks in each of five stages: two before the innermost and two after it,
    for its 15 blocks of 3 a stage (E.4.1) have the 3.5 million parameters that it says only so.
    Widths double from 64, pools are of 4, no block has an MLP, states are real. So are optimizer,
    steps and batch those of the appendix; the learning rate falls along a cosine to 1e-5.

    Different here: the embedding is Poolformer's, kernels start as elsewhere in this library, and
    samples come from a moving average of the weights. Each recording is stretched to the full range
    as a whole and in training, too, as in `sc09`.
    """
    return TrainConfig(
        model=PoolformerConfig(
            widths=(64, 128, 256),
            depths=(8, 8, 8),
            pool_factors=(4, 4),
            mixer="mamba",
            state_size=16,
            mlp="none",
            remat=True,
        ),
        data=DataConfig(
            name="sc09",
            window=16_000,
            normalization="recording",
            num_threads=8,
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            warmup_steps=20_000,
            final_fraction=0.005,
            weight_decay=0.1,
            clip_norm=0.1,
            b2=0.95,
        ),
        batch_size=16,
        num_steps=200_000,
        ema_decay=0.9995,
        log_every=100,
        eval_every=5_000,
        checkpoint_every=2_500,
        sample_every=5_000,
        sample_length=16_000,
    )
