"""The recurrence as one Pallas kernel for TPUs: each array goes through memory once.

A program of the grid works on one sequence and a block of channels, and takes the blocks of time in
turn; the state stays in VMEM. Nothing is transposed or padded around the kernel, as it takes arrays
the way XLA lays them out: with channels along the 128 lanes of a register and time along its
sublanes, or the other way round where there are too few channels to fill the lanes. A group of
positions is scanned within registers in `log2(size)` steps, so that only one multiply-add in a
group depends on the group before it.

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
_MAX_WIDTH_ON_SUBLANES = 32
_UNROLL = 4  # Groups whose scans overlap; along lanes, those of several channels do.
# Of VMEM, for blocks that wait or are worked on: half of the 16 MiB that a kernel may take unasked.
_BLOCK_BYTES = 8 * 2**20
_MAX_TIME = 1024  # Positions of a block.


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
            a, b = call.scan(*call.masked(rows, *coefficients(tiles(rows), channels)))
            h_ref[rows.index] = (a * state + b).astype(dtype)
            return call.last(a) * state + call.last(b)

        last_ref[...] = call.over_groups(group, last_ref[...])

    h, last = call.run(
        kernel,
        [*call.in_specs, call.row_spec],
        [call.row(h0)],
        [(call.block_spec, dtype), (call.row_spec, jnp.float32)],
        "linear_recurrence",
        interpret,
    )
    return call.array(h), call.channels(last)


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
            a, b = call.scan(*call.masked(rows, *coefficients(tiles(rows), channels)))
            decay, last = state
            return call.last(a) * decay, call.last(a) * last + call.last(b)

        decay_ref[...], last_ref[...] = call.over_groups(group, (decay_ref[...], last_ref[...]))

    outs = [(call.row_spec, jnp.float32)] * 2
    decay, last = call.run(kernel, call.in_specs, [], outs, "linear_recurrence_carry", interpret)
    return call.channels(decay), call.channels(last)


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
        entering = jnp.where(call.block() == 0, h0_ref[...], call.last(_float32(before_ref)))

        def group(rows, state):
            (a, _), vjp = jax.vjp(coefficients, tiles(rows), call.spread(channels))
            dh_tile = _float32(dh_ref, rows)
            a, dh_tile = call.masked(rows, a, dh_tile)
            decay, s = call.scan(a, a * dh_tile)
            s = decay * state + s
            g = dh_tile + call.shifted(s, state, reverse=True)
            previous = call.last(_float32(h_ref, rows.previous()))
            previous = jnp.where(rows.number == 0, entering, previous)
            h_previous = call.shifted(_float32(h_ref, rows), previous)
            dinputs, dchannels = vjp((g * h_previous, g))
            for ref, value in zip(dinput_refs, dinputs, strict=True):
                ref[rows.index] = value.astype(ref.dtype)
            for ref, value in zip(dchannel_refs, dchannels, strict=True):
                ref[...] += jnp.sum(call.zeroed(rows, value), axis=call.axis, keepdims=True)
            return call.first(s)

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
        [*map(call.array, (h, h, dh)), call.row(h0), call.row(dlast)],
        outs,
        "linear_recurrence_gradient",
        interpret,
    )
    dchannel = tuple(jnp.sum(call.channels(x), axis=0) for x in outs[num_inputs:])
    return tuple(map(call.array, outs[:num_inputs])), dchannel, call.channels(dh0)


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
            decay, s = call.scan(a, a * dh_tile)
            return call.first(decay) * state + call.first(s)

        state_ref[...] = call.over_groups(group, state_ref[...])

    specs, outs = [*call.in_specs, call.block_spec], [(call.row_spec, jnp.float32)]
    others, name = [call.array(dh)], "linear_recurrence_adjoint_carry"
    (s,) = call.run(kernel, specs, others, outs, name, interpret)
    return call.channels(s)


class _Rows(NamedTuple):
    """A group of positions: its number in the block, its size, axis, and first position."""

    number: Any
    size: int
    axis: int
    start: Any

    @property
    def index(self):
        """Where they are in a block."""
        some = pl.ds(pl.multiple_of(self.number * self.size, self.size), self.size)
        return (slice(None), some) if self.axis else (some, slice(None))

    def previous(self) -> Self:
        """Where the group before it is; of the first, itself."""
        return self._replace(number=jnp.maximum(self.number - 1, 0))


class _Call:
    """The grid of a kernel, its blocks, and what all kernels do with them.

    A block has time along its first axis and channels along its second, or the other way round
    (`axis` is that of time). Blocks at the upper edges stick out. What is read there is arbitrary
    and what is written there goes nowhere; positions behind the end get `a = 1, b = 0`, which
    passes a state on.
    """

    def __init__(self, inputs, channel, *others, num_outputs: int = 1, reverse: bool = False):
        arrays = [x for x in (*inputs, *others) if x is not None]
        self.batch, self.time, self.width = arrays[0].shape
        self.axis = int(self.width < _LANES)
        self.is_given = [x is not None for x in inputs]
        self.inputs = [self.array(x) for x in inputs if x is not None]
        self.channel, self.reverse = channel, reverse
        # A register has 8 sublanes of float32 or 16 of bfloat16.
        sublanes = 8 * 4 // min(x.dtype.itemsize for x in arrays)
        self.size = _LANES if self.axis else sublanes
        self.unroll = 1 if self.axis else _UNROLL
        self.block_width = min(self.width, _MAX_WIDTH_ON_SUBLANES if self.axis else _MAX_WIDTH)
        unit = sublanes if self.axis else _LANES
        channels = -(-self.block_width // unit) * unit
        time_bytes = channels * (sum(x.dtype.itemsize for x in arrays) + 4 * num_outputs)
        step = self.size * self.unroll
        most = min(_MAX_TIME, _BLOCK_BYTES // (2 * time_bytes))
        self.block_time = max(step, min(most, self.time + step - 1) // step * step)
        self.num_blocks = pl.cdiv(self.time, self.block_time)
        self.grid = (self.batch, pl.cdiv(self.width, self.block_width), self.num_blocks)
        groups = self.block_time // self.size

        def at(block):
            return self.num_blocks - 1 - block if reverse else block

        def spec(time, index):
            return pl.BlockSpec(
                (None, *self._ordered(time, self.block_width)),
                lambda n, c, t: (n, *self._ordered(index(t), c)),
            )

        self.block_spec = spec(self.block_time, at)
        # The group before the block.
        self.before_spec = spec(self.size, lambda t: jnp.maximum(at(t) * groups - 1, 0))
        self.row_spec = spec(1, lambda t: 0)
        channel_spec = pl.BlockSpec(
            self._ordered(1, self.block_width), lambda n, c, t: self._ordered(0, c)
        )
        self.in_specs = [self.block_spec] * len(self.inputs) + [channel_spec] * len(channel)

    def _ordered(self, time, width):
        return (width, time) if self.axis else (time, width)

    def array(self, x):
        """A (batch, time, width) array as the kernel has it, and back; not a copy, for XLA."""
        return jnp.swapaxes(x, 1, 2) if self.axis else x

    def row(self, x):
        """A (batch, width) array as the kernel has it."""
        return jnp.expand_dims(x, 1 + self.axis)

    def channels(self, x):
        """The reverse of `row`."""
        return jnp.squeeze(x, 1 + self.axis)

    def first(self, x):
        """The first position of a tile."""
        return jax.lax.slice_in_dim(x, 0, 1, axis=self.axis)

    def last(self, x):
        """The last position of a tile."""
        return jax.lax.slice_in_dim(x, x.shape[self.axis] - 1, x.shape[self.axis], axis=self.axis)

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
            zeros = jnp.zeros(self._ordered(self.size, self.block_width), jnp.float32)
            return tuple(_float32(next(given), rows) if x else zeros for x in self.is_given)

        return tiles, channels, refs[n + m :]

    def spread(self, channels):
        """Channel parameters at every position, so that their gradients stay apart."""
        shape = self._ordered(self.size, self.block_width)
        return tuple(jnp.broadcast_to(x, shape) for x in channels)

    def masked(self, rows, a, b):
        """`a` and `b` of a group, such that positions behind the end pass on the state."""
        is_inside = self._is_inside(rows)
        if is_inside is None:
            return a, b
        return jnp.where(is_inside, a, 1.0), jnp.where(is_inside, b, 0.0)

    def zeroed(self, rows, x):
        """`x` with zeros behind the end."""
        is_inside = self._is_inside(rows)
        return x if is_inside is None else jnp.where(is_inside, x, 0.0)

    def _is_inside(self, rows):
        if self.time % self.block_time == 0:
            return None
        return rows.start + self._position() < self.time

    def _position(self):
        """Of each position of a tile, its number."""
        return jax.lax.broadcasted_iota(jnp.int32, self._ordered(self.size, 1), self.axis)

    def scan(self, a, b):
        """The maps from the state that enters a tile to that after each of its positions."""
        position, distance = self._position(), 1
        while distance < self.size:
            if self.reverse:
                is_inside, shift = position < self.size - distance, self.size - distance
            else:
                is_inside, shift = position >= distance, distance
            earlier_a = jnp.where(is_inside, pltpu.roll(a, shift, self.axis), 1.0)
            earlier_b = jnp.where(is_inside, pltpu.roll(b, shift, self.axis), 0.0)
            a, b = a * earlier_a, a * earlier_b + b
            distance *= 2
        return a, b

    def shifted(self, x, enters, *, reverse: bool = False):
        """Each position gets what the one before it has, in the direction; the first `enters`."""
        first, shift = (self.size - 1, self.size - 1) if reverse else (0, 1)
        return jnp.where(self._position() == first, enters, pltpu.roll(x, shift, self.axis))

    def over_groups(self, group, state):
        """Runs `state = group(rows, state)` over the groups of a block, in the direction."""
        count, start = self.block_time // self.size, self.block() * self.block_time

        def some(number, state):
            for k in range(self.unroll):
                n = number * self.unroll + k
                n = count - 1 - n if self.reverse else n
                state = group(_Rows(n, self.size, self.axis, start + n * self.size), state)
            return state

        return jax.lax.fori_loop(0, count // self.unroll, some, state)

    def run(self, kernel, in_specs, others, outs, name: str, interpret: bool):
        """Calls the kernel. `outs` are pairs of a spec and a type."""
        specs = [spec for spec, _ in outs]
        shapes = [jax.ShapeDtypeStruct(self._shape(spec), dtype) for spec, dtype in outs]
        channel = [jnp.expand_dims(x, self.axis) for x in self.channel]
        args = [*self.inputs, *channel, *others]
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
        time = self.time if spec is self.block_spec else 1
        return (self.batch, *self._ordered(time, self.width))

    def _bytes(self, spec: pl.BlockSpec, x: Any) -> int:
        """What of an array is moved: of the rows before blocks, a group for each block."""
        if spec is self.before_spec:
            return self.batch * self.num_blocks * self.size * self.width * x.dtype.itemsize
        return math.prod(x.shape) * x.dtype.itemsize


def _float32(ref, rows: _Rows | None = None):
    return (ref[...] if rows is None else ref[rows.index]).astype(jnp.float32)
