"""The published SC09 classifier: from the weights of its PyTorch module to a network here.

The module is `CifarResNeXt` of pytorch-speech-commands, which SaShiMi's release trained anew on the
ten digits (`sc09_classifier/resnext.pth`; its authors give 98.08 % of the test split). Its classes
are numbered as the digits are: zero, one, two ... nine. The shapes of its tensors tell its config.
"""

import re
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from etils import epath

from pf_jax.errors import UserError
from pf_jax.evaluation.classifier.resnext import ResNeXtConfig
from pf_jax.evaluation.classifier.saved import Variables, abstract_network
from pf_jax.evaluation.classifier.torch_file import read_tensors

# In a bottleneck, by the name here: the convolution there, and its normalization.
_CONVOLUTIONS = {
    "reduce": ("conv_reduce", "bn_reduce"),
    "look": ("conv_conv", "bn"),
    "expand": ("conv_expand", "bn_expand"),
    "shortcut": ("shortcut.shortcut_conv", "shortcut.shortcut_bn"),
}
_NORM = {
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
_STEM = "conv_1_3x3.weight"
_MOST_LISTED = 6


def read_weights(path: epath.PathLike) -> tuple[ResNeXtConfig, Variables]:
    """The network in a file that `torch.save` wrote; see `read_tensors` of what kinds.

    Raises:
        UserError: There is no such file, it cannot be read, or its tensors are not those of such a
            network.
    """
    tensors = read_tensors(path)
    try:
        return convert(tensors)
    except UserError as error:
        raise UserError(f"{path} does not hold the published classifier: {error}") from error


def convert(tensors: Mapping[str, np.ndarray]) -> tuple[ResNeXtConfig, Variables]:
    """The network of a module's parameters and buffers, by their names in its state dictionary.

    Raises:
        UserError: A tensor is missing, too many, or of another shape.
    """
    config = _config_of(tensors)
    _, abstract = abstract_network(config)
    names = dict(_names(config))
    # Batches that PyTorch has counted say nothing of the network.
    given = {name for name in tensors if not name.endswith(".num_batches_tracked")}
    for what, wrong in (("misses", set(names) - given), ("has too many", given - set(names))):
        if wrong:
            listed = sorted(wrong)[:_MOST_LISTED]
            rest = f" and {len(wrong) - _MOST_LISTED} more" if len(wrong) > _MOST_LISTED else ""
            raise UserError(f"it {what} tensors: {', '.join(listed)}{rest}.")

    by_path = {path: name for name, path in names.items()}

    def take(path: jax.tree_util.KeyPath, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = by_path[tuple(key.key for key in path)]
        array = tensors[name].astype(leaf.dtype)
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)  # PyTorch has the channels out first, then in.
        elif array.ndim == 2:
            array = array.T
        if array.shape != leaf.shape:
            raise UserError(
                f"{name} has the shape {tensors[name].shape}, which does not fit the others "
                f"(a ResNeXt-{config.depth}, {config.cardinality}x{config.base_width})."
            )
        if not np.isfinite(array).all():
            raise UserError(f"{name} has numbers that are NaN or infinite.")
        return array

    return config, jax.tree.map_with_path(take, abstract)


def _config_of(tensors: Mapping[str, np.ndarray]) -> ResNeXtConfig:
    """The config that the shapes of the tensors tell."""

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in tensors:
            some = ", ".join(sorted(tensors)[:_MOST_LISTED]) or "none at all"
            raise UserError(f"it has no tensor {name}; it has {some} ...")
        if tensors[name].ndim != ndim or 0 in tensors[name].shape:
            raise UserError(f"{name} has the shape {tensors[name].shape}.")
        return tensors[name].shape

    stem_width = shape(_STEM, 4)[0]
    first = "stage_1.stage_1_bottleneck_0."
    inner, group = shape(f"{first}conv_conv.weight", 4)[:2]
    outer = shape(f"{first}conv_expand.weight", 4)[0]
    pattern = re.compile(r"stage_1\.stage_1_bottleneck_(\d+)\.conv_conv\.weight")
    blocks = sum(pattern.fullmatch(name) is not None for name in tensors)
    return ResNeXtConfig(
        depth=2 + 9 * blocks,
        cardinality=max(1, inner // group),
        base_width=group,
        widen_factor=max(1, outer // stem_width),
        stem_width=stem_width,
        num_classes=shape("classifier.weight", 2)[0],
    )


def _names(config: ResNeXtConfig) -> Iterator[tuple[str, tuple]]:
    """The name of each tensor there, with its path in the variables here."""
    yield from _convolution(("stem",), "conv_1_3x3", "bn_1")
    width = config.stem_width
    for number in range(3 * config.blocks):
        stage, block = divmod(number, config.blocks)
        there = f"stage_{stage + 1}.stage_{stage + 1}_bottleneck_{block}."
        for here, (conv, norm) in _CONVOLUTIONS.items():
            if here != "shortcut" or width != config.widths[stage]:
                path = ("blocks", number, here)
                yield from _convolution(path, there + conv, there + norm)
        width = config.widths[stage]
    yield "classifier.weight", ("params", "head", "kernel")
    yield "classifier.bias", ("params", "head", "bias")


def _convolution(path: tuple, conv: str, norm: str) -> Iterator[tuple[str, tuple]]:
    yield f"{conv}.weight", ("params", *path, "conv", "kernel")
    for (kind, here), there in _NORM.items():
        yield f"{norm}.{there}", (kind, *path, "norm", here)
