"""A trained classifier, ready to listen."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, Float32, Float64, Int64

from pf_jax.data.dataset import Dataset
from pf_jax.errors import UserError
from pf_jax.evaluation.classifier.clips import class_numbers
from pf_jax.evaluation.classifier.saved import (
    ClassifierMeta,
    Variables,
    find_classifier,
    load_variables,
    merge_network,
)
from pf_jax.evaluation.classifier.spectrogram import mel_spectrogram


def load_classifier(path: epath.PathLike) -> "Classifier":
    """Loads a classifier; nothing else needs to be known.

    Args:
        path: The --workdir of its training, the --output of its conversion, or the directory
            `classifier` in it.

    Raises:
        UserError: There is none, it is damaged, or what is there is something else.
    """
    meta = find_classifier(path)
    return Classifier(*load_variables(meta), meta)


class Classifier:
    """Tells clips apart, and gives the features in which sets of clips are compared.

    Attributes:
        labels: The names of the classes, in the order of their numbers.
        label_name: What they are the values of, such as "digit".
        sample_rate: Of the clips, in samples per second.
        num_samples: In a clip.
        num_features: Components of a clip's features.
        accuracy: By split of the data that it was trained on, the share of clips told right.
        path: Where it was loaded from.
        meta: All that it says about itself.
    """

    def __init__(self, graphdef: nnx.GraphDef, variables: Variables, meta: ClassifierMeta):
        self.labels = meta.labels
        self.label_name = meta.config.label
        self.sample_rate = meta.config.data.sample_rate
        self.num_samples = meta.config.data.window
        self.num_features = meta.config.model.num_features
        self.accuracy = dict(meta.accuracy)
        self.path = meta.path
        self.meta = meta
        self._variables = jax.tree.map(jnp.asarray, variables)
        self._graphdef = graphdef

    def classify(
        self, waveforms: Float[np.ndarray, "clips time"], *, batch_size: int = 256
    ) -> tuple[Float32[np.ndarray, "clips features"], Float64[np.ndarray, "clips classes"]]:
        """Hears clips.

        Args:
            waveforms: At `sample_rate`, of any amplitude. What is longer than `num_samples` is cut
                at its end, what is shorter is filled up with zeros there.
            batch_size: Clips that the device has at once.

        Returns:
            The features, which are the vector before the last layer, and the probabilities of the
            classes.

        Raises:
            UserError: It is no array of clips, or a sample is NaN or infinite.
        """
        waveforms = np.asarray(waveforms)
        if waveforms.ndim != 2 or not np.issubdtype(waveforms.dtype, np.floating):
            raise UserError(
                "classify takes waveforms as floats of shape (clips, time), got "
                f"{waveforms.dtype} of shape {waveforms.shape}."
            )
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}.")
        features = np.empty((len(waveforms), self.num_features), np.float32)
        logits = np.empty((len(waveforms), len(self.labels)), np.float64)
        size = max(1, min(batch_size, len(waveforms)))
        pending = []  # One batch ahead: the device works while the next spectrograms are made.
        for start in range(0, len(waveforms), size):
            part = slice(start, min(start + size, len(waveforms)))
            pending.append((part, self._start(waveforms[part], size)))
            if len(pending) > 1:
                _store(*pending.pop(0), features, logits)
        for part, result in pending:
            _store(part, result, features, logits)
        return features, scipy.special.softmax(logits, axis=-1)

    def check_rate(self, sample_rate: int, what: str = "the clips") -> None:
        """Makes sure that clips have the rate that the classifier hears at.

        Args:
            sample_rate: Of the clips.
            what: What an error calls them.

        Raises:
            UserError: They have another one.
        """
        if sample_rate != self.sample_rate:
            raise UserError(
                f"The classifier {self.path} hears {self.sample_rate} samples per second, and "
                f"{what} have {sample_rate}: train one for that rate with "
                f"--config.data.sample_rate={sample_rate}."
            )

    def check_labels(
        self, dataset: Dataset, splits: Iterable[str] = ("train", "validation", "test")
    ) -> None:
        """Makes sure that the classifier knows all classes of a dataset.

        Raises:
            UserError: The recordings lack the label that it tells, or have a class it was never
                taught.
        """
        for split in splits:
            self.class_numbers(dataset, split)

    def class_numbers(self, dataset: Dataset, split: str) -> Int64[np.ndarray, "recordings"]:
        """What the classifier should say of each recording of a split.

        Raises:
            UserError: As `check_labels`.
        """
        try:
            return class_numbers(dataset, split, self.label_name, self.labels)
        except UserError as error:
            raise UserError(f"The classifier {self.path} does not fit the data. {error}") from error

    def _start(self, waveforms: np.ndarray, size: int) -> tuple[jax.Array, jax.Array]:
        """Has the device begin with a batch, filled up to `size` clips."""
        config = self.meta.config
        clips = np.zeros((len(waveforms), self.num_samples), np.float32)
        length = min(self.num_samples, waveforms.shape[1])
        clips[:, :length] = waveforms[:, :length]
        spectrograms = mel_spectrogram(clips, self.sample_rate, edges=config.edges)
        spectrograms = np.pad(spectrograms, ((0, size - len(clips)), (0, 0), (0, 0)))
        # Features are compared over devices and with published ones: TPUs would round to bfloat16.
        with jax.default_matmul_precision("highest"):
            return _infer(self._graphdef, self._variables, spectrograms)


@functools.partial(jax.jit, static_argnums=0)
def _infer(
    graphdef: nnx.GraphDef, variables: Variables, spectrograms: Float[Array, "clips bands frames"]
) -> tuple[jax.Array, jax.Array]:
    """Compiled once for all classifiers of one structure."""
    return merge_network(graphdef, variables)(spectrograms)


def _store(
    part: slice, result: tuple[jax.Array, jax.Array], features: np.ndarray, logits: np.ndarray
) -> None:
    """Waits for a batch."""
    num_clips = part.stop - part.start
    features[part], logits[part] = (np.asarray(x)[:num_clips] for x in result)
