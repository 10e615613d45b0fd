"""What the training loop costs over the bare step: the ratio of their times, measured in turns.

The loop reads real data, looks at metrics and logs as in a run; the bare step takes the same batch
again and again. Both run on all devices of this host. How long a checkpoint keeps the loop waiting
is measured apart, and shared out over the steps between two of them.

Example:
  python -m benchmarks.train_loop --config=demo
  python -m benchmarks.train_loop --config=folder --config.data.path=~/music --config.batch_size=8
"""

import dataclasses
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from experiments import cli
from pf_jax.data import open_dataset, train_batches
from pf_jax.training import TrainConfig, loop
from pf_jax.training.hosts import replicate
from pf_jax.training.parallel import parallel_train_step
from pf_jax.training.state import init_train_state, make_optimizer

_CONFIG = cli.define_config()
_STEPS = flags.DEFINE_integer("steps", 40, "Steps of each of the turns.", lower_bound=10)
_TURNS = flags.DEFINE_integer("turns", 5, "How often both are measured.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark."""
    del argv
    config = _CONFIG.value
    bare = BareStep(config)
    ratios, seconds, saves = [], [], []
    for _ in range(_TURNS.value):
        before = bare.seconds()
        looped, save = loop_seconds(config)
        after = bare.seconds()  # The machine may be slower for a while: compare with both sides.
        ratios.append(2 * looped / (before + after))
        seconds.append(looped)
        saves.append(save / config.checkpoint_every / looped)
    print(
        json.dumps(
            {
                "benchmark": "train_loop",
                "config": config.data.name,
                "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
                "batch_size": config.batch_size,
                "window": config.data.window,
                "steps_per_second": round(1 / statistics.median(seconds), 2),
                "loop_over_bare_step": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in ratios],
                "checkpoints_over_loop": round(statistics.median(saves), 4),
            }
        )
    )


class BareStep:
    """The step alone, as the loop compiles it, on one batch."""

    def __init__(self, config: TrainConfig):
        devices = jax.local_device_count()
        share = {"batch_size": config.batch_size, "num_local_devices": devices}
        batches = train_batches(open_dataset(config.data), config.data, seed=0, **share)
        self._batch = jax.device_put(next(batches))
        self._go_on = np.zeros(devices, bool)
        optimizer, schedule = make_optimizer(config)
        graphdef, state = init_train_state(config, optimizer)
        self._state = replicate(state)
        self._step = parallel_train_step(config, graphdef, optimizer, schedule)
        self.seconds()  # Compiles.

    def seconds(self) -> float:
        """The mean time of a step."""
        jax.block_until_ready(self._state)
        start = time.perf_counter()
        for _ in range(_STEPS.value):
            self._state, _ = self._step(self._state, self._batch, self._go_on)
        jax.block_until_ready(self._state)
        return (time.perf_counter() - start) / _STEPS.value


def loop_seconds(config: TrainConfig) -> tuple[float, float]:
    """The mean time of a step within the loop, without compilation, and that of a checkpoint."""
    warm_up = 5
    config = dataclasses.replace(
        config,
        num_steps=warm_up + _STEPS.value,
        eval_every=10**9,
        checkpoint_every=10**9,
    )
    times, saves = {}, []
    look, save = loop.Watch.look_at_last, loop.Checkpoints.save

    def timed(watch: loop.Watch) -> bool:
        last = watch._last
        result = look(watch)
        if last is not None:
            times[last[0]] = time.perf_counter()
        return result

    def timed_save(checkpoints: loop.Checkpoints, *args: object) -> None:
        start = time.perf_counter()
        save(checkpoints, *args)
        saves.append(time.perf_counter() - start)

    loop.Watch.look_at_last, loop.Checkpoints.save = timed, timed_save
    evaluate, loop._evaluate = loop._evaluate, lambda *args: float("nan")
    try:
        with tempfile.TemporaryDirectory() as workdir:
            loop.train(config, pathlib.Path(workdir))
    finally:
        loop.Watch.look_at_last, loop._evaluate = look, evaluate
        loop.Checkpoints.save = save
    return (times[warm_up + _STEPS.value] - times[warm_up]) / _STEPS.value, statistics.mean(saves)


if __name__ == "__main__":
    cli.run(main)
