"""How near each implementation of the recurrence comes to the memory's speed, in one run.

For each shape, type and implementation: the least bytes that it must move, over its time, over the
same for copying an array. 1 is the limit. `plain` reads two arrays and writes one, with its
gradient it moves eight. `rglru` and `cglru` are the gated recurrences, with the coefficients in the
same pass: of the real one, three arrays in and one out, with gradient twelve; of the complex one,
whose gates are half as wide as its states, two in and one out (the gates count half), with gradient
nine. `apart` is "auto" with coefficients that went through memory. `auto_is` says what "auto" takes
here.

Example:
  python -m benchmarks.recurrence
  python -m benchmarks.recurrence --shapes=16x16384x64,16x1024x160,16x128x320 --dtypes=float32
"""

import functools
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli
from pf_jax.errors import UserError
from pf_jax.recurrence import IMPLEMENTATIONS, choice, linear_recurrence, recurrence
from pf_jax.recurrence.gates import CGLRU, RGLRU

# The levels of the folder preset, and the published width; on accelerators, few and many channels.
_SHAPES_OF_CPU = ["4x16384x64", "4x1024x160", "4x128x320", "1x16000x256"]
_SHAPES = ["1x131072x128", "8x16384x256", "64x16384x256", "256x2048x512"]

_SHAPES_FLAG = flags.DEFINE_list(
    "shapes",
    None,
    "Shapes BATCHxTIMExWIDTH of states, separated by commas; by default some of each size.",
)
_DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Types of the arrays.")
_REPEATS = flags.DEFINE_integer("repeats", 15, "Times that each is measured.", lower_bound=1)
_CALLS = flags.DEFINE_integer("calls", None, "Calls in a row in each of them.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark."""
    del argv
    on_cpu = jax.default_backend() == "cpu"
    texts = _SHAPES_FLAG.value or (_SHAPES_OF_CPU if on_cpu else _SHAPES)
    shapes = {text: parse_shape(text) for text in texts}
    unknown = sorted({*_DTYPES.value} - {"float32", "bfloat16"})
    if unknown:
        raise UserError(f"--dtypes must be float32 or bfloat16, got {unknown[0]!r}.")
    calls = _CALLS.value or (1 if on_cpu else 20)
    results = {
        dtype: {text: _measure(shape, jnp.dtype(dtype), calls) for text, shape in shapes.items()}
        for dtype in _DTYPES.value
    }
    device = jax.devices()[0].device_kind
    result = {"benchmark": "recurrence", "device": device, "auto_is": choice.best_here()}
    print(json.dumps(result | results))


def parse_shape(text: str) -> tuple[int, ...]:
    """Reads BATCHxTIMExWIDTH.

    Raises:
        UserError: It is something else.
    """
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise UserError(f"A shape must be like 4x16384x64, got {text!r}.")
    return tuple(int(number) for number in text.split("x"))


def _measure(shape: tuple[int, ...], dtype: jnp.dtype, calls: int) -> dict[str, Any]:
    """Fractions of the speed of a copy, by what is computed and how."""
    rng = np.random.default_rng(0)
    width = shape[-1]
    a = jnp.asarray(rng.uniform(0.5, 1.0, shape), dtype)
    b, u = (jnp.asarray(x, dtype) for x in rng.standard_normal((2, *shape), np.float32))
    decay = jnp.asarray(rng.uniform(-1.0, -0.01, width), jnp.float32)
    halves = a[..., : width // 2], b[..., : width // 2], u
    names = [x for x, y in IMPLEMENTATIONS.items() if y.platform in (None, choice.platform_here())]

    # Of each recurrence: the function, its arguments, and how many arrays it must move, without and
    # with its gradient.
    kinds = {"plain": (_plain, (a, b), (3, 8)), "rglru": (_rglru, (decay, a, b, u), (4, 12))}
    if width % 2 == 0:
        channel = decay[: width // 2], 0.3 * decay[width // 2 :]
        kinds["cglru"] = _cglru, (*channel, *halves), (3, 9)
    programs = {("copy", "", ""): (lambda x: -x, (b,), 2)}
    for kind, (function, arguments, (forward, both)) in kinds.items():
        runs = {name: functools.partial(function, name) for name in names}
        if kind == "rglru":
            runs["apart"] = _rglru_apart
        for name, run in runs.items():
            programs[kind, "forward", name] = run, arguments, forward
            programs[kind, "forward_and_backward", name] = _with_gradient(run), arguments, both

    seconds = _medians({key: (jax.jit(f), x) for key, (f, x, _) in programs.items()}, calls)
    size = math.prod(shape) * dtype.itemsize
    speeds = {key: arrays * size / seconds[key] for key, (_, _, arrays) in programs.items()}
    copy = speeds.pop(("copy", "", ""))
    results: dict[str, Any] = {"copy_gigabytes_per_second": round(copy / 1e9, 1)}
    for (kind, direction, name), speed in speeds.items():
        results.setdefault(kind, {}).setdefault(direction, {})[name] = round(speed / copy, 3)
    return results


def _with_gradient(forward: Callable) -> Callable:
    def run(*inputs):
        h, gradient = jax.vjp(forward, *inputs)
        return h, gradient(h)

    return run


def _plain(name: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return linear_recurrence(a, b, implementation=name)


def _rglru(name: str, decay: jax.Array, *inputs: jax.Array) -> jax.Array:
    dtype = inputs[-1].dtype
    return recurrence(RGLRU, inputs, (decay,), dtype=dtype, implementation=name)[0]


def _cglru(name: str, decay: jax.Array, turn: jax.Array, *inputs: jax.Array) -> jax.Array:
    dtype = inputs[-1].dtype
    return recurrence(CGLRU, inputs, (decay, turn), dtype=dtype, implementation=name)[0]


def _rglru_apart(decay: jax.Array, *inputs: jax.Array) -> jax.Array:
    """As XLA makes it: `a` and `b` in memory, in float32."""
    a, b = RGLRU(tuple(x.astype(jnp.float32) for x in inputs), (decay,))
    return linear_recurrence(a, b).astype(inputs[-1].dtype)


def _medians(programs: dict[Any, tuple[Callable, Any]], calls: int) -> dict[Any, float]:
    """Median seconds of a call of each; they take turns, so that a busy moment hits all of them."""
    seconds = {name: [] for name in programs}
    for repeat in range(1 + _REPEATS.value):
        for name, (program, inputs) in programs.items():
            start = time.perf_counter()
            for _ in range(calls):
                result = program(*inputs)
            jax.block_until_ready(result)
            if repeat > 0:  # The first compiles.
                seconds[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    cli.run(main)
