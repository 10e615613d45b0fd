"""A classifier that learns ten tones in seconds, by the same path as one of spoken digits."""

import dataclasses
import pathlib

import pytest

from pf_jax.data import DataConfig
from pf_jax.evaluation.classifier import (
    AugmentationConfig,
    ClassifierConfig,
    ResNeXtConfig,
    train_classifier,
)
from pf_jax.training import OptimizerConfig
from tests.evaluation.tones import SAMPLES, write_tones


@dataclasses.dataclass(frozen=True)
class Trained:
    """A training that came to its end.

    Attributes:
        config: Its config.
        workdir: What it left behind; not to be changed.
    """

    config: ClassifierConfig
    workdir: pathlib.Path


@pytest.fixture(scope="session")
def tones_config(tmp_path_factory) -> ClassifierConfig:
    root = tmp_path_factory.mktemp("tones")
    return ClassifierConfig(
        model=ResNeXtConfig(depth=11, cardinality=2, base_width=4, widen_factor=1, stem_width=8),
        data=DataConfig(
            name="sc09",
            window=SAMPLES,
            manual_dir=str(write_tones(root / "archive")),
            data_dir=str(root / "data"),
            verify_checksums=False,
        ),
        label="digit",
        augmentation=AugmentationConfig(shift=0.01, speed=0.01),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=5, b2=0.95),
        batch_size=20,
        num_steps=30,
        log_every=5,
        eval_every=10,
    )


@pytest.fixture(scope="session")
def trained(tones_config, tmp_path_factory) -> Trained:
    workdir = tmp_path_factory.mktemp("trained")
    train_classifier(tones_config, workdir)
    return Trained(tones_config, workdir)
