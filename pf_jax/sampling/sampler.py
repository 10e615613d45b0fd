"""A model as a source of tokens: compiled once, asked for chunk after chunk, on all devices."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pf_jax.errors import UserError
from pf_jax.poolformer import Poolformer, SkipBlockState
from pf_jax.sampling import nested
from pf_jax.sampling.weights import SamplerWeights, lay_out

_MAX_PREFILL = 2**15  # Tokens of a prompt that are scored at once, of all streams together.

_AXIS = "streams"


class Position(NamedTuple):
    """Where sequences stand; `Sampler.advance` gives the next one and leaves this as it is.

    Attributes:
        carry: The state of each device's streams.
        keys: One a stream, of each device.
        step: Tokens drawn so far in each stream; negative as long as there is prompt left.
        prompt: What is left of it.
        num_streams: How many were asked for; the last devices may have more.
    """

    carry: nested.Carry
    keys: PRNGKeyArray
    step: int
    prompt: Int[np.ndarray, "#streams time"]
    num_streams: int


class Chunk(NamedTuple):
    """New tokens.

    Attributes:
        tokens: int32.
        log_p: Their log-probabilities under the model itself (temperature 1, top-p 1), in nats.
    """

    tokens: Int[np.ndarray, "streams steps"]
    log_p: Float[np.ndarray, "streams steps"]


class Sampler:
    """Draws from a model in chunks.

    The program is compiled once for a number of streams. What a stream becomes depends on the key
    and the stream's own number only: not on how many others there are, on the chunk, nor on the
    devices. (Up to rounding: numbers that are added in another order differ in the last digit, and
    where a draw falls that close to the edge between two tokens, the other one may come out.)

    Attributes:
        chunk_steps: Tokens of a chunk.
    """

    def __init__(
        self,
        model: Poolformer,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        chunk_steps: int = 1024,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Lays the weights out; compiles nothing yet.

        Args:
            model: The model.
            temperature: As of `pf_jax.generate`.
            top_p: Likewise.
            chunk_steps: Tokens of a chunk; raised to a multiple of the product of the pool factors.
            devices: Those that share the streams; all of this process if left out.

        Raises:
            UserError: An argument is out of range.
        """
        check_arguments(temperature=temperature, top_p=top_p, chunk_steps=chunk_steps)
        self._model = model
        self._devices = list(jax.local_devices() if devices is None else devices)
        self._weights = lay_out(model, self._devices[0].platform)
        period = self._weights.period
        # The first chunk, which may begin with the rest of a prompt, has a new token, too.
        self.chunk_steps = -(-max(chunk_steps, period + 1) // period) * period
        self._limits = jnp.float32(temperature), None if top_p == 1.0 else jnp.float32(top_p)
        self._replicated = {}

    def start(
        self,
        key: PRNGKeyArray,
        num_streams: int,
        prompt: Int[Array, "time"] | Int[Array, "streams time"] | None = None,
        *,
        first_stream: int = 0,
    ) -> Position:
        """The beginning of new sequences, or the end of prompts.

        A prompt is scored in the parallel form, in pieces if it is long; what is over after whole
        groups of the innermost level goes token by token through the first chunk.

        Args:
            key: The randomness.
            num_streams: How many sequences.
            prompt: Tokens to go on from, one sequence for all or one for each.
            first_stream: The number of the first one, where many are drawn batch by batch.

        Raises:
            UserError: An argument is out of range.
        """
        check_arguments(num_samples=num_streams)
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.wrap_key_data(key)  # As of jax.random.PRNGKey.
        prompt = _check_prompt(prompt, num_streams, self._model.config.vocab_size)
        whole = prompt.shape[1] // self._weights.period * self._weights.period
        state = _score(self._model, prompt[:, :whole], self._weights.period)
        carry = _make_carry(self._weights, state, len(prompt))
        # The first token that goes through the loops is one that the state already has.
        start = np.full((len(prompt), 1), self._model.start_token, np.int32)
        prompt = np.concatenate([start, prompt], axis=1)[:, whole:]

        devices = self._devices[:num_streams]
        streams = np.arange(-(-num_streams // len(devices)) * len(devices))
        # The streams that only fill up the last devices repeat another's prompt.
        source = np.minimum(streams, len(prompt) - 1)
        carry = _share_out(jax.tree.map(lambda x: x[source] if x.ndim else x, carry), devices)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first_stream + streams)
        return Position(
            carry,
            _share_out(keys, devices),
            -prompt.shape[1],
            prompt,
            num_streams,
        )

    def advance(self, position: Position, *, attempt: int = 0) -> tuple[Position, Chunk]:
        """The next chunk. Its computation may still go on when this returns.

        Args:
            position: Where the sequences stand.
            attempt: Another number gives other tokens from the same position.

        Returns:
            The position after the chunk, and the chunk, as arrays of JAX. After a prompt that is no
            multiple of the product of the pool factors, the first one has fewer new tokens.
        """
        devices = self._devices[: position.num_streams]
        prompt = position.prompt
        streams = np.minimum(np.arange(position.keys.size), len(prompt) - 1)
        forced = np.full((len(streams), self.chunk_steps), -1, np.int32)
        forced[:, : prompt.shape[1]] = prompt[streams]
        inputs = (
            self._replica(devices),
            position.carry,
            position.keys,
            _share_out(forced, devices),
            np.uint32(position.step % 2**32),
            np.uint32(attempt),
        )
        carry, outputs = _program(tuple(devices))(*inputs, *self._limits)
        # Of all devices, and without the streams that only fill up the last ones.
        outputs = jax.tree.map(
            lambda x: x.reshape(-1, x.shape[-1])[: position.num_streams, prompt.shape[1] :], outputs
        )
        position = position._replace(
            carry=carry, step=position.step + self.chunk_steps, prompt=prompt[:, :0]
        )
        return position, Chunk(*outputs)

    def chunks(self, position: Position, num_steps: int | None = None) -> Iterator[Chunk]:
        """Chunk after chunk, as NumPy arrays. The next is in the making meanwhile.

        Args:
            position: Where the sequences stand.
            num_steps: How many new tokens in all; the last chunk is cut. None has no end.
        """
        left = math.inf if num_steps is None else num_steps
        position, following = self.advance(position)
        while left > 0:
            chunk = following
            new = min(left, chunk.tokens.shape[1])
            left -= new
            if left > 0:
                position, following = self.advance(position)
            yield Chunk(*(np.asarray(x)[:, :new] for x in chunk))

    def merge(
        self, position: Position, other: Position, from_other: Bool[np.ndarray, "streams"]
    ) -> Position:
        """One position of two that are equally far, stream by stream."""
        devices = self._devices[: position.num_streams]
        mask = np.zeros(position.keys.size, bool)
        mask[: position.num_streams] = from_other
        mask = _share_out(mask, devices)

        def choose(x, y):
            # What is no array of streams, such as whether a sequence has begun, is the same in all.
            if x.ndim < mask.ndim:
                return x
            return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), y, x)

        return position._replace(carry=jax.tree.map(choose, position.carry, other.carry))

    def _replica(self, devices: list[jax.Device]) -> SamplerWeights:
        """The weights on each device."""
        if len(devices) not in self._replicated:
            if len(devices) == 1:
                replicate = functools.partial(jax.device_put, device=devices[0])
            else:
                copy = jax.pmap(
                    lambda _, weights: weights, in_axes=(0, None), axis_name=_AXIS, devices=devices
                )
                replicate = functools.partial(copy, np.arange(len(devices)))
            self._replicated[len(devices)] = replicate(self._weights)
        return self._replicated[len(devices)]


def check_arguments(
    *,
    num_samples: int = 1,
    num_steps: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    chunk_steps: int = 1,
) -> None:
    """Checks arguments of sampling, for those who want to know before they load a model.

    Raises:
        UserError: An argument is out of range.
    """
    numbers = {"num_samples": num_samples, "num_steps": num_steps, "chunk_steps": chunk_steps}
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}.")
    if not 0.0 <= temperature < float("inf"):
        raise UserError(f"temperature must be a number of at least 0, got {temperature}.")
    if not 0.0 < top_p <= 1.0:
        raise UserError(f"top_p must be above 0 and at most 1, got {top_p}.")


@functools.cache
def _program(devices: tuple[jax.Device, ...]) -> Callable:
    if len(devices) == 1:
        return jax.jit(_run_chunk)
    in_axes = (0, 0, 0, 0, None, None, None, None)
    return jax.pmap(_run_chunk, axis_name=_AXIS, in_axes=in_axes, devices=devices)


def _run_chunk(weights, carry, keys, forced, step, attempt, temperature, top_p):
    """The chunk of one device: its new carry, and its outputs with the streams first."""
    # Attempt 0 is the stream's own key, so that other attempts cost nothing where there are none.
    others = jax.vmap(jax.random.fold_in, (0, None))(keys, attempt)
    keys = jnp.where(attempt == 0, keys, others)
    steps = step + jnp.arange(forced.shape[1], dtype=jnp.uint32)
    uniform = jax.vmap(jax.vmap(_uniform, (0, None)), (None, 0))(keys, steps)
    inputs = nested.Inputs(uniform, forced.T)
    carry, outputs = nested.run(weights, carry, inputs, temperature, top_p)
    return carry, jax.tree.map(jnp.transpose, outputs)


def _uniform(key: PRNGKeyArray, step: Int[Array, ""]) -> Float[Array, ""]:
    """A number in [0, 1) that depends on the stream's key and the step's number alone."""
    return jax.random.uniform(jax.random.fold_in(key, step))


_make_carry = jax.jit(nested.make_carry, static_argnums=2)


def _score(
    model: Poolformer, prompt: Int[np.ndarray, "streams time"], period: int
) -> SkipBlockState:
    """The state after a prompt of whole groups.

    In pieces, so that a prompt of any length fits: what is kept of a piece is its state.
    """
    streams, time = prompt.shape
    previous = jnp.full((streams,), model.start_token, jnp.int32)
    state = model.init_state(streams)
    piece = max(1, _MAX_PREFILL // (streams * period)) * period
    for start in range(0, time, piece):
        tokens = jnp.asarray(prompt[:, start : start + piece])
        state, previous = _prefill(model, tokens, state, previous), tokens[:, -1]
    return state


@nnx.jit
def _prefill(model: Poolformer, tokens, state, previous) -> SkipBlockState:
    return model.prefill(tokens, state, previous)[1]


def _share_out(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Each device's share of the streams, with a leading device axis where there are several."""
    number = len(devices)
    if number == 1:
        return jax.device_put(tree, devices[0])

    def share(x):
        if x.ndim == 0:
            return jnp.repeat(x, number)
        return x.reshape(number, len(x) // number, *x.shape[1:])

    shares = jax.tree.map(share, tree)
    return _placed(tuple(devices))(shares)


@functools.cache
def _placed(devices: tuple[jax.Device, ...]) -> Callable:
    """Puts shares on devices as `_program` does, which would else be compiled for each way."""
    return jax.pmap(lambda shares: shares, axis_name=_AXIS, devices=devices)


def _check_prompt(prompt, num_samples: int, vocab_size: int) -> Int[np.ndarray, "#streams time"]:
    if prompt is None:
        return np.zeros((1, 0), np.int32)
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
    return np.atleast_2d(prompt.astype(np.int32))
