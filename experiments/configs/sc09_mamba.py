"""Spoken digits by Mamba's blocks in SaShiMi's backbone, as in the paper on Mamba (table 4).

Needs: Speech Commands 0.02 (2.4 GB, downloaded by itself) and one GPU or TPU.
Takes: each ResBlock is computed again in the backward pass, so that a batch fits.
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """A model of 6.3 million parameters; the paper (arXiv 2312.00752) says 6.1.

    From its section 4.4 and appendix E.4.2: widths double from 64 at two pools of 4, each stage has
    8 blocks without MLPs, and states are real. A stage is one side of a level, as in E.4.1, where
    3 blocks in each are 15; so counted, the model there has the 3.5 million parameters that it is
    said to have, and the large one of table 4 (depths of 15, widths from 96) 24.9, said 24.3.
    Learning rate, warm-up, decay, steps and batch are those of the appendix, too; that a cosine
    leads to 1e-5 is our reading, from the recipe of its language models.

    The backbone is SaShiMi's with its second residual connection and its delay by whole groups, and
    the embedding is a table. The start of the kernels, the moving average of the weights and the
    normalization of recordings are ours.
    """
    return TrainConfig(
        model=PoolformerConfig(
            widths=(64, 128, 256),
            depths=(8, 8, 8),
            pool_factors=(4, 4),
            pool_groups=1,
            sashimi_backbone=True,
            embedding="learned",
            mixer="mamba",
            state_size=16,
            conv_width=4,
            mlp="none",
            norm="rms",
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
