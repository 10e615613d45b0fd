"""Prints the bits per sample of an order-k Markov model: what a trained model has to beat.

Counts the training split (with add-one smoothing) and scores another one; takes seconds.

Example:
  python -m experiments.baseline --config=demo
  python -m experiments.baseline --config=folder --config.data.path=~/music --order=1
"""

from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags

from experiments import cli
from pf_jax.data import open_dataset
from pf_jax.data.windows import Windows
from pf_jax.errors import UserError
from pf_jax.evaluation.markov import markov_bits_per_sample

_CONFIG = cli.define_config()
_ORDER = flags.DEFINE_integer(
    "order", 2, "How many samples the model looks back: 0, 1 or 2.", lower_bound=0, upper_bound=2
)
_SPLIT = flags.DEFINE_enum(
    "split", "validation", ["train", "validation", "test"], "The split that is scored."
)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    config = _CONFIG.value
    dataset = open_dataset(config.data)

    def recordings(split: str) -> Iterator[np.ndarray]:
        windows = Windows(dataset.split(split), config.data)
        return (windows.tokens(number) for number in range(len(windows.recordings)))

    try:
        bits = markov_bits_per_sample(
            recordings("train"), recordings(_SPLIT.value), order=_ORDER.value
        )
    except ValueError as error:
        raise UserError(f"No baseline for {config.data.name}: {error}.") from error
    print(
        f"{bits:.4f} bits per sample: Markov model of order {_ORDER.value}, "
        f"{_SPLIT.value} split of {config.data.name}"
    )


if __name__ == "__main__":
    cli.run(main)
