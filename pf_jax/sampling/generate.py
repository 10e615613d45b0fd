"""Ancestral sampling with the recurrent form of the model."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pf_jax.errors import UserError
from pf_jax.poolformer import Poolformer

# A chunk is the steps of one call to the device; its random numbers take at most this much.
_MAX_CHUNK = 1024
_MAX_NOISE_BYTES = 2**26


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
) -> tuple[Int[np.ndarray, "samples steps"], Float[np.ndarray, "samples"]]:
    """Draws sequences of tokens from the model, all in step with each other.

    The program is compiled once for a number of samples, whatever the length (if it fills a chunk):
    it runs over chunks of steps whose state is carried. A sample depends on `key` and its own
    number only, not on how many others are drawn beside it nor how long they are.

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

    Returns:
        The new tokens, int32, without the prompt; and the log-likelihood of each sequence of new
        tokens given the prompt, in nats, under the model itself (temperature 1, top-p 1).

    Raises:
        UserError: An argument is out of range.
    """
    check_arguments(num_samples, num_steps, temperature, top_p)
    if prompt is None:
        state = model.init_state(num_samples)
        previous = jnp.full((num_samples,), model.start_token, jnp.int32)
    else:
        prompt = _check_prompt(prompt, num_samples, model.config.vocab_size)
        state = _prefill(model, prompt)
        previous = prompt[:, -1]

    noise_bytes = 4 * num_samples * model.config.vocab_size
    chunk = int(np.clip(_MAX_NOISE_BYTES // noise_bytes, 1, min(_MAX_CHUNK, num_steps)))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_samples))
    carry = state, previous
    tokens, log_p = [], []
    for start in range(0, num_steps, chunk):
        carry, (new_tokens, new_log_p) = _generate_chunk(
            model, carry, keys, start, temperature, top_p, chunk, top_p < 1.0
        )
        tokens.append(np.asarray(new_tokens))
        log_p.append(np.asarray(new_log_p))
        if progress is not None:
            progress(min(start + chunk, num_steps))
    # Summed in float64: of millions of steps, float32 would lose the likely ones altogether.
    log_likelihoods = np.concatenate(log_p)[:num_steps].sum(axis=0, dtype=np.float64)
    return np.concatenate(tokens)[:num_steps].T, log_likelihoods


@functools.partial(nnx.jit, static_argnums=(6, 7))
def _generate_chunk(model, carry, keys, start, temperature, top_p, chunk: int, cut_tail: bool):
    """Tokens of the steps `start ... start + chunk` and their log-likelihoods, time first."""
    steps = start + jnp.arange(chunk)
    noise = _gumbel(keys, steps, model.config.vocab_size)

    def step(carry, noise):
        state, previous = carry
        logits, state = model.step(state, previous)
        candidates = _cut_tail(logits, temperature, top_p) if cut_tail else logits
        # Gumbel's trick draws from softmax(logits / temperature), and at 0 the likeliest.
        tokens = jnp.argmax(candidates + temperature * noise, axis=-1)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], axis=-1)[:, 0]
        return (state, tokens), (tokens, log_p)

    return jax.lax.scan(step, carry, noise)


@nnx.jit
def _prefill(model: Poolformer, prompt: Int[Array, "samples time"]):
    return model.prefill(prompt)[1]


def _gumbel(keys, steps, vocab_size: int) -> Float[Array, "steps samples vocab"]:
    """Noise that depends on the sample's key and the step's number alone."""

    def noise(key, step):
        return jax.random.gumbel(jax.random.fold_in(key, step), (vocab_size,))

    return jax.vmap(jax.vmap(noise, (0, None)), (None, 0))(keys, steps)


def _cut_tail(
    logits: Float[Array, "samples vocab"], temperature, top_p
) -> Float[Array, "samples vocab"]:
    """Leaves the likeliest tokens that together reach `top_p`; the others become impossible."""
    p = jax.nn.softmax(logits / jnp.maximum(temperature, 1e-6))
    descending = jnp.sort(p, axis=-1, descending=True)
    before = jnp.cumsum(descending, axis=-1) - descending
    least = jnp.min(jnp.where(before < top_p, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(p >= least, logits, -jnp.inf)


def check_arguments(num_samples: int, num_steps: int, temperature: float, top_p: float) -> None:
    """Checks arguments of `generate`, for those who want to know before they load a model.

    Raises:
        UserError: An argument is out of range.
    """
    for name, value in (("num_samples", num_samples), ("num_steps", num_steps)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}.")
    if not 0.0 <= temperature < float("inf"):
        raise UserError(f"temperature must be a number of at least 0, got {temperature}.")
    if not 0.0 < top_p <= 1.0:
        raise UserError(f"top_p must be above 0 and at most 1, got {top_p}.")


def _check_prompt(prompt, num_samples: int, vocab_size: int) -> Int[Array, "samples time"]:
    prompt = np.asarray(prompt)
    if not np.issubdtype(prompt.dtype, np.integer) or prompt.ndim not in (1, 2) or not prompt.size:
        raise UserError(
            "prompt must be a non-empty integer array (time,) or (samples, time), got "
            f"{prompt.dtype} of shape {prompt.shape}."
        )
    if prompt.ndim == 2 and prompt.shape[0] != num_samples:
        raise UserError(
            f"prompt has {prompt.shape[0]} sequences for num_samples={num_samples}; give one, or "
            "one for each sample."
        )
    if prompt.min() < 0 or prompt.max() >= vocab_size:
        raise UserError(
            f"prompt has tokens from {prompt.min()} to {prompt.max()}; the model knows 0 to "
            f"{vocab_size - 1}."
        )
    return jnp.broadcast_to(prompt.astype(np.int32), (num_samples, prompt.shape[-1]))
