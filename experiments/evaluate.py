"""Measures a checkpoint: its likelihood on held-out data, and its sounds against real ones.

Bits per sample are of the whole split, each real sample once: with the state carried through each
recording, and in independent windows, as most published figures are. They are of the quantization
and normalization of the checkpoint, which are told beside them. With a classifier (trained by
experiments.train --config=sc09_classifier) also FID, IS, mIS, AM and NDB of sounds that are drawn
from the checkpoint, or that are in a folder. All of it goes to a page, and to JSON.

Examples:
  python -m experiments.evaluate --checkpoint=~/runs/music --split=test
  python -m experiments.evaluate --checkpoint=~/runs/sc09 --classifier=~/runs/sc09_classifier
  python -m experiments.evaluate --checkpoint=~/runs/music --num_samples=64 --seconds=8
  python -m experiments.evaluate --samples=~/sounds --classifier=~/runs/sc09_classifier
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath
from flax import nnx
from tqdm import tqdm

from experiments import cli
from experiments.common_flags import DataPlace, Hosts
from pf_jax import Poolformer, load
from pf_jax.audio import AudioFormat
from pf_jax.data import Dataset
from pf_jax.data.config import DataConfig, describe_levels
from pf_jax.data.windows import Windows
from pf_jax.errors import UserError
from pf_jax.evaluation.classifier import Classifier, load_classifier
from pf_jax.evaluation.likelihood import score
from pf_jax.evaluation.results_page import metric_labels, write_results
from pf_jax.evaluation.sounds import compare_by_classifier, compare_by_mel, sound_files
from pf_jax.evaluation.summary import likelihood_results
from pf_jax.paths import checked_path
from pf_jax.sampling.collection import collect_samples
from pf_jax.training.checkpoint import CheckpointMeta

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A training run's --workdir, one step's directory in it, or an exported folder.",
)
_SPLIT = flags.DEFINE_enum(
    "split", "test", ["train", "validation", "test"], "What the likelihood is measured on."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Where results go; evaluation/SPLIT in the run's directory if left out."
)
_CLASSIFIER = flags.DEFINE_string(
    "classifier", None, "A classifier's directory: measures sounds by what it says of them."
)
_SAMPLES = flags.DEFINE_string(
    "samples", None, "A directory of WAV files to measure, instead of sounds that are drawn."
)
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples",
    None,
    "How many sounds are drawn and measured; 2048 with a classifier, else none.",
)
_SECONDS = flags.DEFINE_float(
    "seconds", None, "How long each of them is; as long as the model's windows if left out."
)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of the sounds that are drawn.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Of the sounds that are drawn.")
_SEED = flags.DEFINE_integer("seed", 0, "Of what is drawn, and of the bins of NDB.", 0, 2**32 - 1)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Sequences at once on this host; results do not depend on it.", 1
)
_NUM_RESAMPLES = flags.DEFINE_integer(
    "num_resamples", 2_000, "Of the bootstrap, for the intervals.", 100
)
_DATA = DataPlace()
cli.group("Sounds", _CLASSIFIER, _SAMPLES, _NUM_SAMPLES, _SECONDS, _TEMPERATURE, _TOP_P)
_HOSTS = Hosts()

_BELONGS_TO = {"seconds": "num_samples", "temperature": "num_samples", "top_p": "num_samples"}


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    _check_flags()
    cli.share_cpu()
    _HOSTS.join()
    model, meta = load(_CHECKPOINT.value) if _CHECKPOINT.value else (None, None)
    classifier = load_classifier(_CLASSIFIER.value) if _CLASSIFIER.value else None
    output = _output_directory(meta)
    results: dict[str, Any] = {}
    dataset = None
    if meta is not None:
        dataset, data_config = _DATA.open(meta.config.data)
        results |= _about(model, meta, dataset)
        results |= _likelihood(model, dataset, data_config)
        results["warnings"] += _data_warnings(meta, dataset)
    if jax.process_index() == 0:
        results |= _sounds(model, meta, classifier, dataset, output)
        _write(output, results)
        _tell(results, output)


def _check_flags() -> None:
    """Raises UserError for what cannot be meant."""
    if not _CHECKPOINT.value and not _SAMPLES.value:
        raise UserError("--checkpoint is missing (or --samples, to measure a folder of sounds).")
    if not _CHECKPOINT.value and not _CLASSIFIER.value:
        raise UserError(
            "--samples are compared with the data of a --checkpoint, or by a --classifier with "
            "what it was trained on: give one of them."
        )
    if _SAMPLES.value:
        for name in ("num_samples", *_BELONGS_TO):
            if flags.FLAGS[name].present:
                raise UserError(f"--{name} is of sounds that are drawn: leave --samples out.")
    for name, value in (("num_samples", _NUM_SAMPLES.value), ("seconds", _SECONDS.value)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"--{name} must be above 0, got {value}.")
    for name, owner in _BELONGS_TO.items():
        if flags.FLAGS[name].present and not _num_samples():
            raise UserError(f"--{name} says something about --{owner}, which is missing.")


def _num_samples() -> int:
    if _NUM_SAMPLES.value is not None:
        return _NUM_SAMPLES.value
    return 2_048 if _CLASSIFIER.value and _CHECKPOINT.value and not _SAMPLES.value else 0


def _output_directory(meta: CheckpointMeta | None) -> epath.Path:
    """Where results go; made before the work, not after it."""
    if _OUTPUT.value:
        output = checked_path(_OUTPUT.value, "--output")
    elif meta is None:
        output = epath.Path("evaluation")
    else:
        output = meta.run / "evaluation" / _SPLIT.value
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"Cannot write {output}: {error.strerror or error}; give another --output."
        ) from error
    return output


def _about(model: Poolformer, meta: CheckpointMeta, dataset: Dataset) -> dict[str, Any]:
    data, is_audio = meta.config.data, isinstance(meta.format, AudioFormat)
    return {
        "checkpoint": meta.path,
        "step": meta.step,
        "parameters": sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))),
        "dataset": dataset.name,
        "split": _SPLIT.value,
        "window": data.window,
        "unit": "sample" if is_audio else "byte",
        "quantization": data.quantization if is_audio else None,
        "normalization": data.normalization if is_audio else None,
        "validation_bits_per_sample": meta.validation_bits_per_sample,
    }


def _data_warnings(meta: CheckpointMeta, dataset: Dataset) -> list[str]:
    if meta.data_fingerprint == dataset.fingerprint:
        return []
    return [
        "The data here is not what the checkpoint was trained with (recordings came, went or "
        "changed): what is scored may have been trained on."
    ]


def _likelihood(model: Poolformer, dataset: Dataset, config: DataConfig) -> dict[str, Any]:
    windows = Windows(dataset.split(_SPLIT.value), config)
    num_samples = windows.recordings.num_samples
    is_short = max(windows.recordings.lengths) <= windows.window  # Then both are the same.
    with _bar((1 if is_short else 2) * num_samples, "Scoring", " samples") as bar:

        def likelihood(carried: bool):
            return score(
                model,
                windows,
                carried=carried,
                batch_size=_BATCH_SIZE.value,
                on_progress=bar.update,
            )

        carried = likelihood(True)
        independent = carried if is_short else likelihood(False)
    return likelihood_results(
        carried,
        independent,
        windows.recordings,
        label_names=dataset.label_names,
        num_resamples=_NUM_RESAMPLES.value,
    )


def _sounds(
    model: Poolformer | None,
    meta: CheckpointMeta | None,
    classifier: Classifier | None,
    dataset: Dataset | None,
    output: epath.Path,
) -> dict[str, Any]:
    """What is measured of sounds, if any are."""
    if _SAMPLES.value:
        files = sound_files(_SAMPLES.value)
        results = {"sounds": f"{len(files):,} in {_SAMPLES.value}"}
    elif _num_samples():
        files = _drawn(model, meta, output)
        results = {
            "sounds": f"{len(files):,} drawn from the checkpoint, temperature "
            f"{_TEMPERATURE.value:g}, top-p {_TOP_P.value:g}, seed {_SEED.value}"
        }
    else:
        return {}
    if meta is not None:
        results["mel_frechet_distance"] = compare_by_mel(
            files, dataset, meta.config.data, meta.audio_format, _SPLIT.value
        )
    if classifier is not None:
        if dataset is None:
            dataset, _ = _DATA.open(classifier.meta.config.data)
        results["distribution"] = compare_by_classifier(
            files,
            classifier,
            dataset,
            seed=_SEED.value,
            progress=_bar,
        )
    return results


def _drawn(model: Poolformer, meta: CheckpointMeta, output: epath.Path) -> list[epath.Path]:
    num_steps = meta.config.data.window
    if _SECONDS.value is not None:
        num_steps = math.ceil(_SECONDS.value * meta.audio_format.sample_rate)
    with _bar(_num_samples() * num_steps, "Drawing", " samples") as bar:
        return collect_samples(
            model,
            meta,
            output / "generated",
            num_samples=_num_samples(),
            num_steps=num_steps,
            temperature=_TEMPERATURE.value,
            top_p=_TOP_P.value,
            seed=_SEED.value,
            on_progress=bar.update,
        )


def _write(output: epath.Path, results: dict[str, Any]) -> None:
    path = output / "evaluation.json"
    try:
        path.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
    write_results(output / "index.html", results)


def _tell(results: dict[str, Any], output: epath.Path) -> None:
    """Prints the numbers that papers print."""
    for line in _lines(results):
        print(line)
    parts = (results, results.get("distribution", {}), results.get("mel_frechet_distance", {}))
    for warning in [w for part in parts for w in part.get("warnings", ())]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"All of it, with pictures: {output / 'index.html'}")


def _lines(results: dict[str, Any]) -> Iterator[str]:
    if bits := results.get("bits_per_sample"):
        carried = bits["carried"]
        yield (
            f"{results['checkpoint']} on the {results['split']} split of {results['dataset']}: "
            f"{carried['num_samples']:,} {results['unit']}s of "
            f"{carried['num_recordings']:,} recordings"
        )
        if results["quantization"]:
            yield f"  {describe_levels(results['quantization'], results['normalization'])}"
        names = {"carried": "state carried through recordings"}
        names["independent"] = f"independent windows of {results['window']:,}"
        for name, label in names.items():
            found, interval = bits[name], ""
            if found["low"] is not None:
                interval = f"  (95 %: {found['low']:.4f} to {found['high']:.4f})"
            yield f"  {found['value']:.4f} bits per {results['unit']}, {label}{interval}"
    if found := results.get("distribution"):
        accuracy = found["classifier"]["accuracy"].get("test")
        yield (
            f"{results['sounds']}, by {found['classifier']['path']}, whose test accuracy is "
            + ("unknown:" if accuracy is None else f"{100 * accuracy:.1f} %:")
        )
        for name, label in metric_labels("distribution").items():
            of_test = f"{_short(found['test'][name])} of the test split"
            yield f"  {_short(found[name]):>10}  {label}; {of_test}"
    if found := results.get("mel_frechet_distance"):
        label = "Fréchet distance of mel statistics (lower is better)"
        of_train = f"{_short(found['train'])} of the training split"
        yield f"  {_short(found['value']):>10}  {label}; {of_train}"


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _bar(total: int, description: str, unit: str = "") -> Any:
    return tqdm(
        total=total, desc=description, unit=unit, unit_scale=True, disable=not sys.stderr.isatty()
    )


if __name__ == "__main__":
    cli.run(main)
