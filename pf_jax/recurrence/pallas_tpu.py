"""The recurrence as one Pallas kernel for TPUs: each array goes through memory once.

A program of the grid works on one sequence and a block of channels, and takes the blocks of time in
turn; the state stays in VMEM. Time lies along the sublanes of a register and channels along its
lanes, which is how XLA lays out (batch, time, width) by itself: nothing is transposed or padded
around the kernel. A group of rows is scanned within registers in `log2(rows)` steps, so that only
one multiply-add in a group depends on the group before it.

The coefficients `a` and `b` are computed where they are used, from whatever arrays they depend on,
and so are the gradients of these arrays (by `jax.vjp` inside of the kernel).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pf_jax.recurrence.coefficients import Coefficients

_LANES = 128
_MAX_WIDTH = 512  # Channels of a block.
_UNROLL = 4  # Groups of rows whose scans overlap.
# Of VMEM, for blocks that wait or are worked on: half of the 16 MiB that a kernel may take unasked.
_BLOCK_BYTES = 8 * 2**20
_MAX_ROWS = 1024


def forward(
    coefficients: Coefficients,
    inputs: Sequence[Float[Array, "batch time width"]],
    channel: Sequence[Float[Array, "width"]],
    h0: Float[Array, "batch width"],
    dtype: Any,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "batch time width"], Float[Array, "batch width"]]:
    """All states in `dtype`, and the last one in float32; see `portable.forward`."""
    call = _Call(inputs, channel)

    def kernel(*refs):
        tiles, channels, (h0_ref, h_ref, last_ref) = call.split(refs)

        @pl.when(call.is_first())
        def _():
            last_ref[...] = h0_ref[...]

        def group(rows, state):
            a, b = _scan(*call.masked(rows, *coefficients(tiles(rows), channels)))
            h_ref[rows.slice] = (a * state + b).astype(dtype)
            return a[-1:] * state + b[-1:]

        last_ref[...] = call.over_groups(group, last_ref[...])

    h, last = call.run(
        kernel,
        [*call.in_specs, call.row_spec],
        [h0[:, None]],
        [(call.block_spec, dtype), (call.row_spec, jnp.float32)],
        "linear_recurrence",
        interpret,
    )
    return h, last[:, 0]


def carry(
    coefficients: Coefficients,
    inputs: Sequence[Float[Array, "batch time width"]],
    channel: Sequence[Float[Array, "width"]],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "batch width"], Float[Array, "batch width"]]:
    """`(decay, last)` such that the whole sequence maps `h0` to `decay h0 + last`, in float32."""
    call = _Call(inputs, channel)

    def kernel(*refs):
        tiles, channels, (decay_ref, last_ref) = call.split(refs)

        @pl.when(call.is_first())
        def _():
            decay_ref[...] = jnp.ones_like(decay_ref)
            last_ref[...] = jnp.zeros_like(last_ref)

        def group(rows, state):
            a, b = _scan(*call.masked(rows, *coefficients(tiles(rows), channels)))
            decay, last = state
            return a[-1:] * decay, a[-1:] * last + b[-1:]

        decay_ref[...], last_ref[...] = call.over_groups(group, (decay_ref[...], last_ref[...]))

    outs = [(call.row_spec, jnp.float32)] * 2
    decay, last = call.run(kernel, call.in_specs, [], outs, "linear_recurrence_carry", interpret)
    return decay[:, 0], last[:, 0]


def gradient(
    coefficients: Coefficients,
    inputs: Sequence[Float[Array, "batch time width"] | None],
    channel: Sequence[Float[Array, "width"]],
    h0: Float[Array, "batch width"],
    h: Float[Array, "batch time width"],
    dh: Float[Array, "batch time width"],
    dlast: Float[Array, "batch width"],
    *,
    interpret: bool = False,
) -> tuple[
    tuple[Float[Array, "batch time width"], ...],
    tuple[Float[Array, "width"], ...],
    Float[Array, "batch width"],
]:
    """The gradients of inputs, channel parameters and `h0`; see `portable.gradient`."""
    call = _Call(inputs, channel, h, dh, num_outputs=len(inputs), reverse=True)
    num_inputs = len(inputs)

    def kernel(*refs):
        tiles, channels, refs = call.split(refs)
        h_ref, before_ref, dh_ref, h0_ref, dlast_ref, *outs = refs
        dinput_refs, dchannel_refs = outs[:num_inputs], outs[num_inputs:-1]
        state_ref = outs[-1]

        @pl.when(call.is_first())
        def _():
            state_ref[...] = dlast_ref[...]
            for ref in dchannel_refs:
                ref[...] = jnp.zeros_like(ref)

        # The state before this block of time: in the block before it, or at the start.
        entering = jnp.where(call.block() == 0, h0_ref[...], _float32(before_ref)[-1:])

        def group(rows, state):
            (a, _), vjp = jax.vjp(coefficients, tiles(rows), call.spread(channels))
            dh_tile = _float32(dh_ref, rows)
            a, dh_tile = call.masked(rows, a, dh_tile)
            decay, s = _scan(a, a * dh_tile, reverse=True)
            s = decay * state + s
            g = dh_tile + _shifted(s, state, reverse=True)
            previous = _float32(h_ref, rows.previous())[-1:]
            previous = jnp.where(rows.number == 0, entering, previous)
            h_previous = _shifted(_float32(h_ref, rows), previous)
            dinputs, dchannels = vjp((g * h_previous, g))
            for ref, value in zip(dinput_refs, dinputs, strict=True):
                ref[rows.slice] = value.astype(ref.dtype)
            for ref, value in zip(dchannel_refs, dchannels, strict=True):
                ref[...] += jnp.sum(call.zeroed(rows, value), axis=0, keepdims=True)
            return s[:1]

        state_ref[...] = call.over_groups(group, state_ref[...])

    row, block = call.row_spec, call.block_spec
    outs = [
        *((block, dh.dtype if x is None else x.dtype) for x in inputs),
        *((row, jnp.float32) for _ in channel),
        (row, jnp.float32),
    ]
    *outs, dh0 = call.run(
        kernel,
        [*call.in_specs, block, call.before_spec, block, row, row],
        [h, h, dh, h0[:, None], dlast[:, None]],
        outs,
        "linear_recurrence_gradient",
        interpret,
    )
    dchannel = tuple(jnp.sum(x[:, 0], axis=0) for x in outs[num_inputs:])
    return tuple(outs[:num_inputs]), dchannel, dh0[:, 0]


def adjoint_carry(
    coefficients: Coefficients,
    inputs: Sequence[Float[Array, "batch time width"] | None],
    channel: Sequence[Float[Array, "width"]],
    dh: Float[Array, "batch time width"],
    *,
    interpret: bool = False,
) -> Float[Array, "batch width"]:
    """The adjoint `s_1` of a sequence that `dlast = 0` enters, in float32."""
    call = _Call(inputs, channel, dh, reverse=True)

    def kernel(*refs):
        tiles, channels, (dh_ref, state_ref) = call.split(refs)

        @pl.when(call.is_first())
        def _():
            state_ref[...] = jnp.zeros_like(state_ref)

        def group(rows, state):
            a, _ = coefficients(tiles(rows), channels)
            a, dh_tile = call.masked(rows, a, _float32(dh_ref, rows))
            decay, s = _scan(a, a * dh_tile, reverse=True)
            return decay[:1] * state + s[:1]

        state_ref[...] = call.over_groups(group, state_ref[...])

    specs, outs = [*call.in_specs, call.block_spec], [(call.row_spec, jnp.float32)]
    (s,) = call.run(kernel, specs, [dh], outs, "linear_recurrence_adjoint_carry", interpret)
    return s[:, 0]


class _Rows(NamedTuple):
    """A group of rows: its number in the block, its size, and the position of its first row."""

    number: Any
    size: int
    start: Any

    @property
    def slice(self):
        return pl.ds(pl.multiple_of(self.number * self.size, self.size), self.size)

    def previous(self) -> Self:
        """Where the group before it is; of the first, itself."""
        return self._replace(number=jnp.maximum(self.number - 1, 0))


class _Call:
    """The grid of a kernel, its blocks, and what all kernels do with them.

    Blocks at the upper edges of time and width stick out. What is read there is arbitrary and what
    is written there goes nowhere; rows behind the end get `a = 1, b = 0`, which passes a state on.
    """

    def __init__(self, inputs, channel, *others, num_outputs: int = 1, reverse: bool = False):
        self.is_given = [x is not None for x in inputs]
        self.inputs, self.channel = [x for x in inputs if x is not None], channel
        self.reverse = reverse
        arrays = [*self.inputs, *others]
        self.shape = self.batch, self.time, self.width = arrays[0].shape
        # A register holds 8 rows of float32 or 16 of bfloat16.
        self.rows = 8 * 4 // min(x.dtype.itemsize for x in arrays)
        self.block_width = min(self.width, _MAX_WIDTH)
        lanes = -(-self.block_width // _LANES) * _LANES
        row_bytes = lanes * sum(x.dtype.itemsize for x in arrays) + 4 * lanes * num_outputs
        step = self.rows * _UNROLL
        most = min(_MAX_ROWS, _BLOCK_BYTES // (2 * row_bytes))
        self.block_time = max(step, min(most, self.time + step - 1) // step * step)
        self.num_blocks = pl.cdiv(self.time, self.block_time)
        self.grid = (self.batch, pl.cdiv(self.width, self.block_width), self.num_blocks)

        def at(block):
            return self.num_blocks - 1 - block if reverse else block

        groups = self.block_time // self.rows
        self.block_spec = pl.BlockSpec(
            (None, self.block_time, self.block_width), lambda n, c, t: (n, at(t), c)
        )
        # The group of rows before the block.
        self.before_spec = pl.BlockSpec(
            (None, self.rows, self.block_width),
            lambda n, c, t: (n, jnp.maximum(at(t) * groups - 1, 0), c),
        )
        self.row_spec = pl.BlockSpec((None, 1, self.block_width), lambda n, c, t: (n, 0, c))
        channel_spec = pl.BlockSpec((1, self.block_width), lambda n, c, t: (0, c))
        self.in_specs = [self.block_spec] * len(self.inputs) + [channel_spec] * len(channel)

    def block(self):
        """The number of the block of time that the program is at."""
        block = pl.program_id(2)
        return self.num_blocks - 1 - block if self.reverse else block

    def is_first(self):
        """Whether it is the first that the program comes to."""
        return pl.program_id(2) == 0

    def split(self, refs):
        """A function that reads tiles of the inputs, the channel parameters, and the other refs."""
        n, m = len(self.inputs), len(self.channel)
        channels = tuple(ref[...] for ref in refs[n : n + m])

        def tiles(rows):
            given = iter(refs[:n])
            zeros = jnp.zeros((self.rows, self.block_width), jnp.float32)
            return tuple(_float32(next(given), rows) if x else zeros for x in self.is_given)

        return tiles, channels, refs[n + m :]

    def spread(self, channels):
        """Channel parameters in every row, so that their gradients stay apart by row."""
        return tuple(jnp.broadcast_to(x, (self.rows, x.shape[1])) for x in channels)

    def masked(self, rows, a, b):
        """`a` and `b` of a group, such that rows behind the end pass on the state."""
        is_inside = self._is_inside(rows)
        if is_inside is None:
            return a, b
        return jnp.where(is_inside, a, 1.0), jnp.where(is_inside, b, 0.0)

    def zeroed(self, rows, x):
        """`x` with zeros in rows behind the end."""
        is_inside = self._is_inside(rows)
        return x if is_inside is None else jnp.where(is_inside, x, 0.0)

    def _is_inside(self, rows):
        if self.time % self.block_time == 0:
            return None
        return rows.start + jax.lax.broadcasted_iota(jnp.int32, (self.rows, 1), 0) < self.time

    def over_groups(self, group, state):
        """Runs `state = group(rows, state)` over the groups of a block, in the direction."""
        count, start = self.block_time // self.rows, self.block() * self.block_time

        def some(number, state):
            for k in range(_UNROLL):
                n = number * _UNROLL + k
                n = count - 1 - n if self.reverse else n
                state = group(_Rows(n, self.rows, start + n * self.rows), state)
            return state

        return jax.lax.fori_loop(0, count // _UNROLL, some, state)

    def run(self, kernel, in_specs, others, outs, name: str, interpret: bool):
        """Calls the kernel. `outs` are pairs of a spec and a type."""
        specs = [spec for spec, _ in outs]
        shapes = [jax.ShapeDtypeStruct(self._shape(spec), dtype) for spec, dtype in outs]
        args = [*self.inputs, *(x[None] for x in self.channel), *others]
        size = self.batch * self.time * self.width
        pairs = zip([*in_specs, *specs], [*args, *shapes], strict=True)
        moved = [self._bytes(spec, x) for spec, x in pairs]
        return pl.pallas_call(
            kernel,
            grid=self.grid,
            in_specs=in_specs,
            out_specs=specs,
            out_shape=shapes,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary")
            ),
            cost_estimate=pl.CostEstimate(
                flops=20 * size, transcendentals=4 * size, bytes_accessed=sum(moved)
            ),
            name=name,
            interpret=interpret,
        )(*args)

    def _shape(self, spec: pl.BlockSpec) -> tuple[int, ...]:
        return self.shape if spec is self.block_spec else (self.batch, 1, self.width)

    def _bytes(self, spec: pl.BlockSpec, x: Any) -> int:
        """What of an array is moved: of the rows before blocks, a group for each block."""
        if spec is self.before_spec:
            return self.batch * self.num_blocks * self.rows * self.width * x.dtype.itemsize
        return math.prod(x.shape) * x.dtype.itemsize


def _float32(ref, rows: _Rows | None = None):
    return (ref[...] if rows is None else ref[rows.slice]).astype(jnp.float32)


def _scan(a, b, *, reverse: bool = False):
    """The maps from the state before a group of rows to that after each of its rows."""
    size = a.shape[0]
    row = jax.lax.broadcasted_iota(jnp.int32, (size, 1), 0)
    distance = 1
    while distance < size:
        is_inside = row < size - distance if reverse else row >= distance
        shift = size - distance if reverse else distance
        earlier_a = jnp.where(is_inside, pltpu.roll(a, shift, 0), 1.0)
        earlier_b = jnp.where(is_inside, pltpu.roll(b, shift, 0), 0.0)
        a, b = a * earlier_a, a * earlier_b + b
        distance *= 2
    return a, b


def _shifted(x, enters, *, reverse: bool = False):
    """Each row gets the one before it in the direction; the first gets `enters`."""
    size = x.shape[0]
    row = jax.lax.broadcasted_iota(jnp.int32, (size, 1), 0)
    first, shift = (size - 1, size - 1) if reverse else (0, 1)
    return jnp.where(row == first, enters, pltpu.roll(x, shift, 0))
