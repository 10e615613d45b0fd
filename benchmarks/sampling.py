"""Sampling speed of a config with fresh weights, beside what the machine could do at best.

The floor of a step is the longer of two times: to read the weights that it needs, at the measured
speed of products of a vector and matrices that are together as large as those of the level (a small
level's stay in a cache); and to do its multiplications, at the measured speed of a large matrix
product. A level below pools of `p_1 ... p_k` counts with the `p_1 ... p_k`th part.

The other yardstick is the model's own recurrent form, `Poolformer.step`.

Example:
  python -m benchmarks.sampling --config=sc09_realtime --streams=1,16,256
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

from experiments import cli
from pf_jax import Poolformer
from pf_jax.errors import UserError
from pf_jax.sampling import Sampler, check_arguments
from pf_jax.sampling.weights import SamplerWeights, lay_out

_CONFIG = cli.define_config()
_STREAMS = flags.DEFINE_list("streams", ["1", "16", "256"], "Sequences drawn beside each other.")
_CHUNKS = flags.DEFINE_integer("chunks", 4, "Chunks of 1,024 samples in a run.", lower_bound=1)
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "Runs that are timed, after one that compiles.", lower_bound=1
)


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark."""
    del argv
    try:
        all_streams = [int(text) for text in _STREAMS.value]
        check_arguments(num_samples=min(all_streams))
    except ValueError:
        raise UserError(
            f"--streams must be like 1,16,256, got {','.join(_STREAMS.value)}."
        ) from None
    cli.share_cpu()
    jax.config.update("jax_enable_compilation_cache", False)  # What compiling takes is shown, too.
    model = Poolformer(_CONFIG.value.model, rngs=nnx.Rngs(0))
    weights = lay_out(model, jax.devices()[0].platform)
    work = _work(weights)
    num_bytes, products = sum(level[0] for level in work), sum(level[1] for level in work)
    bandwidths, peak = [_measured_bandwidth(level[2]) for level in work], _measured_peak()
    reading = sum(level[0] / speed for level, speed in zip(work, bandwidths, strict=True))
    results = []
    for streams in all_streams:
        sampler = Sampler(model)
        start = time.perf_counter()
        position, _ = jax.block_until_ready(
            sampler.advance(sampler.start(jax.random.key(0), streams))
        )
        first = time.perf_counter() - start

        def run(sampler=sampler, position=position):
            for _ in range(_CHUNKS.value):
                position, chunk = sampler.advance(position)
            jax.block_until_ready(chunk)

        steps = sampler.chunk_steps * _CHUNKS.value
        per_step = _median_seconds(run) / steps
        model_step = _seconds_of_model_step(model, streams)
        floor = max(reading, streams * products / peak)
        results.append(
            {
                "streams": streams,
                "samples_per_second_per_stream": round(1 / per_step),
                "samples_per_second": round(streams / per_step),
                "floor_samples_per_second": round(streams / floor),
                "times_the_floor": round(per_step / floor, 2),
                "faster_than_model_step": round(model_step / per_step, 2),
                "compile_seconds": round(first - sampler.chunk_steps * per_step, 1),
            }
        )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    print(
        json.dumps(
            {
                "benchmark": "sampling",
                "device": jax.devices()[0].device_kind,
                "devices": jax.local_device_count(),
                "parameters": parameters,
                "weight_bytes_per_sample": round(num_bytes),
                "flops_per_sample": round(2 * products),
                "measured_gigabytes_per_second": [round(speed / 1e9, 1) for speed in bandwidths],
                "measured_gigaflops": round(2 * peak / 1e9),
                "runs": results,
            }
        )
    )


def _work(weights: SamplerWeights) -> list[tuple[float, float, int]]:
    """What each level owes to one sample of one stream, the head and the pools being parts of one.

    Returns:
        For each level the bytes of weights that are read, the multiplications, and the bytes of all
        of its weights.
    """
    work, period, extra = [], 1, [weights.head]
    for level in weights.levels:
        parts = [level.before, level.after, *extra]
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(parts))
        products = sum(leaf.size for leaf in jax.tree.leaves(parts) if leaf.ndim >= 2)
        work.append((size / period, products / period, size))
        # Both pools run at the rate of the next level.
        period, extra = period * level.factor, [level.pools]
    return work


def _seconds_of_model_step(model: Poolformer, streams: int) -> float:
    """A step of the model's own recurrent form, which asks at each level whether it is due."""
    steps = 256

    @nnx.jit
    def run(model):
        def step(carry, _):
            logits, state = model.step(*carry)
            return (state, jnp.argmax(logits, axis=-1)), None

        tokens = jnp.full((streams,), model.start_token)
        return jax.lax.scan(step, (model.init_state(streams), tokens), None, length=steps)[0]

    jax.block_until_ready(run(model))
    return _median_seconds(lambda: jax.block_until_ready(run(model))) / steps


def _measured_bandwidth(size: int) -> float:
    """Bytes per second of products of a vector and matrices that are together of this size."""
    width = 256
    matrices = [jnp.ones((width, width)) for _ in range(max(1, size // (4 * width * width)))]
    num_bytes = len(matrices) * matrices[0].nbytes
    repeats = max(1, 2**30 // num_bytes)

    @jax.jit
    def run(matrices, x):
        def products(_, x):
            for matrix in matrices:
                x = (x @ matrix) / width
            return x

        return jax.lax.fori_loop(0, repeats, products, x)

    x = jnp.ones((1, width))
    jax.block_until_ready(run(matrices, x))
    seconds = _median_seconds(lambda: jax.block_until_ready(run(matrices, x)))
    return repeats * num_bytes / seconds


def _measured_peak() -> float:
    """Multiplications (with their additions) per second of a large float32 matrix product."""
    a = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    return a.shape[0] ** 3 / _median_seconds(lambda: jax.block_until_ready(product(a, a)))


def _median_seconds(function: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS.value):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    cli.run(main)
