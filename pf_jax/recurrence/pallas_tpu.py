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

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pf_jax.recurrence.coefficients import Coefficients
from pf_jax.recurrence.tpu_blocks import Blocks, choose


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
    call, parts = Blocks(coefficients, inputs, channel), coefficients.parts

    def kernel(*refs):
        tiles, channels, (h0_ref, h_ref, last_ref) = call.split(refs)

        @pl.when(call.is_first())
        def _():
            last_ref[...] = h0_ref[...]

        def group(rows, state):
            a, b = coefficients.numbers(tiles(rows), channels)
            a, b = call.scan(*call.masked(rows, a, b))
            call.write(h_ref, a * state + b, rows)
            return call.last(a) * state + call.last(b)

        call.write(last_ref, call.over_groups(group, call.read(last_ref)))

    others, outs = [call.row(h0, parts)], [call.new_whole(parts, dtype), call.new_row(parts)]
    h, last = map(call.array, call.run(kernel, others, outs, "linear_recurrence", interpret))
    return h, last[:, 0]


def carry(
    coefficients: Coefficients,
    inputs: Sequence[Float[Array, "batch time width"]],
    channel: Sequence[Float[Array, "width"]],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "batch parts*width"], Float[Array, "batch parts*width"]]:
    """`(decay, last)` such that the whole sequence maps `h0` to `decay h0 + last`, in float32."""
    call, parts = Blocks(coefficients, inputs, channel), coefficients.parts

    def kernel(*refs):
        tiles, channels, (decay_ref, last_ref) = call.split(refs)

        @pl.when(call.is_first())
        def _():
            call.write(decay_ref, call.read(decay_ref).full(1.0))
            last_ref[...] = jnp.zeros_like(last_ref)

        def group(rows, state):
            a, b = coefficients.numbers(tiles(rows), channels)
            a, b = call.scan(*call.masked(rows, a, b))
            decay, last = state
            return call.last(a) * decay, call.last(a) * last + call.last(b)

        state = call.read(decay_ref), call.read(last_ref)
        for ref, value in zip((decay_ref, last_ref), call.over_groups(group, state), strict=True):
            call.write(ref, value)

    outs = [call.new_row(parts)] * 2
    decay, last = call.run(kernel, [], outs, "linear_recurrence_carry", interpret)
    return call.array(decay)[:, 0], call.array(last)[:, 0]


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
    parts, num_inputs = coefficients.parts, len(inputs)
    call = Blocks(coefficients, inputs, channel, h, dh, num_outputs=num_inputs, reverse=True)

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
        entering = choose(call.block() == 0, call.read(h0_ref), call.last(call.read(before_ref)))

        def group(rows, state):
            (a, _), vjp = jax.vjp(coefficients.numbers, tiles(rows), call.spread(channels))
            a, dh_tile = call.masked(rows, a.conj(), call.read(dh_ref, rows))
            decay, s = call.scan(a, a * dh_tile)
            s = decay * state + s
            g = dh_tile + call.shifted(s, state, reverse=True)
            previous = call.last(call.read(h_ref, rows.previous()))
            previous = choose(rows.number == 0, entering, previous)
            previous = call.shifted(call.read(h_ref, rows), previous)
            dinputs, dchannels = vjp((g * previous.conj(), g))
            for ref, value in zip(dinput_refs, dinputs, strict=True):
                call.write(ref, value, rows)
            for ref, value in zip(dchannel_refs, dchannels, strict=True):
                call.add(ref, value, rows)
            return call.first(s)

        call.write(state_ref, call.over_groups(group, call.read(state_ref)))

    dtypes = [dh.dtype if x is None else x.dtype for x in inputs]
    whole = [call.new_whole(coefficients.parts_of(n), dtype) for n, dtype in enumerate(dtypes)]
    states = [call.whole(h, parts), call.before(h, parts), call.whole(dh, parts)]
    *outs, dh0 = call.run(
        kernel,
        [*states, call.row(h0, parts), call.row(dlast, parts)],
        [*whole, *(call.new_row(1) for _ in channel), call.new_row(parts)],
        "linear_recurrence_gradient",
        interpret,
    )
    outs = [call.array(x) for x in outs]
    dchannel = tuple(jnp.sum(x, axis=(0, 1)) for x in outs[num_inputs:])
    return tuple(outs[:num_inputs]), dchannel, call.array(dh0)[:, 0]


def adjoint_carry(
    coefficients: Coefficients,
    inputs: Sequence[Float[Array, "batch time width"] | None],
    channel: Sequence[Float[Array, "width"]],
    dh: Float[Array, "batch time width"],
    *,
    interpret: bool = False,
) -> Float[Array, "batch parts*width"]:
    """The adjoint `s_1` of a sequence that `dlast = 0` enters, in float32."""
    call, parts = Blocks(coefficients, inputs, channel, dh, reverse=True), coefficients.parts

    def kernel(*refs):
        tiles, channels, (dh_ref, state_ref) = call.split(refs)

        @pl.when(call.is_first())
        def _():
            state_ref[...] = jnp.zeros_like(state_ref)

        def group(rows, state):
            a, _ = coefficients.numbers(tiles(rows), channels)
            a, dh_tile = call.masked(rows, a.conj(), call.read(dh_ref, rows))
            decay, s = call.scan(a, a * dh_tile)
            return call.first(decay) * state + call.first(s)

        call.write(state_ref, call.over_groups(group, call.read(state_ref)))

    others, outs = [call.whole(dh, parts)], [call.new_row(parts)]
    (s,) = call.run(kernel, others, outs, "linear_recurrence_adjoint_carry", interpret)
    return call.array(s)[:, 0]
