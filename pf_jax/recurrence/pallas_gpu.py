"""The recurrence as one Pallas kernel for NVIDIA GPUs: a warpgroup takes the rows of time in turn.

It is written for Pallas' Mosaic GPU backend, the one that is maintained: since JAX 0.11 the Triton
one is deprecated, warns at every use and is to be removed. With JAX 0.10 Mosaic compiles for
Hopper (H100) and newer, from 0.11 on for Ampere (A100) too; an older card is refused.

A program of the grid has one sequence, a block of channels of which each thread holds one or two,
and a chunk of time. The state stays in registers. Rows are loaded in groups, the next one while
this one is worked on, so that memory never waits for the chain of multiply-adds. Where sequences
and blocks alone are too few for the machine, time is cut into chunks: a first pass finds the affine
map of each, which takes a second reading of the inputs, and the states between chunks are again a
recurrence, a short one. Nothing is transposed or padded around the kernels.

The coefficients `a` and `b` are computed where they are used, from whatever arrays they depend on,
and so are the gradients of these arrays (by `jax.vjp` inside of the kernel).
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import LoweringSemantics
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from pf_jax.recurrence.coefficients import PLAIN, Coefficients
from pf_jax.recurrence.inlining import inlined

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
    h, last = _states(_Call(inputs, channel, interpret=interpret), coefficients, h0, dtype)
    return h, last[:, -1]


def carry(
    coefficients: Coefficients,
    inputs: Sequence[Float[Array, "batch time width"]],
    channel: Sequence[Float[Array, "width"]],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "batch width"], Float[Array, "batch width"]]:
    """`(decay, last)` such that the whole sequence maps `h0` to `decay h0 + last`, in float32."""
    return _whole_map(_Call(inputs, channel, interpret=interpret), coefficients)


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
    call = _Call(inputs, channel, h, dh, reverse=True, interpret=interpret)
    # As many arrays, and so the same chunks.
    adjoint = _Call((*inputs, dh), channel, h, reverse=True, interpret=interpret)
    enters = _entering(adjoint, _adjoint(coefficients), dlast)

    @inlined
    def pull_back(inputs, channel, cotangents):
        (a, _), vjp = jax.vjp(coefficients, inputs, channel)
        return a, vjp(cotangents)

    def kernel(at, *refs):
        tiles, channels, (h_ref, dh_ref, h0_ref, enters_ref, *outs) = call.split(at, refs)
        dinput_refs, sum_refs = outs[: len(inputs)], outs[len(inputs) :]
        before_first = at.load(h0_ref, at.batch)

        def load(t):
            previous = at.load(h_ref, at.batch, jnp.maximum(t - 1, 0))
            return tiles(t), previous, at.load(dh_ref, at.batch, t)

        def step(t, loaded, state):
            tile, previous, dh_tile = loaded
            previous = jnp.where(t == 0, before_first, previous.astype(jnp.float32))
            s, *sums = state
            g = dh_tile.astype(jnp.float32) + s
            a, (dinputs, dchannels) = pull_back(call.filled(tile), channels, (g * previous, g))
            for ref, value in zip(dinput_refs, dinputs, strict=True):
                at.store(ref, value, at.batch, t)
            return a * g, *(x + dx for x, dx in zip(sums, dchannels, strict=True))

        start = at.load(enters_ref, at.batch, at.chunk)
        ends = call.walk(at, load, step, (start, *(at.zero() for _ in channel)))
        for ref, value in zip(sum_refs, ends, strict=True):
            at.store(ref, value, at.batch, at.chunk)

    dtypes = [dh.dtype if x is None else x.dtype for x in inputs]
    outs = [*map(call.whole, dtypes), *[call.per_chunk] * (1 + len(channel))]
    outs = call.run(kernel, [h, dh, h0, enters], outs, "linear_recurrence_gradient")
    s, *sums = outs[len(inputs) :]
    return tuple(outs[: len(inputs)]), tuple(jnp.sum(x, axis=(0, 1)) for x in sums), s[:, 0]


def adjoint_carry(
    coefficients: Coefficients,
    inputs: Sequence[Float[Array, "batch time width"] | None],
    channel: Sequence[Float[Array, "width"]],
    dh: Float[Array, "batch time width"],
    *,
    interpret: bool = False,
) -> Float[Array, "batch width"]:
    """The adjoint `s_1` of a sequence that `dlast = 0` enters, in float32."""
    call = _Call((*inputs, dh), channel, reverse=True, interpret=interpret)
    return _whole_map(call, _adjoint(coefficients))[1]


def _adjoint(coefficients: Callable) -> Callable:
    """The adjoint `s_t = a_t s_{t+1} + a_t dh_t` as a recurrence, `dh` its last input."""

    def function(inputs, channel):
        *inputs, dh = inputs
        a, _ = coefficients(tuple(inputs), channel)
        return a, a * dh

    return function


def _states(call: "_Call", coefficients: Callable, start, dtype):
    """All states in the call's direction of time, and in float32 those at the ends of chunks."""
    enters, coefficients = _entering(call, coefficients, start), inlined(coefficients)

    def kernel(at, *refs):
        tiles, channels, (enters_ref, h_ref, last_ref) = call.split(at, refs)

        def step(t, tile, state):
            a, b = coefficients(call.filled(tile), channels)
            state = a * state + b
            at.store(h_ref, state, at.batch, t)
            return state

        state = call.walk(at, tiles, step, at.load(enters_ref, at.batch, at.chunk))
        at.store(last_ref, state, at.batch, at.chunk)

    return call.run(kernel, [enters], [call.whole(dtype), call.per_chunk], "linear_recurrence")


def _maps(call: "_Call", coefficients: Callable):
    """`(decay, last)` of each chunk: its map of the state before it, (batch, chunk, width)."""
    coefficients = inlined(coefficients)

    def kernel(at, *refs):
        tiles, channels, out_refs = call.split(at, refs)

        def step(t, tile, state):
            del t
            a, b = coefficients(call.filled(tile), channels)
            return a * state[0], a * state[1] + b

        ends = call.walk(at, tiles, step, (at.zero() + 1.0, at.zero()))
        for ref, value in zip(out_refs, ends, strict=True):
            at.store(ref, value, at.batch, at.chunk)

    return call.run(kernel, [], [call.per_chunk] * 2, "linear_recurrence_carry")


def _whole_map(call: "_Call", coefficients: Callable):
    """`(decay, last)` of the sequence: the maps of its chunks are a recurrence themselves."""
    maps = _maps(call, coefficients)
    if call.plan.num_chunks > 1:
        return _whole_map(call.of(maps), PLAIN)
    return tuple(x[:, 0] for x in maps)


def _entering(call: "_Call", coefficients: Callable, start):
    """The state before each chunk in the direction of the call, (batch, chunk, width)."""
    first = start[:, None]
    if call.plan.num_chunks == 1:
        return first
    after, _ = _states(call.of(_maps(call, coefficients)), PLAIN, start, jnp.float32)
    parts = (after[:, 1:], first) if call.reverse else (first, after[:, :-1])
    return jnp.concatenate(parts, axis=1)


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


class _At(NamedTuple):
    """Where a program works: its sequence, channels, chunk, and the positions of that.

    A row of its channels has `shape` and is spread over the threads as `layout` says.
    """

    batch: Any
    lanes: Any
    chunk: Any
    start: Any
    count: Any
    shape: tuple[int, ...]
    layout: Any

    def load(self, ref, *row):
        if self.layout is None:
            return ref[(*row, self.lanes)]
        ref = ref.at[(*row, self.lanes)]
        return plgpu.load(ref, *_NO_INDEX, layout=self.layout, optimized=False)

    def store(self, ref, value, *row):
        ref[(*row, self.lanes)] = value.astype(ref.dtype)

    def zero(self):
        zeros = jnp.zeros(self.shape, jnp.float32)
        return zeros if self.layout is None else plgpu.layout_cast(zeros, self.layout)


class _Call:
    """The grid of a kernel, and what all kernels do in it."""

    def __init__(self, inputs, channel, *others, reverse: bool = False, interpret: bool = False):
        self.inputs, self.channel = inputs, channel
        self.given = [x for x in inputs if x is not None]
        self.reverse, self.interpret = reverse, interpret
        self.shape = batch, self.time, self.width = self.given[0].shape
        self.plan = plan(*self.shape, len(self.given) + len(others))
        self.num_blocks = pl.cdiv(self.width, self.plan.block_width)
        self.num_programs = batch * self.plan.num_chunks * self.num_blocks
        # The types of outputs.
        self.whole = functools.partial(jax.ShapeDtypeStruct, self.shape)
        self.per_chunk = jax.ShapeDtypeStruct(
            (batch, self.plan.num_chunks, self.width), jnp.float32
        )

    def of(self, maps):
        """For the recurrence over chunks, in the same direction."""
        return _Call(maps, (), reverse=self.reverse, interpret=self.interpret)

    def split(self, at: _At, refs):
        """How to load inputs at a position, the channel parameters, and the other references."""
        ends = len(self.given), len(self.given) + len(self.channel)
        channels = tuple(at.load(ref) for ref in refs[slice(*ends)])
        return (
            lambda t: [at.load(r, at.batch, t) for r in refs[: ends[0]]],
            channels,
            refs[ends[1] :],
        )

    def filled(self, tiles):
        """All inputs in float32, zeros for those that are not given."""
        tiles = [x.astype(jnp.float32) for x in tiles]
        zeros, rest = jnp.zeros_like(tiles[0]), iter(tiles)
        return tuple(zeros if x is None else next(rest) for x in self.inputs)

    def walk(self, at: _At, load: Callable, step: Callable, state):
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
            first = jnp.minimum(first, self.shape[1] - rows)
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

    def _at(self, program, layout) -> _At:
        """Neighbours in the grid are neighbours in memory."""
        block, program = program % self.num_blocks, program // self.num_blocks
        chunk, batch = program % self.plan.num_chunks, program // self.plan.num_chunks
        width, start = self.plan.block_width, chunk * self.plan.chunk
        lanes = jnp.minimum(block * width, self.width - width)
        count = jnp.minimum(self.plan.chunk, self.shape[1] - start)
        if width == 1:
            return _At(batch, lanes, chunk, start, count, (), None)
        return _At(batch, pl.ds(lanes, width), chunk, start, count, (width,), layout)


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
