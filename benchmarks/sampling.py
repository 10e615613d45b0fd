"""Sampling speed of a config with fresh weights: new samples per second of each stream and of all.

Example:
  python -m benchmarks.sampling --config=folder --streams=1
"""

import json
import statistics
import time
from collections.abc import Sequence

import jax
from absl import flags
from flax import nnx

from experiments import cli
from pf_jax import Poolformer, generate

_CONFIG = cli.define_config()
_STREAMS = flags.DEFINE_integer("streams", 1, "Sequences that are drawn beside each other.")
_STEPS = flags.DEFINE_integer("steps", 8192, "New samples in each of them.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Runs that are timed, after one that compiles.")


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark."""
    del argv
    config = _CONFIG.value
    model = Poolformer(config.model, rngs=nnx.Rngs(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    seconds = []
    for repeat in range(1 + _REPEATS.value):
        start = time.perf_counter()
        generate(model, jax.random.key(repeat), num_samples=_STREAMS.value, num_steps=_STEPS.value)
        seconds.append(time.perf_counter() - start)
    per_stream = _STEPS.value / statistics.median(seconds[1:])
    print(
        json.dumps(
            {
                "benchmark": "sampling",
                "device": jax.devices()[0].device_kind,
                "parameters": parameters,
                "streams": _STREAMS.value,
                "samples_per_second_per_stream": round(per_stream),
                "samples_per_second": round(per_stream * _STREAMS.value),
                "compile_seconds": round(seconds[0] - statistics.median(seconds[1:]), 1),
            }
        )
    )


if __name__ == "__main__":
    cli.run(main)
