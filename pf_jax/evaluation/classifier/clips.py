"""Labelled clips of a dataset, and batches of their spectrograms."""

import functools
from collections.abc import Iterator, Mapping, Sequence

import grain
import numpy as np
from jaxtyping import Float32, Int, Int64

from pf_jax.audio.quantization import from_pcm
from pf_jax.data.dataset import Dataset, Recordings
from pf_jax.data.recording import natural_order
from pf_jax.errors import UserError
from pf_jax.evaluation.classifier.config import AugmentationConfig, ClassifierConfig
from pf_jax.evaluation.classifier.spectrogram import mel_spectrogram
from pf_jax.fields import did_you_mean

Batch = dict[str, np.ndarray]
"""`spectrogram` (batch, bands, frames), and `label` (batch,), the class or -1 for none."""

_FOREVER = 2**40  # Clips; no run takes as many.
_NOISE_RANGE = 60.0  # Decibels that noise varies over.
_FLOOR = -80.0


class Clips:
    """The clips of a split: consecutive windows of its recordings, none left out.

    Attributes:
        labels: By clip, the number of its class.
        num_samples: In a clip; a recording's last one is filled up with zeros.
    """

    def __init__(self, recordings: Recordings, labels: Int[np.ndarray, "recordings"], window: int):
        counts = -(-np.array(recordings.lengths, np.int64) // window)
        self._recordings = recordings
        self._recording = np.repeat(np.arange(len(counts)), counts)
        self._start = (
            np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        ) * window
        self.labels = np.asarray(labels, np.int64)[self._recording]
        self.num_samples = window

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Sequence[int]) -> Float32[np.ndarray, "clips time"]:
        """Returns some clips, as they were recorded."""
        waveforms = np.zeros((len(indices), self.num_samples), np.float32)
        for row, index in enumerate(indices):
            recording, start = int(self._recording[index]), int(self._start[index])
            stop = min(start + self.num_samples, self._recordings.lengths[recording])
            piece = self._recordings.read(recording, start, stop)
            waveforms[row, : len(piece)] = from_pcm(piece)
        return waveforms


def class_names(dataset: Dataset, label: str) -> tuple[str, ...]:
    """What the classes of a label are called, in the order of their numbers.

    Where the dataset does not say it, the values of the label in its training split, sorted.

    Raises:
        UserError: The recordings have no such label.
    """
    names = dataset.label_names.get(label)
    return names or tuple(
        sorted({str(value) for value in _values(dataset, "train", label)}, key=natural_order)
    )


def class_numbers(
    dataset: Dataset, split: str, label: str, classes: Sequence[str]
) -> Int64[np.ndarray, "recordings"]:
    """The class of each recording of a split.

    Args:
        dataset: An open dataset.
        split: "train", "validation" or "test".
        label: Which of their labels.
        classes: The names of the classes, in the order of their numbers.

    Raises:
        UserError: The recordings have no such label, or one has a class that is not among them.
    """
    names = dataset.label_names.get(label)
    number = {name: index for index, name in enumerate(classes)}
    values = [
        names[value] if names is not None else str(value)
        for value in _values(dataset, split, label)
    ]
    if unknown := sorted(set(values) - set(number)):
        raise UserError(
            f"The {split} split of {dataset.name} has a {label} that is not among the "
            f"{len(number)} classes known: {_listed(unknown)}; known are {_listed(classes)}."
        )
    return np.array([number[value] for value in values], np.int64)


def open_clips(
    dataset: Dataset, config: ClassifierConfig
) -> tuple[tuple[str, ...], Mapping[str, Clips]]:
    """The names of the classes, and the clips of each split.

    Raises:
        UserError: The dataset has no such label, the network is for another number of classes, or a
            class has no example to learn from.
    """
    classes = class_names(dataset, config.label)
    clips = {
        split: Clips(
            dataset.split(split),
            class_numbers(dataset, split, config.label, classes),
            config.data.window,
        )
        for split in ("train", "validation", "test")
    }
    if missing := classes_without(clips["train"], classes):
        raise UserError(
            f"The training split of {dataset.name} has no example of the {config.label} "
            f"{_listed(missing)}: complete the data, or it can never be told."
        )
    if len(classes) != config.model.num_classes:
        raise UserError(
            f"The network has model.num_classes={config.model.num_classes}, but {dataset.name} has "
            f"{len(classes)} values of {config.label!r}, {_listed(classes)}: set it to that."
        )
    return classes, clips


def classes_without(clips: Clips, classes: Sequence[str]) -> list[str]:
    """The names of the classes that no clip has."""
    present = set(clips.labels.tolist())
    return [name for number, name in enumerate(classes) if number not in present]


def train_batches(clips: Clips, config: ClassifierConfig, start: int = 0) -> Iterator[Batch]:
    """Augmented batches for ever, each epoch in another order, from batch number `start` on.

    Which they are depends on `config.seed` and their number alone.
    """
    load = functools.partial(_load_random, clips, config)
    order = grain.MapDataset.range(len(clips)).seed(config.seed).shuffle()
    batches = order.repeat(_FOREVER // len(clips)).batch(config.batch_size).map_with_index(load)
    return iter(batches[start:].to_iter_dataset(_read_options(config)))


def eval_batches(clips: Clips, config: ClassifierConfig) -> Iterator[Batch]:
    """All clips once, in order; the last batch is filled up with rows of label -1."""

    def load(start: int) -> Batch:
        indices = range(start, min(start + config.batch_size, len(clips)))
        label = np.full(config.batch_size, -1, np.int32)
        label[: len(indices)] = clips.labels[start : start + len(indices)]
        spectrogram = mel_spectrogram(
            clips.read(indices), config.data.sample_rate, edges=config.edges
        )
        filling = ((0, config.batch_size - len(indices)), (0, 0), (0, 0))
        return {"spectrogram": np.pad(spectrogram, filling), "label": label}

    batches = grain.MapDataset.range(0, len(clips), config.batch_size).map(load)
    return iter(batches.to_iter_dataset(_read_options(config)))


def augment(
    waveforms: Float32[np.ndarray, "clips time"],
    config: ClassifierConfig,
    rng: np.random.Generator,
) -> Float32[np.ndarray, "clips time"]:
    """Clips changed at random, as `config.augmentation` says: speed, place, loudness, noise."""
    how, rate = config.augmentation, config.data.sample_rate
    num_clips, length = waveforms.shape
    shift = rng.uniform(-how.shift, how.shift, num_clips) * rate
    speed = rng.uniform(1 - how.speed, 1 + how.speed, num_clips)
    gain = 10 ** (-rng.uniform(0, how.gain, num_clips) / 20)
    noise = how.noise * 10 ** (-rng.uniform(0, _NOISE_RANGE, num_clips) / 20)
    quantized = rng.random(num_clips) < how.quantization
    place = np.arange(length)
    for row, waveform in enumerate(waveforms):
        # About the middle, so that speed alone moves nothing out on one side.
        where = (place - shift[row] - length / 2) * speed[row] + length / 2
        waveforms[row] = gain[row] * np.interp(where, place, waveform, left=0, right=0)
    waveforms += noise[:, None].astype(np.float32) * rng.standard_normal(
        waveforms.shape, np.float32
    )
    sound = config.data.format
    waveforms[quantized] = sound.decode(sound.encode(waveforms[quantized]))
    return waveforms


def mask(
    spectrograms: Float32[np.ndarray, "clips bands frames"],
    config: AugmentationConfig,
    rng: np.random.Generator,
) -> Float32[np.ndarray, "clips bands frames"]:
    """Spectrograms with a stripe of bands and one of frames at the floor.

    As SpecAugment (Park et al., arXiv 1904.08779, section 2) has frequency and time masking.
    """
    for axis, widest in ((1, config.masked_bands), (2, config.masked_frames)):
        size = spectrograms.shape[axis]
        width = rng.integers(0, min(widest, size) + 1, len(spectrograms))
        first = (rng.random(len(spectrograms)) * (size - width + 1)).astype(np.int64)
        place = np.arange(size)
        inside = (place >= first[:, None]) & (place < (first + width)[:, None])
        stripe = np.expand_dims(inside, 3 - axis)
        spectrograms = np.where(stripe, np.float32(_FLOOR), spectrograms)
    return spectrograms


def _load_random(clips: Clips, config: ClassifierConfig, number: int, indices: np.ndarray) -> Batch:
    """Reads and changes the clips of a batch, given its number."""
    rng = np.random.default_rng((config.seed, number))
    waveforms = augment(clips.read(indices), config, rng)
    spectrogram = mel_spectrogram(waveforms, config.data.sample_rate, edges=config.edges)
    return {
        "spectrogram": mask(spectrogram, config.augmentation, rng),
        "label": clips.labels[indices].astype(np.int32),
    }


def _read_options(config: ClassifierConfig) -> grain.ReadOptions:
    prefetch = config.data.prefetch if config.data.num_threads else 0
    return grain.ReadOptions(
        num_threads=min(config.data.num_threads, prefetch), prefetch_buffer_size=prefetch
    )


def _values(dataset: Dataset, split: str, label: str) -> tuple[str | int, ...]:
    labels = dataset.split(split).labels
    if label not in labels:
        known = did_you_mean(label, labels) if labels else ", nor any other."
        raise UserError(f"The recordings of {dataset.name} have no label {label!r}{known}")
    return labels[label]


def _listed(names: Sequence[str]) -> str:
    """Some names, not too many of them."""
    rest = len(names) - 12
    return ", ".join([*names[:12], *([f"and {rest} more"] if rest > 0 else [])])
