"""How fast a config trains here, before it does."""

import itertools
import time
from typing import NamedTuple

import jax
import numpy as np

from pf_jax.data import open_dataset, train_batches
from pf_jax.training import planning
from pf_jax.training.clock import training_clock
from pf_jax.training.config import TrainConfig
from pf_jax.training.hosts import replicate
from pf_jax.training.parallel import local_shares, parallel_train_step
from pf_jax.training.program import analyze
from pf_jax.training.state import init_train_state, make_optimizer

_FIRST_STEPS = 3  # They compile and fill queues, and do not count.
_LEAST_STEPS = 5


class TrainingSpeed(NamedTuple):
    """What training takes.

    Attributes:
        steps_per_second: The speed, with the loading of batches, without compilation.
        steps_per_clock_second: The same by `pf_jax.training.clock.training_clock`.
        step_memory: Bytes of each device that a step needs, as the compiler tells: weights,
            optimizer and batch included.
    """

    steps_per_second: float
    steps_per_clock_second: float
    step_memory: int


def measure_training(config: TrainConfig, *, seconds: float) -> TrainingSpeed:
    """Trains for a moment, as `pf_jax.training.train` does, and keeps nothing of it.

    Args:
        config: The experiment.
        seconds: About how long to measure; it is at least five steps.

    Raises:
        UserError: The config asks for something impossible, or its data cannot be had.
    """
    batches = train_batches(
        open_dataset(config.data),
        config.data,
        seed=config.seed,
        batch_size=config.batch_size,
        process_index=0,
        process_count=1,
        num_local_devices=local_shares(config),
    )
    optimizer, schedule = make_optimizer(config)
    graphdef, state = init_train_state(config, optimizer)
    state, stop = replicate(state), np.zeros(jax.local_device_count(), bool)
    compiled = planning.train_step_task(config, jax.devices()).lowered.compile()
    # What is compiled for split sequences takes arrays of all processes, and is called otherwise.
    is_split = config.sequence_devices > 1
    step = parallel_train_step(config, graphdef, optimizer, schedule) if is_split else compiled
    previous = start = clock = None
    for number in itertools.count():
        state, metrics = step(state, next(batches), stop)
        # One step ahead of the devices, as in training.
        jax.block_until_ready(previous)
        previous = metrics["loss"]
        if number == _FIRST_STEPS:
            start, clock = time.monotonic(), training_clock()
        steps = number - _FIRST_STEPS
        if steps >= _LEAST_STEPS and time.monotonic() - start >= seconds:
            break
    speed, by_clock = steps / (time.monotonic() - start), steps / (training_clock() - clock)
    return TrainingSpeed(speed, by_clock, analyze(compiled).memory)
