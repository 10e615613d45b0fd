"""SaShiMi (Goel et al., 2022, arXiv 2202.09729) with S4D: from PyTorch's weights to a Poolformer.

The module is the backbone of state-spaces/s4, `models/sashimi/sashimi.py` with the layers of
`models/s4/s4.py` (`Sashimi(mode="diag", init="diag-lin")`), between an `nn.Embedding` and an
`nn.Linear` that its user puts around it, by whatever names. It is the same function as a Poolformer
with `sashimi_backbone`, the mixer "s4d" and no ResBlocks before the pools. What differs is this:

* a pooled vector has there the positions of a group beside each other for each channel, and here
  the channels for each position: rows of pools are in another order;
* `A` has a negative imaginary part there. The sum of a conjugate pair does not tell: here the
  state is the other one of the pair, and `B` and `C` are the conjugates of those there.

In both the embedding of the middle level (silence) stands before the first token.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from pf_jax.config import PoolformerConfig
from pf_jax.errors import UserError
from pf_jax.training.state import Params, abstract_model, split_model

_BACKBONE = re.compile(r"(d_layers|c_layers|u_layers)\.\d+\.|norm\.(weight|bias)$")
_LAST_NORM = "norm.weight"
_SYSTEM = "layer.layer.kernel."
_MOST_LISTED = 6


class _Tensors:
    """The tensors, each of which must be taken once."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self._tensors = dict(tensors)
        self._left = set(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str, ndim: int) -> tuple[int, ...]:
        """The shape of a tensor, which is not taken by that."""
        if name not in self._tensors:
            raise UserError(f"There is no tensor {name}; a SaShiMi with S4D has one.")
        array = self._tensors[name]
        if array.ndim != ndim or not array.size:
            raise UserError(f"The tensor {name} has the shape {array.shape}.")
        return array.shape

    def take(self, name: str, *shape: int) -> np.ndarray:
        """A tensor as float32 in a shape that may lack axes of length 1."""
        if name not in self._tensors:
            raise UserError(f"There is no tensor {name}; a SaShiMi with S4D has one.")
        array = np.asarray(self._tensors[name], np.float32)
        self._left.discard(name)
        if [n for n in array.shape if n > 1] != [n for n in shape if n > 1]:
            raise UserError(
                f"The tensor {name} has the shape {array.shape}, which does not fit the others: "
                f"{shape} would."
            )
        if not np.isfinite(array).all():
            raise UserError(f"The tensor {name} has numbers that are NaN or infinite.")
        return array.reshape(shape)

    def left(self) -> list[str]:
        """The names of those that nobody has taken."""
        return sorted(self._left)


class _Around(NamedTuple):
    """The names of what is around the backbone, and what the backbone's own names begin with."""

    backbone: str
    embedding: str
    head: str


def sashimi_weights(
    state_dict: Mapping[str, np.ndarray],
) -> tuple[PoolformerConfig, Params]:
    """The Poolformer that computes what a SaShiMi with S4D does.

    Args:
        state_dict: The parameters of a module that holds the backbone, an embedding and a linear
            head, by their names in its `state_dict()`; of a file, as
            `pf_jax.evaluation.classifier.torch_file.read_tensors` gives them. The transforms of
            `dt` and of `A` are those that the code has by default.

    Returns:
        The config that the shapes tell, and the weights as `pf_jax.training.state.split_model` has
        them.

    Raises:
        UserError: A tensor is missing, too many, or of another shape, or the module is a SaShiMi
            of another kind: with S4 instead of S4D, two directions, or blocks before the pools.
    """
    tensors = _Tensors(state_dict)
    around = _find(state_dict)
    config = _config_of(tensors, around)
    values = dict(_values(config, tensors, around))
    if left := tensors.left():
        raise UserError(f"There are tensors that a SaShiMi with S4D has not: {_some(left)}.")
    _, abstract = split_model(abstract_model(config))
    params = jax.tree.map_with_path(lambda path, _: values[jax.tree_util.keystr(path)], abstract)
    return config, params


def _find(names: Mapping[str, np.ndarray]) -> _Around:
    """Where the backbone is, by its last norm, and what else there is."""
    ends = [name for name in names if re.search(r"(^|\.)c_layers\.0\.norm\.weight$", name)]
    if len(ends) != 1:
        raise UserError(
            "This is no SaShiMi: it should have one tensor c_layers.0.norm.weight, and has "
            f"{len(ends)}. It has {_some(sorted(names))}."
        )
    prefix = ends[0].removesuffix("c_layers.0.norm.weight")
    rest = {
        name
        for name in names
        if not (name.startswith(prefix) and _BACKBONE.match(name.removeprefix(prefix)))
    }
    heads = {name.removesuffix(".bias") for name in rest if name.endswith(".bias")}
    tables = {name.removesuffix(".weight") for name in rest if name.endswith(".weight")} - heads
    if len(heads) != 1 or len(tables) != 1 or len(rest) != 3:
        raise UserError(
            "Besides SaShiMi's backbone there should be an embedding (a weight) and a head (a "
            f"weight and a bias), and there is {_some(sorted(rest))}."
        )
    return _Around(prefix, tables.pop(), heads.pop())


def _config_of(tensors: _Tensors, around: _Around) -> PoolformerConfig:
    """The config that the shapes of the tensors tell."""
    prefix = around.backbone
    vocab, width = tensors.shape(f"{around.embedding}.weight", 2)
    widths, factors = [width], []
    while f"{prefix}d_layers.{len(factors)}.linear.weight" in tensors:
        wide, pooled, _ = tensors.shape(f"{prefix}d_layers.{len(factors)}.linear.weight", 3)
        factors.append(pooled // widths[-1])
        widths.append(wide)
    if f"{prefix}d_layers.0.norm.weight" in tensors:
        raise UserError("This SaShiMi has blocks before its pools (unet=True): no Poolformer has.")
    if f"{prefix}c_layers.0.{_SYSTEM}P" in tensors:
        raise UserError(
            "This SaShiMi has S4, whose states depend on each other (its kernels have a tensor P); "
            "a Poolformer can have S4D, of mode='diag'."
        )
    channels, _, states, _ = tensors.shape(f"{prefix}c_layers.0.{_SYSTEM}C", 4)
    if channels > 1:
        raise UserError(f"This SaShiMi has {channels} directions or channels; a Poolformer has 1.")
    feed_forward = f"{prefix}c_layers.1.layer.ff.0.0.weight"
    has_mlp = feed_forward in tensors
    blocks = 0
    while f"{prefix}c_layers.{blocks}.norm.weight" in tensors:
        blocks += 1
    blocks //= 1 + has_mlp
    return PoolformerConfig(
        widths=tuple(widths),
        depths=(*((0, blocks) for _ in factors), blocks),
        pool_factors=tuple(factors),
        vocab_size=vocab,
        embedding="learned",
        mixer="s4d",
        state_size=2 * states,
        num_heads=math.gcd(8, *widths),
        pool_groups=1,
        norm="layer",
        norm_epsilon=1e-5,
        mlp="plain_mlp" if has_mlp else "none",
        mlp_expansion=tensors.shape(feed_forward, 3)[0] / widths[-1] if has_mlp else 2.0,
        sashimi_backbone=True,
    )


def _values(
    config: PoolformerConfig, tensors: _Tensors, around: _Around
) -> Iterator[tuple[str, np.ndarray]]:
    """Each parameter by its path here."""
    width, vocab, prefix = config.widths[0], config.vocab_size, around.backbone
    table = tensors.take(f"{around.embedding}.weight", vocab, width)
    yield "['embedding']['table']", table
    yield "['head']['kernel']", tensors.take(f"{around.head}.weight", vocab, width).T
    yield "['head']['bias']", tensors.take(f"{around.head}.bias", vocab)
    yield from _norm("['head_norm']", tensors, f"{prefix}norm", width)
    here = "['body']"
    for level, width in enumerate(config.widths):
        innermost = level == config.num_levels - 1
        outwards = f"u_layers.{config.num_levels - 2 - level}."
        if not innermost:
            yield from _pools(here, config, level, tensors, prefix, outwards)
        blocks, there = ("before", "c_layers.") if innermost else ("after", outwards)
        first = 0 if innermost else 1  # The first is the pool.
        for number in range(sum(config.depth(level)) * (1 if config.mlp == "none" else 2)):
            place = f"{here}['{blocks}'][{number}]"
            yield from _block(place, config, width, tensors, f"{prefix}{there}", first, number)
        here += "['nested']"


def _pools(
    here: str, config: PoolformerConfig, level: int, tensors: _Tensors, prefix: str, outwards: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Both pools between a level and the next."""
    width, inner = config.widths[level : level + 2]
    factor = config.pool_factors[level]
    down, up = f"{prefix}d_layers.{level}.linear", f"{prefix}{outwards}0.linear"
    # There: channel, then position in the group; here: position, then channel.
    kernel = tensors.take(f"{down}.weight", inner, width * factor).reshape(inner, width, factor)
    yield f"{here}['down_pool']['kernel']", kernel.transpose(2, 1, 0)
    yield f"{here}['down_pool']['bias']", tensors.take(f"{down}.bias", inner)
    kernel = tensors.take(f"{up}.weight", width * factor, inner).reshape(width, factor, inner)
    yield f"{here}['up_pool']['kernel']", kernel.transpose(2, 1, 0)
    yield (
        f"{here}['up_pool']['bias']",
        tensors.take(f"{up}.bias", width * factor).reshape(width, factor).T,
    )


def _block(
    here: str,
    config: PoolformerConfig,
    width: int,
    tensors: _Tensors,
    layers: str,
    first: int,
    number: int,
) -> Iterator[tuple[str, np.ndarray]]:
    """A ResBlock, of the state space or of the MLP."""
    there = f"{layers}{first + number}"
    yield from _norm(f"{here}['norm']", tensors, f"{there}.norm", width)
    if config.mlp != "none" and number % 2:
        hidden, ff = max(1, round(config.mlp_expansion * width)), f"{there}.layer.ff"
        yield from _linear(f"{here}['layer']['input']", tensors, f"{ff}.0.0", width, hidden)
        yield from _linear(f"{here}['output']", tensors, f"{ff}.2", hidden, width)
    else:
        yield from _mixer(f"{here}['layer']", config, tensors, there, width)


def _mixer(
    here: str, config: PoolformerConfig, tensors: _Tensors, there: str, width: int
) -> Iterator[tuple[str, np.ndarray]]:
    states = config.state_size // 2
    system = f"{there}.{_SYSTEM}"
    # Channels may share A and B.
    copies = tensors.shape(f"{system}A_real", 2)[0]
    if width % copies:
        raise UserError(f"{system}A_real is of {copies} channels, which do not divide {width}.")

    def shared(name: str, *shape: int) -> np.ndarray:
        array = tensors.take(f"{system}{name}", copies, states, *shape)
        return np.tile(array, (width // copies, *(1,) * (array.ndim - 1)))

    def conjugate(array: np.ndarray) -> np.ndarray:
        return np.stack([array[..., 0], -array[..., 1]])

    yield f"{here}['log_dt']", tensors.take(f"{system}inv_dt", width)
    yield f"{here}['log_a_real']", shared("A_real")
    yield f"{here}['a_imag']", shared("A_imag")
    yield f"{here}['b']", conjugate(shared("B", 2))
    yield f"{here}['c']", conjugate(tensors.take(f"{system}C", width, states, 2))
    yield f"{here}['d']", tensors.take(f"{there}.layer.layer.D", width)
    output = f"{there}.layer.output_linear.0"
    yield from _linear(f"{here}['output']", tensors, output, width, 2 * width)


def _linear(
    here: str, tensors: _Tensors, there: str, inputs: int, outputs: int
) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{here}['kernel']", tensors.take(f"{there}.weight", outputs, inputs).T
    yield f"{here}['bias']", tensors.take(f"{there}.bias", outputs)


def _norm(here: str, tensors: _Tensors, there: str, width: int) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{here}['scale']", tensors.take(f"{there}.weight", width)
    yield f"{here}['bias']", tensors.take(f"{there}.bias", width)


def _some(names: list[Any]) -> str:
    rest = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return (", ".join(names[:_MOST_LISTED]) or "nothing") + rest
