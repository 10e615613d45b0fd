"""Causal convolutions over time."""

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pf_jax.config import PoolformerConfig
from pf_jax.layers.sequence import from_left


class CausalConvolution(nnx.Module):
    """A convolution over the present and past positions, full or depthwise.

    `y_t = b + sum_j u_{t-j} W_j`, `j = 0 ... taps - 1`; in a depthwise convolution `W_j` is
    diagonal. Its state is the last `taps - 1` inputs, oldest first.

    With a `sequence_axis` the parallel form takes the inputs before this device's piece from the
    devices to the left; the given state counts on the first device only.

    Attributes:
        kernel: `(taps, width, width)`, or `(taps, width)` if depthwise; oldest tap first.
        bias: `(width,)`.
    """

    splits_sequences: ClassVar[bool] = True

    def __init__(
        self,
        width: int,
        taps: int,
        *,
        depthwise: bool,
        dtype,
        sequence_axis: str = "",
        rngs: nnx.Rngs,
    ):
        """Makes the layer."""
        init = nnx.initializers.lecun_normal()
        if depthwise:
            # Each channel is a filter of its own: the fan-in is the number of taps.
            init = nnx.initializers.variance_scaling(
                1.0, "fan_in", "normal", in_axis=0, out_axis=(), batch_axis=1
            )
        self.out_width = width
        self.dtype = dtype
        self.sequence_axis = sequence_axis
        shape = (taps, width) if depthwise else (taps, width, width)
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros((width,)))

    def init_state(self, batch_size: int) -> Float[Array, "batch taps-1 width"]:
        """Zeros."""
        return jnp.zeros((batch_size, self.kernel.shape[0] - 1, self.out_width), self.dtype)

    def __call__(
        self, u: Float[Array, "batch time width"], state: Float[Array, "batch taps-1 width"]
    ) -> tuple[Float[Array, "batch time width"], Float[Array, "batch taps-1 width"]]:
        """All positions (parallel form), and the state after them."""
        u = u.astype(self.dtype)
        if self.sequence_axis:
            # One exchange; more where pieces are shorter than the state.
            for _ in range(-(-state.shape[1] // u.shape[1])):
                seen = jnp.concatenate([state, u], axis=1)
                state = from_left(seen[:, u.shape[1] :], state, self.sequence_axis)
        return self._convolve(u, state)

    def step(
        self, u: Float[Array, "batch width"], state: Float[Array, "batch taps-1 width"]
    ) -> tuple[Float[Array, "batch width"], Float[Array, "batch taps-1 width"]]:
        """The next position (recurrent form)."""
        y, state = self._convolve(u[:, None].astype(self.dtype), state)
        return y[:, 0], state

    def _convolve(self, u, state):
        time, kernel = u.shape[1], self.kernel.astype(self.dtype)
        times = jnp.multiply if kernel.ndim == 2 else jnp.matmul
        padded = jnp.concatenate([state, u], axis=1)
        y = sum(times(padded[:, j : j + time], tap) for j, tap in enumerate(kernel))
        return y + self.bias.astype(self.dtype), padded[:, time:]


class Convolution(CausalConvolution):
    """A full causal convolution as the mixer of a block."""

    depthwise: ClassVar[bool] = False

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the layer for a level of the given width."""
        super().__init__(
            width,
            config.conv_width,
            depthwise=self.depthwise,
            dtype=config.dtype,
            sequence_axis=config.sequence_axis,
            rngs=rngs,
        )


class DepthwiseConvolution(Convolution):
    """A depthwise causal convolution as the mixer of a block."""

    depthwise: ClassVar[bool] = True
