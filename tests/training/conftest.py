"""A training run small enough for a test: it ends in seconds, yet has all that a real one has."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import soundfile

from pf_jax.config import PoolformerConfig
from pf_jax.data import DataConfig
from pf_jax.training import OptimizerConfig, TrainConfig, TrainState, loop, parallel


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that trained without a disturbance.

    Attributes:
        config: Its config.
        workdir: What it left behind; not to be changed.
        state: What `train` returned.
        traces: How often `train_step` was traced.
        initial: The state on the devices before the first step.
    """

    config: TrainConfig
    workdir: pathlib.Path
    state: TrainState
    traces: int
    initial: TrainState


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory) -> TrainConfig:
    """Twelve steps of 7.5 to the epoch, dropout, an evaluation every 6 steps."""
    root = tmp_path_factory.mktemp("tiny")
    rng, time = np.random.default_rng(0), np.arange(1_536) / 1_000
    (root / "sounds").mkdir()
    for number in range(12):  # Two of them are held out; each has 6 windows.
        tone = 0.5 * np.sin(2 * np.pi * rng.uniform(50, 200) * time)
        soundfile.write(root / "sounds" / f"{number}.wav", tone[: 1_536 - 10 * number], 1_000)
    return TrainConfig(
        model=PoolformerConfig(
            widths=(8, 16),
            depths=((0, 1), 1),
            pool_factors=(4,),
            pool_groups=1,
            num_heads=2,
            dropout=0.1,
        ),
        data=DataConfig(
            name="folder",
            path=str(root / "sounds"),
            sample_rate=1_000,
            window=256,
            data_dir=str(root / "data"),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=3),
        batch_size=8,
        num_steps=12,
        ema_decay=0.9,
        log_every=1,
        eval_every=6,
        checkpoint_every=3,
    )


@pytest.fixture(scope="session")
def finished(tiny_config, tmp_path_factory) -> Run:
    """The tiny run, trained to its end in one go, with the checkpoints of steps 3, 6, 9 and 12."""
    config = dataclasses.replace(tiny_config, keep_latest=4)
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    traces, train_step = [], parallel.train_step
    initial, replicate = [], loop.replicate

    def traced(*args, **kwargs):
        traces.append(1)
        return train_step(*args, **kwargs)

    def kept(state):
        initial.append(replicate(state))
        return initial[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "train_step", traced)
        patch.setattr(loop, "replicate", kept)
        state = loop.train(config, workdir)
    return Run(config, workdir, state, len(traces), initial[0])


@pytest.fixture(scope="session")
def metrics_of():
    """A function that reads the lines of a run's metrics.jsonl, without time and memory."""
    of_the_machine = {"samples_per_second", "seconds", "peak_memory"}

    def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
        lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if k not in of_the_machine} for line in lines]

    return read
