"""Measures how fast a config trains and samples here, with fresh weights; prints a JSON line.

Example:
  python -m experiments.measure --config=demo --seconds=5
"""

import json
import math
from collections.abc import Sequence

import jax
from absl import flags
from flax import nnx

from experiments import cli
from pf_jax.errors import UserError
from pf_jax.poolformer import Poolformer
from pf_jax.sampling.speed import measure_sampling
from pf_jax.training.speed import measure_training
from pf_jax.training.summary import flops_per_sample
from pf_jax.training.variants import count_parameters

_CONFIG = cli.define_config()
_SECONDS = flags.DEFINE_float("seconds", 2.0, "About how long to train, and to sample.")


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    config, seconds = _CONFIG.value, _SECONDS.value
    if not (math.isfinite(seconds) and seconds > 0.0):
        raise UserError(f"--seconds must be above 0, got {seconds}.")
    training = measure_training(config, seconds=seconds)
    model = Poolformer(config.model, rngs=nnx.Rngs(0))
    device = jax.devices()[0].device_kind
    result = {
        "device": f"{jax.device_count()} x {device}",
        "parameters": count_parameters(config.model),
        "flops_per_sample": round(flops_per_sample(config.model)),
        "steps_per_second": training.steps_per_second,
        "steps_per_clock_second": training.steps_per_clock_second,
        "samples_per_second": training.steps_per_second * config.batch_size * config.data.window,
        "step_memory": training.step_memory,
        "sampling_samples_per_second": measure_sampling(model, seconds=seconds),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
