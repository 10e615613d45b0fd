"""Attention to the last few positions, with rotary positions."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from pf_jax.config import PoolformerConfig

_BASE = 10_000.0  # Of the rotary frequencies, as in the paper.
_ROWS = 256  # Queries per block of scores.
_TURN = 2**31  # Integer units of a whole turn; their overflow is two whole turns and harmless.


class AttentionState(NamedTuple):
    """The keys and values that later positions may still look at, as a ring.

    Attributes:
        keys: Rotated, in the slots of their positions: that of position `p` is `p` modulo `slots`,
            the first power of two that is not below the window. Zeros where none has been.
        values: Likewise.
        count: How many positions there have been. From `2**31 - 1` it goes on at `2**30`, which
            leaves slots and angles as they would be.
    """

    keys: Float[Array, "batch slots heads head_width"]
    values: Float[Array, "batch slots heads head_width"]
    count: Int[Array, ""]


class Attention(nnx.Module):
    """Causal multi-head self-attention within a sliding window.

    For each head, with the window `W = config.attention_window` (positions of the level)::

        q_t, k_t, v_t = W_q x_t + b_q, W_k x_t + b_k, W_v x_t + b_v
        y_t = sum_s softmax_s(<R_t q_t, R_s k_s> / sqrt(head_width)) v_s,   t - W < s <= t

    (Vaswani et al., arXiv 1706.03762, section 3.2.) `R_t` turns the plane of the channels `i` and
    `i + n` of a head by `t 10000^(-i / n)`, `n = head_width // 2` (RoPE; Su et al., arXiv
    2104.09864, section 3.2.2, which pairs neighbours), so that a score depends on `t - s` only; an
    odd last channel is not turned. Angles are integers modulo a turn, and so as exact after hours
    of audio as at the beginning.

    The parallel form goes through the sequence in blocks as long as the window (or 256 positions,
    if that is more), each of which looks at itself and at the window before it, and computes them
    again in the backward pass: memory grows with the length and with the window, but not with their
    product. Scores and softmax are float32.

    Attributes:
        input: `W_q`, `W_k`, `W_v` side by side, with their biases.
    """

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the layer for a level of the given width."""
        dtype = config.dtype
        self.dtype = dtype
        self.num_heads = config.num_heads
        self.window = config.attention_window
        self.num_slots = 1 << (self.window - 1).bit_length()
        self.out_width = width
        self.input = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)

    def init_state(self, batch_size: int) -> AttentionState:
        """The state before the first position of a sequence."""
        head_width = self.out_width // self.num_heads
        zeros = jnp.zeros((batch_size, self.num_slots, self.num_heads, head_width), self.dtype)
        return AttentionState(zeros, zeros, jnp.array(0, jnp.int32))

    def __call__(
        self, x: Float[Array, "batch time width"], state: AttentionState
    ) -> tuple[Float[Array, "batch time width"], AttentionState]:
        """All positions (parallel form), and the state after them."""
        batch, time, width = x.shape
        queries, *new = self._project(x, state.count)
        # Oldest first, and then those of this call.
        rings = (jnp.roll(ring, -state.count % self.num_slots, axis=1) for ring in state[:2])
        seen = [jnp.concatenate(pair, axis=1) for pair in zip(rings, new, strict=True)]
        count = _advance(state.count, time)
        keys, values = (jnp.roll(x[:, time:], count % self.num_slots, axis=1) for x in seen)
        first = self.num_slots - self.window
        y = self._in_blocks(queries, *(x[:, first:] for x in seen), state.count)
        return y.reshape(batch, time, width), AttentionState(keys, values, count)

    def step(
        self, x: Float[Array, "batch width"], state: AttentionState
    ) -> tuple[Float[Array, "batch width"], AttentionState]:
        """The next position (recurrent form)."""
        query, *new = self._project(x[:, None], state.count)
        slot = state.count % self.num_slots
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(ring, x, slot, axis=1)
            for ring, x in zip(state[:2], new, strict=True)
        )
        age = (slot - jnp.arange(self.num_slots)) % self.num_slots
        is_heard = (age < self.window) & (age <= state.count)
        y = _attend(query, keys, values, is_heard[None])
        return y.reshape(x.shape), AttentionState(keys, values, _advance(state.count, 1))

    def _project(self, x, start):
        """Rotated queries and keys, and values, of positions from `start` on."""
        batch, time, width = x.shape
        head_width = width // self.num_heads
        y = self.input(x).reshape(batch, time, 3, self.num_heads, head_width)
        units = (start + jnp.arange(time, dtype=jnp.int32))[:, None] * _turns(head_width)
        angles = units.astype(jnp.float32) * (2.0 * math.pi / _TURN)
        queries, keys = (_rotate(y[:, :, part], angles) for part in range(2))
        return queries, keys, y[:, :, 2]

    def _in_blocks(self, queries, keys, values, start):
        """What all queries hear of keys and values, of which a window's come before the first."""
        batch, time, heads, head_width = queries.shape
        length = min(max(self.window, _ROWS), time)
        number = -(-time // length)

        def blocks(x):
            x = jnp.pad(x, ((0, 0), (0, number * length - time), (0, 0), (0, 0)))
            return jnp.moveaxis(x.reshape(batch, number, length, heads, head_width), 1, 0)

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def one_block(before, inputs):
            first, queries, *new = inputs
            seen = [jnp.concatenate(pair, axis=1) for pair in zip(before, new, strict=True)]
            rows = [self._rows(queries, *seen, at, first, start) for at in range(0, length, _ROWS)]
            return [x[:, length:] for x in seen], jnp.concatenate(rows, axis=1)

        parts = [jnp.split(x, [self.window], axis=1) for x in (keys, values)]
        before, new = zip(*parts, strict=True)
        firsts = length * jnp.arange(number, dtype=jnp.int32)
        _, y = jax.lax.scan(
            one_block, list(before), (firsts, *(blocks(x) for x in (queries, *new)))
        )
        return jnp.moveaxis(y, 0, 1).reshape(batch, -1, heads, head_width)[:, :time]

    def _rows(self, queries, keys, values, at, first, start):
        """What some rows of a block hear, from row `at` on.

        The block begins `first` positions after position `start` of the sequence.
        """
        queries = queries[:, at : at + _ROWS]
        num_rows = queries.shape[1]
        keys, values = (x[:, at : at + num_rows + self.window] for x in (keys, values))
        row = np.arange(num_rows)[:, None]
        column = np.arange(num_rows + self.window)
        is_near = (column > row) & (column <= row + self.window)
        # Before the first position of the sequence there was nothing.
        is_there = first + at - self.window + column >= -start
        return _attend(queries, keys, values, is_near & is_there)


def _attend(
    queries: Float[Array, "batch rows heads head_width"],
    keys: Float[Array, "batch columns heads head_width"],
    values: Float[Array, "batch columns heads head_width"],
    is_heard: Bool[Array, "rows columns"],
) -> Float[Array, "batch rows heads head_width"]:
    return jax.nn.dot_product_attention(queries, keys, values, mask=is_heard[None, None])


def _turns(head_width: int) -> Int[np.ndarray, "planes"]:
    """By how much each plane turns from one position to the next, in even units."""
    planes = head_width // 2
    frequencies = _BASE ** -(np.arange(planes) / max(1, planes))
    return (2 * np.round(frequencies / (2.0 * math.pi) * (_TURN // 2))).astype(np.int32)


def _rotate(
    x: Float[Array, "batch time heads head_width"], angles: Float[Array, "time planes"]
) -> Float[Array, "batch time heads head_width"]:
    planes = angles.shape[1]
    cos, sin = (f(angles)[:, None] for f in (jnp.cos, jnp.sin))
    first, second, rest = jnp.split(x.astype(jnp.float32), [planes, 2 * planes], axis=-1)
    rotated = [cos * first - sin * second, sin * first + cos * second, rest]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _advance(count: Int[Array, ""], steps: int) -> Int[Array, ""]:
    """`count + steps`, or what stands for it (`AttentionState.count`)."""
    count = count + steps
    return jnp.where(count < 0, 2**30 + count % 2**30, count)
