"""How fast a model draws."""

import time

import jax

from pf_jax.poolformer import Poolformer
from pf_jax.sampling.sampler import Sampler


def measure_sampling(model: Poolformer, *, seconds: float) -> float:
    """The tokens per second of one stream on one device, without compilation.

    Args:
        model: The model; its speed does not depend on its weights.
        seconds: About how long to measure; it is at least one chunk of the sampler.
    """
    sampler = Sampler(model, devices=jax.local_devices()[:1])
    position, chunk = sampler.advance(sampler.start(jax.random.key(0), 1))
    jax.block_until_ready(chunk)
    chunks, start = 0, time.monotonic()
    while not chunks or time.monotonic() - start < seconds:
        position, chunk = sampler.advance(position)
        jax.block_until_ready(chunk)
        chunks += 1
    return chunks * sampler.chunk_steps / (time.monotonic() - start)
