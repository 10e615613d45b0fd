"""What a layer hears from the left where a sequence is split over devices.

Inside of `shard_map` or `pmap` the devices along a mapped axis may hold consecutive pieces of the
same sequences, all of one length. What a layer takes from its state at the start of a sequence then
comes from the end of the piece on the device to the left.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped


def from_left(
    x: Shaped[Array, "*shape"], first: Shaped[Array, "*shape"], axis: str
) -> Shaped[Array, "*shape"]:
    """`x` of the device to the left; on the first device, which has none there, `first`.

    One exchange between neighbours, that does not go around from the last device to the first.

    Args:
        x: What this device tells the one to its right.
        first: What the first device is to have; of the same shape and type.
        axis: The name of the mapped axis.
    """
    neighbours = [(place, place + 1) for place in range(jax.lax.axis_size(axis) - 1)]
    received = jax.lax.ppermute(x, axis, neighbours)
    return jnp.where(jax.lax.axis_index(axis) == 0, first, received)
