"""What a model costs and how far it remembers: the table at the start of a run, and utilization."""

import collections
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
from flax import nnx

from pf_jax.audio import AudioFormat
from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.layers import s4d
from pf_jax.poolformer import Poolformer
from pf_jax.recurrence.gates import DECAY_EXPONENT
from pf_jax.training.chips import peak_flops
from pf_jax.training.state import abstract_model

# The biases of the gates start at zero: r = sigmoid(0).
_INITIAL_GATE = 0.5

_HEADER = ("level", "every", "width", "blocks", "parameters", "compute", "memory at initialisation")


class LevelCost(NamedTuple):
    """One level, or what stands outside of all levels.

    Attributes:
        name: The number of the level, or "embedding, head".
        every: It works once in so many samples, the product of the pool factors above it.
        width: Its number of channels.
        blocks: Its blocks, before and after the nested SkipBlock; None outside of the levels.
        parameters: Its parameters. The pools between two levels belong to the deeper one, at whose
            rate they work.
        multiply_adds: Its multiply-adds a sample in the forward pass.
        memory: The shortest and the longest memory of its states at initialisation, in samples;
            None where no layer has states of known decay.
    """

    name: str
    every: int
    width: int
    blocks: tuple[int, int] | None
    parameters: int
    multiply_adds: float
    memory: tuple[float, float] | None


@functools.cache
def level_costs(config: PoolformerConfig) -> tuple[LevelCost, ...]:
    """What each level costs, behind a first entry for the embedding and the head.

    Multiply-adds are those of kernels, whose every entry is used once a position: dense maps, the
    diagonal blocks of gates, the taps of convolutions. All that works on one channel at a time is
    left out (norms, activations, the recurrence itself, the convolution that S4D makes of it), and
    so are products of activations, such as the scores of an attention mixer.

    A state that decays by `a` a position averages over about `1 / (1 - |a|)` positions. In the
    gated recurrences `|a| = radius^(8 r)` (Griffin, arXiv 2402.19427, section 2.4), radius is
    anywhere in `config.radii`, and `r` is what its initial bias makes it. In S4D
    `|a| = exp(-dt / 2)`, and `dt` is anywhere in the interval in which it is drawn.
    """
    numbers = [
        collections.Counter(mixer for side in config.blocks(level) for mixer in side)
        for level in range(config.num_levels)
    ]
    # Blocks of one mixer cost the same, and to make a whole model takes seconds.
    depths = tuple((tuple(mixers), ()) for mixers in numbers[:-1])
    one_of_each = dataclasses.replace(config, depths=(*depths, tuple(numbers[-1])))
    model = abstract_model(one_of_each)
    outside = _count([model.embedding, model.head_norm, model.head])
    costs = [LevelCost("embedding, head", 1, config.widths[0], None, *outside, memory=None)]
    for level, (pools, res_blocks) in enumerate(_levels(model)):
        every = math.prod(config.pool_factors[:level])
        parameters, multiply_adds = _count(pools)
        for blocks in numbers[level].values():
            of_block = 1 if config.mlp == "none" else 2
            cost, res_blocks = _count(res_blocks[:of_block]), res_blocks[of_block:]
            parameters += blocks * cost[0]
            multiply_adds += blocks * cost[1]
        costs.append(
            LevelCost(
                name=str(level),
                every=every,
                width=config.widths[level],
                blocks=config.depth(level),
                parameters=parameters,
                multiply_adds=multiply_adds / every,
                memory=_memory(config, level, every),
            )
        )
    return tuple(costs)


def flops_per_sample(config: PoolformerConfig) -> float:
    """The model FLOPs of training a sample: forward and backward, two a multiply-add.

    The backward pass counts as two forward passes, one for the gradient of each factor of a
    product. What rematerialization computes again is not counted, nor is what `level_costs` leaves
    out: norms, activations, and the recurrence's own handful of operations a channel.
    """
    return 3.0 * 2.0 * sum(cost.multiply_adds for cost in level_costs(config))


def model_flops_utilization(
    samples_per_second: float, config: PoolformerConfig, num_devices: int, device_kind: str
) -> float | None:
    """The share of the devices' bfloat16 peak that goes into model FLOPs (MFU).

    PaLM, arXiv 2204.02311, appendix B. The peak is that of bfloat16 whatever the model's type, so
    that runs compare by speed.

    Args:
        samples_per_second: The speed of the whole run, over all devices.
        config: The model.
        num_devices: `jax.device_count()`: devices of all hosts.
        device_kind: As for `peak_flops`.

    Returns:
        A number from 0 to 1, or None on devices whose peak is not known.
    """
    peak = peak_flops(device_kind)
    if peak is None:
        return None
    return samples_per_second * flops_per_sample(config) / (num_devices * peak)


def model_table(config: PoolformerConfig, data: DataConfig | None = None) -> str:
    """A text table of the levels: their size, share of the compute, and memory (`level_costs`).

    Args:
        config: The model.
        data: What it is trained on; of audio, memory is given in time, too.

    Returns:
        Lines of a table and one of explanation, without a newline at the end.
    """
    costs = level_costs(config)
    audio = data.format if data is not None and data.modality == "audio" else None
    total = sum(cost.multiply_adds for cost in costs)
    rows = [_HEADER, *(_row(cost, total, audio) for cost in costs)]
    parameters = f"{sum(cost.parameters for cost in costs):,}"
    rows.append(("total", "", "", str(config.num_blocks), parameters, "100.0 %", ""))
    notes = (
        "The pools between two levels count with the deeper one. "
        f"Training takes {_si(flops_per_sample(config))}FLOPs a sample."
    )
    return "\n".join([*_aligned(rows), notes])


def _levels(model: Poolformer) -> Iterator[tuple[list[nnx.Module], list[nnx.Module]]]:
    """Pools and ResBlocks of each level from the outermost on; pools are with the deeper level."""
    block, pools = model.body, []
    while not block.is_innermost:
        yield pools, [*block.before, *block.after]
        block, pools = block.nested, [block.down_pool, block.up_pool]
    yield pools, list(block.before)


def _count(modules: Iterable[nnx.Module]) -> tuple[int, int]:
    """Parameters, and multiply-adds a position."""
    parameters = multiply_adds = 0
    for module in modules:
        params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
        for path, leaf in jax.tree.leaves_with_path(params):
            parameters += leaf.size
            multiply_adds += leaf.size if path[-1].key == "kernel" else 0
    return parameters, multiply_adds


def _memory(config: PoolformerConfig, level: int, every: int) -> tuple[float, float] | None:
    layers, decays = {mixer for side in config.blocks(level) for mixer in side}, []
    if layers & {"rglru", "cglru"}:
        decays += [r ** (DECAY_EXPONENT * _INITIAL_GATE) for r in config.radii]
    if "s4d" in layers:
        decays += [math.exp(-s4d.DECAY_RATE * dt) for dt in (s4d.MAX_DT, s4d.MIN_DT)]
    if not decays:
        return None
    shortest, longest = (every / (1.0 - decay) for decay in (min(decays), max(decays)))
    return shortest, longest


def _row(cost: LevelCost, total: float, audio: AudioFormat | None) -> tuple[str, ...]:
    blocks = "-" if cost.blocks is None else f"{cost.blocks[0]} + {cost.blocks[1]}"
    share = f"{100.0 * cost.multiply_adds / total:.1f} %"
    memory = "-" if cost.memory is None else _describe_memory(cost.memory, audio)
    numbers = (str(cost.every), str(cost.width), blocks, f"{cost.parameters:,}", share)
    return cost.name, *numbers, memory


def _describe_memory(samples: tuple[float, float], audio: AudioFormat | None) -> str:
    text = f"{_two_digits(samples[0])} to {_two_digits(samples[1])} samples"
    if audio is None:
        return text
    shortest, longest = (_describe_time(number / audio.sample_rate) for number in samples)
    return f"{text}, {shortest} to {longest}"


def _describe_time(seconds: float) -> str:
    # 0.995 s would be rounded to a thousand milliseconds.
    if seconds < 0.995:
        return f"{_two_digits(1e3 * seconds)} ms"
    return f"{_two_digits(seconds)} s"


def _two_digits(x: float) -> str:
    x = float(f"{x:.2g}")
    return f"{x:,.0f}" if x >= 10.0 else f"{x:g}"


def _si(x: float) -> str:
    """Three digits and the prefix of a unit."""
    x = float(f"{x:.3g}")
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if x >= factor:
            return f"{x / factor:.3g} {prefix}"
    return f"{x:.3g} "


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns of fixed width: the first and the last flush left, numbers flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        numbers = [cell.rjust(n) for cell, n in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers, row[-1]]).rstrip())
    return lines
