"""What the decay and the input of a recurrence are made of."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from pf_jax.recurrence.number import Number, split

Tile = Any
"""A float32 array, or part of one, whose last axis is that of the channels; or a pair of them."""


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """`a` and `b` of `h_t = a_t h_{t-1} + b_t` as a function of other arrays, at each position.

    Kernels compute and differentiate it within their loops, so that `a` and `b` never travel to
    memory. It should be cheap, and made of operations that every backend has.

    In a complex recurrence `a`, `b` and those inputs that are complex are pairs of real and
    imaginary parts. As arrays they have the imaginary parts of all channels behind the real ones.

    Attributes:
        function: `(inputs, channel) -> (a, b)`, elementwise in float32. Inputs are parts of (batch,
            time, width) arrays, all of one shape; `channel` are parameters of the channels, or
            whatever broadcasts to the inputs. Compared by identity, so it should be a function of a
            module and not one made on the spot.
        linear_inputs: Indices of the inputs that enter `b` linearly and nothing else: gradients do
            not depend on their values, which are then not kept for them.
        complex_inputs: Indices of the inputs that are complex; None for a real recurrence.
    """

    function: Callable[[tuple[Tile, ...], tuple[Tile, ...]], tuple[Tile, Tile]]
    linear_inputs: tuple[int, ...] = ()
    complex_inputs: tuple[int, ...] | None = None

    def __call__(self, inputs: tuple[Tile, ...], channel: tuple[Tile, ...]) -> tuple[Tile, Tile]:
        """`(a, b)`."""
        return self.function(inputs, channel)

    def numbers(
        self, inputs: tuple[Number, ...], channel: tuple[Tile, ...]
    ) -> tuple[Number, Number]:
        """`(a, b)` of numbers as numbers."""
        a, b = self.function(tuple(x.value for x in inputs), channel)
        return Number.of(a), Number.of(b)

    @property
    def parts(self) -> int:
        """Real parts of a state: 2 in a complex recurrence, otherwise 1."""
        return 1 if self.complex_inputs is None else 2

    def parts_of(self, index: int) -> int:
        """Real parts of an input."""
        return 2 if index in (self.complex_inputs or ()) else 1

    def split(self, inputs: Sequence[Any], dtype: Any) -> tuple[Number, ...]:
        """The inputs as numbers of a type."""
        return tuple(split(x.astype(dtype), self.parts_of(n)) for n, x in enumerate(inputs))

    def width(self, inputs: Sequence[Any]) -> int:
        """Channels, a complex one counted once."""
        return inputs[0].shape[-1] // self.parts_of(0)

    def given(self, inputs: Sequence[Any], h: Any) -> list[Any]:
        """The inputs, with zeros for those that are None, in the type of the states `h`."""
        width = h.shape[-1] // self.parts

        def zeros(index):
            return jnp.zeros((*h.shape[:-1], self.parts_of(index) * width), h.dtype)

        return [zeros(n) if x is None else x for n, x in enumerate(inputs)]


def _plain(inputs, channel):
    del channel
    return inputs


PLAIN = Coefficients(_plain, linear_inputs=(1,))
"""The inputs are `a` and `b` themselves."""

PLAIN_COMPLEX = Coefficients(_plain, linear_inputs=(1,), complex_inputs=(0, 1))
"""The same with complex `a` and `b`."""
