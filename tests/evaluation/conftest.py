"""A classifier that learns ten hisses in seconds, by the same path as one of spoken digits."""

import dataclasses
import functools
import pathlib

import pytest

from pf_jax.data import DataConfig
from pf_jax.evaluation.classifier import (
    AugmentationConfig,
    ClassifierConfig,
    ResNeXtConfig,
    train_classifier,
    training,
)
from pf_jax.training import OptimizerConfig
from tests.evaluation.toy_digits import SAMPLES, write_toy_digits


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
def toy_config(tmp_path_factory) -> ClassifierConfig:
    root = tmp_path_factory.mktemp("toy")
    return ClassifierConfig(
        model=ResNeXtConfig(depth=11, cardinality=2, base_width=4, widen_factor=1, stem_width=8),
        data=DataConfig(
            name="sc09",
            window=SAMPLES,
            manual_dir=str(write_toy_digits(root / "archive")),
            data_dir=str(root / "data"),
            verify_checksums=False,
        ),
        label="digit",
        augmentation=AugmentationConfig(shift=0.01, speed=0.01, gain=3, noise=0, quantization=0),
        optimizer=OptimizerConfig(learning_rate=3e-2, warmup_steps=5, b2=0.95),
        batch_size=50,
        num_steps=80,
        log_every=20,
        eval_every=20,
    )


@pytest.fixture(autouse=True, scope="session")
def _trainings_of_one_config_share_their_programs():
    """Several tests train the toy: its steps are compiled once."""
    compiled = functools.cache(training._step_functions)

    def step_functions(config, graphdef):
        return compiled(dataclasses.replace(config, log_every=1, eval_every=1, seed=0), graphdef)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_step_functions", step_functions)
        yield


@pytest.fixture(scope="session")
def trained(toy_config, tmp_path_factory) -> Trained:
    workdir = tmp_path_factory.mktemp("trained")
    train_classifier(toy_config, workdir)
    return Trained(toy_config, workdir)
