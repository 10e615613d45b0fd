"""How a set of sounds compares with real ones: read, cut into clips, and measured."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float32, Float64
from tqdm import tqdm

from pf_jax import audio
from pf_jax.audio import AudioFormat
from pf_jax.data import Dataset, Recordings
from pf_jax.data.config import DataConfig
from pf_jax.data.folder import EXTENSIONS, find_files
from pf_jax.data.windows import Windows
from pf_jax.errors import UserError
from pf_jax.evaluation.classifier import Classifier
from pf_jax.evaluation.distribution import Outputs, score
from pf_jax.evaluation.mel_statistics import mel_frechet_distance, mel_statistics
from pf_jax.paths import checked_path

_MOST_SECONDS = 20_000  # Of real music that is measured, evenly spread over what there is.
_AT_ONCE = 256  # Clips that a classifier is given.

Progress = Callable[[int, str], Any]
"""Makes a context manager with `update(n)` of a total and a description, such as a tqdm bar."""


def no_progress(total: int, description: str) -> tqdm:
    """A bar of progress that nobody sees."""
    return tqdm(total=total, desc=description, disable=True)


def sound_files(directory: epath.PathLike) -> list[epath.Path]:
    """The sound files in a directory and below it, in a fixed order.

    Raises:
        UserError: There is no such directory, or it has none.
    """
    root = checked_path(directory, "--samples")
    if not root.is_dir():
        raise UserError(f"--samples={directory} is not a directory of sound files.")
    found = [root / name for name in find_files(root) if name.lower().endswith(EXTENSIONS)]
    if not found:
        raise UserError(f"--samples={directory} holds no sound files ({', '.join(EXTENSIONS)}).")
    return found


def read_sounds(
    files: Iterable[epath.Path], sample_rate: int
) -> Iterator[Float32[np.ndarray, "time"]]:
    """Reads sounds one by one.

    Raises:
        UserError: One is not sound, or has another rate: to resample what a model made would change
            what is measured.
    """
    for path in files:
        waveform, rate = audio.read(path)
        if rate != sample_rate:
            raise UserError(
                f"{path} has {rate:,} samples per second, and is compared with sounds of "
                f"{sample_rate:,}: resample it first."
            )
        yield waveform


def compare_by_mel(
    files: Sequence[epath.Path],
    dataset: Dataset,
    config: DataConfig,
    format: AudioFormat,
    split: str,
) -> dict[str, Any]:
    """Measures the Fréchet distance of mel statistics between sounds and a split.

    Args:
        files: The sounds.
        dataset: The real ones.
        config: How the model met them: quantized and normalized, as they are measured here.
        format: How the model's tokens are sound.
        split: Which of the real ones.

    Returns:
        `value`; `train`, that of the training split in place of the sounds; `num_clips` and
        `num_reference_clips`, of a second each; and `warnings`. Values that there are no clips for
        are None.

    Raises:
        UserError: A file cannot be used.
    """
    rate = format.sample_rate
    sounds = _mel_clips(read_sounds(files, rate), rate)
    reference, train = (
        _mel_clips(_pieces(dataset, config, format, name), rate) for name in (split, "train")
    )
    result = {
        "value": None,
        "train": None,
        "num_clips": len(sounds),
        "num_reference_clips": len(reference),
        "warnings": [],
    }
    if min(len(sounds), len(reference), len(train)) < 2:
        result["warnings"].append(
            f"mel_frechet_distance: unknown, as there are {len(sounds)} clips of a second in these "
            f"sounds, and {len(reference)} in the {split} split."
        )
        return result
    result["value"], warnings = mel_frechet_distance(reference, sounds)
    result["train"], _ = mel_frechet_distance(reference, train)
    return result | {"warnings": list(warnings)}


def _mel_clips(waveforms: Iterable[np.ndarray], rate: int) -> Float64[np.ndarray, "clips d"]:
    """Of all that last a second or more."""
    found = [mel_statistics(waveform, rate) for waveform in waveforms if len(waveform) >= rate]
    return np.concatenate(found) if found else np.zeros((0, 0))


def compare_by_classifier(
    files: Sequence[epath.Path],
    classifier: Classifier,
    dataset: Dataset,
    *,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Measures sounds by what a classifier says of them and of the data (Kong et al. 2021).

    Args:
        files: The sounds.
        classifier: The classifier.
        dataset: The real sounds.
        seed: Of the bins of NDB.
        progress: Of what takes long.

    Returns:
        The metrics of `pf_jax.evaluation.distribution.Scores`; `test`, those of the test split in
        place of the sounds; and what the classifier is.

    Raises:
        UserError: The classifier is of sounds of another rate, or does not know all classes of the
            data, or a file cannot be used.
    """
    if isinstance(dataset.format, AudioFormat):
        classifier.check_rate(dataset.format.sample_rate)
    classifier.check_labels(dataset)
    train, test = (
        classify_split(classifier, dataset, name, progress=progress) for name in ("train", "test")
    )
    sounds = read_sounds(files, classifier.sample_rate)
    generated = classify(classifier, sounds, len(files), "sounds", progress=progress)
    return {
        **score(generated, train, seed=seed).to_dict(),
        "test": score(test, train, seed=seed).to_dict(),
        "classifier": {
            "path": str(classifier.path),
            "accuracy": dict(classifier.accuracy),
        },
    }


def classify_split(
    classifier: Classifier, dataset: Dataset, split: str, *, progress: Progress = no_progress
) -> Outputs:
    """What a classifier says of all recordings of a split, as they were recorded."""
    recordings = dataset.split(split)
    waveforms = (_whole(recordings, number) for number in range(len(recordings)))
    return classify(classifier, waveforms, len(recordings), f"{split} split", progress=progress)


def classify(
    classifier: Classifier,
    waveforms: Iterable[Float32[np.ndarray, "time"]],
    total: int,
    description: str,
    *,
    progress: Progress = no_progress,
) -> Outputs:
    """What a classifier says of sounds of any length, at its rate.

    Args:
        classifier: The classifier. What is longer than its clips is cut, and what is shorter ends
            in silence.
        waveforms: The sounds, at least one.
        total: How many there are.
        description: What the bar of progress calls them.
        progress: Makes that bar.
    """
    features, probabilities, batch = [], [], []

    def take(clips: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return classifier.classify(np.stack(clips), batch_size=_AT_ONCE)

    with progress(total, f"Classifying {description}") as bar:

        def finish() -> None:
            for found, more in zip((features, probabilities), take(batch), strict=True):
                found.append(more)
            bar.update(len(batch))
            batch.clear()

        for waveform in waveforms:
            batch.append(_of_length(waveform, classifier.num_samples))
            if len(batch) == _AT_ONCE:
                finish()
        if batch:
            finish()
    return Outputs(np.concatenate(features), np.concatenate(probabilities))


def _of_length(waveform: np.ndarray, num_samples: int) -> np.ndarray:
    """A clip of the classifier's length: what is longer is cut, what is shorter ends in silence."""
    waveform = waveform[:num_samples]
    return np.pad(waveform, (0, num_samples - len(waveform)))


def _whole(recordings: Recordings, number: int) -> Float32[np.ndarray, "time"]:
    pcm = recordings.read(number, 0, recordings.lengths[number])
    return audio.quantization.from_pcm(pcm)


def _pieces(
    dataset: Dataset, config: DataConfig, format: AudioFormat, split: str
) -> Iterator[Float32[np.ndarray, "time"]]:
    """Windows of a split as the model meets them, or as many as are enough, evenly spread."""
    windows = Windows(dataset.split(split), config)
    most = max(1, _MOST_SECONDS * format.sample_rate // windows.window)
    indices = np.linspace(0, len(windows) - 1, min(len(windows), most)).round().astype(int)
    for index in indices:
        tokens, lengths = windows.fixed(np.array([index]))
        yield format.decode(tokens[0, : lengths[0]])
