"""The gated recurrent unit, whose state passes through matrices and a tanh: not linear."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pf_jax.config import PoolformerConfig
from pf_jax.layers.recurrence import Recurrence


class GRU(nnx.Module):
    """The GRU (Cho et al., arXiv 1406.1078) with its reset gate behind the product.

    That is the variant of cuDNN and of PyTorch, whose weights mean the same here: `input.kernel` is
    the transposed `weight_ih_l0`, `state.kernel` the transposed `weight_hh_l0`, the biases are
    `bias_ih_l0` and `bias_hh_l0`, and gates stand in the order reset, update, new::

        r_t = sigmoid(W_ir u_t + b_ir + W_hr h_{t-1} + b_hr)
        z_t = sigmoid(W_iz u_t + b_iz + W_hz h_{t-1} + b_hz)
        n_t = tanh(W_in u_t + b_in + r_t (W_hn h_{t-1} + b_hn))
        h_t = (1 - z_t) n_t + z_t h_{t-1}

    The paper has `W_hn (r_t h_{t-1})` instead.

    Since `h_{t-1}` enters gates there is no parallel form in the sense of a linear recurrence: the
    products with the input are done for all positions at once, the rest one position after another.
    Products are of the compute type and summed in float32; gates and states are float32.

    Attributes:
        input: `W_i`, `b_i` of the three gates side by side.
        state: `W_h`, `b_h` likewise; each gate's matrix starts orthogonal.
    """

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the layer."""
        self.width = width
        self.dtype = config.dtype
        linear = {"dtype": config.dtype, "rngs": rngs}
        self.input = nnx.Linear(width, 3 * width, **linear)
        self.state = nnx.Linear(width, 3 * width, kernel_init=_orthogonal_gates, **linear)

    def init_state(self, batch_size: int) -> Float[Array, "batch width"]:
        """Zeros, float32."""
        return jnp.zeros((batch_size, self.width), jnp.float32)

    def __call__(
        self, u: Float[Array, "batch time width"], state: Float[Array, "batch width"]
    ) -> tuple[Float[Array, "batch time width"], Float[Array, "batch width"]]:
        """The states of all positions, in `u`'s type, and the last one."""

        def step(h, x):
            h = self._next(x, h)
            return h, h.astype(u.dtype)

        state, h = jax.lax.scan(step, state, jnp.moveaxis(self.input(u), 1, 0))
        return jnp.moveaxis(h, 0, 1), state

    def step(
        self, u: Float[Array, "batch width"], state: Float[Array, "batch width"]
    ) -> tuple[Float[Array, "batch width"], Float[Array, "batch width"]]:
        """The state at the next position (recurrent form)."""
        h = self._next(self.input(u), state)
        return h.astype(u.dtype), h

    def _next(self, x, h):
        """The state after `h`, where `x` is what the input gives to the gates."""
        kernel = self.state.kernel[...].astype(self.dtype)
        y = jnp.dot(h.astype(self.dtype), kernel, preferred_element_type=jnp.float32)
        from_input = jnp.split(x.astype(jnp.float32), 3, axis=-1)
        from_state = jnp.split(y + self.state.bias[...], 3, axis=-1)
        reset, update = (
            jax.nn.sigmoid(a + b) for a, b in zip(from_input[:2], from_state[:2], strict=True)
        )
        new = jnp.tanh(from_input[2] + reset * from_state[2])
        return (1.0 - update) * new + update * h


def _orthogonal_gates(key, shape, dtype):
    width, gates = shape[0], shape[1] // shape[0]
    make = nnx.initializers.orthogonal()
    return jnp.concatenate(
        [make(k, (width, width), dtype) for k in jax.random.split(key, gates)], axis=1
    )


class GRURecurrence(Recurrence):
    """A GRU between linear maps, in the place of a linear recurrence.

    All else is the same, so that a comparison shows what it brings and costs that the recurrence is
    not linear.
    """

    splits_sequences = False
    cell_type = GRU
