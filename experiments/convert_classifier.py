"""Takes over the published SC09 classifier: PyTorch weights become a classifier of this project.

The weights are those of SaShiMi's release, `sc09_classifier/resnext.pth`: a module that torch.save
wrote whole, or its state dictionary. PyTorch is not needed, and nothing in the file is run.

Example:
  python -m experiments.convert_classifier --weights=resnext.pth --output=~/runs/published
"""

import os
from collections.abc import Sequence

from absl import flags

from experiments import cli
from pf_jax.data.config import DataConfig
from pf_jax.data.sc09 import DIGITS
from pf_jax.errors import UserError
from pf_jax.evaluation.classifier import ClassifierConfig
from pf_jax.evaluation.classifier.saved import ClassifierMeta, find_classifier, save_classifier
from pf_jax.evaluation.classifier.spectrogram import EDGES
from pf_jax.evaluation.classifier.torch_weights import read_weights

_WEIGHTS = flags.DEFINE_string("weights", None, "The file of torch.save.", required=True)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Where the classifier is written: a directory or gs:// path.", required=True
)
_LABELS = flags.DEFINE_list(
    "labels", list(DIGITS), "What its classes are called, in the order of its outputs."
)
_EDGES = flags.DEFINE_enum(
    "edges",
    "reflect",
    EDGES,
    "How spectrograms go on beyond a clip: as librosa did up to 0.8 (reflect), or from 0.9.",
)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    model, variables = read_weights(_WEIGHTS.value)
    labels = tuple(_LABELS.value)
    if len(labels) != model.num_classes:
        raise UserError(
            f"{_WEIGHTS.value} tells {model.num_classes} classes apart, and --labels names "
            f"{len(labels)}: {', '.join(labels)}."
        )
    config = ClassifierConfig(
        model=model,
        data=DataConfig(name="sc09", window=16_000),
        label="digit",
        edges=_EDGES.value,
    )
    meta = ClassifierMeta(
        config=config,
        labels=labels,
        accuracy={},
        num_clips={},
        step=0,
        source=os.path.basename(_WEIGHTS.value),
        data_fingerprint="",
        checksum=0,
    )
    save_classifier(_OUTPUT.value, variables, meta)
    print(
        f"ResNeXt-{model.depth}, {model.cardinality}x{model.base_width}, {model.num_features} "
        f"features, {model.num_classes} classes: {find_classifier(_OUTPUT.value).path}"
    )


if __name__ == "__main__":
    cli.run(main)
