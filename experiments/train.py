"""Trains a Poolformer or a classifier; the same command again goes on where it stopped.

Examples:
  python -m experiments.train --config=demo --workdir=/tmp/demo
  python -m experiments.train --config=folder --config.data.path=~/music --workdir=~/runs/music
  python -m experiments.train --config=musicnet --workdir=gs://bucket/run --config.batch_size=64
  python -m experiments.train --config=sc09_classifier --workdir=~/runs/classifier

On a TPU slice, under Slurm, Open MPI or Kubernetes the same command on every host trains on all of
them together. Elsewhere say who they are, on each host:
  python -m experiments.train ... --coordinator=HOST0:1234 --num_processes=2 --process_id=0
"""

import shlex
import sys
from collections.abc import Sequence

import jax
from absl import flags

from experiments import cli
from pf_jax.errors import UserError
from pf_jax.evaluation.classifier import ClassifierConfig, train_classifier
from pf_jax.evaluation.classifier.saved import holds_classifier
from pf_jax.training import TrainConfig, train
from pf_jax.training.hosts import join

_CONFIG = cli.define_config(TrainConfig, ClassifierConfig)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where checkpoints and logs are kept: a directory or gs:// path.",
    required=True,
)


_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first of several hosts, where no cluster says so itself."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many hosts train together; 1 for this one alone.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this one is, from 0.", lower_bound=0
)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    config = _CONFIG.value
    join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if isinstance(config, ClassifierConfig):
        train_classifier(config, _WORKDIR.value)
        return
    if holds_classifier(_WORKDIR.value):
        raise UserError(f"{_WORKDIR.value} holds a classifier: give another --workdir.")
    train(config, _WORKDIR.value)
    if jax.process_index() == 0:
        print(
            "To sample from it:\n  python -m experiments.sample "
            f"--checkpoint={shlex.quote(_WORKDIR.value)} --output=samples",
            file=sys.stderr,
        )


if __name__ == "__main__":
    cli.run(main)
