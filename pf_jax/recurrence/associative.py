"""The recurrence in `O(log time)` parallel steps: fastest where there are many idle lanes."""

import jax

from pf_jax.recurrence.number import Number


def associative(a: Number, b: Number, h0: Number, *, reverse: bool) -> Number:
    """`pf_jax.linear_recurrence` by `jax.lax.associative_scan` (Blelloch 1990).

    The affine maps `h -> a h + b` compose associatively:
    `(a_1, b_1) then (a_2, b_2) = (a_1 a_2, a_2 b_1 + b_2)`. `reverse` runs from the last position.
    """

    def then(first, second):
        (a1, b1), (a2, b2) = first, second
        return a1 * a2, a2 * b1 + b2

    start = -1 if reverse else 0
    entering = a.map(lambda x: x[:, start]) * h0
    b = jax.tree.map(lambda x, y: x.at[:, start].add(y), b, entering)
    return jax.lax.associative_scan(then, (a, b), reverse=reverse, axis=1)[1]
