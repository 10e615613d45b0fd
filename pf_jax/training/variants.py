"""Variants of a config's model, each with a name, at equal numbers of parameters.

A variant is written `name`, or `name+name` where one changes what the other has made
(`mamba+no_pooling`), or `name:field=value;field=value` with fields of the model, or of the
optimizer as in `gru:optimizer.learning_rate=1e-3`. Its widths are then scaled so that it has as
many parameters as the others.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from pf_jax import fields
from pf_jax.config import PoolformerConfig
from pf_jax.errors import UserError
from pf_jax.layers import LAYERS
from pf_jax.training.config import OptimizerConfig, TrainConfig
from pf_jax.training.summary import level_costs

_CLOSE = 0.01  # Parameters that are as near as this share leave the widths as they are.

_Change = Callable[[PoolformerConfig], PoolformerConfig]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model of a comparison.

    Attributes:
        name: As the user wrote it.
        config: What it is trained with.
        parameters: How many it has.
        deviation: By what share these are more than they were to be.
    """

    name: str
    config: TrainConfig
    parameters: int
    deviation: float

    @property
    def directory(self) -> str:
        """A name for its directory."""
        return re.sub(r"[^\w.=,+-]+", "_", self.name).strip("_")


def make_variants(text: str, config: TrainConfig, parameters: int | None = None) -> list[Variant]:
    """The variants of a list such as `poolformer,no_gate,poolformer:pool_factors=(4,4)`.

    Args:
        text: The list.
        config: What it varies.
        parameters: How many each is to have; None for as many as the config's own model.

    Raises:
        UserError: No variant is named, one is unknown, named twice or impossible, or the number of
            parameters is.
    """
    names = _split(text)
    if not names:
        raise UserError(f"No model is named: give some of {', '.join(VARIANTS)}.")
    if parameters is None:
        parameters = count_parameters(config.model)
    elif parameters < 1:
        raise UserError(f"The number of parameters must be at least 1, got {parameters}.")
    variants: dict[str, Variant] = {}
    for name in names:
        changed = change(config, name)
        model = match_parameters(changed.model, parameters)
        count = count_parameters(model)
        variant = Variant(
            name, dataclasses.replace(changed, model=model), count, count / parameters - 1.0
        )
        if (other := variants.setdefault(variant.directory, variant)) is not variant:
            raise UserError(f"Two models are the same: {other.name} and {name}; name each once.")
    return list(variants.values())


def change(config: TrainConfig, name: str) -> TrainConfig:
    """The config of a variant, before its widths are scaled.

    Raises:
        UserError: The variant or one of its fields is unknown, or has an impossible value.
    """
    bases, _, assignments = name.partition(":")
    for base in bases.split("+"):
        if base not in VARIANTS:
            raise UserError(f"Unknown model {base!r}{fields.did_you_mean(base, VARIANTS)}")
    values: dict[str, dict[str, Any]] = {"model": {}, "optimizer": {}}
    for assignment in filter(None, assignments.split(";")):
        section, field, value = _parse(assignment, name)
        values[section][field] = value
    try:
        model = config.model
        for base in bases.split("+"):
            model = VARIANTS[base](model)
        model = dataclasses.replace(model, **values["model"])
        optimizer = dataclasses.replace(config.optimizer, **values["optimizer"])
        changed = dataclasses.replace(config, model=model, optimizer=optimizer)
    except UserError as error:
        raise UserError(f"The model {name}: {error}") from error
    for layer in sorted(model.layers - LAYERS.keys()):
        raise UserError(
            f"The model {name} needs the layer {layer!r}{fields.did_you_mean(layer, LAYERS)}"
        )
    return changed


def count_parameters(model: PoolformerConfig) -> int:
    """The number of a model's parameters, from shapes alone."""
    return sum(cost.parameters for cost in level_costs(model))


def match_parameters(model: PoolformerConfig, parameters: int) -> PoolformerConfig:
    """The model with its widths scaled so that its parameters are as near a number as they can be.

    Widths stay multiples of the least width that the model's layers and pools accept, and those of
    the levels in proportion, up to one such multiple. Where pools work channel by channel, and so
    all levels have one width, the number of heads is in proportion, too. All stays as it is where
    the number is within a percent: what an ablation changes is then the only change.
    """
    if abs(count_parameters(model) - parameters) <= _CLOSE * parameters:
        return model
    step = _width_step(model)

    def scaled(factor: float) -> PoolformerConfig:
        return _resized(
            model, tuple(step * max(1, round(factor * width / step)) for width in model.widths)
        )

    low, high = 0.0, 1.0
    while count_parameters(scaled(high)) < parameters:
        low, high = high, 2.0 * high
    while _furthest(scaled(low), scaled(high)) > step:
        middle = (low + high) / 2.0
        if count_parameters(scaled(middle)) < parameters:
            low = middle
        else:
            high = middle

    def distance(candidate: PoolformerConfig) -> int:
        return abs(count_parameters(candidate) - parameters)

    best, last = min(scaled(low), scaled(high), key=distance), None
    if model.pool_groups is None:  # All levels have one width.
        return best
    # One more multiple, or one less, in some of the levels, the widest first, while that is nearer.
    while best != last:
        last = best
        for level in sorted(range(model.num_levels), key=lambda n: -best.widths[n]):
            widths = list(best.widths)
            widths[level] += step if count_parameters(best) < parameters else -step
            if widths[level] > 0:
                best = min(best, dataclasses.replace(best, widths=tuple(widths)), key=distance)
    return best


def _width_step(model: PoolformerConfig) -> int:
    """The least width whose multiples are possible at all levels."""
    for step in range(1, max(model.widths) + 1):
        try:
            for multiple in range(1, 9):
                _resized(model, (multiple * step,) * model.num_levels)
        except UserError:
            continue
        return step
    return max(model.widths)


def _resized(model: PoolformerConfig, widths: tuple[int, ...]) -> PoolformerConfig:
    """The model with other widths; with channel pools the heads keep theirs."""
    heads = model.num_heads
    if model.pool_groups is None:
        heads, rest = divmod(heads * widths[0], model.widths[0])
        if rest:
            raise UserError(f"{widths[0]} channels are not a whole number of heads.")
    return dataclasses.replace(model, widths=widths, num_heads=heads)


def without_pooling(model: PoolformerConfig) -> PoolformerConfig:
    """A model of one level, of as many blocks and about as many parameters."""
    one_level = dataclasses.replace(
        model,
        widths=(max(model.widths),),
        depths=(_side(model, _inside(model, 0)),),
        pool_factors=(),
    )
    return match_parameters(one_level, count_parameters(model))


def _fewer_levels(model: PoolformerConfig) -> PoolformerConfig:
    """Without the innermost level, whose blocks the level above gets."""
    if model.num_levels == 1:
        raise UserError("it has one level, and cannot have fewer.")
    return dataclasses.replace(
        model,
        widths=model.widths[:-1],
        depths=(*model.depths[:-2], _side(model, _inside(model, model.num_levels - 2))),
        pool_factors=model.pool_factors[:-1],
    )


def _all_after(model: PoolformerConfig) -> PoolformerConfig:
    """All blocks of a level behind the nested SkipBlock, as in SaShiMi."""
    sides = (model.blocks(level) for level in range(model.num_levels - 1))
    depths = [(0, _side(model, before + after)) for before, after in sides]
    return dataclasses.replace(model, depths=(*depths, model.depths[-1]))


def _inside(model: PoolformerConfig, level: int) -> tuple[str, ...]:
    """The mixers of a level and of all deeper ones, in the order in which they run."""
    if level == model.num_levels:
        return ()
    before, after = model.blocks(level)
    return before + _inside(model, level + 1) + after


def _side(model: PoolformerConfig, mixers: tuple[str, ...]) -> int | tuple[str, ...]:
    """Mixers as an entry of `depths`: a number if all are `mixer`, so that this can be replaced."""
    return len(mixers) if set(mixers) <= {model.mixer} else mixers


def _of_mixer(mixer: str, **values: Any) -> _Change:
    """Replaces all mixers, and sets fields."""

    def change(model: PoolformerConfig) -> PoolformerConfig:
        *outer, innermost = (model.depth(level) for level in range(model.num_levels))
        return dataclasses.replace(model, mixer=mixer, depths=(*outer, innermost[0]), **values)

    return change


def _published(model: PoolformerConfig) -> PoolformerConfig:
    """The published shape: five levels of one width, four blocks on each side."""
    return PoolformerConfig(
        widths=(128,) * 5,
        depths=(4,) * 5,
        pool_factors=(2, 4, 4, 5),
        num_heads=32,
        vocab_size=model.vocab_size,
        dropout=model.dropout,
        dtype=model.dtype,
        remat=model.remat,
        recurrence=model.recurrence,
    )


def _backwards_pools(model: PoolformerConfig) -> PoolformerConfig:
    """The same pools in reverse order: where the sequence is shortened first."""
    return dataclasses.replace(model, pool_factors=model.pool_factors[::-1])


def _convolution_first(model: PoolformerConfig) -> PoolformerConfig:
    """Half of the blocks on each side of a level are convolutions, the first and the last ones."""

    def half(mixers: tuple[str, ...]) -> tuple[str, ...]:
        number = len(mixers) // 2
        return ("convolution",) * number + mixers[number:]

    *outer, innermost = (model.blocks(level) for level in range(model.num_levels))
    depths = [(half(before), half(after[::-1])[::-1]) for before, after in outer]
    return dataclasses.replace(model, depths=(*depths, half(innermost[0])))


def _with(**values: Any) -> _Change:
    """Sets fields."""
    return lambda model: dataclasses.replace(model, **values)


def _backbone(mixer: str, **values: Any) -> _Change:
    """SaShiMi's backbone of a mixer."""
    return lambda model: _all_after(
        _of_mixer(mixer, pool_groups=1, embedding="learned", sashimi_backbone=True, **values)(model)
    )


VARIANTS: Mapping[str, _Change] = {
    "poolformer": _with(),
    "published": _published,
    "sashimi": _backbone("s4d", norm="layer", norm_epsilon=1e-5, mlp="plain_mlp"),
    "mamba": _backbone(
        "mamba", norm="rms", mlp="none", mixer_expansion=2.0, state_size=16, conv_width=4
    ),
    "attention": _of_mixer("attention"),
    "gru": _of_mixer("gru"),
    "real": _of_mixer("rglru"),
    "complex": _of_mixer("cglru"),
    "griffin": _of_mixer(
        "rglru",
        mixer_gate=True,
        mixer_expansion=1.0,
        recurrence_output=False,
        radii=(0.9, 0.999),
        convolution="depthwise",
        conv_width=4,
        norm="rms",
        mlp="gated_mlp",
    ),
    "no_pooling": without_pooling,
    "fewer_levels": _fewer_levels,
    "backwards_pools": _backwards_pools,
    "channel_pools": _with(pool_groups=None),
    "dense_pools": _with(pool_groups=1),
    "grouped_pools": _with(pool_groups=4),
    "blocks_after": _all_after,
    "convolution": _with(convolution="full"),
    "depthwise_convolution": _with(convolution="depthwise"),
    "no_convolution": _with(convolution="none"),
    "convolution_blocks": _convolution_first,
    "no_gate": _with(mixer_gate=False),
    "no_mlp": _with(mlp="none"),
    "plain_mlp": _with(mlp="plain_mlp"),
    "layer_norm": _with(norm="layer"),
    "rms_norm": _with(norm="rms"),
    "learned_embedding": _with(embedding="learned"),
    "linear_embedding": _with(embedding="sinusoidal_linear"),
    "fixed_embedding": _with(embedding="sinusoidal"),
    "dropout": _with(dropout=0.2),
    "no_dropout": _with(dropout=0.0),
}
"""What each named variant changes in a config's model.

* `poolformer`: nothing.
* `published`: the published shape, whatever the config's own.
* `sashimi`: SaShiMi's backbone (arXiv 2202.09729, figure 2) of S4D layers: LayerNorm, plain MLPs,
  dense pools, a learned embedding, and all blocks of a level after the nested ones.
* `mamba`: the same backbone of Mamba blocks (arXiv 2312.00752, section 4.4), without MLPs.
* `attention`, `gru`, `real` (RG-LRU), `complex` (CG-LRU): another mixer in the same backbone.
* `griffin`: Griffin's residual blocks (arXiv 2402.19427, figure 2) in the same backbone.
* `no_pooling`, `fewer_levels`: one level, or one level less, of as many blocks.
* `backwards_pools`: the pool factors in reverse order.
* `channel_pools`, `dense_pools`, `grouped_pools`: pools channel by channel, of all channels, and of
  four groups of channels.
* `blocks_after`: no blocks before the pools.
* `convolution`, `depthwise_convolution`, `no_convolution`: a convolution in front of each
  recurrence, or none.
* `convolution_blocks`: half of the blocks on each side of a level, those at its ends, are
  convolutions.
* `learned_embedding`, `linear_embedding`, `fixed_embedding`: a table, sinusoidal features with a
  linear map, and without one.
* The others are named after the one field that they change.
"""


def _split(text: str) -> list[str]:
    """The parts between those commas that are outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in ("".join(part.split()) for part in parts) if part]


def _parse(assignment: str, name: str) -> tuple[str, str, Any]:
    """The section of a config, the field in it and its value that an assignment is of."""
    path, equals, text = assignment.partition("=")
    section, dot, field = path.rpartition(".")
    kinds = {"model": PoolformerConfig, "optimizer": OptimizerConfig}
    known = {
        f"{s}.{f}": hint for s, kind in kinds.items() for f, hint in fields.leaves(kind).items()
    }
    full = path if dot else f"model.{path}"
    if not equals:
        raise UserError(f"The model {name}: {assignment!r} is not like field=value.")
    if full not in known:
        near = fields.did_you_mean(path, [f.removeprefix("model.") for f in known])
        near = near if near != "." else "; fields are those of --config.model and .optimizer."
        raise UserError(f"The model {name} has no field {path!r}{near}")
    try:
        return section or "model", field, fields.parse(text, known[full])
    except ValueError:
        what = fields.describe(known[full])
        raise UserError(f"The model {name}: {path} must be {what}, got {text!r}.") from None


def _furthest(a: PoolformerConfig, b: PoolformerConfig) -> int:
    """The largest difference between the widths of a level."""
    return max(abs(x - y) for x, y in zip(a.widths, b.widths, strict=True))
