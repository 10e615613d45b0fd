"""Trains the small classifier of digits on speech that is made here, and hears voices it never met.

`spoken_digits.py` has Debian's `espeak-ng` speak them in about a hundred voices, of which some are
for validation and some for the test alone. The classifier is trained by the command that a user
types. Prints one JSON line.

Example:
  python -m benchmarks.digits
  python -m benchmarks.digits --workdir=/tmp/digits --takes=2 -- --config.num_steps=300
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from absl import app, flags, logging

from benchmarks.spoken_digits import voices, write_archive
from pf_jax.data.sc09 import ARCHIVE
from pf_jax.evaluation.classifier import load_classifier

_WORKDIR = flags.DEFINE_string("workdir", None, "Kept if given; else a temporary directory.")
_VOICES = flags.DEFINE_integer("voices", 120, "How many at most.", lower_bound=3)
_TAKES = flags.DEFINE_integer("takes", 4, "Clips of each digit in each voice.", lower_bound=1)


def data_flags(workdir: pathlib.Path) -> list[str]:
    """How a command is told to read the archive in `workdir/archive` as the dataset "sc09"."""
    return [
        f"--config.data.manual_dir={workdir / 'archive'}",
        f"--config.data.data_dir={workdir / 'data'}",
        "--config.data.verify_checksums=false",
    ]


def main(argv: Sequence[str]) -> None:
    """Speaks, trains, tells how many it got right."""
    logging.set_verbosity(logging.WARNING)
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng is not installed: apt-get install espeak-ng")
    with tempfile.TemporaryDirectory() as temporary:
        workdir = pathlib.Path(_WORKDIR.value or temporary).absolute()
        names = voices(_VOICES.value)
        start = time.monotonic()
        if not (workdir / "archive" / ARCHIVE.filename).exists():
            write_archive(workdir / "archive", names, _TAKES.value)
        spoken = time.monotonic()
        command = [
            *(sys.executable, "-m", "experiments.train", "--config=digits_classifier"),
            *(f"--workdir={workdir / 'classifier'}", *data_flags(workdir), *argv[1:]),
        ]
        if subprocess.run(command).returncode:
            sys.exit("The training failed.")
        classifier = load_classifier(workdir / "classifier")
        print(
            json.dumps(
                {
                    "benchmark": "digits",
                    "voices": len(names),
                    "clips": dict(classifier.meta.num_clips),
                    "accuracy": {k: round(v, 4) for k, v in classifier.accuracy.items()},
                    "seconds_speaking": round(spoken - start, 1),
                    "seconds_training": round(time.monotonic() - spoken, 1),
                }
            )
        )


if __name__ == "__main__":
    app.run(main)
