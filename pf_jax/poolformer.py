"""Poolformer (arXiv 2510.02206): recurrent networks with pooling, for long sequences.

Read top to bottom: a ResBlock adds to the residual stream what a gated layer makes of it. A
SkipBlock is ResBlocks, a down-pooling, a SkipBlock nested inside, an up-pooling, and ResBlocks
again. Poolformer embeds tokens, runs the outermost SkipBlock, and predicts the next token.

Each part runs in two forms with one set of weights and equal outputs: `__call__`, *parallel* over
time (training, scoring, prompts), and `step`, *recurrent*, one position at a time (sampling). Both
take a state and return the next, so that either can continue where the other stopped.

In the parallel form a sequence may be split over devices, inside of `jax.shard_map`
(`PoolformerConfig.sequence_axis`). Each device then has a piece of it, and what a layer would take
from its state comes from the device to the left. The given state counts on the first device only;
each device returns the state after its own piece.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pf_jax.config import PoolformerConfig
from pf_jax.errors import UserError
from pf_jax.layers import (
    DownPool,
    Embedding,
    LayerState,
    UpPool,
    find_layer,
    make_norm,
    residual_output,
)
from pf_jax.layers.sequence import from_left


class ResBlock(nnx.Module):
    """`x + dropout(W_o (gelu(W_g n) * Layer(n)))` with `n = norm(x)`.

    One form for every kind of layer: with a recurrence it is Griffin's recurrent block, with a
    linear map it is GeGLU. A layer may ask for no gate, or for neither gate nor output map
    (`pf_jax.layers.Layer.branch`). The state is the layer's.

    Attributes:
        norm: The norm of the layer's and the gate's input.
        layer: The layer.
        gate: `W_g`, to the width of the layer's output; None without a gate.
        output: `W_o`, back to the level's width; None if the layer's output is added as it is.
    """

    def __init__(self, name: str, level: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the block of a level around the layer of a name in `pf_jax.layers.LAYERS`."""
        layer_type = find_layer(name, config)
        width, dtype = config.widths[level], config.dtype
        self.dropout = config.dropout
        self.norm = make_norm(width, config, rngs=rngs)
        self.layer = layer_type(width, config, rngs=rngs)
        branch, out_width = getattr(self.layer, "branch", "gated"), self.layer.out_width
        is_gated = branch == "gated" and (config.mixer_gate or name == config.mlp)
        self.gate = nnx.Linear(width, out_width, dtype=dtype, rngs=rngs) if is_gated else None
        if branch == "whole":
            self.output = None
        else:
            init = residual_output(config, level)
            self.output = nnx.Linear(out_width, width, kernel_init=init, dtype=dtype, rngs=rngs)

    def init_state(self, batch_size: int) -> LayerState:
        """The state before the first position of a sequence."""
        return self.layer.init_state(batch_size)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        state: LayerState,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "batch time width"], LayerState]:
        """All positions, and the state after them; with a key, drops entries of the branch."""
        n = self.norm(x)
        y, state = self.layer(n, state)
        return x + _dropout(self._branch(n, y), self.dropout, dropout_key), state

    def step(
        self, x: Float[Array, "batch width"], state: LayerState
    ) -> tuple[Float[Array, "batch width"], LayerState]:
        """The next position, and the state after it."""
        n = self.norm(x)
        y, state = self.layer.step(n, state)
        return x + self._branch(n, y), state

    def _branch(self, n: Float[Array, "*batch width"], y: Float[Array, "*batch out_width"]):
        if self.gate is not None:
            y = jax.nn.gelu(self.gate(n)) * y
        return y if self.output is None else self.output(y)


class SkipBlockState(NamedTuple):
    """What a SkipBlock carries from one position to the next; the innermost has `before` only.

    Attributes:
        before: States of the ResBlocks before the nested SkipBlock.
        phase: The number of positions of the present group that have been seen.
        group: Their vectors, to be pooled when the group is full.
        up: The up-pooled vectors of the next positions, counted from the start of the present
            group: those of all its positions but the last, whose vector depends on the group.
        nested: State of the nested SkipBlock.
        after: States of the ResBlocks after the nested SkipBlock.
    """

    before: tuple[LayerState, ...]
    phase: Int[Array, ""] | None = None
    group: Float[Array, "batch factor-1 width"] | None = None
    up: Float[Array, "batch delay width"] | None = None
    nested: Self | None = None
    after: tuple[LayerState, ...] = ()


class SkipBlock(nnx.Module):
    """One level and all levels inside it (section 3 of the paper).

    In the parallel form::

        x = ResBlocks(x)
        x = x + shift(UpPool(SkipBlock(DownPool(x))))        not in the innermost SkipBlock
        x = ResBlocks(x)

    `shift` delays by `factor - 1` positions, and zeros enter: the last position of a group is the
    first to get a vector that depends on that group. So the block is causal, and in the recurrent
    form the nested block runs once in `factor` positions.

    SaShiMi's SkipBlock (`config.sashimi_backbone`; arXiv 2202.09729) delays by `factor` positions,
    and each line of ResBlocks, if there are any, is `x = x + ResBlocks(x)`.

    An unfinished group at the end of a sequence stays in the state: any length is accepted, nothing
    is padded, and the recurrent form continues from there.
    """

    def __init__(self, level: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the block of a level and, by recursion, of all deeper ones."""

        def res_blocks(mixers: Sequence[str]) -> nnx.List:
            mlp = [] if config.mlp == "none" else [config.mlp]
            names = [name for mixer in mixers for name in [mixer, *mlp]]
            return nnx.List([ResBlock(name, level, config, rngs=rngs) for name in names])

        before, after = config.blocks(level)
        self.width, self.dtype = config.widths[level], config.dtype
        self.remat = config.remat
        self.is_sashimi = config.sashimi_backbone
        self.sequence_axis = config.sequence_axis
        self.before = res_blocks(before)
        self.is_innermost = level == config.num_levels - 1
        if self.is_innermost:
            return
        self.factor = config.pool_factors[level]
        self.delay = self.factor if self.is_sashimi else self.factor - 1
        self.down_pool = DownPool(level, config, rngs=rngs)
        self.nested = SkipBlock(level + 1, config, rngs=rngs)
        self.up_pool = UpPool(level, config, rngs=rngs)
        self.after = res_blocks(after)

    def init_state(self, batch_size: int) -> SkipBlockState:
        """The state before the first position of a sequence."""
        before = tuple(block.init_state(batch_size) for block in self.before)
        if self.is_innermost:
            return SkipBlockState(before)
        return SkipBlockState(
            before,
            phase=jnp.array(0, jnp.int32),
            group=jnp.zeros((batch_size, self.factor - 1, self.width), self.dtype),
            up=jnp.zeros((batch_size, self.delay, self.width), self.dtype),
            nested=self.nested.init_state(batch_size),
            after=tuple(block.init_state(batch_size) for block in self.after),
        )

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        state: SkipBlockState,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "batch time width"], SkipBlockState]:
        """All positions, and the state after them. `state` must be between two groups."""
        call = _remat if self.remat else ResBlock.__call__
        keys = _split(dropout_key, 3)
        before_keys = _split(keys[0], len(self.before))
        x, before = self._blocks(call, self.before, x, state.before, before_keys)
        if self.is_innermost:
            return x, SkipBlockState(before)

        batch, time, width = x.shape
        num_groups, phase = divmod(time, self.factor)
        whole, rest = jnp.split(x, [num_groups * self.factor], axis=1)
        up, nested = state.up, state.nested
        if num_groups:
            y, nested = self.nested(self.down_pool(whole), nested, keys[1])
            y = self.up_pool(y).reshape(batch, -1, width)
            if self.sequence_axis:
                up = from_left(y[:, y.shape[1] - self.delay :], up, self.sequence_axis)
            up = jnp.concatenate([up, y], axis=1)
        x = x + up[:, :time]

        after_keys = _split(keys[2], len(self.after))
        x, after = self._blocks(call, self.after, x, state.after, after_keys)
        group = jnp.pad(rest, ((0, 0), (0, self.factor - 1 - phase), (0, 0)))
        up = up[:, num_groups * self.factor :]
        phase = jnp.array(phase, jnp.int32)
        return x, SkipBlockState(before, phase, group, up, nested, after)

    def step(
        self, x: Float[Array, "batch width"], state: SkipBlockState
    ) -> tuple[Float[Array, "batch width"], SkipBlockState]:
        """The next position, and the state after it."""
        x, before = self._blocks(ResBlock.step, self.before, x, state.before)
        if self.is_innermost:
            return x, SkipBlockState(before)

        def last_of_group(group, up, nested):
            group = jnp.concatenate([group, x[:, None]], axis=1)
            y, nested = self.nested.step(self.down_pool(group)[:, 0], nested)
            up = jnp.concatenate([up, self.up_pool(y)], axis=1)
            return up[:, self.factor - 1], (group[:, :-1], up[:, self.factor :], nested)

        def other(group, up, nested):
            return up[:, state.phase], (group.at[:, state.phase].set(x), up, nested)

        carried = (state.group, state.up, state.nested)
        is_last = state.phase == self.factor - 1
        up, (group, *rest) = jax.lax.cond(is_last, last_of_group, other, *carried)
        x, after = self._blocks(ResBlock.step, self.after, x + up, state.after)
        phase = (state.phase + 1) % self.factor
        return x, SkipBlockState(before, phase, group, *rest, after)

    def _blocks(self, call: Callable, blocks: Sequence[ResBlock], x, states, *others):
        """Calls each block with `x`, its state, and its part of the others."""
        new_states, start = [], x
        for block, *inputs in zip(blocks, states, *others, strict=True):
            x, state = call(block, x, *inputs)
            new_states.append(state)
        return start + x if self.is_sashimi and new_states else x, tuple(new_states)


class Poolformer(nnx.Module):
    """A causal model of token sequences: embedding, the outermost SkipBlock, and a linear head.

    Attributes:
        config: The hyper-parameters.
        start_token: The token that stands before the first one, the middle level.
        embedding: Tokens to vectors.
        body: The outermost SkipBlock.
        head_norm: The norm before the head.
        head: Vectors to logits.
    """

    def __init__(self, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes a model with fresh weights.

        Raises:
            UserError: The config names a layer that does not exist.
        """
        width = config.widths[0]
        self.config = config
        self.start_token = config.vocab_size // 2
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
        return self.head(self.head_norm(x)), state

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
        return self.head(self.head_norm(x)), state


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
    """Rematerializes a block in the backward pass.

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
