"""Which digit is it, told by a small network: the classifier of `sc09` for a machine without a GPU.

Needs: Speech Commands 0.02, or an archive laid out like it (benchmarks/digits.py speaks one).
Takes: five minutes on two CPU cores (98.5 % of voices it never met, in benchmarks/digits.py).
"""

from pf_jax.data.config import DataConfig
from pf_jax.evaluation.classifier.config import ClassifierConfig
from pf_jax.evaluation.classifier.resnext import ResNeXtConfig
from pf_jax.training.config import OptimizerConfig


def get_config() -> ClassifierConfig:
    """A network of three bottlenecks."""
    return ClassifierConfig(
        model=ResNeXtConfig(depth=11, cardinality=4, base_width=8, widen_factor=2, stem_width=32),
        data=DataConfig(name="sc09", window=16_000),
        label="digit",
        optimizer=OptimizerConfig(
            learning_rate=3e-3, warmup_steps=50, final_fraction=0.01, weight_decay=0.05, b2=0.99
        ),
        batch_size=64,
        num_steps=400,
        log_every=20,
        eval_every=100,
    )
