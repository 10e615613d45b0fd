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

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pf_jax.recurrence.coefficients import PLAIN, PLAIN_COMPLEX, Coefficients
from pf_jax.recurrence.gpu_programs import Programs
from pf_jax.recurrence.inlining import inlined
from pf_jax.recurrence.number import Number


def forward(
    coefficients: Coefficients,
    inputs: Sequence[Float[Array, "batch time width"]],
    channel: Sequence[Float[Array, "width"]],
    h0: Float[Array, "batch parts*width"],
    dtype: Any,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "batch time width"], Float[Array, "batch parts*width"]]:
    """All states in `dtype`, and the last one in float32; see `portable.forward`."""
    call = Programs(coefficients, inputs, channel, interpret=interpret)
    h, last = _states(call, h0, dtype)
    return h, last[:, -1]


def carry(
    coefficients: Coefficients,
    inputs: Sequence[Float[Array, "batch time width"]],
    channel: Sequence[Float[Array, "width"]],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "batch parts*width"], Float[Array, "batch parts*width"]]:
    """`(decay, last)` such that the whole sequence maps `h0` to `decay h0 + last`, in float32."""
    return _whole_map(Programs(coefficients, inputs, channel, interpret=interpret))


def gradient(
    coefficients: Coefficients,
    inputs: Sequence[Float[Array, "batch time width"] | None],
    channel: Sequence[Float[Array, "width"]],
    h0: Float[Array, "batch parts*width"],
    h: Float[Array, "batch time width"],
    dh: Float[Array, "batch time width"],
    dlast: Float[Array, "batch parts*width"],
    *,
    interpret: bool = False,
) -> tuple[
    tuple[Float[Array, "batch time width"], ...],
    tuple[Float[Array, "width"], ...],
    Float[Array, "batch parts*width"],
]:
    """The gradients of inputs, channel parameters and `h0`; see `portable.gradient`."""
    parts, how = coefficients.parts, {"reverse": True, "interpret": interpret}
    call = Programs(coefficients, inputs, channel, h, dh, **how)
    # As many arrays, and so the same chunks.
    adjoint = Programs(_adjoint(coefficients, inputs), (*inputs, dh), channel, h, **how)
    enters = _entering(adjoint, dlast)

    @inlined
    def pull_back(inputs, channel, previous, g):
        (a, _), vjp = jax.vjp(coefficients.numbers, inputs, channel)
        return a.conj() * g, vjp((g * previous.conj(), g))

    def kernel(at, *refs):
        tiles, channels, (h_ref, dh_ref, h0_ref, enters_ref, *outs) = call.split(at, refs)
        dinput_refs, sum_refs = outs[: len(inputs)], outs[len(inputs) :]
        before_first = at.load(h0_ref, parts, at.batch)

        def load(t):
            previous = at.load(h_ref, parts, at.batch, jnp.maximum(t - 1, 0))
            return tiles(t), previous, at.load(dh_ref, parts, at.batch, t)

        def step(t, loaded, state):
            tile, previous, dh_tile = loaded
            previous = jax.tree.map(
                lambda x, y: jnp.where(t == 0, x, y.astype(jnp.float32)), before_first, previous
            )
            s, sums = state
            g = dh_tile.map(lambda x: x.astype(jnp.float32)) + s
            s, (dinputs, dchannels) = pull_back(call.filled(tile), channels, previous, g)
            for ref, value in zip(dinput_refs, dinputs, strict=True):
                at.store(ref, value, at.batch, t)
            return s, [x + dx for x, dx in zip(sums, dchannels, strict=True)]

        start = at.load(enters_ref, parts, at.batch, at.chunk)
        s, sums = call.walk(at, load, step, (start, [at.constant(0.0) for _ in channel]))
        for ref, value in zip(sum_refs, (s, *map(Number.of, sums)), strict=True):
            at.store(ref, value, at.batch, at.chunk)

    dtypes = [dh.dtype if x is None else x.dtype for x in inputs]
    whole = [call.whole(coefficients.parts_of(n), dtype) for n, dtype in enumerate(dtypes)]
    chunks = [call.per_chunk(parts), *(call.per_chunk(1) for _ in channel)]
    name = "linear_recurrence_gradient"
    outs = call.run(kernel, [h, dh, h0, enters], [*whole, *chunks], name)
    s, *sums = outs[len(inputs) :]
    return tuple(outs[: len(inputs)]), tuple(jnp.sum(x, axis=(0, 1)) for x in sums), s[:, 0]


def adjoint_carry(
    coefficients: Coefficients,
    inputs: Sequence[Float[Array, "batch time width"] | None],
    channel: Sequence[Float[Array, "width"]],
    dh: Float[Array, "batch time width"],
    *,
    interpret: bool = False,
) -> Float[Array, "batch parts*width"]:
    """The adjoint `s_1` of a sequence that `dlast = 0` enters, in float32."""
    adjoint = _adjoint(coefficients, inputs)
    call = Programs(adjoint, (*inputs, dh), channel, reverse=True, interpret=interpret)
    return _whole_map(call)[1]


def _adjoint(coefficients: Coefficients, inputs) -> Coefficients:
    """The adjoint `s_t = a_t s_{t+1} + a_t dh_t` as a recurrence, `dh` its last input."""

    def function(inputs, channel):
        *inputs, dh = inputs
        a, _ = coefficients(tuple(inputs), channel)
        a = Number.of(a).conj()
        return a.value, (a * Number.of(dh)).value

    are_complex = coefficients.complex_inputs
    return Coefficients(
        function, complex_inputs=None if are_complex is None else (*are_complex, len(inputs))
    )


def _states(call: Programs, start, dtype):
    """All states in the call's direction of time, and in float32 those at the ends of chunks."""
    enters, coefficients = _entering(call, start), inlined(call.coefficients.numbers)

    def kernel(at, *refs):
        tiles, channels, (enters_ref, h_ref, last_ref) = call.split(at, refs)

        def step(t, tile, state):
            a, b = coefficients(call.filled(tile), channels)
            state = a * state + b
            at.store(h_ref, state, at.batch, t)
            return state

        state = call.walk(at, tiles, step, at.load(enters_ref, call.parts, at.batch, at.chunk))
        at.store(last_ref, state, at.batch, at.chunk)

    outs = [call.whole(call.parts, dtype), call.per_chunk(call.parts)]
    return call.run(kernel, [enters], outs, "linear_recurrence")


def _maps(call: Programs):
    """`(decay, last)` of each chunk: its map of the state before it, (batch, chunk, width)."""
    coefficients = inlined(call.coefficients.numbers)

    def kernel(at, *refs):
        tiles, channels, out_refs = call.split(at, refs)

        def step(t, tile, state):
            del t
            a, b = coefficients(call.filled(tile), channels)
            return a * state[0], a * state[1] + b

        one, zero = (at.number(value, call.parts) for value in (1.0, 0.0))
        ends = call.walk(at, tiles, step, (one, zero))
        for ref, value in zip(out_refs, ends, strict=True):
            at.store(ref, value, at.batch, at.chunk)

    return call.run(kernel, [], [call.per_chunk(call.parts)] * 2, "linear_recurrence_carry")


def _over_chunks(call: Programs):
    """The recurrence of the states between chunks, in the same direction."""
    plain = PLAIN if call.parts == 1 else PLAIN_COMPLEX
    return Programs(plain, _maps(call), (), reverse=call.reverse, interpret=call.interpret)


def _whole_map(call: Programs):
    """`(decay, last)` of the sequence: the maps of its chunks are a recurrence themselves."""
    if call.plan.num_chunks > 1:
        return _whole_map(_over_chunks(call))
    return tuple(x[:, 0] for x in _maps(call))


def _entering(call: Programs, start):
    """The state before each chunk in the direction of the call, (batch, chunk, width)."""
    first = start[:, None]
    if call.plan.num_chunks == 1:
        return first
    after, _ = _states(_over_chunks(call), start, jnp.float32)
    parts = (after[:, 1:], first) if call.reverse else (first, after[:, :-1])
    return jnp.concatenate(parts, axis=1)
