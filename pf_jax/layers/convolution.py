"""The short causal convolution in front of a recurrence."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pf_jax.layers.sequence import from_left


class CausalConvolution(nnx.Module):
    """A depthwise convolution over time that looks at the present and the past only.

    `y_t = b + sum_j w_j u_{t-j}`, `j = 0 ... taps - 1`, each channel for itself. Its state is the
    last `taps - 1` inputs, `(batch, taps - 1, width)`, oldest first.

    With a `sequence_axis` the parallel form takes the inputs before this device's piece from the
    devices to the left, and the given state on the first device only.

    Attributes:
        kernel: `(taps, width)`, oldest tap first.
        bias: `(width,)`.
    """

    def __init__(self, width: int, taps: int, *, dtype, sequence_axis: str = "", rngs: nnx.Rngs):
        """Makes the layer."""
        # Each channel is a filter of its own: the fan-in is the taps, not taps * width.
        init = nnx.initializers.variance_scaling(
            1.0, "fan_in", "normal", in_axis=0, out_axis=(), batch_axis=1
        )
        self.dtype = dtype
        self.sequence_axis = sequence_axis
        self.kernel = nnx.Param(init(rngs.params(), (taps, width)))
        self.bias = nnx.Param(jnp.zeros((width,)))

    def init_state(self, batch_size: int) -> Float[Array, "batch taps-1 width"]:
        """Zeros: the silence before a sequence."""
        taps, width = self.kernel.shape
        return jnp.zeros((batch_size, taps - 1, width), self.dtype)

    def __call__(
        self, u: Float[Array, "batch time width"], state: Float[Array, "batch taps-1 width"]
    ) -> tuple[Float[Array, "batch time width"], Float[Array, "batch taps-1 width"]]:
        """All positions (parallel form), and the state after them."""
        u = u.astype(self.dtype)
        if self.sequence_axis:
            # One exchange, and more where pieces are shorter than what is to come from the left.
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
        taps, time = self.kernel.shape[0], u.shape[1]
        kernel = self.kernel.astype(self.dtype)
        padded = jnp.concatenate([state, u], axis=1)
        y = sum(kernel[j] * padded[:, j : j + time] for j in range(taps))
        return y + self.bias.astype(self.dtype), padded[:, time:]
