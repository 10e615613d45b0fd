"""Poolformer (arXiv 2510.02206): recurrent networks with pooling, for long sequences.

Read top to bottom: a ResBlock mixes over time, then over channels. A SkipBlock is ResBlocks, a
down-pooling, a SkipBlock nested inside, an up-pooling, and ResBlocks again. Poolformer embeds
tokens, runs the outermost SkipBlock, and predicts the next token.

Each part runs in two forms with one set of weights and equal outputs: `__call__`, *parallel* over
time (training, scoring, prompts), and `step`, *recurrent*, one position at a time (sampling). Both
take a state and return the next, so that either can go on where the other stopped.

A sequence may be split over devices, in the parallel form and inside of `jax.shard_map`
(`PoolformerConfig.sequence_axis`). What a piece would take from its state then comes from the
device to the left, and the state that is given counts on the first device only. Each device returns
the state after its own piece, so that the last one has that after the whole sequence.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pf_jax.config import PoolformerConfig
from pf_jax.errors import UserError
from pf_jax.layers import MIXERS, MLPS, DownPool, Embedding, MixerState, UpPool, make_norm
from pf_jax.layers.sequence import from_left


class ResBlock(nnx.Module):
    """`x = x + Mixer(norm(x))`, then `x = x + MLP(norm(x))`; its state is the mixer's.

    Attributes:
        mixer_norm: The norm before the mixer.
        mixer: Whatever mixes over time, by default Griffin's recurrent block.
        mlp_norm: The norm before the MLP.
        mlp: The MLP, by default a gated one; None, as its norm, where the config wants none.
    """

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the block for a level of the given width."""
        if config.mixer not in MIXERS:
            raise UserError(
                f"Unknown mixer {config.mixer!r}; known: {', '.join(sorted(MIXERS))}. One of your "
                "own must be added to pf_jax.layers.MIXERS first: import the file that does it, or "
                "give the command --import=FILE.py."
            )
        mixer = MIXERS[config.mixer]
        if config.sequence_axis and not getattr(mixer, "splits_sequences", False):
            raise UserError(
                f"The mixer {config.mixer!r} takes whole sequences only: they cannot be split over "
                "devices. One that heeds config.sequence_axis says splits_sequences = True."
            )
        self.dropout = config.dropout
        self.mixer_norm = make_norm(width, config, rngs=rngs)
        self.mixer = mixer(width, config, rngs=rngs)
        if config.mlp == "none":
            self.mlp_norm = self.mlp = None
        else:
            self.mlp_norm = make_norm(width, config, rngs=rngs)
            self.mlp = MLPS[config.mlp](width, config, rngs=rngs)

    def init_state(self, batch_size: int) -> MixerState:
        """The state before the first position of a sequence."""
        return self.mixer.init_state(batch_size)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        state: MixerState,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "batch time width"], MixerState]:
        """All positions, and the state after them; with a key, drops entries of the branches."""
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        y, state = self.mixer(self.mixer_norm(x), state)
        x = x + _dropout(y, self.dropout, keys[0])
        if self.mlp is None:
            return x, state
        y = self.mlp(self.mlp_norm(x))
        return x + _dropout(y, self.dropout, keys[1]), state

    def step(
        self, x: Float[Array, "batch width"], state: MixerState
    ) -> tuple[Float[Array, "batch width"], MixerState]:
        """The next position, and the state after it."""
        y, state = self.mixer.step(self.mixer_norm(x), state)
        x = x + y
        return (x if self.mlp is None else x + self.mlp(self.mlp_norm(x))), state


class SkipBlockState(NamedTuple):
    """What a SkipBlock carries from one position to the next; the innermost has `before` only.

    Attributes:
        before: States of the ResBlocks before the nested SkipBlock.
        phase: How many positions of the present group have been seen.
        group: Their vectors, to be pooled when the group is full.
        up: The up-pooled vectors for the present group, known since the last one was full.
        nested: State of the nested SkipBlock.
        after: States of the ResBlocks after the nested SkipBlock.
    """

    before: tuple[MixerState, ...]
    phase: Int[Array, ""] | None = None
    group: Float[Array, "batch factor width"] | None = None
    up: Float[Array, "batch factor width"] | None = None
    nested: Self | None = None
    after: tuple[MixerState, ...] = ()


class SkipBlock(nnx.Module):
    """One level and all levels inside it (section 3 of the paper).

    In the parallel form::

        x = ResBlocks(x)
        x = x + shift(UpPool(SkipBlock(DownPool(x))))        not in the innermost SkipBlock
        x = ResBlocks(x)

    With `config.outer_residual` each line of ResBlocks, if there are any, is `x = x + ResBlocks(x)`
    (SaShiMi, arXiv 2202.09729).

    `shift` delays by one pooled step: a group of positions hears of the groups before it only, and
    the first group hears zeros. So the block is causal, and in the recurrent form the nested block
    works once in `factor` positions.

    An unfinished group at the end of a sequence stays in the state: any length will do, nothing is
    padded, and the recurrent form goes on from there.
    """

    def __init__(self, level: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the block of a level and, by recursion, of all deeper ones."""
        width = config.widths[level]
        num_before, num_after = config.depth(level)
        self.remat = config.remat
        self.outer_residual = config.outer_residual
        self.sequence_axis = config.sequence_axis
        self.before = nnx.List([ResBlock(width, config, rngs=rngs) for _ in range(num_before)])
        self.is_innermost = level == config.num_levels - 1
        if self.is_innermost:
            return
        self.factor = config.pool_factors[level]
        next_width = config.widths[level + 1]
        pool = {"factor": self.factor, "dtype": config.dtype, "rngs": rngs}
        self.down_pool = DownPool(width, next_width, **pool)
        self.nested = SkipBlock(level + 1, config, rngs=rngs)
        self.up_pool = UpPool(width, next_width, **pool)
        self.after = nnx.List([ResBlock(width, config, rngs=rngs) for _ in range(num_after)])

    def init_state(self, batch_size: int) -> SkipBlockState:
        """The state before the first position of a sequence."""
        before = tuple(block.init_state(batch_size) for block in self.before)
        if self.is_innermost:
            return SkipBlockState(before)
        width = self.down_pool.projection.in_features // self.factor
        zeros = jnp.zeros((batch_size, self.factor, width), self.down_pool.projection.dtype)
        return SkipBlockState(
            before,
            phase=jnp.array(0, jnp.int32),
            group=zeros,
            up=zeros,
            nested=self.nested.init_state(batch_size),
            after=tuple(block.init_state(batch_size) for block in self.after),
        )

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        state: SkipBlockState,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "batch time width"], SkipBlockState]:
        """All positions, and the state after them. `state` must stand between two groups."""
        keys = _split(dropout_key, 3)
        x, before = self._blocks(self.before, x, state.before, keys[0])
        if self.is_innermost:
            return x, SkipBlockState(before)

        time = x.shape[1]
        num_groups, phase = divmod(time, self.factor)
        whole, rest = jnp.split(x, [num_groups * self.factor], axis=1)
        up, nested = state.up[:, None], state.nested
        if num_groups:
            y, nested = self.nested(self.down_pool(whole), nested, keys[1])
            y = self.up_pool(y)
            if self.sequence_axis:
                up = from_left(y[:, -1:], up, self.sequence_axis)
            up = jnp.concatenate([up, y], axis=1)
        x = x + up.reshape(x.shape[0], -1, x.shape[2])[:, :time]

        x, after = self._blocks(self.after, x, state.after, keys[2])
        group = jnp.pad(rest, ((0, 0), (0, self.factor - phase), (0, 0)))
        phase = jnp.array(phase, jnp.int32)
        return x, SkipBlockState(before, phase, group, up[:, -1], nested, after)

    def step(
        self, x: Float[Array, "batch width"], state: SkipBlockState
    ) -> tuple[Float[Array, "batch width"], SkipBlockState]:
        """The next position, and the state after it."""
        x, before = self._step_blocks(self.before, x, state.before)
        if self.is_innermost:
            return x, SkipBlockState(before)

        phase = state.phase
        group = state.group.at[:, phase].set(x)
        x, after = self._step_blocks(self.after, x + state.up[:, phase], state.after)

        def full_group(up, nested):
            y, nested = self.nested.step(self.down_pool(group)[:, 0], nested)
            return self.up_pool(y), nested

        def unfinished_group(up, nested):
            return up, nested

        up, nested = jax.lax.cond(
            phase == self.factor - 1, full_group, unfinished_group, state.up, state.nested
        )
        phase = (phase + 1) % self.factor
        return x, SkipBlockState(before, phase, group, up, nested, after)

    def _blocks(self, blocks: Sequence[ResBlock], x, states, dropout_key):
        call = _remat if self.remat else ResBlock.__call__
        keys = _split(dropout_key, len(blocks))
        new_states, start = [], x
        for block, state, key in zip(blocks, states, keys, strict=True):
            x, state = call(block, x, state, key)
            new_states.append(state)
        return self._around(start, x, blocks), tuple(new_states)

    def _step_blocks(self, blocks: Sequence[ResBlock], x, states):
        new_states, start = [], x
        for block, state in zip(blocks, states, strict=True):
            x, state = block.step(x, state)
            new_states.append(state)
        return self._around(start, x, blocks), tuple(new_states)

    def _around(self, start, x, blocks: Sequence[ResBlock]):
        return start + x if self.outer_residual and len(blocks) else x


class Poolformer(nnx.Module):
    """A causal model of token sequences: embedding, the outermost SkipBlock, and a linear head.

    Attributes:
        config: The hyper-parameters.
        start_token: The token that stands before the first one, `vocab_size`.
        embedding: Tokens to vectors.
        body: The outermost SkipBlock.
        head_norm: The norm before the head.
        head: Vectors to logits.
    """

    def __init__(self, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes a model with fresh weights.

        Raises:
            UserError: The config names a mixer that does not exist.
        """
        width = config.widths[0]
        self.config = config
        self.start_token = config.vocab_size
        self.embedding = Embedding(width, config, rngs=rngs)
        self.body = SkipBlock(0, config, rngs=rngs)
        self.head_norm = make_norm(width, config, rngs=rngs)
        self.head = nnx.Linear(width, config.vocab_size, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self, tokens: Int[Array, "batch time"], *, dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch time vocab"]:
        """Scores whole sequences.

        Args:
            tokens: In `[0, vocab_size)`, at least one position.
            dropout_key: In training, the randomness of dropout; without it nothing is dropped.

        Returns:
            float32 logits; those at position `t` score `tokens[:, t]` and depend on
            `tokens[:, :t]` only.

        Raises:
            UserError: `tokens` are not a (batch, time) array of integers with `time >= 1`.
        """
        return self.prefill(tokens, dropout_key=dropout_key)[0]

    def init_state(self, batch_size: int) -> SkipBlockState:
        """The state of `batch_size` sequences before their first position."""
        return self.body.init_state(batch_size)

    def prefill(
        self,
        tokens: Int[Array, "batch time"],
        state: SkipBlockState | None = None,
        previous_tokens: Int[Array, "batch"] | None = None,
        *,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "batch time vocab"], SkipBlockState]:
        """Scores tokens in the parallel form and returns the state to go on from.

        To continue a prompt, call `step(state, tokens[:, -1])` next. To score a long sequence in
        pieces, pass the state and the last tokens of the piece before; all pieces but the last
        must be multiples of the product of the pool factors.

        Of sequences that are split over devices, each device gives its piece.

        Args:
            tokens: In `[0, vocab_size)`, at least one position.
            state: Where the sequences go on; left out, they start here.
            previous_tokens: The tokens just before, `(batch,)`; left out, the start token.
            dropout_key: As in `__call__`.

        Returns:
            float32 logits as of `__call__`, and the state.

        Raises:
            UserError: `tokens` are not a (batch, time) array of integers with `time >= 1`, only one
                of `state` and `previous_tokens` is given, the state is inside a pooled group (which
                cannot be seen under `jit`), or a device's piece ends inside of one.
        """
        tokens = jnp.asarray(tokens)
        if tokens.ndim != 2 or 0 in tokens.shape or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise UserError(
                "tokens must be a non-empty integer array of shape (batch, time), got "
                f"{tokens.dtype} of shape {tokens.shape}."
            )
        tokens = tokens.astype(jnp.int32)
        batch_size = tokens.shape[0]
        if (state is None) != (previous_tokens is None):
            raise UserError("Give both state and previous_tokens to go on, or neither to start.")
        if state is None:
            state = self.init_state(batch_size)
            previous_tokens = jnp.full((batch_size,), self.start_token)
        _check_between_groups(state)
        if axis := self.config.sequence_axis:
            _check_whole_groups(tokens.shape[1], self.config)
            previous_tokens = from_left(tokens[:, -1], previous_tokens, axis)
        shifted = jnp.concatenate([previous_tokens[:, None], tokens[:, :-1]], axis=1)
        x, state = self.body(self.embedding(shifted), state, dropout_key)
        return self._logits(x), state

    def step(
        self, state: SkipBlockState, previous_tokens: Int[Array, "batch"]
    ) -> tuple[Float[Array, "batch vocab"], SkipBlockState]:
        """Logits of the next tokens given the ones just before, in the recurrent form.

        Args:
            state: From `init_state`, `prefill` or the last `step`.
            previous_tokens: `(batch,)`; `start_token` at the first position.

        Returns:
            float32 logits of the next tokens, and the state.
        """
        x, state = self.body.step(self.embedding(previous_tokens), state)
        return self._logits(x), state

    def _logits(self, x):
        return self.head(self.head_norm(x))


def _check_between_groups(state: SkipBlockState) -> None:
    while state.nested is not None:
        if not isinstance(state.phase, jax.core.Tracer) and state.phase != 0:
            raise UserError(
                "The parallel form can go on only from a multiple of the product of the pool "
                f"factors, and this state is {state.phase} positions past one; use step."
            )
        state = state.nested


def _check_whole_groups(time: int, config: PoolformerConfig) -> None:
    period = math.prod(config.pool_factors)
    if time % period:
        raise UserError(
            f"Pieces of sequences that are split over devices must be multiples of {period}, the "
            f"product of pool_factors={config.pool_factors}, and not of {time} positions."
        )


def _remat(block: ResBlock, *inputs):
    """Calls a block, and once more in the backward pass.

    `nnx.remat` would write to the block's parameters, which fails where a model is closed over.
    """
    graph, params = nnx.split(block)
    return jax.checkpoint(lambda params, *inputs: nnx.merge(graph, params)(*inputs))(
        params, *inputs
    )


def _dropout(x, rate: float, key: PRNGKeyArray | None):
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0)


def _split(key: PRNGKeyArray | None, number: int):
    return [None] * number if key is None else jax.random.split(key, number)
