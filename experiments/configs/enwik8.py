"""Text: bytes of Wikipedia. The levels then work about once a word.

Needs: enwik8.zip (36 MB, downloaded by itself) and one GPU or TPU.
Takes: float32 memory for 16 windows of 8,192 bytes.
"""

from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.training.config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    """A model of 26 million parameters; bytes are unordered, so their embedding is learned."""
    return TrainConfig(
        model=PoolformerConfig(
            widths=(256, 512),
            depths=(4, 8),
            pool_factors=(4,),
            pool_groups=1,
            embedding="learned",
            mixer="rglru",
            mixer_expansion=1.0,
            recurrence_output=False,
            radii=(0.9, 0.999),
            convolution="depthwise",
            conv_width=4,
            norm="rms",
            dropout=0.1,
        ),
        data=DataConfig(
            name="enwik8",
            modality="text",
            window=8_192,
            num_threads=4,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2_000, weight_decay=0.1),
        batch_size=16,
        num_steps=250_000,
        ema_decay=0.9995,
        log_every=100,
        eval_every=5_000,
        checkpoint_every=2_500,
        sample_every=5_000,
        sample_length=1_000,
    )
