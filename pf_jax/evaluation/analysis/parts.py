"""Ways into a model, so that the model itself needs none: layers that listen or change an output.

All of them are put into a copy of a model, most often inside of a transformed function.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from flax import nnx

from pf_jax.config import PoolformerConfig
from pf_jax.poolformer import Poolformer, ResBlock, SkipBlock


class Listener(nnx.Module):
    """A layer whose inputs are observed.

    Attributes:
        layer: The layer, of which the parallel form is used.
        listen: Called with the layer and its arguments, before each call.
    """

    def __init__(self, layer: Any, listen: Callable[..., None]):
        self.layer = layer
        self.listen = listen

    def init_state(self, batch_size: int) -> Any:
        """The layer's."""
        return self.layer.init_state(batch_size)

    def __call__(self, x: Any, state: Any) -> tuple[Any, Any]:
        """Returns what the layer returns."""
        self.listen(self.layer, x, state)
        return self.layer(x, state)


class Changed(nnx.Module):
    """A layer whose output is changed.

    Attributes:
        layer: The layer.
        change: A function of its output.
    """

    def __init__(self, layer: nnx.Module, change: Callable[[Any], Any]):
        self.layer = layer
        self.change = change

    def __call__(self, *inputs: Any) -> Any:
        """Calls the layer and changes what it returns."""
        return self.change(self.layer(*inputs))


def skip_blocks(model: Poolformer) -> Iterator[SkipBlock]:
    """The SkipBlock of each level, from the outermost inward."""
    block = model.body
    yield block
    while not block.is_innermost:
        block = block.nested
        yield block


def res_blocks(block: SkipBlock) -> list[ResBlock]:
    """The ResBlocks of one level."""
    return [*block.before, *(() if block.is_innermost else block.after)]


def samples_per_position(config: PoolformerConfig, level: int) -> int:
    """The product of the pool factors above a level."""
    return math.prod(config.pool_factors[:level])
