"""A classifier on disk: Orbax arrays, and beside them as JSON all that is needed to use them.

`DIR/classifier/` holds two items: `variables`, the weights and the averages of batch normalization,
and `meta`, what `ClassifierMeta` has.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx

from pf_jax.errors import UserError
from pf_jax.evaluation.classifier.config import ClassifierConfig
from pf_jax.evaluation.classifier.resnext import ResNeXt, ResNeXtConfig
from pf_jax.paths import checked_path
from pf_jax.training.checkpoint import absolute, brief, checksum, placeholder
from pf_jax.version import __version__

NAME = "classifier"
TRAINING = "training"
KIND = "classifier"
FORMAT_VERSION = 1
"""Raised whenever older code could no longer read, or would misread, a new classifier."""

HOW_TO_MAKE_ONE = (
    "python -m experiments.train --config=sc09_classifier --workdir=DIR trains one, and "
    "python -m experiments.convert_classifier takes over published weights"
)

Variables = dict[str, Any]
"""The arrays of a network: `params` and `batch_stats`, nested dictionaries both."""


@dataclasses.dataclass(frozen=True)
class ClassifierMeta:
    """What a classifier says about itself.

    Attributes:
        config: The config it was trained with; of converted weights, its network, its data and its
            label alone mean anything.
        labels: The names of the classes, in the order of their numbers.
        accuracy: By split, the share of its clips that were told right; empty where none was heard.
        num_clips: By split, how many clips that was.
        step: The training steps behind the weights; 0 for converted ones.
        source: Where the weights come from: "training", or the name of a file.
        data_fingerprint: Of the recordings it was trained on; empty for converted weights.
        checksum: Of the arrays.
        path: Where it was loaded from; empty before it is saved.
    """

    config: ClassifierConfig
    labels: tuple[str, ...]
    accuracy: Mapping[str, float]
    num_clips: Mapping[str, int]
    step: int
    source: str
    data_fingerprint: str
    checksum: int
    path: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-ready dictionary, which says the kind and the format version too."""
        return {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "pf_jax_version": __version__,
            "config": self.config.to_dict(),
            "labels": list(self.labels),
            "label_name": self.config.label,
            "sample_rate": self.config.data.sample_rate,
            "accuracy": dict(self.accuracy),
            "num_clips": dict(self.num_clips),
            "step": self.step,
            "source": self.source,
            "data_fingerprint": self.data_fingerprint,
            "checksum": self.checksum,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any], path: str) -> Self:
        """From `to_dict`'s dictionary.

        Raises:
            UserError: It is not that of a classifier, is damaged, or a newer version wrote it.
        """
        if fields.get("kind") != KIND:
            raise UserError(
                f"{path} is not a classifier, but a checkpoint of a Poolformer: {HOW_TO_MAKE_ONE}."
            )
        if fields["format_version"] > FORMAT_VERSION:
            raise UserError(
                f"{path} was made by pf_jax {fields.get('pf_jax_version')}, whose classifiers have "
                f"format version {fields['format_version']}; this is pf_jax {__version__}, which "
                f"reads up to {FORMAT_VERSION}. Upgrade pf_jax."
            )
        try:
            config = ClassifierConfig.from_dict(fields["config"])
        except UserError as error:
            raise UserError(f"The config in {path} is of another version: {error}") from error
        labels = tuple(map(str, fields["labels"]))
        if len(labels) != config.model.num_classes:
            raise UserError(
                f"The metadata of {path} is damaged: {len(labels)} labels for "
                f"{config.model.num_classes} classes."
            )
        return cls(
            config=config,
            labels=labels,
            accuracy={split: float(value) for split, value in fields["accuracy"].items()},
            num_clips={split: int(value) for split, value in fields["num_clips"].items()},
            step=int(fields["step"]),
            source=str(fields["source"]),
            data_fingerprint=str(fields["data_fingerprint"]),
            checksum=int(fields["checksum"]),
            path=path,
        )


def split_network(network: ResNeXt) -> tuple[nnx.GraphDef, Variables]:
    """The structure of a network, and its arrays."""
    graphdef, params, batch_stats = nnx.split(network, nnx.Param, nnx.BatchStat)
    return graphdef, {
        "params": nnx.to_pure_dict(params),
        "batch_stats": nnx.to_pure_dict(batch_stats),
    }


def merge_network(graphdef: nnx.GraphDef, variables: Variables) -> ResNeXt:
    """The network of a structure and arrays; cheap, for use inside a transformed function."""
    return nnx.merge(graphdef, nnx.State(variables["params"]), nnx.State(variables["batch_stats"]))


def abstract_network(config: ResNeXtConfig) -> tuple[nnx.GraphDef, Variables]:
    """The structure of a network, and shapes and types in place of its arrays."""
    return split_network(nnx.eval_shape(lambda: ResNeXt(config, rngs=nnx.Rngs(0))))


def save_classifier(directory: epath.PathLike, variables: Variables, meta: ClassifierMeta) -> None:
    """Writes a classifier to `directory/classifier`: whole, or not at all.

    Args:
        directory: A directory or a gs:// path; made if need be.
        variables: The arrays of the network.
        meta: What it says about itself; the checksum is added.

    Raises:
        UserError: There is one already, or it cannot be written.
    """
    place = absolute(checked_path(directory, "directory")) / NAME
    if place.exists():
        raise UserError(f"{place} is there already: give another directory, or delete it.")
    variables = jax.device_get(variables)
    meta = dataclasses.replace(meta, checksum=checksum(variables))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(
                place,
                ocp.args.Composite(
                    variables=ocp.args.StandardSave(variables),
                    meta=ocp.args.JsonSave(meta.to_dict()),
                ),
            )
    except Exception as error:
        raise UserError(f"The classifier {place} could not be written ({brief(error)}).") from error


def holds_classifier(workdir: epath.PathLike) -> bool:
    """Whether a directory has a classifier, or the training of one."""
    root = checked_path(workdir, "workdir")
    return (root / NAME).exists() or (root / TRAINING).exists()


def find_classifier(path: epath.PathLike) -> ClassifierMeta:
    """What the classifier at a path says about itself.

    Args:
        path: The --workdir of its training, the --output of its conversion, or the directory
            `classifier` in it.

    Raises:
        UserError: There is none, it is damaged, or what is there is something else.
    """
    root = absolute(checked_path(path, "classifier"))
    place = root if (root / "meta").exists() else root / NAME
    if not (place / "meta").exists():
        raise UserError(_why_not(path, root))
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            fields = checkpointer.restore(place / "meta")
        return ClassifierMeta.from_dict(fields, str(place))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The classifier {place} is damaged: its metadata cannot be read ({brief(error)})."
        ) from error


def load_variables(meta: ClassifierMeta) -> tuple[nnx.GraphDef, Variables]:
    """The structure of a classifier's network, and its arrays as NumPy arrays.

    Raises:
        UserError: It is damaged.
    """
    graphdef, abstract = abstract_network(meta.config.model)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            variables = checkpointer.restore(
                epath.Path(meta.path) / "variables", jax.tree.map(placeholder, abstract)
            )
    except Exception as error:
        raise UserError(f"The classifier {meta.path} is damaged: {brief(error)}.") from error
    if checksum(variables) != meta.checksum:
        raise UserError(
            f"The classifier {meta.path} is damaged: its arrays are not those that were saved."
        )
    return graphdef, variables


def _why_not(path: epath.PathLike, root: epath.Path) -> str:
    """What to tell about a path that holds no classifier."""
    if not root.exists():
        return f"No such classifier: {path}; {HOW_TO_MAKE_ONE}."
    if not root.is_dir():
        return f"{path} is a file, not the directory of a classifier; {HOW_TO_MAKE_ONE}."
    if (root / TRAINING).exists():
        return (
            f"The training of the classifier in {path} has not come to its end: run its command "
            "again, and it goes on."
        )
    if (root / "checkpoints").exists() or root.name == "checkpoints":
        return f"{path} is the training of a Poolformer, not of a classifier; {HOW_TO_MAKE_ONE}."
    return f"{path} holds no classifier; {HOW_TO_MAKE_ONE}."
