"""A model's weights laid out for sampling, where each is read once a step for a few products.

A step at one stream is a chain of small matrix-vector products, so what counts is how few there are
and how few bytes they read:

* the scale of a norm is folded into the kernel behind it, and its statistic becomes one number that
  the product is multiplied by: `norm(x) W = (x (s W)) / rms(x)`. So it is with a LayerNorm, whose
  subtraction of the mean is linear and folded into the kernel, too;
* products of one input are one product: the two branches of a mixer, of its gates, of an MLP;
* small blocks of block-diagonal gates are filled up with zeros to one matrix;
* the embedding becomes a table, and with it the first product of the first ResBlock.

A ResBlock of other parts than Griffin's keeps its own `step`.
"""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pf_jax.layers import (
    GatedMLP,
    MixerState,
    Norm,
    RGLRUState,
    TemporalMixing,
    TemporalMixingState,
)
from pf_jax.layers.rglru import DECAY_EXPONENT, sqrt_one_minus_exp
from pf_jax.poolformer import Poolformer, ResBlock, SkipBlock

# Blocks of gates up to this width are cheaper as a part of one matrix than each for itself.
_WIDEST_FILLED_BLOCK = 16


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

        The caller multiplies by that (`norm_scale`).
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
class FusedBlock:
    """A ResBlock with Griffin's recurrent block as its mixer; activations are float32.

    Attributes:
        mixer_input: The mixer's norm, gate and input branch.
        convolution: `(taps, width)`, oldest first.
        convolution_bias: `(width,)`.
        gates: Recurrence and input gate, `(width, 2 width)`, or where their blocks are wide
            `(2, heads, block, block)`.
        gates_bias: `(2 width,)`.
        log_decay: `-8 softplus(L)`, `(width,)`.
        mixer_output: The mixer's last product.
        mlp_input: The MLP's norm, gate and input branch.
        mlp_output: The MLP's last product.
        epsilon: That of the norms.
    """

    mixer_input: Linear
    convolution: Float[Array, "taps width"]
    convolution_bias: Float[Array, "width"]
    gates: Float[Array, "width 2*width"] | Float[Array, "2 heads block block"]
    gates_bias: Float[Array, "2*width"]
    log_decay: Float[Array, "width"]
    mixer_output: Linear
    mlp_input: Linear
    mlp_output: Linear
    epsilon: float = dataclasses.field(metadata={"static": True})

    @classmethod
    def lay_out(cls, block: ResBlock) -> Self:
        """The weights of a ResBlock."""
        mixer, mlp, rglru = block.mixer, block.mlp, block.mixer.rglru
        gate_layers = (rglru.recurrence_gate, rglru.input_gate)
        kernels = [layer.kernel[...] for layer in gate_layers]
        if kernels[0].shape[-1] <= _WIDEST_FILLED_BLOCK:
            gates = jnp.concatenate([jax.scipy.linalg.block_diag(*k) for k in kernels], axis=1)
        else:
            gates = jnp.stack(kernels)
        return cls(
            mixer_input=Linear.fuse([mixer.gate, mixer.input], block.mixer_norm),
            convolution=mixer.convolution.kernel[...],
            convolution_bias=mixer.convolution.bias[...],
            gates=gates.astype(gate_layers[0].dtype),
            gates_bias=jnp.concatenate([layer.bias[...].reshape(-1) for layer in gate_layers]),
            log_decay=-DECAY_EXPONENT * jax.nn.softplus(rglru.decay[...]),
            mixer_output=Linear.fuse([mixer.output]),
            mlp_input=Linear.fuse([mlp.gate, mlp.input], block.mlp_norm),
            mlp_output=Linear.fuse([mlp.output]),
            epsilon=block.mixer_norm.epsilon,
        )

    def adopt(self, state: TemporalMixingState) -> TemporalMixingState:
        """The model's state in the types that `step` keeps."""
        return state._replace(convolution=state.convolution.astype(jnp.float32))

    def project(self, x: Float[Array, "batch width"]) -> Float[Array, "batch 2*width"]:
        """The first product of `step`."""
        return self.mixer_input(x, norm_scale(x, self.epsilon))

    def step(
        self,
        x: Float[Array, "batch width"],
        state: TemporalMixingState,
        projected: Float[Array, "batch 2*width"] | None = None,
    ) -> tuple[Float[Array, "batch width"], TemporalMixingState]:
        """The next position, and the state after it; `projected` is `project(x)`, if known."""
        gate, u = jnp.split(self.project(x) if projected is None else projected, 2, axis=1)
        inputs = jnp.concatenate([state.convolution, u[:, None]], axis=1)
        u = self.convolution_bias + sum(
            inputs[:, tap] * kernel for tap, kernel in enumerate(self.convolution)
        )
        recurrence_gate, input_gate = jnp.split(jax.nn.sigmoid(self._gates(u)), 2, axis=1)
        log_a = self.log_decay * recurrence_gate
        scale = jnp.where(state.recurrence.started, sqrt_one_minus_exp(2.0 * log_a), 1.0)
        h = jnp.exp(log_a) * state.recurrence.h + scale * (input_gate * u)
        x = x + self.mixer_output(jax.nn.gelu(gate) * h)

        gate, y = jnp.split(self.mlp_input(x, norm_scale(x, self.epsilon)), 2, axis=1)
        x = x + self.mlp_output(jax.nn.gelu(gate) * y)
        return x, TemporalMixingState(inputs[:, 1:], RGLRUState(h, jnp.array(True)))

    def _gates(self, u):
        if self.gates.ndim == 2:
            return Linear(self.gates, self.gates_bias)(u)
        _, heads, block, _ = self.gates.shape
        blocks = u.astype(self.gates.dtype).reshape(-1, heads, block)
        y = jnp.einsum("bhi,ghio->bgho", blocks, self.gates, preferred_element_type=jnp.float32)
        return y.reshape(*u.shape[:-1], -1) + self.gates_bias


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

    def adopt(self, state: MixerState) -> MixerState:
        """The state as it is."""
        return state

    def step(
        self, x: Float[Array, "batch width"], state: MixerState
    ) -> tuple[Float[Array, "batch width"], MixerState]:
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
        down_pool: To the next level; None in the innermost.
        up_pool: From the next level; None in the innermost.
        factor: The pool factor to the next level; 1 in the innermost.
        outer_residual: Whether there is a residual connection around ResBlocks in a row.
    """

    before: tuple[Block, ...]
    after: tuple[Block, ...]
    down_pool: Linear | None
    up_pool: Linear | None
    factor: int = dataclasses.field(metadata={"static": True})
    outer_residual: bool = dataclasses.field(metadata={"static": True})

    @classmethod
    def lay_out(cls, body: SkipBlock) -> Self:
        """The weights of a level."""
        if body.is_innermost:
            return cls(_blocks(body.before), (), None, None, 1, body.outer_residual)
        return cls(
            before=_blocks(body.before),
            after=_blocks(body.after),
            down_pool=Linear.fuse([body.down_pool.projection]),
            up_pool=Linear.fuse([body.up_pool.projection]),
            factor=body.factor,
            outer_residual=body.outer_residual,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplerWeights:
    """A whole Poolformer.

    Attributes:
        levels: The outermost first.
        embedding: `(vocab_size + 1, width)`; the last row stands before the first token.
        projected: The first product of the first ResBlock for each row of the embedding, if there
            is one that takes it.
        head: The last norm and the head.
        centred: Whether that norm subtracts the mean.
        epsilon: That of the norm.
    """

    levels: tuple[LevelWeights, ...]
    embedding: Float[Array, "vocab+1 width"]
    projected: Float[Array, "vocab+1 2*width"] | None
    head: Linear
    centred: bool = dataclasses.field(metadata={"static": True})
    epsilon: float = dataclasses.field(metadata={"static": True})

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
    while not body.is_innermost:
        levels.append(LevelWeights.lay_out(body))
        body = body.nested
    levels.append(LevelWeights.lay_out(body))
    embedding = model.embedding(jnp.arange(model.config.vocab_size + 1)).astype(jnp.float32)
    first = next(iter(levels[0].before), None)
    return SamplerWeights(
        levels=tuple(levels),
        embedding=embedding,
        projected=first.project(embedding) if isinstance(first, FusedBlock) else None,
        head=Linear.fuse([model.head], model.head_norm),
        centred=isinstance(model.head_norm, nnx.LayerNorm),
        epsilon=model.head_norm.epsilon,
    )


def norm_scale(
    x: Float[Array, "batch width"], epsilon: float, centred: bool = False
) -> Float[Array, "batch 1"]:
    """One over the root of the mean square, or of the variance."""
    if centred:
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    return jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


def _blocks(blocks: list[ResBlock]) -> tuple[Block, ...]:
    kinds = [FusedBlock if _is_griffins(block) else PlainBlock for block in blocks]
    return tuple(kind.lay_out(block) for kind, block in zip(kinds, blocks, strict=True))


def _is_griffins(block: ResBlock) -> bool:
    """Whether it is made of the parts that `FusedBlock` knows."""
    return (
        type(block.mixer) is TemporalMixing
        and block.mixer.gate is not None
        and type(block.mlp) is GatedMLP
        and type(block.mixer_norm) is nnx.RMSNorm
    )
