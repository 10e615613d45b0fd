"""Draws what a model remembers: a page of pictures and their numbers, from a checkpoint and data.

How far each level's recurrence remembers, how much a sample of the past moves the present loss over
its distance, and what the loss is where inner levels are silenced. The data is the checkpoint's
own; if it has moved, say where it is now.

Examples:
  python -m experiments.analyze --checkpoint=/tmp/demo --output=analysis
  python -m experiments.analyze --checkpoint=~/runs/music --split=test --data_path=~/music
"""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import cli
from experiments.common_flags import DataPlace
from pf_jax import load
from pf_jax.data.windows import Windows
from pf_jax.errors import UserError
from pf_jax.evaluation import analysis
from pf_jax.evaluation.analysis.units import Unit
from pf_jax.paths import checked_path

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A training run's --workdir, one step's directory in it, or an exported folder.",
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", "analysis", "The directory that files are written to.")
_SPLIT = flags.DEFINE_enum(
    "split", "validation", ["train", "validation", "test"], "The split that is looked at."
)
_NUM_WINDOWS = flags.DEFINE_integer(
    "num_windows", 32, "How many windows, spread evenly over the split.", lower_bound=1
)
_NUM_POSITIONS = flags.DEFINE_integer(
    "num_positions",
    256,
    "How many losses are differentiated, in those windows; each takes a backward pass a level.",
    lower_bound=1,
)
_SEED = flags.DEFINE_integer("seed", 0, "Draws the positions.", lower_bound=0)
_DATA = DataPlace()

_TOKENS_AT_ONCE = 2**15


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    model, meta = load(_CHECKPOINT.value)
    output = checked_path(_OUTPUT.value, "--output")
    dataset, config = _DATA.open(meta.config.data)
    windows = Windows(dataset.split(_SPLIT.value), config)
    number = min(_NUM_WINDOWS.value, len(windows))
    indices = np.linspace(0, len(windows) - 1, number).round().astype(int)
    tokens, lengths = windows.fixed(indices)
    if number == 0 or lengths.max() < 2:
        raise UserError(f"The {_SPLIT.value} split has no window of two tokens or more.")
    try:
        output.mkdir(parents=True, exist_ok=True)  # Before the work, not after it.
    except OSError as error:
        raise UserError(f"Cannot write {output}: {error.strerror or error}.") from error

    rng = np.random.default_rng(_SEED.value)
    rows, targets = analysis.draw_targets(lengths, _NUM_POSITIONS.value, rng)
    scored = _batches(tokens, lengths)
    differentiated = _batches(tokens[rows], targets)
    found = analysis.Analysis(
        config=model.config,
        unit=Unit.of(meta.format),
        horizons=analysis.horizons(model, _shown(scored, "Horizons")),
        influence=analysis.influence(model, _shown(differentiated, "Influence")),
        silencing=analysis.silencing(model, _shown(scored, "Silenced levels")),
    )
    warning = ""
    if dataset.fingerprint != meta.data_fingerprint:
        warning = (
            "These are not the recordings that the model was trained with: some of this split may "
            "have been training data."
        )
        print(f"Warning: {warning}", file=sys.stderr)
    facts = {
        "checkpoint": meta.path,
        "training step": f"{meta.step:,}",
        "data": f"{dataset.name}, {_SPLIT.value} split",
        "windows": f"{number:,} of {len(windows):,}, of {config.window:,} tokens",
        "target positions": f"{_NUM_POSITIONS.value:,}",
        "seed": str(_SEED.value),
    }
    page = analysis.write_report(
        output, found, title="What the model remembers", facts=facts, warning=warning
    )
    for sentence in found.sentences().values():
        print(sentence)
    print(f"Look: {page}")


def _batches(tokens: np.ndarray, numbers: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows, and a number that belongs to each, in batches of one size; rows of 0 fill up the last.

    A length of 0 is a window of padding, and a target of 0 one without a past.
    """
    size = min(len(tokens), max(1, _TOKENS_AT_ONCE // tokens.shape[1]))
    missing = -len(tokens) % size
    tokens = np.pad(tokens, ((0, missing), (0, 0)))
    numbers = np.pad(numbers, (0, missing))
    return [(tokens[i : i + size], numbers[i : i + size]) for i in range(0, len(tokens), size)]


def _shown(batches: list[Any], name: str) -> Iterable[Any]:
    """Batches with a bar of progress, where somebody looks on."""
    return tqdm(batches, desc=name, disable=not sys.stderr.isatty())


if __name__ == "__main__":
    cli.run(main)
