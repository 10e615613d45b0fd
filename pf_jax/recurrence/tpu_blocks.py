"""The blocks of arrays that the Pallas kernels for TPUs work on, and what they do with them."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pf_jax.recurrence.coefficients import Coefficients
from pf_jax.recurrence.number import Number

_LANES = 128
_MAX_WIDTH = 512  # Channels of a block.
_MAX_PARTS_ON_SUBLANES = 32  # Real parts of its channels.
_UNROLL = 4  # Groups whose scans overlap; along lanes, those of several channels do.
# Of VMEM, for blocks that wait or are worked on: half of the 16 MiB that a kernel may take unasked.
_BLOCK_BYTES = 8 * 2**20
_MAX_TIME = 1024  # Positions of a block.


class Operand(NamedTuple):
    """An argument or a result of a kernel.

    Attributes:
        array: It, or its shape and type, as the kernel has it.
        spec: Its blocks.
        moved: Bytes that go through memory.
    """

    array: Any
    spec: pl.BlockSpec
    moved: int


class Rows(NamedTuple):
    """A group of positions: its number in the block, its size, and its first position."""

    number: Any
    size: int
    start: Any

    @property
    def index(self):
        """Where they are in a block."""
        return pl.ds(pl.multiple_of(self.number * self.size, self.size), self.size)

    def previous(self) -> Self:
        """Where the group before it is; of the first, itself."""
        return self._replace(number=jnp.maximum(self.number - 1, 0))


class Blocks:
    """The grid of a kernel, its blocks, and what all kernels do with them.

    A tile has time along its first axis and channels along its second, or the other way round
    (`axis` is that of time). In the first case the parts of a number are side by side, so a block
    has all channels of a complex recurrence, and they must fill whole registers; in the second,
    each has a plane of its own.

    Blocks at the upper edges stick out. What is read there is arbitrary and what is written there
    goes nowhere; positions behind the end get `a = 1, b = 0`, which passes a state on.

    Attributes:
        axis: That of time in a tile.
        inputs: The arguments of a kernel that it always has: inputs, and parameters of channels.
    """

    def __init__(
        self,
        coefficients: Coefficients,
        inputs: Sequence[Float[Array, "batch time width"] | None],
        channel: Sequence[Float[Array, "width"]],
        *others: Float[Array, "batch time parts*width"],
        num_outputs: int = 1,
        reverse: bool = False,
    ):
        """Chooses the sizes of blocks.

        Args:
            coefficients: What `a` and `b` are made of.
            inputs: Their inputs, None for those that gradients do not depend on.
            channel: Parameters of the channels.
            *others: Arrays of states that are read, too.
            num_outputs: Arrays of the width of the states that are written.
            reverse: Whether the last position comes first.
        """
        self.coefficients, self.parts, self.reverse = coefficients, coefficients.parts, reverse
        given = [(x, coefficients.parts_of(n)) for n, x in enumerate(inputs) if x is not None]
        arrays = [*given, *((x, self.parts) for x in others)]
        x, parts = arrays[0]
        self.batch, self.time, self.width = *x.shape[:2], x.shape[2] // parts
        self.is_given = [x is not None for x in inputs]
        self.num_channels = len(channel)

        is_complex = self.parts > 1
        self.axis = int(self.width < _LANES or (is_complex and self.width % _LANES > 0))
        # A register has 8 sublanes of float32 or 16 of bfloat16.
        sublanes = 8 * 4 // min(x.dtype.itemsize for x, _ in arrays)
        self.size = _LANES if self.axis else sublanes
        most = _MAX_PARTS_ON_SUBLANES // self.parts if self.axis else _MAX_WIDTH
        self.block_width = self.width if is_complex and not self.axis else min(self.width, most)
        unit = sublanes if self.axis else _LANES
        channels = -(-self.block_width // unit) * unit
        time_bytes = sum(x.dtype.itemsize * parts for x, parts in arrays)
        time_bytes = channels * (time_bytes + 4 * num_outputs * self.parts)
        most = min(_MAX_TIME, _BLOCK_BYTES // (2 * time_bytes))
        self.unroll = 1 if self.axis or most < self.size * _UNROLL else _UNROLL
        step = self.size * self.unroll
        self.block_time = max(step, min(most, self.time + step - 1) // step * step)
        self.num_blocks = pl.cdiv(self.time, self.block_time)
        self.grid = (self.batch, pl.cdiv(self.width, self.block_width), self.num_blocks)
        self.inputs = [
            *(self.whole(x, parts) for x, parts in given),
            *(self._channel(x) for x in channel),
        ]

    def whole(self, x: Any, parts: int) -> Operand:
        """A (batch, time, parts * width) array, in the way in which XLA lays it out: no copy."""
        return self._operand(x, parts, self.time, self.block_time, self._at)

    def before(self, x: Any, parts: int) -> Operand:
        """The same array; a block has the group of positions before that of `whole`."""
        groups = self.block_time // self.size

        def at(block):
            return jnp.maximum(self._at(block) * groups - 1, 0)

        operand = self._operand(x, parts, self.time, self.size, at)
        read = self.num_blocks * self.size
        return operand._replace(moved=operand.moved // self.time * min(self.time, read))

    def row(self, x: Any, parts: int) -> Operand:
        """A (batch, parts * width) array."""
        return self._operand(x[:, None], parts, 1, 1, lambda block: 0)

    def new_whole(self, parts: int, dtype: Any) -> Operand:
        """A result of the kind of `whole`."""
        return self._operand(dtype, parts, self.time, self.block_time, self._at)

    def new_row(self, parts: int) -> Operand:
        """A result of the kind of `row`, in float32."""
        return self._operand(jnp.float32, parts, 1, 1, lambda block: 0)

    def array(self, x: Array) -> Float[Array, "batch time parts*width"]:
        """A result of the kind of `whole`, or of `row`, as XLA has it."""
        return jnp.swapaxes(jax.lax.collapse(x, 1, 3), 1, 2) if self.axis else x

    def _operand(self, x, parts, time, block_time, index):
        """Of an array, or of a type."""
        shape = (self.batch, *self._ordered(time, self.width, parts))
        if not isinstance(x, jax.Array):
            x = jax.ShapeDtypeStruct(shape, x)
        elif self.axis:
            x = jnp.swapaxes(x, 1, 2).reshape(shape)

        def at(n, c, t):
            return (n, 0, c, index(t)) if self.axis else (n, index(t), c)

        spec = pl.BlockSpec((None, *self._ordered(block_time, self.block_width, parts)), at)
        return Operand(x, spec, math.prod(shape) * x.dtype.itemsize)

    def _channel(self, x):
        def at(n, c, t):
            return (c, 0) if self.axis else (0, c)

        spec = pl.BlockSpec(self._tile(1), at)
        return Operand(jnp.expand_dims(x, self.axis), spec, x.size * x.dtype.itemsize)

    def _ordered(self, time, width, parts):
        return (parts, width, time) if self.axis else (time, parts * width)

    def _tile(self, time):
        """The shape of a part of a number at so many positions."""
        return (self.block_width, time) if self.axis else (time, self.block_width)

    def _at(self, block):
        return self.num_blocks - 1 - block if self.reverse else block

    def run(
        self,
        kernel: Callable,
        others: Sequence[Operand],
        outs: Sequence[Operand],
        name: str,
        interpret: bool,
    ) -> Sequence[Array]:
        """Calls the kernel with references to the inputs, the others, and the results."""
        ins = [*self.inputs, *others]
        size = self.batch * self.time * self.width
        return pl.pallas_call(
            kernel,
            grid=self.grid,
            in_specs=[x.spec for x in ins],
            out_specs=[x.spec for x in outs],
            out_shape=[x.array for x in outs],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary")
            ),
            cost_estimate=pl.CostEstimate(
                flops=20 * size * self.parts**2,
                transcendentals=4 * size,
                bytes_accessed=sum(x.moved for x in (*ins, *outs)),
            ),
            name=name,
            interpret=interpret,
        )(*(x.array for x in ins))

    # What follows is called within kernels.

    def block(self):
        """The number of the block of time that the program is at."""
        return self._at(pl.program_id(2))

    def is_first(self):
        """Whether it is the first that the program comes to."""
        return pl.program_id(2) == 0

    def split(self, refs):
        """A function that reads tiles of the inputs, the channel parameters, and the other refs."""
        n = sum(self.is_given)
        end = n + self.num_channels
        channels = tuple(ref[...] for ref in refs[n:end])

        def tiles(rows):
            given, numbers = iter(refs[:n]), []
            for index, is_given in enumerate(self.is_given):
                parts = self.coefficients.parts_of(index)
                zeros = jnp.zeros(self._tile(self.size), jnp.float32)
                numbers.append(
                    self.read(next(given), rows, parts) if is_given else Number((zeros,) * parts)
                )
            return tuple(numbers)

        return tiles, channels, refs[end:]

    def read(self, ref, rows: Rows | None = None, parts: int = 0) -> Number:
        """Numbers of a block at some positions, or at all, in float32; by default, states."""
        parts = range(parts or self.parts)
        return Number(tuple(ref[self._index(part, rows)].astype(jnp.float32) for part in parts))

    def write(self, ref, number: Number, rows: Rows | None = None) -> None:
        """Reverses `read`."""
        for part, x in enumerate(number.parts):
            ref[self._index(part, rows)] = x.astype(ref.dtype)

    def _index(self, part, rows):
        times = slice(None) if rows is None else rows.index
        if self.axis:
            return part, slice(None), times
        return times, slice(part * self.block_width, (part + 1) * self.block_width)

    def spread(self, channels):
        """Channel parameters at every position, so that their gradients stay apart."""
        return tuple(jnp.broadcast_to(x, self._tile(self.size)) for x in channels)

    def first(self, number: Number) -> Number:
        """The first position of a tile."""
        return number.map(lambda x: jax.lax.slice_in_dim(x, 0, 1, axis=self.axis))

    def last(self, number: Number) -> Number:
        """The last position of a tile."""
        return number.map(lambda x: jax.lax.slice_in_dim(x, -1, None, axis=self.axis))

    def masked(self, rows: Rows, a: Number, b: Number) -> tuple[Number, Number]:
        """`a` and `b` of a group, such that positions behind the end pass on the state."""
        is_inside = self._is_inside(rows)
        if is_inside is None:
            return a, b
        return select(is_inside, a, 1.0), select(is_inside, b, 0.0)

    def add(self, ref, x, rows: Rows) -> None:
        """Adds the sum over positions, but those behind the end, to a row of one part."""
        is_inside = self._is_inside(rows)
        x = x if is_inside is None else jnp.where(is_inside, x, 0.0)
        x = jnp.sum(x, axis=self.axis, keepdims=True)
        self.write(ref, self.read(ref, parts=1) + Number((x,)))

    def _is_inside(self, rows):
        if self.time % self.block_time == 0:
            return None
        return rows.start + self._position() < self.time

    def _position(self):
        """Of each position of a tile, its number."""
        shape = (1, self.size) if self.axis else (self.size, 1)
        return jax.lax.broadcasted_iota(jnp.int32, shape, self.axis)

    def scan(self, a: Number, b: Number) -> tuple[Number, Number]:
        """The maps from the state that enters a tile to that after each of its positions."""
        position, distance = self._position(), 1
        while distance < self.size:
            if self.reverse:
                is_inside, shift = position < self.size - distance, self.size - distance
            else:
                is_inside, shift = position >= distance, distance
            earlier_a = select(is_inside, self._rolled(a, shift), 1.0)
            earlier_b = select(is_inside, self._rolled(b, shift), 0.0)
            a, b = a * earlier_a, a * earlier_b + b
            distance *= 2
        return a, b

    def shifted(self, number: Number, enters: Number, *, reverse: bool = False) -> Number:
        """Each position gets what the one before it has, in the direction; the first `enters`."""
        first, shift = (self.size - 1, self.size - 1) if reverse else (0, 1)
        return choose(self._position() == first, enters, self._rolled(number, shift))

    def _rolled(self, number, shift):
        return number.map(lambda x: pltpu.roll(x, shift, self.axis))

    def over_groups(self, group: Callable, state):
        """Runs `state = group(rows, state)` over the groups of a block, in the direction."""
        count, start = self.block_time // self.size, self.block() * self.block_time

        def some(number, state):
            for k in range(self.unroll):
                n = number * self.unroll + k
                n = count - 1 - n if self.reverse else n
                state = group(Rows(n, self.size, start + n * self.size), state)
            return state

        return jax.lax.fori_loop(0, count // self.unroll, some, state)


def choose(condition, x: Number, y: Number) -> Number:
    """`x` where the condition holds, `y` elsewhere."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), x, y)


def select(condition, x: Number, otherwise: float) -> Number:
    """`x` where the condition holds, a real constant elsewhere."""
    constants = (otherwise, 0.0)[: len(x.parts)]
    return Number(
        tuple(jnp.where(condition, y, z) for y, z in zip(x.parts, constants, strict=True))
    )
