"""The recurrence on a CPU, as one loop that reads each array and writes its result once.

XLA makes one kernel of everything: rows of the batch one after the other, positions in their order,
channels in vector registers. Of `jax.lax.scan` it makes a kernel of each operation, and to go from
one to the next takes longer than the arithmetic of a position.
"""

import functools
from collections.abc import Callable

import jax
from jaxtyping import Array, Inexact

from pf_jax.one_kernel import one_kernel


@one_kernel
def states(
    a: Inexact[Array, "batch time width"],
    b: Inexact[Array, "batch time width"],
    h0: Inexact[Array, "batch width"],
) -> Inexact[Array, "batch time width"]:
    """All states of `h_t = a_t h_{t-1} + b_t`."""

    def step(h, a_t, b_t):
        h = a_t * h + b_t
        return h, h

    return _loop(step, a, b, h0, range(a.shape[1]))[0]


@one_kernel
def adjoint(
    a: Inexact[Array, "batch time width"],
    dh: Inexact[Array, "batch time width"],
    dlast: Inexact[Array, "batch width"],
) -> tuple[Inexact[Array, "batch time width"], Inexact[Array, "batch width"]]:
    """`g_t = dL/dh_t + s_{t+1}` with `s_t = a_t g_t`, and `s_1`: see `portable.gradient`."""

    def step(s, a_t, dh_t):
        g = dh_t + s
        return a_t * g, g

    return _loop(step, a, dh, dlast, range(a.shape[1] - 1, -1, -1))


def _loop(step: Callable, x: Array, y: Array, start: Array, times: range) -> tuple[Array, Array]:
    """`carry, out_t = step(carry, x_t, y_t)` over `times`: all outs, and the last carries."""
    batch, _, width = x.shape

    def row(number, results):
        def position(place, values):
            carry, out = values
            at = (number, times.start + times.step * place, 0)
            x_t, y_t = (jax.lax.dynamic_slice(array, at, (1, 1, width)) for array in (x, y))
            carry, out_t = step(carry, x_t, y_t)
            return carry, jax.lax.dynamic_update_slice(out, out_t, at)

        out, last = results
        carry = jax.lax.dynamic_slice(start, (number, 0), (1, width))[:, None]
        carry, out = jax.lax.fori_loop(0, len(times), position, (carry, out))
        return out, jax.lax.dynamic_update_slice(last, carry[:, 0], (number, 0))

    # Nothing is written twice: what will be filled need not be zero before.
    empty = functools.partial(jax.lax.empty, dtype=start.dtype)
    return jax.lax.fori_loop(0, batch, row, (empty(x.shape), empty(start.shape)))
