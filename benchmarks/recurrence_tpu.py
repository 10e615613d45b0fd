"""What the recurrence moves through a TPU's memory, by its compiler; no TPU is needed.

For each implementation: the bytes that the compiled program moves over the least possible (forward,
two arrays in and one out; backward, three in and two out), and what it holds beside its arguments
and results, in arrays. Within a kernel the bytes are those that it declares. That of recurrentgemma
is compared where it is installed: `pip install --no-deps recurrentgemma einops sentencepiece
typeguard==2.13.3`.

`rglru` and `cglru` are the gated recurrences in the TPU kernel. The least of the real one: the
gates and `u` in, the states out; backward, these four and the gradient of the states in, three
gradients out. The same of the complex one, whose gates are half as wide as its states.

Example:
  python -m benchmarks.recurrence_tpu
  python -m benchmarks.recurrence_tpu --topologies=v5e:2x2 --shape=4x16000x64 --dtype=bfloat16
"""

import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.recurrence import parse_shape
from experiments import cli
from pf_jax.recurrence import Coefficients, choice, linear_recurrence, recurrence
from pf_jax.recurrence.coefficients import PLAIN
from pf_jax.recurrence.gates import CGLRU, RGLRU
from pf_jax.training.topology import topology_devices

_TOPOLOGIES = flags.DEFINE_list("topologies", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"], "TPU slices.")
_SHAPE = flags.DEFINE_string("shape", "8x16384x256", "BATCHxTIMExWIDTH.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the arrays.")

_FORWARD, _BACKWARD = 3, 5  # Arrays in and out.
# Gated: the coefficients, the width of gates over that of states, and arrays in and out.
_GATED = {"rglru": (RGLRU, 1.0, 4, 8), "cglru": (CGLRU, 0.5, 3, 6)}


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark."""
    del argv
    shape, dtype = parse_shape(_SHAPE.value), jnp.dtype(_DTYPE.value)
    topologies = {name: _measure(name, shape, dtype) for name in _TOPOLOGIES.value}
    result = {"benchmark": "recurrence_tpu", "shape": _SHAPE.value, "dtype": _DTYPE.value}
    print(json.dumps(result | {"topologies": topologies}))


def _measure(topology: str, shape: tuple[int, ...], dtype: jnp.dtype) -> dict[str, Any]:
    sharding = jax.sharding.SingleDeviceSharding(topology_devices(topology)[0])
    x = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    row = jax.ShapeDtypeStruct((shape[0], shape[2]), jnp.float32, sharding=sharding)
    array = math.prod(shape) * dtype.itemsize

    def figures(function: Callable, arrays: int, *arguments: Any) -> dict[str, float]:
        compiled = jax.jit(function).lower(*arguments).compile()
        moved = compiled.cost_analysis()["bytes accessed"]
        held = compiled.memory_analysis().temp_size_in_bytes
        return {
            "bytes_over_least": round(moved / (arrays * array), 3),
            "temporaries_in_arrays": round(held / array, 3),
        }

    results = {}
    for name, forward in _implementations().items():
        both = functools.partial(_forward_and_backward, forward)
        try:
            results[name] = {
                "forward": figures(forward, _FORWARD, x, x),
                "forward_and_backward": figures(both, _FORWARD + _BACKWARD, x, x, x),
            }
        except ValueError as error:  # Such as recurrentgemma's, of widths that it does not take.
            results[name] = {"refused": str(error)}
    backward = functools.partial(_backward, PLAIN)
    results["pallas_tpu"]["backward"] = figures(backward, _BACKWARD, (x, None), (), row, x, x, row)
    for name, (coefficients, relative_width, forward, backward) in _GATED.items():
        width = int(shape[-1] * relative_width)
        gate = jax.ShapeDtypeStruct((*shape[:2], width), dtype, sharding=sharding)
        channel = (jax.ShapeDtypeStruct((width,), jnp.float32, sharding=sharding),)
        given = (gate, gate, x), channel * coefficients.parts, row
        run = functools.partial(_gated, coefficients)
        results[name] = {"forward": figures(run, forward, *given)}
        run = functools.partial(_backward, coefficients)
        results[name]["backward"] = figures(run, backward, *given, x, x, row)
    return results


def _implementations() -> dict[str, Callable]:
    ours = {
        name: functools.partial(linear_recurrence, implementation=name)
        for name in ("pallas_tpu", "sequential", "associative")
    }
    try:
        from recurrentgemma.jax import pallas
    except ImportError:
        return ours
    return ours | {"recurrentgemma": lambda a, b: pallas.lru_pallas_scan(b, a)[0]}


def _forward_and_backward(forward: Callable, a: jax.Array, b: jax.Array, dh: jax.Array) -> Any:
    h, gradient = jax.vjp(forward, a, b)
    return h, gradient(dh)


def _gated(coefficients: Coefficients, inputs: Any, channel: Any, h0: jax.Array) -> Any:
    return recurrence(coefficients, inputs, channel, h0, dtype=inputs[-1].dtype)


def _backward(coefficients: Coefficients, *arguments: Any) -> Any:
    return choice.run("auto", "gradient", coefficients, *arguments)


if __name__ == "__main__":
    cli.run(main)
