"""The grid of the Pallas kernels for GPUs: what a program works on, and how it walks over time."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import LoweringSemantics
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from pf_jax.recurrence.coefficients import Coefficients
from pf_jax.recurrence.number import Number

_THREADS = 128  # Of a warpgroup, which is a program.
_MULTIPROCESSORS = 132  # Of an H100: there may be no GPU to ask where a program is compiled.
_MAX_VECTOR = 2  # Channels of a thread.
_MAX_ROWS = 16  # Of a group.
_REGISTERS = 48  # Of a thread, for a group that is on its way.
_FULL = 4 * _MULTIPROCESSORS  # Programs that are enough.
# Chunks cost a second reading of the inputs: they begin where fewer programs than this would cost
# more than that.
_MIN_PROGRAMS = 3 * _MULTIPROCESSORS // 4
_MIN_CHUNK = 64
_OLDEST = 9 if jax.__version_info__ < (0, 11) else 8  # Major compute capability.
# Loading from an indexed reference is newer than JAX 0.10, where an index must be given.
_INDEX = inspect.signature(plgpu.load).parameters["idx"]
_NO_INDEX = (None,) if _INDEX.default is inspect.Parameter.empty else ()


class Plan(NamedTuple):
    """How sequences are divided.

    Attributes:
        block_width: Channels of a program.
        vector: Channels of a thread.
        rows: Positions that are loaded at once.
        num_chunks: Pieces of time.
        chunk: Positions of a piece; the last one may have fewer.
    """

    block_width: int
    vector: int
    rows: int
    num_chunks: int
    chunk: int


def plan(batch: int, time: int, width: int, num_arrays: int) -> Plan:
    """Chooses for arrays of that shape, of which so many are read."""
    vector = _MAX_VECTOR
    while vector > 1 and (
        width % vector  # Vectors must be aligned in every row.
        or width < _THREADS * vector
        or batch * pl.cdiv(width, _THREADS * vector) < _FULL
    ):
        vector //= 2
    # The last block ends where the rows end, so it overlaps the one before it: none sticks out.
    # Where there are fewer channels than threads, several threads have the same one.
    block_width = min(_THREADS * vector, _power_of_two(width))
    programs = batch * pl.cdiv(width, block_width)
    rows = _power_of_two(min(_MAX_ROWS, time, max(1, _REGISTERS // (vector * num_arrays))))
    num_chunks = 1
    if programs < _MIN_PROGRAMS:
        num_chunks = min(pl.cdiv(_FULL, programs), max(1, time // _MIN_CHUNK))
    chunk = pl.cdiv(pl.cdiv(time, num_chunks), rows) * rows
    return Plan(block_width, vector, rows, pl.cdiv(time, chunk), chunk)


def _power_of_two(at_most: int) -> int:
    return 1 << (at_most.bit_length() - 1)


class At(NamedTuple):
    """Where a program works: its sequence, first channel, chunk, and the positions of that.

    A row of its channels has `shape` and is spread over the threads as `layout` says; the parts of
    a number are `width` channels apart in memory.
    """

    batch: Any
    channel: Any
    chunk: Any
    start: Any
    count: Any
    width: int
    shape: tuple[int, ...]
    layout: Any

    def load(self, ref, parts, *row) -> Number:
        """A number of its channels, in the type that it has in memory."""
        return Number(tuple(self._load(ref, (*row, self._lanes(part))) for part in range(parts)))

    def _load(self, ref, index):
        if self.layout is None:
            return ref[index]
        return plgpu.load(ref.at[index], *_NO_INDEX, layout=self.layout, optimized=False)

    def store(self, ref, number: Number, *row) -> None:
        """Reverses `load`."""
        for part, value in enumerate(number.parts):
            ref[(*row, self._lanes(part))] = value.astype(ref.dtype)

    def _lanes(self, part):
        start = self.channel + part * self.width
        return pl.ds(start, *self.shape) if self.shape else start

    def constant(self, value: float):
        """A row of it."""
        row = jnp.full(self.shape, value, jnp.float32)
        return row if self.layout is None else plgpu.layout_cast(row, self.layout)

    def number(self, value: float, parts: int) -> Number:
        """A row of a real number."""
        return Number(tuple(self.constant(x) for x in (value, 0.0)[:parts]))


class Programs:
    """The grid of a kernel, and what all kernels do in it."""

    def __init__(
        self,
        coefficients: Coefficients,
        inputs: Sequence[Float[Array, "batch time width"] | None],
        channel: Sequence[Float[Array, "width"]],
        *others: Float[Array, "batch time parts*width"],
        reverse: bool = False,
        interpret: bool = False,
    ):
        """Chooses the grid.

        Args:
            coefficients: What `a` and `b` are made of.
            inputs: Their inputs, None for those that gradients do not depend on.
            channel: Parameters of the channels.
            *others: Arrays of states that are read, too.
            reverse: Whether the last position comes first.
            interpret: Whether the kernel is interpreted.
        """
        self.coefficients, self.parts = coefficients, coefficients.parts
        self.inputs, self.channel = inputs, channel
        self.reverse, self.interpret = reverse, interpret
        given = [(x, coefficients.parts_of(n)) for n, x in enumerate(inputs) if x is not None]
        self.given = [x for x, _ in given]
        x, parts = given[0]
        self.batch, self.time, self.width = *x.shape[:2], x.shape[2] // parts
        num_arrays = sum(parts for _, parts in given) + self.parts * len(others)
        self.plan = plan(self.batch, self.time, self.width, num_arrays)
        self.num_blocks = pl.cdiv(self.width, self.plan.block_width)
        self.num_programs = self.batch * self.plan.num_chunks * self.num_blocks

    def whole(self, parts: int, dtype: Any) -> jax.ShapeDtypeStruct:
        """The type of a result of the shape of inputs."""
        return jax.ShapeDtypeStruct((self.batch, self.time, parts * self.width), dtype)

    def per_chunk(self, parts: int) -> jax.ShapeDtypeStruct:
        """The type of a result that has a number for each chunk."""
        shape = (self.batch, self.plan.num_chunks, parts * self.width)
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def split(self, at: At, refs):
        """How to load inputs at a position, the channel parameters, and the other references."""
        n, m = len(self.given), len(self.channel)
        parts = [self.coefficients.parts_of(k) for k, x in enumerate(self.inputs) if x is not None]

        def tiles(t):
            return [at.load(ref, p, at.batch, t) for ref, p in zip(refs[:n], parts, strict=True)]

        channels = tuple(at.load(ref, 1).value for ref in refs[n : n + m])
        return tiles, channels, refs[n + m :]

    def filled(self, tiles) -> tuple[Number, ...]:
        """All inputs in float32, zeros for those that are not given."""
        tiles = [number.map(lambda x: x.astype(jnp.float32)) for number in tiles]
        zeros, rest = jnp.zeros_like(tiles[0].parts[0]), iter(tiles)
        return tuple(
            Number((zeros,) * self.coefficients.parts_of(n)) if x is None else next(rest)
            for n, x in enumerate(self.inputs)
        )

    def walk(self, at: At, load: Callable, step: Callable, state):
        """Runs `state = step(t, load(t), state)` over a chunk, in the direction of time."""
        rows, last = self.plan.rows, at.start + at.count - 1

        def position(n):
            return last - n if self.reverse else at.start + n

        def group(number):
            # The one behind the last is not used, but must lie within the array.
            first = position(number * rows)
            if self.reverse:
                first = jnp.maximum(first, rows - 1)
                return [load(first - n) for n in range(rows)]
            first = jnp.minimum(first, self.time - rows)
            return [load(first + n) for n in range(rows)]

        def steps(number, carried):
            state, loaded = carried
            following = group(number + 1)
            for n in range(rows):
                state = step(position(number * rows + n), loaded[n], state)
            # Without it LLVM moves the loads to where they are used in a kernel with no stores.
            return jax.lax.optimization_barrier(state), following

        def single(n, state):
            return step(position(n), load(position(n)), state)

        num_groups = at.count // rows
        state, _ = jax.lax.fori_loop(0, num_groups, steps, (state, group(0)))
        return jax.lax.fori_loop(num_groups * rows, at.count, single, state)

    def run(self, kernel, others, outs, name: str):
        """Calls `kernel(at, *refs)` with references to inputs, channel, others and outputs."""
        args, grid = [*self.given, *self.channel, *others], (self.num_programs,)
        if self.interpret:

            def interpreted(*refs):
                kernel(self._at(pl.program_id(0), None), *refs)

            return pl.pallas_call(interpreted, grid=grid, out_shape=outs, interpret=True)(*args)
        _check_device()

        def compiled(*refs):
            layout = _layout(self.plan.block_width, self.plan.vector)
            kernel(self._at(jax.lax.axis_index("program"), layout), *refs)

        return plgpu.kernel(
            compiled,
            out_type=outs,
            grid=grid,
            grid_names=("program",),
            kernel_name=name,
            compiler_params=plgpu.CompilerParams(
                unsafe_no_auto_barriers=True,  # A thread reads and writes its own channels only.
                lowering_semantics=LoweringSemantics.Lane,
            ),
        )(*args)

    def _at(self, program, layout) -> At:
        """Neighbours in the grid are neighbours in memory."""
        block, program = program % self.num_blocks, program // self.num_blocks
        chunk, batch = program % self.plan.num_chunks, program // self.plan.num_chunks
        width, start = self.plan.block_width, chunk * self.plan.chunk
        channel = jnp.minimum(block * width, self.width - width)
        count = jnp.minimum(self.plan.chunk, self.time - start)
        if width == 1:
            return At(batch, channel, chunk, start, count, self.width, (), None)
        return At(batch, channel, chunk, start, count, self.width, (width,), layout)


def _layout(width: int, vector: int):
    """Neighbouring channels in neighbouring threads; of few channels, copies in the others."""
    if width == 1:
        return None
    if width == _THREADS * vector:
        return plgpu.Layout.WG_STRIDED((width,), vec_size=vector)
    warp = min(width, 32)
    copies = plgpu.Replicated(4 * warp // width)
    tiling = plgpu.Tiling(((width,), (warp,), (1,)) if width > warp else ((width,), (1,)))
    lanes = (-2,) if warp == 32 else (plgpu.Replicated(32 // warp), -2)
    warps = (copies, -3) if width > warp else (copies,)
    return plgpu.Layout.TILED(tiling, warp_dims=warps, lane_dims=lanes, vector_dim=-1)


def _check_device():
    """Raises for a card for which the compiler would end the process, not just fail."""
    if jax.default_backend() != "gpu":
        return  # It is lowered for one that is elsewhere.
    device = jax.devices()[0]
    capability = str(getattr(device, "compute_capability", "unknown"))
    major = capability.split(".")[0]
    if not major.isdigit() or int(major) < _OLDEST:
        raise NotImplementedError(
            f"With JAX {jax.__version__} this needs compute capability {_OLDEST}.0 or newer; that "
            f"of {device.device_kind} is {capability}."
        )
