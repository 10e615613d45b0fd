"""Trains a small Poolformer on the digits of `benchmarks.digits`, and measures what it has learnt.

Speaks the digits and trains the classifier, unless `--workdir` has them from an earlier run, trains
the model, and evaluates it, all by the commands that a user types. Prints one JSON line, with the
FID of the real test clips and of white noise beside that of the model's sounds.

Example:
  python -m benchmarks.digits_model --workdir=/tmp/digits
  python -m benchmarks.digits_model --workdir=/tmp/digits -- --config.num_steps=2000
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
from absl import app, flags, logging

from benchmarks.digits import data_flags
from pf_jax.data import open_dataset
from pf_jax.evaluation.classifier import load_classifier
from pf_jax.evaluation.distribution import frechet_distance
from pf_jax.evaluation.sounds import classify, classify_split

_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 512, "Sounds of the model.", lower_bound=2)

_MODEL = (
    "--config.model.widths=(32,96,192)",
    "--config.model.depths=(1,1,2)",
    "--config.batch_size=4",
    "--config.num_steps=400",
    "--config.optimizer.learning_rate=4e-3",
    "--config.optimizer.warmup_steps=50",
    "--config.ema_decay=0.98",
    "--config.eval_every=200",
    "--config.checkpoint_every=200",
    "--config.sample_every=0",
    "--config.data.num_threads=2",
)


def main(argv: Sequence[str]) -> None:
    """Trains and measures."""
    logging.set_verbosity(logging.WARNING)
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng is not installed: apt-get install espeak-ng")
    with tempfile.TemporaryDirectory() as temporary:
        workdir = pathlib.Path(flags.FLAGS.workdir or temporary).absolute()
        if not (workdir / "classifier").exists():
            _run("benchmarks.digits", f"--workdir={workdir}")
        start = time.monotonic()
        run = workdir / "model"
        config = ["--config=sc09_realtime", *data_flags(workdir), *_MODEL, *argv[1:]]
        _run("experiments.train", f"--workdir={run}", *config)
        trained = time.monotonic()
        _run(
            "experiments.evaluate",
            *(f"--checkpoint={run}", f"--classifier={workdir / 'classifier'}"),
            f"--num_samples={_NUM_SAMPLES.value}",
        )
        results = json.loads((run / "evaluation" / "test" / "evaluation.json").read_text())
        found = results["distribution"]
        names = ("fid", "inception_score", "modified_inception_score", "am_score", "ndb")
        print(
            json.dumps(
                {
                    "benchmark": "digits_model",
                    "parameters": results["parameters"],
                    "bits_per_sample": results["bits_per_sample"]["carried"],
                    "classifier": found["classifier"]["accuracy"],
                    "model": {name: found[name] for name in names},
                    "test": {name: found["test"][name] for name in names},
                    **_against_noise(workdir),
                    "seconds_training": round(trained - start, 1),
                    "seconds_evaluating": round(time.monotonic() - trained, 1),
                }
            )
        )


def _against_noise(workdir: pathlib.Path) -> dict[str, float]:
    """The FID of the test clips with those of the training, and with as many of white noise."""
    classifier = load_classifier(workdir / "classifier")
    dataset = open_dataset(classifier.meta.config.data)
    test, train = (classify_split(classifier, dataset, split) for split in ("test", "train"))
    rng = np.random.default_rng(0)
    number = len(train.features)
    clips = (0.1 * rng.standard_normal(classifier.num_samples) for _ in range(number))
    noise = classify(classifier, clips, number, "noise")
    return {
        "fid_train_test": frechet_distance(train.features, test.features),
        "fid_noise_test": frechet_distance(noise.features, test.features),
    }


def _run(module: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, *arguments], stdout=sys.stderr)
    if done.returncode:
        sys.exit(f"{module} failed.")


if __name__ == "__main__":
    app.run(main)
