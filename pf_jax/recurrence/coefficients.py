"""What the decay and the input of a recurrence are made of."""

import dataclasses
from collections.abc import Callable
from typing import Any

Tile = Any
"""A float32 array, or part of one, whose last axis is that of the channels."""


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """`a` and `b` of `h_t = a_t h_{t-1} + b_t` as a function of other arrays, at each position.

    Kernels compute and differentiate it within their loops, so that `a` and `b` never travel to
    memory. It should be cheap, and made of operations that every backend has.

    Attributes:
        function: `(inputs, channel) -> (a, b)`, elementwise in float32. Inputs are parts of (batch,
            time, width) arrays, all of one shape; `channel` are parameters of the channels, or
            whatever broadcasts to the inputs. Compared by identity, so it should be a function of a
            module and not one made on the spot.
        linear_inputs: Numbers of the inputs that enter `b` linearly and nothing else: gradients do
            not depend on their values, which are then not kept for them.
    """

    function: Callable[[tuple[Tile, ...], tuple[Tile, ...]], tuple[Tile, Tile]]
    linear_inputs: tuple[int, ...] = ()
    is_complex: bool = False

    def __call__(self, inputs: tuple[Tile, ...], channel: tuple[Tile, ...]) -> tuple[Tile, Tile]:
        """`(a, b)`."""
        return self.function(inputs, channel)


def _plain(inputs, channel):
    del channel
    return inputs


PLAIN = Coefficients(_plain, linear_inputs=(1,))
"""The inputs are `a` and `b` themselves."""
