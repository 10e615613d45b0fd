"""Between the levels: groups of positions become one, and one becomes a group."""

from flax import nnx
from jaxtyping import Array, Float


class DownPool(nnx.Module):
    """`factor` consecutive vectors, concatenated, linearly mapped to one.

    Attributes:
        projection: `(factor * width) -> next_width`.
    """

    def __init__(self, width: int, next_width: int, factor: int, *, dtype, rngs: nnx.Rngs):
        """Makes the layer between a level of `width` and the next of `next_width`."""
        self.factor = factor
        self.projection = nnx.Linear(factor * width, next_width, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch groups*factor width"]
    ) -> Float[Array, "batch groups next_width"]:
        """Pools whole groups; the caller keeps back an unfinished one."""
        batch, time, width = x.shape
        return self.projection(x.reshape(batch, time // self.factor, self.factor * width))


class UpPool(nnx.Module):
    """One vector linearly mapped to `factor` vectors, those of the *following* group.

    The caller shifts them: what is known after a group may only be used in the groups after it.

    Attributes:
        projection: `next_width -> (factor * width)`.
    """

    def __init__(self, width: int, next_width: int, factor: int, *, dtype, rngs: nnx.Rngs):
        """Makes the layer between a level of `width` and the next of `next_width`."""
        self.factor = factor
        self.projection = nnx.Linear(next_width, factor * width, dtype=dtype, rngs=rngs)

    def __call__(self, y: Float[Array, "*batch next_width"]) -> Float[Array, "*batch factor width"]:
        """Unpools each vector."""
        flat = self.projection(y)
        return flat.reshape(*y.shape[:-1], self.factor, flat.shape[-1] // self.factor)
