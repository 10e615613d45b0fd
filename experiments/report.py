"""Compares training runs on one page: learning curves, likelihoods, metrics, speed, and sounds.

A RUN is the --workdir of a training run, also of one that is still going on. Sounds are those in
RUN/evaluation/*/generated and RUN/samples; where there are none, some are drawn.

Examples:
  python -m experiments.report ~/runs/small ~/runs/large
  python -m experiments.report gs://bucket/runs/a gs://bucket/runs/b --output=ab.html
  python -m experiments.report ~/runs/* --num_samples=0
"""

import math
import sys
from collections.abc import Sequence

from absl import flags
from etils import epath

from experiments import cli
from pf_jax.errors import UserError
from pf_jax.evaluation.comparison import read_runs
from pf_jax.evaluation.comparison_page import write_comparison
from pf_jax.evaluation.comparison_sounds import collect_sounds
from pf_jax.paths import checked_path

_OUTPUT = flags.DEFINE_string("output", "report.html", "The HTML file to write.")
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", 2, "The most sounds of each run; 0 for none.", lower_bound=0
)
_SECONDS = flags.DEFINE_float("seconds", 2.0, "Length of a sound that is drawn here.")
_MOST_SECONDS = flags.DEFINE_float("most_seconds", 10.0, "Of a longer sound, only the beginning.")
_MOST_MEGABYTES = flags.DEFINE_float(
    "most_megabytes",
    25.0,
    "Room for all sounds with their pictures; what does not fit is left out.",
)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    for flag in (_SECONDS, _MOST_SECONDS, _MOST_MEGABYTES):
        if not (math.isfinite(flag.value) and flag.value > 0):
            raise UserError(f"--{flag.name} must be above 0, got {flag.value}.")
    cli.share_cpu()
    runs = read_runs(argv[1:])
    output = _writable(_OUTPUT.value)  # Before the work, not after it.
    sounds = collect_sounds(
        runs,
        num_samples=_NUM_SAMPLES.value,
        seconds=_SECONDS.value,
        most_seconds=_MOST_SECONDS.value,
        most_bytes=_MOST_MEGABYTES.value * 1e6,
        tell=lambda message: print(message, file=sys.stderr),
    )
    for run in runs:
        best = "never evaluated"
        if run.best:
            best = f"best validation {run.best[1]:.4f} bits per sample, at step {run.best[0]:,}"
        print(f"{run.name}: step {run.step:,}, {best}")
    print(f"Look and listen: {write_comparison(output, runs, sounds)}")


def _writable(name: str) -> epath.Path:
    """The path of the page, with its directory made."""
    path = checked_path(name, "--output")
    if path.is_dir():
        raise UserError(f"--output={name} is a directory; give the HTML file to write.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
    return path


if __name__ == "__main__":
    cli.run(main, words="RUN [RUN ...]")
