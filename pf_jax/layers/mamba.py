"""Mamba's block: a state space model that selects by its input what it remembers (2312.00752)."""

import functools
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pf_jax.config import PoolformerConfig
from pf_jax.layers.convolution import CausalConvolution
from pf_jax.layers.initialization import residual_output
from pf_jax.recurrence import linear_recurrence

# In so many positions does a state of rate 1 forget, at first (section 3.6; the reference code).
MIN_STEP_SIZE, MAX_STEP_SIZE = 1e-3, 1e-1

# Of the largest arrays, a sequence's part: positions of a chunk times states times channels. Few
# sequences then stay in the caches of a CPU, and many are enough work at once for a GPU.
_CHUNK_ENTRIES = 2**19


class MambaState(NamedTuple):
    """What the block carries from one position to the next.

    Attributes:
        convolution: The last inputs of the convolution.
        h: The states of each channel, float32.
    """

    convolution: Float[Array, "batch taps-1 inner"]
    h: Float[Array, "batch states inner"]


class Mamba(nnx.Module):
    """The selective state space model S6 between two projections (Gu & Dao, arXiv 2312.00752).

    Section 3.4 and algorithm 2, with the real states of section 3.6; `inner` channels, each with
    `state_size` states::

        u = silu(conv(W_u x)),  z = W_z x
        (r_t, B_t, C_t) = W_s u_t                  shared by all channels
        dt_t = softplus(W_dt r_t + b_dt)           a step size for each channel
        h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t   for each state and channel, A = -exp(A_log)
        y_t = C_t . h_t + D u_t                    summed over the states of a channel
        output W_o (y * silu(z))

    `B` is discretised by `dt B`, as in the reference implementation (state-spaces/mamba) and not as
    in equation 4, of which it is the first order. `r_t` has a sixteenth of the level's width. All
    from the step sizes to `y` is in float32.

    The arrays of all states, `state_size * mixer_expansion` times the size of `x`, exist for a
    chunk of time only: the backward pass computes them again from the states between chunks.

    Attributes:
        input: `W_u`, to `mixer_expansion` times the width; no bias, as everywhere but in `b_dt`.
        gate: `W_z`, likewise.
        convolution: A short causal convolution.
        selection: `W_s`, to `r`, `B` and `C` side by side.
        step_size: `W_dt` and `b_dt`, in float32. Step sizes start spread evenly by logarithm over
            [0.001, 0.1], where `W_dt` adds nothing.
        log_rates: `A_log`, `(states, inner)`; at first the logarithms of 1, 2, ... `state_size`
            in each channel (S4D-Real).
        skip: `D`, at first 1.
        output: `W_o`, scaled down at the start as the branches of a deep residual network are.
    """

    branch: ClassVar[str] = "whole"

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the layer for a level of the given width."""
        dtype, states = config.dtype, config.state_size
        inner, rank = config.hidden(width), math.ceil(width / 16)
        self.out_width = width
        self.dtype = dtype
        self.recurrence = config.recurrence
        self.input = nnx.Linear(width, inner, use_bias=False, dtype=dtype, rngs=rngs)
        self.gate = nnx.Linear(width, inner, use_bias=False, dtype=dtype, rngs=rngs)
        self.convolution = CausalConvolution(
            inner, config.conv_width, depthwise=True, dtype=dtype, rngs=rngs
        )
        self.selection = nnx.Linear(
            inner, rank + 2 * states, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.step_size = nnx.Linear(
            rank,
            inner,
            kernel_init=nnx.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform"),
            bias_init=_initial_step_bias,
            dtype=jnp.float32,
            rngs=rngs,
        )
        rates = jnp.arange(1, states + 1, dtype=jnp.float32)
        self.log_rates = nnx.Param(jnp.tile(jnp.log(rates)[:, None], (1, inner)))
        self.skip = nnx.Param(jnp.ones((inner,)))
        self.output = nnx.Linear(
            inner,
            width,
            use_bias=False,
            kernel_init=residual_output(config),
            dtype=dtype,
            rngs=rngs,
        )

    def init_state(self, batch_size: int) -> MambaState:
        """The state before the first position of a sequence."""
        h = jnp.zeros((batch_size, *self.log_rates.shape), jnp.float32)
        return MambaState(self.convolution.init_state(batch_size), h)

    def __call__(
        self, x: Float[Array, "batch time width"], state: MambaState
    ) -> tuple[Float[Array, "batch time width"], MambaState]:
        """All positions (parallel form), and the state after them."""
        u, convolution = self.convolution(self.input(x), state.convolution)
        u = jax.nn.silu(u)
        y, h = selective_scan(
            *self._select(u), -jnp.exp(self.log_rates[...]), state.h, implementation=self.recurrence
        )
        return self._output(x, u, y), MambaState(convolution, h)

    def step(
        self, x: Float[Array, "batch width"], state: MambaState
    ) -> tuple[Float[Array, "batch width"], MambaState]:
        """The next position (recurrent form)."""
        u, convolution = self.convolution.step(self.input(x), state.convolution)
        u = jax.nn.silu(u)
        *inputs, c = self._select(u)
        decay, new = _coefficients(*inputs, -jnp.exp(self.log_rates[...]))
        h = decay * state.h + new
        return self._output(x, u, _read_out(c, h)), MambaState(convolution, h)

    def log_decay(
        self, x: Float[Array, "batch time width"], state: MambaState
    ) -> tuple[Float[Array, "batch time states*inner"], Float[Array, "states*inner"]]:
        """`dt_t A` at all positions; it can be any number below 0, so its least is -infinity."""
        u, _ = self.convolution(self.input(x), state.convolution)
        _, dt, _, _ = self._select(jax.nn.silu(u))
        log_a = -dt[:, :, None] * jnp.exp(self.log_rates[...])
        return log_a.reshape(*x.shape[:2], -1), jnp.full((self.log_rates.size,), -jnp.inf)

    def _select(self, u: Float[Array, "*batch inner"]):
        """`u`, `dt`, `B` and `C`: what depends on the input."""
        states, rank = self.log_rates.shape[0], self.step_size.kernel.shape[0]
        r, b, c = jnp.split(self.selection(u), [rank, rank + states], axis=-1)
        return u, jax.nn.softplus(self.step_size(r)), b, c

    def _output(self, x, u, y):
        y = y + self.skip[...] * u
        return self.output(y.astype(self.dtype) * jax.nn.silu(self.gate(x)))


def selective_scan(
    u: Float[Array, "batch time inner"],
    dt: Float[Array, "batch time inner"],
    b: Float[Array, "batch time states"],
    c: Float[Array, "batch time states"],
    a: Float[Array, "states inner"],
    h: Float[Array, "batch states inner"],
    *,
    implementation: str = "auto",
) -> tuple[Float[Array, "batch time inner"], Float[Array, "batch states inner"]]:
    """`h_t = exp(dt_t a) h_{t-1} + dt_t b_t u_t` and `y_t = c_t . h_t` (2312.00752, algorithm 2).

    One chunk of time after the other goes through `linear_recurrence`, all states of all channels
    side by side. Of a chunk only its inputs and the state before it are kept for the backward pass.

    Args:
        u: Input of each channel.
        dt: Step sizes, above 0, float32.
        b: How much of the input each state takes.
        c: How much of each state the output takes.
        a: Minus the rate at which each state forgets.
        h: The states before the first position.
        implementation: As of `linear_recurrence`.

    Returns:
        `y`, and the states after the last position, float32.
    """
    batch, time, _ = u.shape
    most = max(1, _CHUNK_ENTRIES // a.size)
    num_chunks = -(-time // most)
    chunk = -(-time // num_chunks)

    def split(x):
        # With a step size of 0 the positions that fill up the last chunk leave the state alone.
        x = jnp.pad(x, ((0, 0), (0, num_chunks * chunk - time), (0, 0)))
        return jnp.moveaxis(x.reshape(batch, num_chunks, chunk, -1), 1, 0)

    def scan(h, inputs):
        *inputs, c = inputs
        decay, new = _coefficients(*inputs, a)
        flat = (batch, chunk, -1)
        hs = linear_recurrence(
            decay.reshape(flat),
            new.reshape(flat),
            h.reshape(batch, -1),
            implementation=implementation,
        )
        hs = hs.reshape(decay.shape)
        return hs[:, -1], _read_out(c, hs)

    # Nothing outside of the loop could be taken for what it computes again.
    scan = jax.checkpoint(scan, prevent_cse=False)
    h, y = jax.lax.scan(scan, h, tuple(map(split, (u, dt, b, c))))
    return jnp.moveaxis(y, 0, 1).reshape(batch, -1, y.shape[-1])[:, :time], h


def _coefficients(
    u: Float[Array, "*batch inner"],
    dt: Float[Array, "*batch inner"],
    b: Float[Array, "*batch states"],
    a: Float[Array, "states inner"],
) -> tuple[Float[Array, "*batch states inner"], Float[Array, "*batch states inner"]]:
    """Decay and input of each state, float32."""
    # A product with ones, and not by broadcasting, for the sum that is its gradient.
    exponent = _product("...d,n->...nd", dt, jnp.ones(a.shape[:1])) * a
    return jnp.exp(exponent), _product("...n,...d->...nd", b.astype(jnp.float32), dt * u)


def _read_out(
    c: Float[Array, "*batch states"], h: Float[Array, "*batch states inner"]
) -> Float[Array, "*batch inner"]:
    return _product("...n,...nd->...d", c.astype(jnp.float32), h)


# Sums over the states or the channels, here and in the gradients: as products they take a tenth of
# the time on a CPU, and other platforms make sums of them.
_product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _initial_step_bias(key, shape, dtype) -> Float[Array, "inner"]:
    """The inverse of softplus at step sizes spread evenly by logarithm."""
    low, high = math.log(MIN_STEP_SIZE), math.log(MAX_STEP_SIZE)
    step_size = jnp.exp(jax.random.uniform(key, shape, dtype, minval=low, maxval=high))
    return jnp.log(jnp.expm1(step_size))
