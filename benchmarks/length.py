"""Time and memory of a training step over the length of its window, with pooling and without.

The model without pooling has as many ResBlocks, all at the full rate, and the width at which it has
as many parameters. A step takes one window. It is timed on one CPU (all its cores) as long as
memory and patience last, and compiled for one TPU at every length: the memory is exact, the time is
the least that moving its bytes or doing its arithmetic allows.

Example:
  python -m benchmarks.length --config=sc09_realtime --plot=docs/length.png
"""

import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import cli
from pf_jax.training import planning
from pf_jax.training.chips import CHIPS
from pf_jax.training.config import TrainConfig
from pf_jax.training.hosts import replicate
from pf_jax.training.program import analyze
from pf_jax.training.state import init_train_state, make_optimizer
from pf_jax.training.summary import flops_per_sample
from pf_jax.training.topology import topology_devices
from pf_jax.training.variants import count_parameters, without_pooling

_CONFIG = cli.define_config()
_FIRST = flags.DEFINE_integer("first", 12, "Binary logarithm of the shortest window.", 1)
_LAST = flags.DEFINE_integer("last", 20, "Binary logarithm of the longest window.", 1)
_EVERY = flags.DEFINE_integer("every", 2, "From one of these logarithms to the next.", 1)
_TOPOLOGY = flags.DEFINE_string("topology", "v5p:2x2x1", "TPU slice, of which one chip is used.")
_MOST_GIB = flags.DEFINE_float("most_gib", 16.0, "Memory that a step on the CPU may take.", 0.0)
_MOST_SECONDS = flags.DEFINE_float("most_seconds", 120.0, "Time that it may take.", 0.0)
_PLOT = flags.DEFINE_string("plot", None, "Where a picture goes (PNG).")

_REPEATS = 3


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    config = dataclasses.replace(_CONFIG.value, batch_size=1, accumulation_steps=1)
    tpu = topology_devices(_TOPOLOGY.value)[0]
    lengths = [2**exponent for exponent in range(_FIRST.value, _LAST.value + 1, _EVERY.value)]
    models = {"pooled": config.model, "not_pooled": without_pooling(config.model)}
    result = {
        "benchmark": "length",
        "config": config.data.name,
        "cpu": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "tpu": "TPU " + _TOPOLOGY.value.partition(":")[0],
        "tpu_memory": CHIPS[tpu.device_kind].memory,
        "lengths": lengths,
    }
    for name, model in models.items():
        changed = dataclasses.replace(config, model=model)
        result[name] = {
            "widths": model.widths,
            "depths": model.depths,
            "parameters": count_parameters(model),
            "flops_per_sample": round(flops_per_sample(model)),
            "cpu": _on_cpu(changed, lengths),
            "tpu": _on_tpu(changed, lengths, tpu),
        }
    print(json.dumps(result))
    if _PLOT.value:
        plot(result, _PLOT.value)


def _with_window(config: TrainConfig, length: int) -> TrainConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, window=length))


def _on_cpu(config: TrainConfig, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Bytes and seconds of each length, up to the first for which there is not enough of either."""
    results: list[dict[str, Any]] = []
    for length in lengths:
        if results:
            expected = results[-1]["seconds"] * length / results[-1]["length"]
            if expected > _MOST_SECONDS.value:
                break
        _log(config, length, "CPU")
        changed = _with_window(config, length)
        step = planning.train_step_task(changed, jax.devices()[:1]).lowered.compile()
        memory = analyze(step).memory
        if memory > _MOST_GIB.value * 2**30:
            break
        results.append({"length": length, "bytes": memory, "seconds": _seconds(changed, step)})
    return results


def _seconds(config: TrainConfig, step: jax.stages.Compiled) -> float:
    """The median time of a step on random tokens, after one that does not count."""
    state = replicate(init_train_state(config, make_optimizer(config)[0])[1])
    tokens = np.random.default_rng(0).integers(0, 256, (1, 1, config.data.window), np.uint8)
    batch = {"tokens": tokens, "length": np.full((1, 1), config.data.window, np.int32)}
    seconds = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch, np.zeros(1, bool)))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _on_tpu(config: TrainConfig, lengths: Sequence[int], tpu: jax.Device) -> list[dict[str, Any]]:
    """Bytes of each length, and the least seconds of those that fit."""
    results = []
    for length in lengths:
        _log(config, length, tpu.device_kind)
        attempt = planning.attempt(planning.train_step_task(_with_window(config, length), [tpu]))
        row = {"length": length, "bytes": attempt.memory, "least_seconds": None}
        if attempt.program is not None:
            row["least_seconds"] = max(planning.bounds(attempt.program, CHIPS[tpu.device_kind]))
        results.append(row)
    return results


def _log(config: TrainConfig, length: int, where: str) -> None:
    levels = config.model.num_levels
    print(f"{levels} level(s), {length:,} samples, {where} ...", file=sys.stderr, flush=True)


def plot(result: dict[str, Any], path: str) -> None:
    """Draws time and memory over length, of the CPU as lines and of the TPU dashed."""
    from matplotlib import figure

    picture = figure.Figure(figsize=(10, 4.2), layout="constrained")
    panels = zip(
        picture.subplots(1, 2),
        ("seconds", "GiB"),
        ("Time of a training step", "Memory of a training step"),
        strict=True,
    )
    for axes, unit, title in panels:
        for name, color in (("pooled", "#0072b2"), ("not_pooled", "#d55e00")):
            for place, style, marker in (("cpu", "-", "o"), ("tpu", "--", "s")):
                rows = result[name][place]
                if unit == "GiB":
                    values = [row["bytes"] / 2**30 for row in rows]
                else:
                    key = "seconds" if place == "cpu" else "least_seconds"
                    values = [row[key] or math.nan for row in rows]
                where = "CPU, measured" if place == "cpu" else f"{result['tpu']}, compiled"
                label = f"{name.replace('_', ' ')}: {where}"
                x = [row["length"] for row in rows]
                axes.plot(x, values, style, marker=marker, ms=4, color=color, label=label)
        axes.set(xscale="log", yscale="log", xlabel="samples in a window", ylabel=unit, title=title)
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
    axes.axhline(result["tpu_memory"] / 2**30, color="#7b7f85", lw=1)
    axes.annotate(
        f"what a {result['tpu']} has",
        (result["lengths"][0], result["tpu_memory"] / 2**30),
        textcoords="offset points",
        xytext=(0, 4),
        color="#7b7f85",
        fontsize=8,
    )
    picture.axes[0].legend(fontsize=8)
    picture.savefig(path, dpi=120)


if __name__ == "__main__":
    cli.run(main)
