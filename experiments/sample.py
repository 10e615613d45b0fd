"""Writes new sounds (or texts, or pictures) from a checkpoint, which is all it needs to know.

Examples:
  python -m experiments.sample --checkpoint=/tmp/demo
  python -m experiments.sample --checkpoint=~/runs/music --num_samples=8 --seconds=4 --output=out
"""

import math
import sys
import time
from collections.abc import Sequence

import jax
from absl import flags
from tqdm import tqdm

from experiments import cli
from pf_jax import generate, load
from pf_jax.audio import AudioFormat
from pf_jax.errors import UserError
from pf_jax.paths import checked_path
from pf_jax.sampling import check_arguments
from pf_jax.training.checkpoint import CheckpointMeta

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A training run's --workdir, or one step's directory in it.", required=True
)
_OUTPUT = flags.DEFINE_string("output", "samples", "The directory that files are written to.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 4, "How many.")
_SECONDS = flags.DEFINE_float("seconds", 4.0, "How long each sound is.")
_NUM_STEPS = flags.DEFINE_integer(
    "num_steps", None, "How many tokens each is, instead of --seconds; of a picture, all of them."
)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Below 1 is safer, above 1 wilder.")
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "Draw only from the likeliest levels that together have this probability."
)
_SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same sounds.")


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    if not (math.isfinite(_SECONDS.value) and _SECONDS.value > 0):
        raise UserError(f"--seconds must be above 0, got {_SECONDS.value}.")
    if not 0 <= _SEED.value < 2**32:
        raise UserError(f"--seed must be in [0, 2**32), got {_SEED.value}.")
    check_arguments(
        _NUM_SAMPLES.value,
        1 if _NUM_STEPS.value is None else _NUM_STEPS.value,
        _TEMPERATURE.value,
        _TOP_P.value,
    )
    model, meta = load(_CHECKPOINT.value)
    num_steps = _length(meta)
    output = checked_path(_OUTPUT.value, "--output")
    try:
        output.mkdir(parents=True, exist_ok=True)  # Before the work, not after it.
    except OSError as error:
        raise UserError(f"Cannot write {output}: {error.strerror or error}.") from error

    start = time.monotonic()
    with tqdm(total=num_steps, unit=" samples", disable=not sys.stderr.isatty()) as bar:
        tokens, log_likelihoods = generate(
            model,
            jax.random.key(_SEED.value),
            num_samples=_NUM_SAMPLES.value,
            num_steps=num_steps,
            temperature=_TEMPERATURE.value,
            top_p=_TOP_P.value,
            progress=lambda done: bar.update(done - bar.n),
        )
    seconds = time.monotonic() - start

    print(f"From {meta.path}, in {seconds:.1f} s:")
    for number, (sequence, log_likelihood) in enumerate(zip(tokens, log_likelihoods, strict=True)):
        path = output / f"sample_{number:03d}{meta.format.extension}"
        meta.format.write(path, sequence)
        bits = -log_likelihood / num_steps / math.log(2.0)
        print(f"  {path}  {bits:.3f} bits per sample")


def _length(meta: CheckpointMeta) -> int:
    """How many tokens are asked for, in the measure of what the model makes."""
    if _NUM_STEPS.value is not None:
        return _NUM_STEPS.value
    if not isinstance(meta.format, AudioFormat):
        return meta.config.data.window
    num_steps = math.ceil(_SECONDS.value * meta.format.sample_rate)
    if num_steps >= 2**31:
        raise UserError(f"--seconds={_SECONDS.value} is too long: 2**31 samples or more.")
    return num_steps


if __name__ == "__main__":
    cli.run(main)
