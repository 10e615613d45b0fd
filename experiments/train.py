"""Trains a Poolformer; the same command with the same --workdir goes on where it stopped.

Examples:
  python -m experiments.train --config=demo --workdir=/tmp/demo
  python -m experiments.train --config=folder --config.data.path=~/music --workdir=~/runs/music
  python -m experiments.train --config=musicnet --workdir=gs://bucket/run --config.batch_size=64
"""

import shlex
import sys
from collections.abc import Sequence

from absl import flags

from experiments import cli
from pf_jax.training import train

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where checkpoints and logs are kept: a directory or gs:// path.",
    required=True,
)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    config = _CONFIG.value
    state = train(config, _WORKDIR.value)
    if state.step >= config.num_steps:
        print(
            "Trained. To listen to it:\n  python -m experiments.sample "
            f"--checkpoint={shlex.quote(_WORKDIR.value)} --output=samples",
            file=sys.stderr,
        )


if __name__ == "__main__":
    cli.run(main)
