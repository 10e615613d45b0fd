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
from experiments.common_flags import Hosts
from pf_jax.errors import UserError
from pf_jax.evaluation.classifier import ClassifierConfig, train_classifier
from pf_jax.evaluation.classifier.saved import holds_classifier
from pf_jax.layers import LAYERS, own_layers
from pf_jax.training import TrainConfig, train

_CONFIG = cli.define_config(TrainConfig, ClassifierConfig)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where checkpoints and logs are kept: a directory or gs:// path.",
    required=True,
)
_HOSTS = Hosts()


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    config = _CONFIG.value
    _HOSTS.join()
    if isinstance(config, ClassifierConfig):
        train_classifier(config, _WORKDIR.value)
        return
    if holds_classifier(_WORKDIR.value):
        raise UserError(f"{_WORKDIR.value} holds a classifier: give another --workdir.")
    train(config, _WORKDIR.value)
    if jax.process_index() == 0:
        print(
            "To sample from it:\n  python -m experiments.sample "
            f"--checkpoint={shlex.quote(_WORKDIR.value)} --output=samples{_import_flag(config)}",
            file=sys.stderr,
        )


def _import_flag(config: TrainConfig) -> str:
    """The flags that other commands need for layers that are not the package's own."""
    modules = {LAYERS[name].__module__ for name in own_layers(config.model)}
    files = (sys.modules[module].__file__ or "FILE.py" for module in sorted(modules))
    return "".join(f" --import={shlex.quote(file)}" for file in files)


if __name__ == "__main__":
    cli.run(main)
