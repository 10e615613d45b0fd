"""What devices that share sequences tell each other, by the compiler; nothing is run.

Compiles the config's train step for one share of a batch, taken by two, four and eight devices (of
a CPU), and adds up what each of them has to send in a step: to its neighbour (the inputs of
convolutions, pooled vectors and tokens after which another piece goes on), of carries of
recurrences to all that share its sequences, and of gradients. Only the last is of the size of the
model; none grows with the window.

Example:
  python -m benchmarks.sequence --config=demo
  python -m benchmarks.sequence --config=demo --config.data.window=16384 --rows=4
"""

import dataclasses
import json
from collections.abc import Sequence

import jax
from absl import flags

from experiments import cli
from pf_jax.training import TrainConfig
from pf_jax.training.planning import train_step_task
from pf_jax.training.program import analyze

_CONFIG = cli.define_config()
_ROWS = flags.DEFINE_integer("rows", 1, "Windows in the share.", lower_bound=1)

_NUMBERS = (2, 4, 8)
_NAMES = {
    "collective-permute": "to_neighbour",
    "all-gather": "of_carries",
    "all-reduce": "of_gradients",
}


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(_NUMBERS))
    config = dataclasses.replace(_CONFIG.value, batch_size=_ROWS.value, accumulation_steps=1)
    result = {"benchmark": "sequence", "rows": _ROWS.value, "window": config.data.window}
    sent = {number: _bytes_sent(config, number) for number in _NUMBERS}
    print(json.dumps(result | {"bytes_sent_by_a_device": sent}))


def _bytes_sent(config: TrainConfig, number: int) -> dict[str, int]:
    config = dataclasses.replace(config, sequence_devices=number)
    program = analyze(train_step_task(config, jax.devices()[:number]).lowered.compile())
    return {_NAMES[collective.kind]: collective.sent for collective in program.collectives}


if __name__ == "__main__":
    cli.run(main)
