"""Training speed of a config: samples per second of the bare step, on random tokens.

Example:
  python -m benchmarks.train_step --config=folder --config.batch_size=1
"""

import json
import statistics
import time
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from experiments import cli
from pf_jax.training.hosts import replicate
from pf_jax.training.parallel import parallel_train_step
from pf_jax.training.state import init_train_state, make_optimizer

_CONFIG = cli.define_config()
_REPEATS = flags.DEFINE_integer("repeats", 10, "Steps that are timed, after one that compiles.")


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark."""
    del argv
    config = _CONFIG.value
    devices, window = jax.local_device_count(), config.data.window
    optimizer, schedule = make_optimizer(config)
    graphdef, state = init_train_state(config, optimizer)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    shape = (devices, config.batch_size // devices, window)
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, shape)
    batch = {"tokens": tokens.astype(np.uint8), "length": np.full(shape[:2], window)}
    step = parallel_train_step(config, graphdef, optimizer, schedule)
    state, go_on = replicate(state), np.zeros(devices, bool)
    seconds = []
    for _ in range(1 + _REPEATS.value):
        start = time.perf_counter()
        state, metrics = step(state, batch, go_on)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "benchmark": "train_step",
                "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
                "parameters": parameters,
                "batch_size": config.batch_size,
                "window": window,
                "samples_per_second": round(tokens.size / statistics.median(seconds[1:])),
                "compile_seconds": round(seconds[0], 1),
            }
        )
    )


if __name__ == "__main__":
    cli.run(main)
