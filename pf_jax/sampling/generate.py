"""New sequences from a model in one call, or as a stream without end."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pf_jax.poolformer import Poolformer
from pf_jax.sampling.sampler import Chunk, Sampler, check_arguments


def generate(
    model: Poolformer,
    key: PRNGKeyArray,
    *,
    num_samples: int,
    num_steps: int,
    prompt: Int[Array, "time"] | Int[Array, "samples time"] | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    progress: Callable[[int], None] | None = None,
    **options,
) -> tuple[Int[np.ndarray, "samples steps"], Float[np.ndarray, "samples"]]:
    """Draws sequences of tokens from the model, all in step with each other.

    The program is compiled once for a number of samples, whatever the length (if it fills a chunk):
    it runs over chunks of steps whose state is carried. A sample depends on `key` and its own
    number only, not on how many others are drawn beside it nor how long they are. All local devices
    share the samples.

    Args:
        model: The model.
        key: The randomness.
        num_samples: How many sequences.
        num_steps: How many new tokens in each.
        prompt: Tokens to go on from, one sequence for all samples or one for each; scored in the
            parallel form.
        temperature: Logits are divided by it: below 1 is safer, above 1 wilder, 0 always takes the
            likeliest token.
        top_p: Draw only from the likeliest tokens that together have at least this probability.
        progress: Called after each chunk with the number of new tokens so far in each sequence.
        **options: `chunk_steps` and `devices` of `pf_jax.sampling.Sampler`.

    Returns:
        The new tokens, int32, without the prompt; and the log-likelihood of each sequence of new
        tokens given the prompt, in nats, under the model itself (temperature 1, top-p 1).

    Raises:
        UserError: An argument is out of range.
    """
    check_arguments(num_samples=num_samples, num_steps=num_steps)
    # One chunk for a short sample: what is known comes first, the start or the rest of a prompt.
    most_known = math.prod(model.config.pool_factors)
    options = {"chunk_steps": min(1024, num_steps + most_known), **options}
    sampler = Sampler(model, temperature=temperature, top_p=top_p, **options)
    tokens, done = np.empty((num_samples, num_steps), np.int32), 0
    # Summed in float64: of millions of steps, float32 would lose the likely ones altogether.
    likelihoods = np.zeros(num_samples)
    for chunk in sampler.chunks(sampler.start(key, num_samples, prompt), num_steps):
        new = chunk.tokens.shape[1]
        tokens[:, done : done + new] = chunk.tokens
        likelihoods += chunk.log_p.sum(axis=1, dtype=np.float64)
        done += new
        if progress is not None:
            progress(done)
    return tokens, likelihoods


def stream(
    model: Poolformer,
    key: PRNGKeyArray,
    *,
    num_streams: int = 1,
    prompt: Int[Array, "time"] | Int[Array, "streams time"] | None = None,
    **options,
) -> Iterator[Chunk]:
    """Draws without end, chunk after chunk, in constant memory.

    The next chunk is drawn while the caller uses this one, and no further: who takes chunks slowly
    slows the drawing down. To play as it comes::

        for chunk in pf_jax.stream(model, jax.random.key(0)):
            speaker.write(meta.audio_format.decode(chunk.tokens[0]))

    Args:
        model: The model.
        key: The randomness.
        num_streams: How many sequences.
        prompt: As of `generate`.
        **options: `temperature`, `top_p`, `chunk_steps` and `devices` of `pf_jax.sampling.Sampler`.

    Yields:
        `Chunk`s: new tokens `(streams, steps)`, and their log-probabilities in nats.

    Raises:
        UserError: An argument is out of range.
    """
    sampler = Sampler(model, **options)
    return sampler.chunks(sampler.start(key, num_streams, prompt))
