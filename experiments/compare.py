r"""Trains variants of a config's model within one budget, with equal parameters, and compares them.

Each model is trained with several seeds, one run at a time, each in a process of its own; what
fails is named on the page, and the others go on. The same command again goes on where it stopped;
models and seeds may be added.

A model is a name, or a name with fields of its config changed. Names:
  poolformer                        the config's own model
  published                         the published shape, scaled to the config's parameters
  sashimi, mamba                    rivals on SaShiMi's backbone
  attention, gru, griffin           other mixers on the config's own backbone
  real, complex                     the real and the complex gated recurrence there
Ablations:
  no_pooling, fewer_levels, backwards_pools
  channel_pools, grouped_pools, dense_pools
  blocks_after, convolution_blocks, no_convolution, convolution, depthwise_convolution
  no_gate, no_mlp, plain_mlp, layer_norm, rms_norm
  fixed_embedding, linear_embedding, learned_embedding, dropout, no_dropout
Several are one after the other: mamba+no_pooling.

Examples:
  python -m experiments.compare --config=demo --models=poolformer,no_pooling --budget=60s \
    --workdir=~/runs/pooling
  python -m experiments.compare --config=sc09 --budget=2h,20000steps --seeds=0,1,2 \
    --models="poolformer,poolformer:pool_factors=(4,4),no_gate:mlp=none;conv_width=8" \
    --workdir=~/runs/ablations
"""

import math
import pathlib
import sys
from collections.abc import Sequence

import jax
from absl import flags

from experiments import cli
from experiments.trials import Trials
from pf_jax.errors import UserError
from pf_jax.evaluation.comparison_sounds import Sounds, find_clips, make_players
from pf_jax.evaluation.comparison_variants import Result, in_words, write_results
from pf_jax.evaluation.comparison_variants_page import write_variants
from pf_jax.paths import checked_path, is_remote
from pf_jax.training.budget import Budget
from pf_jax.training.variants import count_parameters, make_variants

_CONFIG = cli.define_config()
_MODELS = flags.DEFINE_string(
    "models",
    None,
    "What to compare, with commas between: NAME, NAME+NAME, or NAME:FIELD=VALUE;FIELD=VALUE.",
    required=True,
)
_BUDGET = flags.DEFINE_string(
    "budget", None, "60s, 10min, 2h, 1000steps, or both such as 60s,1000steps.", required=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The directory of the comparison, with its page and its runs.", required=True
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "A run of each model for each of them.")
_PARAMETERS = flags.DEFINE_integer(
    "parameters", None, "How many each model has; by default as many as the config's own."
)
_EVALUATIONS = flags.DEFINE_integer(
    "evaluations", 10, "About how many times each run is evaluated.", lower_bound=1
)
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", 1, "Sounds of the first run of each model; 0 for none.", lower_bound=0
)
_SECONDS = flags.DEFINE_float("seconds", 4.0, "Length of each sound.")
cli.group("Sounds", _NUM_SAMPLES, _SECONDS)

_MEASURING_SECONDS = 5.0
_MOST_BYTES = 25e6  # Of sounds on the page.


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    config, seeds = _CONFIG.value, _parse_seeds(_SEEDS.value)
    budget = Budget.parse(_BUDGET.value)
    if not (math.isfinite(_SECONDS.value) and _SECONDS.value > 0.0):
        raise UserError(f"--seconds must be above 0, got {_SECONDS.value}.")
    workdir = checked_path(_WORKDIR.value, "--workdir")
    if is_remote(workdir):
        raise UserError(f"--workdir={workdir} must be a directory of this machine.")
    # Accelerators are left to the processes that train: most can be had by one at a time.
    jax.config.update("jax_platforms", "cpu")
    variants = make_variants(_MODELS.value, config, _PARAMETERS.value)
    trials = Trials(
        directory=pathlib.Path(workdir),
        budget=budget,
        seeds=seeds,
        num_evaluations=_EVALUATIONS.value,
        measuring_seconds=min(_MEASURING_SECONDS, budget.seconds or _MEASURING_SECONDS),
        tell=lambda message: print(message, file=sys.stderr, flush=True),
    )
    trials.claim(
        {
            "config": config.to_dict(),
            "budget": str(budget),
            "parameters": _PARAMETERS.value or count_parameters(config.model),
            "evaluations": _EVALUATIONS.value,
        }
    )
    page, numbers = trials.directory / "comparison.html", trials.directory / "comparison.json"
    results: list[Result] = []
    try:
        for results in trials.run(variants):
            write_variants(page, results, budget, config)  # To be looked at meanwhile.
            write_results(numbers, results, budget, config)
    except OSError as error:
        raise UserError(
            f"Cannot write {error.filename or workdir}: {error.strerror or error}. Mend this and "
            "run the same command again; it goes on from there."
        ) from error
    if not any(result.runs for result in results):
        reasons = "; ".join(f"{r.name}: {reason}" for r in results for reason in r.failures)
        raise UserError(f"No run came to its end. {reasons}")
    if config.data.modality == "audio" and _NUM_SAMPLES.value:
        write_variants(page, results, budget, config, _sounds(trials, results))
    for result in results:
        print(in_words(result, budget))
    print(f"Look and listen: {page}")


def _parse_seeds(texts: Sequence[str]) -> list[int]:
    try:
        seeds = [int(text) for text in texts]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(
            f"--seeds must be different numbers of at least 0 such as 0,1,2; got {','.join(texts)}."
        )
    return seeds


def _sounds(trials: Trials, results: Sequence[Result]) -> list[Sounds]:
    """What there is to hear of the first run of each model."""
    clips, remarks = [], []
    for result in results:
        clips.append([])
        remarks.append([])
        if result.runs:
            run = result.runs[0]
            if reason := trials.draw(run, _NUM_SAMPLES.value, _SECONDS.value):
                remarks[-1].append(f"No sounds could be drawn: {reason}")
            found = find_clips(run, num_samples=_NUM_SAMPLES.value, most_seconds=_SECONDS.value)
            clips[-1] += found[0]
            remarks[-1] += found[1]
    players, left_out = make_players(clips, most_bytes=_MOST_BYTES)
    for of_model, number in zip(remarks, left_out, strict=True):
        of_model += [f"There is no room for {number} more."] if number else []
    return [Sounds(p, r) for p, r in zip(players, remarks, strict=True)]


if __name__ == "__main__":
    cli.run(main)
