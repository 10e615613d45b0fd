"""A model's weights laid out for sampling, where each is read once a step for a few products.

A step at one stream is a chain of small matrix-vector products, so what counts is how few there are
and how few bytes they read:

* the scale of a norm is folded into the kernel behind it, and its statistic becomes one number that
  the product is multiplied by: `norm(x) W = (x (s W)) / rms(x)`. So it is with a LayerNorm, whose
  subtraction of the mean is linear and folded into the kernel, too;
* products of one input are one product: a ResBlock's gate and its layer's input map, or the gates
  of a recurrence;
* the blocks of block-diagonal gates are filled up with zeros to one matrix while that is small;
* the embedding becomes a table, and with it the first product of the first ResBlock.

A ResBlock with another layer keeps its own `step`.
"""

import dataclasses
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pf_jax.layers import (
    ComplexRecurrence,
    GatedMLP,
    LayerState,
    Norm,
    RealRecurrence,
    Recurrence,
    RecurrenceState,
)
from pf_jax.layers.pooling import pool_down, pool_up
from pf_jax.layers.rglru import next_state
from pf_jax.poolformer import Poolformer, ResBlock, SkipBlock
from pf_jax.recurrence import Coefficients

# Up to this hidden width one product for both gates, with zeros between their blocks, takes less
# time than many small products; beyond it, reading the zeros takes longer.
_WIDEST_FILLED = 128


class NormStatistics(NamedTuple):
    """What a norm divides its input by.

    Attributes:
        epsilon: Added to the mean square or the variance.
        is_centred: Whether the mean is subtracted first (LayerNorm).
    """

    epsilon: float
    is_centred: bool

    @classmethod
    def of(cls, norm: Norm) -> Self:
        """Those of a norm."""
        return cls(norm.epsilon, isinstance(norm, nnx.LayerNorm))

    def scale(self, x: Float[Array, "batch width"]) -> Float[Array, "batch 1"]:
        """One over the root of the mean square, or of the variance."""
        if self.is_centred:
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        return jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
    """`x W + b`: products of the kernel's type, summed in float32.

    Attributes:
        kernel: `(in, out)`.
        bias: `(out,)`, float32.
    """

    kernel: Float[Array, "in out"]
    bias: Float[Array, "out"]

    @classmethod
    def fuse(cls, layers: list[nnx.Linear], norm: Norm | None = None) -> Self:
        """Layers of one input as one, their outputs side by side, behind a norm without its scale.

        The caller multiplies by that (`NormStatistics.scale`).
        """
        kernel = jnp.concatenate([layer.kernel[...] for layer in layers], axis=1)
        bias = jnp.concatenate([layer.bias[...] for layer in layers])
        if isinstance(norm, nnx.LayerNorm):
            bias = bias + norm.bias[...] @ kernel
        if norm is not None:
            kernel = norm.scale[...][:, None] * kernel
        if isinstance(norm, nnx.LayerNorm):
            kernel = kernel - kernel.mean(axis=0)
        return cls(kernel.astype(layers[0].dtype), bias)

    def __call__(
        self, x: Float[Array, "batch in"], scale: Float[Array, "batch 1"] | float = 1.0
    ) -> Float[Array, "batch out"]:
        """`scale x W + b`."""
        kernel = self.kernel
        y = jnp.dot(x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
        return y * scale + self.bias


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pools:
    """Both pools between a level and the next; `down` and `up` are (kernel, bias)."""

    down: tuple[Float[Array, "factor width/groups next_width"], Float[Array, "next_width"]]
    up: tuple[Float[Array, "next_width/groups factor width"], Float[Array, "..."]]

    @classmethod
    def lay_out(cls, body: SkipBlock) -> Self:
        """The weights of a level's pools."""
        pools = (body.down_pool, body.up_pool)
        return cls(*((pool.kernel.astype(pool.dtype), pool.bias[...]) for pool in pools))

    def pool_down(
        self, group: Float[Array, "batch factor width"]
    ) -> Float[Array, "batch next_width"]:
        """One vector of a group, float32."""
        return pool_down(group.astype(self.down[0].dtype), *self.down).astype(jnp.float32)

    def pool_up(self, y: Float[Array, "batch next_width"]) -> Float[Array, "batch factor width"]:
        """A group of vectors, float32."""
        return pool_up(y.astype(self.up[0].dtype), *self.up).astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cell:
    """A gated linear recurrence behind its input map, with the equations of `pf_jax.layers`.

    Attributes:
        convolution: The kernel `(taps, hidden)` of a depthwise convolution, oldest tap first, and
            its bias; None without one.
        gates: The kernels of the recurrence gate and the input gate, `(hidden, 2 channels)`, or
            where the hidden width is large `(2, heads, block, out_block)`.
        gates_bias: `(2 channels,)`.
        channel: The decay's parameters as the coefficients take them.
        output: The map back to the level's width; None without one.
        coefficients: `a` and `b` of the recurrence.
    """

    convolution: tuple[Float[Array, "taps hidden"], Float[Array, "hidden"]] | None
    gates: Float[Array, "hidden 2*channels"] | Float[Array, "2 heads block out_block"]
    gates_bias: Float[Array, "2*channels"]
    channel: tuple[Float[Array, "channels"], ...]
    output: Linear | None
    coefficients: Coefficients = dataclasses.field(metadata={"static": True})

    @classmethod
    def lay_out(cls, layer: Recurrence) -> Self:
        """The weights of a layer without its input map."""
        cell, convolution = layer.cell, None
        if layer.convolution is not None:
            convolution = layer.convolution.kernel[...], layer.convolution.bias[...]
        gates = (cell.recurrence_gate, cell.input_gate)
        kernels = [gate.kernel[...] for gate in gates]
        if layer.input.out_features <= _WIDEST_FILLED:
            kernel = jnp.concatenate([jax.scipy.linalg.block_diag(*k) for k in kernels], axis=1)
        else:
            kernel = jnp.stack(kernels)
        return cls(
            convolution=convolution,
            gates=kernel.astype(gates[0].dtype),
            gates_bias=jnp.concatenate([gate.bias[...].reshape(-1) for gate in gates]),
            channel=cell.channel(),
            output=Linear.fuse([layer.output]) if layer.output is not None else None,
            coefficients=cell.coefficients,
        )

    def step(
        self, u: Float[Array, "batch hidden"], state: RecurrenceState
    ) -> tuple[Float[Array, "batch out_width"], RecurrenceState]:
        """The next output, and the state after it."""
        inputs = ()
        if self.convolution is not None:
            inputs = jnp.concatenate([state.convolution, u[:, None]], axis=1)
            kernel, bias = self.convolution
            u = bias + sum(inputs[:, j] * tap for j, tap in enumerate(kernel))
            inputs = inputs[:, 1:]
        gates = jnp.split(self._gates(u), 2, axis=1)
        h = next_state(self.coefficients, (*gates, u), self.channel, state.recurrence)
        y = h if self.output is None else self.output(h)
        return y, RecurrenceState(inputs, h)

    def _gates(self, u):
        if self.gates.ndim == 2:
            return Linear(self.gates, self.gates_bias)(u)
        _, heads, block, _ = self.gates.shape
        blocks = u.astype(self.gates.dtype).reshape(-1, heads, block)
        y = jnp.einsum("bhi,ghio->bgho", blocks, self.gates, preferred_element_type=jnp.float32)
        return y.reshape(*u.shape[:-1], -1) + self.gates_bias


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FusedBlock:
    """A ResBlock with a gated linear recurrence or a gated MLP; activations are float32.

    Attributes:
        input: The norm, the gate and the layer's input map.
        cell: The recurrence; None for an MLP.
        output: The ResBlock's output map.
        gate_width: The number of channels of the gate; 0 without one.
        norm: The statistics of the norm.
    """

    input: Linear
    cell: Cell | None
    output: Linear
    gate_width: int = dataclasses.field(metadata={"static": True})
    norm: NormStatistics = dataclasses.field(metadata={"static": True})

    @classmethod
    def lay_out(cls, block: ResBlock) -> Self:
        """The weights of a ResBlock."""
        gates = [] if block.gate is None else [block.gate]
        return cls(
            input=Linear.fuse([*gates, block.layer.input], block.norm),
            cell=Cell.lay_out(block.layer) if isinstance(block.layer, Recurrence) else None,
            output=Linear.fuse([block.output]),
            gate_width=sum(gate.out_features for gate in gates),
            norm=NormStatistics.of(block.norm),
        )

    def adopt(self, state: LayerState) -> LayerState:
        """The model's state in the types that `step` keeps."""
        return jax.tree.map(lambda x: x.astype(jnp.float32), state)

    def project(self, x: Float[Array, "batch width"]) -> Float[Array, "batch projected"]:
        """The first product of `step`."""
        return self.input(x, self.norm.scale(x))

    def step(
        self,
        x: Float[Array, "batch width"],
        state: LayerState,
        projected: Float[Array, "batch projected"] | None = None,
    ) -> tuple[Float[Array, "batch width"], LayerState]:
        """The next position, and the state after it; `projected` is `project(x)`, if known."""
        projected = self.project(x) if projected is None else projected
        gate, y = jnp.split(projected, [self.gate_width], axis=1)
        if self.cell is not None:
            y, state = self.cell.step(y, state)
        if self.gate_width:
            y = jax.nn.gelu(gate) * y
        return x + self.output(y), state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PlainBlock:
    """A ResBlock of any parts, as it is."""

    graphdef: nnx.GraphDef = dataclasses.field(metadata={"static": True})
    params: nnx.State

    @classmethod
    def lay_out(cls, block: ResBlock) -> Self:
        """The weights of a ResBlock."""
        return cls(*nnx.split(block))

    def adopt(self, state: LayerState) -> LayerState:
        """The state as it is."""
        return state

    def step(
        self, x: Float[Array, "batch width"], state: LayerState
    ) -> tuple[Float[Array, "batch width"], LayerState]:
        """The next position, and the state after it."""
        y, state = nnx.merge(self.graphdef, self.params).step(x, state)
        return y.astype(x.dtype), state


Block = FusedBlock | PlainBlock


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LevelWeights:
    """One level, a SkipBlock without the one that is nested in it.

    Attributes:
        before: ResBlocks before the nested SkipBlock.
        after: ResBlocks after it.
        pools: To the next level and back; None in the innermost.
        width: The number of channels.
        factor: The pool factor to the next level; 1 in the innermost.
        is_sashimi: Whether it is SaShiMi's SkipBlock.
    """

    before: tuple[Block, ...]
    after: tuple[Block, ...]
    pools: Pools | None
    width: int = dataclasses.field(metadata={"static": True})
    factor: int = dataclasses.field(metadata={"static": True})
    is_sashimi: bool = dataclasses.field(metadata={"static": True})

    @classmethod
    def lay_out(cls, body: SkipBlock, width: int) -> Self:
        """The weights of a level."""
        if body.is_innermost:
            return cls(_blocks(body.before), (), None, width, 1, body.is_sashimi)
        return cls(
            before=_blocks(body.before),
            after=_blocks(body.after),
            pools=Pools.lay_out(body),
            width=width,
            factor=body.factor,
            is_sashimi=body.is_sashimi,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplerWeights:
    """A whole Poolformer.

    Attributes:
        levels: The outermost first.
        embedding: `(vocab_size, width)`.
        projected: The first product of the first ResBlock for each row of the embedding, if there
            is one that takes it.
        head: The last norm and the head.
        norm: The statistics of that norm.
    """

    levels: tuple[LevelWeights, ...]
    embedding: Float[Array, "vocab width"]
    projected: Float[Array, "vocab projected"] | None
    head: Linear
    norm: NormStatistics = dataclasses.field(metadata={"static": True})

    @property
    def period(self) -> int:
        """After so many tokens all levels stand between two groups again."""
        period = 1
        for level in self.levels:
            period *= level.factor
        return period


def lay_out(model: Poolformer, platform: str = "default") -> SamplerWeights:
    """The weights of a model for `pf_jax.sampling.nested`.

    Args:
        model: The model.
        platform: Of the devices; a "cpu" has no products of bfloat16, and gets float32.
    """
    weights = _lay_out(model)
    if platform != "cpu":
        return weights
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, weights)


@nnx.jit
def _lay_out(model: Poolformer) -> SamplerWeights:
    levels, body = [], model.body
    for width in model.config.widths:
        levels.append(LevelWeights.lay_out(body, width))
        body = None if body.is_innermost else body.nested
    embedding = model.embedding(jnp.arange(model.config.vocab_size)).astype(jnp.float32)
    first = next(iter(levels[0].before), None)
    return SamplerWeights(
        levels=tuple(levels),
        embedding=embedding,
        projected=first.project(embedding) if isinstance(first, FusedBlock) else None,
        head=Linear.fuse([model.head], model.head_norm),
        norm=NormStatistics.of(model.head_norm),
    )


def _blocks(blocks: list[ResBlock]) -> tuple[Block, ...]:
    kinds = [FusedBlock if _can_be_fused(block) else PlainBlock for block in blocks]
    return tuple(kind.lay_out(block) for kind, block in zip(kinds, blocks, strict=True))


def _can_be_fused(block: ResBlock) -> bool:
    """Whether `FusedBlock` knows all its parts."""
    layer = block.layer
    if type(layer) in (RealRecurrence, ComplexRecurrence):
        return layer.norm is None
    return type(layer) is GatedMLP and block.gate is not None
