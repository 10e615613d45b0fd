"""Which digit is it: the classifier that the quality of samples of `sc09` is measured with.

Needs: Speech Commands 0.02 (2.4 GB, downloaded by itself) and one GPU or TPU.
Takes: 14 GB of memory for 128 clips a step; the network has 34 million parameters.
"""

from pf_jax.data.config import DataConfig
from pf_jax.evaluation.classifier.config import ClassifierConfig
from pf_jax.evaluation.classifier.resnext import ResNeXtConfig
from pf_jax.training.config import OptimizerConfig


def get_config() -> ClassifierConfig:
    """The network of the published classifier: ResNeXt-29, 8x64d, for 32 x 32 pictures."""
    return ClassifierConfig(
        model=ResNeXtConfig(depth=29, cardinality=8, base_width=64, widen_factor=4),
        data=DataConfig(name="sc09", window=16_000, num_threads=8),
        label="digit",
        optimizer=OptimizerConfig(
            learning_rate=1e-3, warmup_steps=500, final_fraction=0.01, weight_decay=0.05, b2=0.999
        ),
        batch_size=128,
        num_steps=12_000,
        eval_every=500,
    )
