"""Arithmetic that is the same code for real recurrences and for complex ones."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Number:
    """Real or complex numbers as arrays of their real parts.

    Not every backend has complex arrays, and in kernels none has.

    Attributes:
        parts: One array, or two of one shape: real parts and imaginary parts.
    """

    parts: tuple[Any, ...]

    @classmethod
    def of(cls, value: Any) -> Self:
        """Reverses `value`."""
        return cls(tuple(value) if isinstance(value, tuple | list) else (value,))

    @property
    def value(self) -> Any:
        """The array of a real number, the pair of arrays of a complex one."""
        return self.parts[0] if len(self.parts) == 1 else self.parts

    def __add__(self, other: Self) -> Self:
        return self._of(x + y for x, y in zip(self.parts, other.parts, strict=True))

    def __mul__(self, other: Self) -> Self:
        if len(self.parts) == 1:
            return self._of([self.parts[0] * other.parts[0]])
        (a, b), (c, d) = self.parts, other.parts
        return self._of([a * c - b * d, a * d + b * c])

    def conj(self) -> Self:
        """The complex conjugate; a real number is its own."""
        return self if len(self.parts) == 1 else self._of([self.parts[0], -self.parts[1]])

    def map(self, function: Callable[[Any], Any]) -> Self:
        """Applies a function to each part."""
        return self._of(map(function, self.parts))

    def full(self, value: float) -> Self:
        """A real constant in the shape of this number."""
        real, *imaginary = self.parts
        return self._of([jnp.full_like(real, value), *map(jnp.zeros_like, imaginary)])

    @classmethod
    def _of(cls, parts) -> Self:
        return cls(tuple(parts))


def split(x: Inexact[Array, "*shape parts*width"], parts: int) -> Number:
    """A number whose parts are side by side along the last axis."""
    return Number((x,) if parts == 1 else tuple(jnp.split(x, parts, axis=-1)))


def join(number: Number) -> Inexact[Array, "*shape parts*width"]:
    """Reverses `split`."""
    return number.parts[0] if len(number.parts) == 1 else jnp.concatenate(number.parts, axis=-1)
