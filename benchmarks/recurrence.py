"""Speed of each implementation of the recurrence, beside adding its two inputs in the same run.

A ratio of 10 means: as long as 10 additions of `a` and `b`. The smallest is the one for the
backend's `_AUTO` in pf_jax/recurrence/linear_recurrence.py.

Example:
  python -m benchmarks.recurrence
  python -m benchmarks.recurrence --shapes=16x16384x64,16x1024x160,16x128x320
"""

import functools
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import cli
from pf_jax.errors import UserError
from pf_jax.recurrence import IMPLEMENTATIONS, linear_recurrence

_SHAPES = flags.DEFINE_list(
    "shapes",
    ["4x16384x64", "4x1024x160", "4x128x320"],  # The levels of the folder preset.
    "Shapes BATCHxTIMExWIDTH, separated by commas.",
)
_REPEATS = flags.DEFINE_integer("repeats", 15, "Runs that are timed.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark."""
    del argv
    shapes = {shape: _measure(_parse_shape(shape)) for shape in _SHAPES.value}
    device = jax.devices()[0].device_kind
    print(json.dumps({"benchmark": "recurrence", "device": device, "shapes": shapes}))


def _parse_shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise UserError(f"--shapes must be like 4x16384x64, got {text!r}.")
    return tuple(int(number) for number in text.split("x"))


def _measure(shape: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Times over that of an addition, by direction and implementation."""
    rng = np.random.default_rng(0)
    a = jax.device_put(rng.uniform(0.5, 1.0, shape).astype(np.float32))
    b = jax.device_put(rng.standard_normal(shape, np.float32))
    programs = {("addition", ""): lambda a, b: a + b}
    for name in (*IMPLEMENTATIONS, "auto"):
        forward = functools.partial(linear_recurrence, implementation=name)
        programs["forward", name] = forward
        programs["forward_and_backward", name] = functools.partial(_forward_and_backward, forward)
    seconds = _medians({name: jax.jit(program) for name, program in programs.items()}, a, b)
    addition = seconds.pop(("addition", ""))
    ratios: dict[str, dict[str, float]] = {}
    for (direction, name), value in seconds.items():
        ratios.setdefault(direction, {})[name] = round(value / addition, 1)
    return ratios


def _forward_and_backward(forward: Callable, a: jax.Array, b: jax.Array) -> Any:
    h, gradient = jax.vjp(forward, a, b)
    return h, gradient(h)


def _medians(programs: dict[Any, Callable], *inputs: jax.Array) -> dict[Any, float]:
    """Median seconds of each; they take turns, so that a busy moment hits all of them."""
    seconds = {name: [] for name in programs}
    for repeat in range(1 + _REPEATS.value):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*inputs))
            if repeat > 0:  # The first compiles.
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    cli.run(main)
