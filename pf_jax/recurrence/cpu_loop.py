"""The recurrence on a CPU, as one loop that reads each array and writes its result once.

XLA makes one kernel of everything: rows of the batch one after the other, positions in their order,
channels in vector registers. Of `jax.lax.scan` it makes a kernel of each operation, and to go from
one to the next takes longer than the arithmetic of a position.

The coefficients `a` and `b` are computed where they are used, from whatever arrays they depend on,
and so are the gradients of these arrays (by `jax.vjp` inside of the loop).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from pf_jax.one_kernel import one_kernel
from pf_jax.recurrence.coefficients import Coefficients
from pf_jax.recurrence.number import Number, join, split


def forward(
    coefficients: Coefficients,
    inputs: Sequence[Inexact[Array, "batch time width"]],
    channel: Sequence[Inexact[Array, "width"]],
    h0: Inexact[Array, "batch parts*width"],
    dtype: Any,
) -> tuple[Inexact[Array, "batch time parts*width"], Inexact[Array, "batch parts*width"]]:
    """All states in `dtype`, and the last one in the type of `h0`; see `portable.forward`."""
    given = _Kept.all(coefficients, inputs)

    def step(at, h):
        a, b = coefficients.numbers(at.inputs(given), channel)
        h = a * h + b
        return h, [h]

    h, last = _walk(step, inputs[0].shape[1], split(h0, coefficients.parts), [dtype])
    return h[0], join(last)


def carry(
    coefficients: Coefficients,
    inputs: Sequence[Inexact[Array, "batch time width"]],
    channel: Sequence[Inexact[Array, "width"]],
) -> tuple[Inexact[Array, "batch parts*width"], Inexact[Array, "batch parts*width"]]:
    """`(decay, last)` such that the whole sequence maps `h0` to `decay h0 + last`."""
    given = _Kept.all(coefficients, inputs)

    def step(at, state):
        a, b = coefficients.numbers(at.inputs(given), channel)
        decay, last = state
        return (a * decay, a * last + b), []

    batch, time, _ = inputs[0].shape
    dtype = jnp.promote_types(jnp.result_type(*inputs), jnp.float32)
    nothing = jnp.zeros((batch, coefficients.width(inputs)), dtype)
    nothing = Number((nothing,) * coefficients.parts)
    _, (decay, last) = _walk(step, time, (nothing.full(1.0), nothing), [])
    return join(decay), join(last)


def gradient(
    coefficients: Coefficients,
    inputs: Sequence[Inexact[Array, "batch time width"] | None],
    channel: Sequence[Inexact[Array, "width"]],
    h0: Inexact[Array, "batch parts*width"],
    h: Inexact[Array, "batch time parts*width"],
    dh: Inexact[Array, "batch time parts*width"],
    dlast: Inexact[Array, "batch parts*width"],
) -> tuple[
    tuple[Inexact[Array, "batch time width"], ...],
    tuple[Inexact[Array, "width"], ...],
    Inexact[Array, "batch parts*width"],
]:
    """The gradients of inputs, channel parameters and `h0`; see `portable.gradient`."""
    parts = coefficients.parts
    before_first = split(h0, parts)
    given, states, cotangents = (
        _Kept.all(coefficients, inputs),
        _Kept.of(h, parts),
        _Kept.of(dh, parts),
    )

    def step(at, state):
        s, sums = state
        (a, _), vjp = jax.vjp(coefficients.numbers, at.inputs(given), at.spread(channel))
        g = at.read(cotangents) + s
        previous = at.before().read(states)
        previous = jax.tree.map(
            lambda x, y: jax.lax.select(at.time == 0, x, y), at.row(before_first), previous
        )
        dinputs, dchannel = vjp((g * previous.conj(), g))
        return (a.conj() * g, tuple(map(jnp.add, sums, dchannel))), dinputs

    start = split(dlast, parts)
    zeros = tuple(jnp.zeros_like(start.parts[0]) for _ in channel)
    dtypes = [dh.dtype if x is None else x.dtype for x in inputs]
    dinputs, (dh0, sums) = _walk(step, h.shape[1], (start, zeros), dtypes, reverse=True)
    return tuple(dinputs), tuple(jnp.sum(x, axis=0) for x in sums), join(dh0)


def adjoint_carry(
    coefficients: Coefficients,
    inputs: Sequence[Inexact[Array, "batch time width"] | None],
    channel: Sequence[Inexact[Array, "width"]],
    dh: Inexact[Array, "batch time parts*width"],
) -> Inexact[Array, "batch parts*width"]:
    """The adjoint `s_1` of a sequence that `dlast = 0` enters; see `portable.adjoint_carry`."""
    given, cotangents = _Kept.all(coefficients, inputs), _Kept.of(dh, coefficients.parts)

    def step(at, s):
        a, _ = coefficients.numbers(at.inputs(given), channel)
        return a.conj() * (at.read(cotangents) + s), []

    dtype = jnp.promote_types(dh.dtype, jnp.float32)
    start = split(jnp.zeros_like(dh[:, 0], dtype), coefficients.parts)
    return join(_walk(step, dh.shape[1], start, [], reverse=True)[1])


class _Kept(NamedTuple):
    """A (batch, time, parts * width) array of numbers, as the loop has it.

    Of a type of 16 bits it has the bits: in a loop, XLA would convert the whole of such an array to
    float32 and back at every position.
    """

    array: Array | None
    parts: int
    dtype: Any

    @classmethod
    def of(cls, x: Array | None, parts: int) -> Self:
        """Of an array; of None, which stands for zeros."""
        if x is None:
            return cls(None, parts, None)
        bits = _bits(x.dtype)
        return cls(x if bits == x.dtype else _as(x, bits), parts, x.dtype)

    @classmethod
    def all(cls, coefficients: Coefficients, inputs: Sequence[Array | None]) -> list[Self]:
        """Of the inputs of a recurrence."""
        return [cls.of(x, coefficients.parts_of(n)) for n, x in enumerate(inputs)]


_as = jax.lax.bitcast_convert_type


def _bits(dtype: Any) -> Any:
    """The type in which an array of a type is kept."""
    return jnp.uint16 if jnp.dtype(dtype).itemsize == 2 else dtype


class _At(NamedTuple):
    """A position of a sequence: what is read there is of shape (1, 1, width)."""

    batch: Any
    time: Any
    width: int
    dtype: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parts of numbers."""
        return 1, 1, self.width

    def before(self) -> Self:
        """The position before it; of the first, itself."""
        return self._replace(time=jax.lax.max(self.time - 1, 0))

    def read(self, x: _Kept) -> Number:
        """The number that stands there."""
        if x.array is None:
            return Number((jnp.zeros(self.shape, self.dtype),) * x.parts)
        starts = [(self.batch, self.time, part * self.width) for part in range(x.parts)]
        parts = (jax.lax.dynamic_slice(x.array, start, self.shape) for start in starts)
        if x.array.dtype != x.dtype:
            parts = (_as(part, x.dtype) for part in parts)
        return Number(tuple(part.astype(self.dtype) for part in parts))

    def write(self, out: Array, number: Number, dtype: Any) -> Array:
        """The array with the number in that place."""
        for part, x in enumerate(number.parts):
            x = x.astype(dtype)
            x = x if out.dtype == dtype else _as(x, out.dtype)
            start = (self.batch, self.time, part * self.width)
            out = jax.lax.dynamic_update_slice(out, x, start)
        return out

    def inputs(self, given: Sequence[_Kept]) -> tuple[Number, ...]:
        """All inputs of the coefficients."""
        return tuple(map(self.read, given))

    def row(self, tree: Any) -> Any:
        """What (batch, width) arrays have for the sequence."""
        return jax.tree.map(
            lambda x: jax.lax.dynamic_slice(x, (self.batch, 0), (1, self.width))[:, None], tree
        )

    def spread(self, channel: Sequence[Array]) -> tuple[Array, ...]:
        """Parameters of the channels in the shape of what is read."""
        return tuple(jnp.broadcast_to(x.astype(self.dtype), self.shape) for x in channel)


def _walk(
    step: Callable, time: int, start: Any, dtypes: Sequence[Any], *, reverse: bool = False
) -> tuple[list[Array], Any]:
    """Runs `state, numbers = step(at, state)` at all positions of all sequences.

    Args:
        step: The function.
        time: Positions of a sequence.
        start: The states at first: any tree of (batch, width) arrays of one type.
        dtypes: Types of the arrays that the numbers of all positions make.
        reverse: Whether the last position comes first.

    Returns:
        These arrays, and the states in the end.
    """
    batch, width = jax.tree.leaves(start)[0].shape
    dtype = jax.tree.leaves(start)[0].dtype
    first = _At(0, 0, width, dtype)
    _, numbers = jax.eval_shape(lambda: step(first, first.row(start)))
    widths = [len(x.parts) * width for x in numbers]

    def run():
        def row(n, results):
            def position(place, values):
                state, outs = values
                at = _At(n, time - 1 - place if reverse else place, width, dtype)
                state, numbers = step(at, state)
                return state, list(map(at.write, outs, numbers, dtypes))

            outs, last = results
            state, outs = jax.lax.fori_loop(
                0, time, position, (_At(n, 0, width, dtype).row(start), outs)
            )
            return outs, jax.tree.map(
                lambda x, y: jax.lax.dynamic_update_slice(x, y[:, 0], (n, 0)), last, state
            )

        # Every element is written, so the buffers stay uninitialized.
        outs = [
            jax.lax.empty((batch, time, w), _bits(t)) for w, t in zip(widths, dtypes, strict=True)
        ]
        last = jax.tree.map(lambda x: jax.lax.empty(x.shape, x.dtype), start)
        return jax.lax.fori_loop(0, batch, row, (outs, last))

    outs, last = one_kernel(run)()
    return [x if x.dtype == t else _as(x, t) for x, t in zip(outs, dtypes, strict=True)], last
