"""S4D: a diagonal state space in each channel (Gu et al., 2022, arXiv 2206.11893)."""

import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from flax import nnx
from jaxtyping import Array, Bool, Complex64, Float, Int32

from pf_jax.config import PoolformerConfig
from pf_jax.errors import UserError
from pf_jax.layers.initialization import residual_output

MIN_DT, MAX_DT = 1e-3, 1e-1
"""Between these `dt` starts, evenly in its logarithm."""

DECAY_RATE = 0.5
"""`-Re A` at the start."""

_FULL = jax.lax.Precision.HIGHEST


class S4DState(NamedTuple):
    """What S4D carries from one position to the next.

    Attributes:
        h: The states, one of each conjugate pair.
        started: Whether a position of the sequence has been seen; until then the states are zero.
    """

    h: Complex64[Array, "batch width states"]
    started: Bool[Array, ""]


class S4D(nnx.Module):
    """A linear system of `state_size` states in each channel, then GELU, a linear map and a GLU.

    In continuous time `h' = A h + B x`, `y = 2 Re(C h) + D x`, with `A` diagonal. Of each pair of
    conjugate states one is kept, `state_size / 2` in all: hence the real part, twice. With the
    input held for a time `dt` from one position to the next (zero-order hold; section 3.1)::

        h_t = z h_{t-1} + b x_t,        z = exp(dt A),    b = (z - 1) / A * B
        y_t = 2 Re(sum(C h_t)) + D x_t
        output = p * sigmoid(q),        [p; q] = W_o gelu(y)

    The parallel form is a convolution of `x` with `K_l = 2 Re(sum(C b z^l))` by FFT, the recurrent
    form is the equations as they stand. In a FFT an output hears later inputs, too, by rounding and
    no more. All but `W_o` is in float32. Here is how that is enough for long sequences:

    * `z^l` is not the power of a rounded `z`: its angle is a multiple, modulo whole turns, of an
      angle in 32-bit integers, which is exact;
    * the recurrent form adds `(z - 1) h` to `h`, and `z - 1` is computed without cancellation.

    Of powers up to the length, only those up to its square root are computed, and those of that
    root: `z^(i R + j) = (z^R)^i z^j`, so that sums over states are products of matrices.

    At the start `B = 1`, `C` and `D` are normal, and `dt` is spread over [0.001, 0.1]. With
    `N = state_size` and `n = 0 ... N/2 - 1`, `A = -1/2 + i pi n` (S4D-Lin) or
    `A = -1/2 + i N/pi (N / (2 n + 1) - 1)` (S4D-Inv; section 4).

    Attributes:
        log_dt: `log dt`, one a channel.
        log_a_real: `log(-Re A)`, `(width, states)`.
        a_imag: `Im A`, likewise.
        b: `B`, `(2, width, states)`, the real and the imaginary part.
        c: `C`, likewise.
        d: `D`, one a channel.
        output: `W_o`, to twice the width, scaled down at the start.
    """

    branch: ClassVar[str] = "whole"

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the layer for a level of the given width.

        Raises:
            UserError: `config.state_size` is odd.
        """
        if config.state_size % 2:
            raise UserError(
                "The states of the mixer 's4d' are conjugate pairs: state_size must be even, "
                f"got {config.state_size}."
            )
        states = config.state_size // 2
        self.out_width = width
        self.dtype = config.dtype
        self.log_dt = nnx.Param(_initial_log_dt(rngs.params(), width))
        self.log_a_real = nnx.Param(jnp.full((width, states), math.log(DECAY_RATE), jnp.float32))
        frequencies = initial_frequencies(config.state_size, config.ssm_init)
        self.a_imag = nnx.Param(jnp.broadcast_to(jnp.asarray(frequencies), (width, states)))
        self.b = nnx.Param(jnp.ones((2, width, states)) * jnp.array([1.0, 0.0])[:, None, None])
        # A complex number of variance 1.
        self.c = nnx.Param(math.sqrt(0.5) * jax.random.normal(rngs.params(), (2, width, states)))
        self.d = nnx.Param(jax.random.normal(rngs.params(), (width,)))
        self.output = nnx.Linear(
            width,
            2 * width,
            kernel_init=residual_output(config),
            dtype=config.dtype,
            rngs=rngs,
        )

    def init_state(self, batch_size: int) -> S4DState:
        """The state before the first position of a sequence."""
        shape = (batch_size, *self.log_a_real.shape)
        return S4DState(jnp.zeros(shape, jnp.complex64), jnp.array(False))

    def __call__(
        self, x: Float[Array, "batch time width"], state: S4DState
    ) -> tuple[Float[Array, "batch time width"], S4DState]:
        """All positions (parallel form), and the state after them."""
        u = jnp.moveaxis(x.astype(jnp.float32), 1, 2)
        system = self._discretized()
        powers = _Powers.up_to(u.shape[2], system)
        c = _complex(self.c)
        y = _convolve(u, powers.sum(c * system.b)) + self.d[...][:, None] * u

        def resume(y):
            return y + powers.sum(c * system.z * state.h)

        # Most sequences start here. The number of states makes the rest as dear as a convolution.
        y = jax.lax.cond(state.started, resume, lambda y: y, y)
        h = powers.last * state.h + system.b * powers.weigh(u)
        return self._output(jnp.moveaxis(y, 2, 1)), S4DState(h, jnp.array(True))

    def step(
        self, x: Float[Array, "batch width"], state: S4DState
    ) -> tuple[Float[Array, "batch width"], S4DState]:
        """The next position (recurrent form)."""
        u = x.astype(jnp.float32)
        system = self._discretized()
        h = state.h + (system.z_minus_one * state.h + system.b * u[..., None])
        y = 2.0 * jnp.sum((_complex(self.c) * h).real, axis=-1) + self.d[...] * u
        return self._output(y), S4DState(h, jnp.array(True))

    def impulse_response(self, length: int) -> Float[Array, "width length"]:
        """`K` at `0 ... length - 1`, `D` left out; float32."""
        system = self._discretized()
        return _Powers.up_to(length, system).sum(_complex(self.c) * system.b)

    def _discretized(self) -> "_Discretized":
        dt, decay = jnp.exp(self.log_dt[...])[:, None], jnp.exp(self.log_a_real[...])
        log_radius, turns = -dt * decay, dt * (self.a_imag[...] / (2.0 * np.pi))
        # z - 1 = exp(r) (cos a + i sin a) - 1, with cos a = 1 - 2 sin(a / 2)^2.
        half = np.pi * (turns - jnp.round(turns))
        radius, sine = jnp.exp(log_radius), jnp.sin(half)
        z_minus_one = jax.lax.complex(
            jnp.expm1(log_radius) - 2.0 * radius * sine * sine,
            2.0 * radius * sine * jnp.cos(half),
        )
        a = jax.lax.complex(-decay, self.a_imag[...])
        b = z_minus_one / a * _complex(self.b)
        return _Discretized(log_radius, turns, z_minus_one, b)

    def _output(self, y):
        return jax.nn.glu(self.output(jax.nn.gelu(y, approximate=False).astype(self.dtype)))


class _Discretized(NamedTuple):
    """The system from one position to the next: `z = exp(log_radius + 2 pi i turns)`, and `b`."""

    log_radius: Float[Array, "width states"]
    turns: Float[Array, "width states"]
    z_minus_one: Complex64[Array, "width states"]
    b: Complex64[Array, "width states"]

    @property
    def z(self) -> Complex64[Array, "width states"]:
        return 1.0 + self.z_minus_one

    def power(self, steps: Int32[Array, "steps"]) -> Complex64[Array, "width states steps"]:
        """`z` to each of the powers."""
        radius = jnp.exp(self.log_radius[..., None] * steps)
        angle = 2.0 * np.pi * _turns_after(self.turns[..., None], steps)
        return jax.lax.complex(radius * jnp.cos(angle), radius * jnp.sin(angle))


class _Powers(NamedTuple):
    """The powers of `z` up to a length, as products of a coarse and a fine one.

    Attributes:
        coarse: `z^(i R)`.
        fine: `z^j`, `j = 0 ... R - 1`.
        last: `z^length`.
        length: How many powers there are; the last product may be past it.
    """

    coarse: Complex64[Array, "width states rows"]
    fine: Complex64[Array, "width states columns"]
    last: Complex64[Array, "width states"]
    length: int

    @classmethod
    def up_to(cls, length: int, system: _Discretized) -> "_Powers":
        columns = math.isqrt(length - 1) + 1
        rows = -(-length // columns)
        coarse = system.power(columns * jnp.arange(rows, dtype=jnp.int32))
        fine = system.power(jnp.arange(columns, dtype=jnp.int32))
        last = system.power(jnp.array([length], jnp.int32))[..., 0]
        return cls(coarse, fine, last, length)

    def sum(
        self, factors: Complex64[Array, "*batch width states"]
    ) -> Float[Array, "*batch width length"]:
        """`2 Re(sum_n factors_n z_n^l)` for each `l`: a Vandermonde product."""
        coarse = 2.0 * factors[..., None] * self.coarse
        # The real part of a product of complex matrices is one product of real ones.
        left = jnp.concatenate([coarse.real, -coarse.imag], axis=-2)
        right = jnp.concatenate([self.fine.real, self.fine.imag], axis=-2)
        total = jnp.einsum("...wni,wnj->...wij", left, right, precision=_FULL)
        return total.reshape(*total.shape[:-2], -1)[..., : self.length]

    def weigh(
        self, u: Float[Array, "batch width length"]
    ) -> Complex64[Array, "batch width states"]:
        """`sum_t z^(length - 1 - t) u_t`."""
        rows, columns = self.coarse.shape[-1], self.fine.shape[-1]
        u = jnp.pad(u[..., ::-1], ((0, 0), (0, 0), (0, rows * columns - self.length)))
        u = u.reshape(*u.shape[:2], rows, columns)
        fine = jnp.stack([self.fine.real, self.fine.imag])
        real, imag = jnp.einsum("bwij,cwnj->cbwni", u, fine, precision=_FULL)
        return jnp.sum(jax.lax.complex(real, imag) * self.coarse, axis=-1)


def initial_frequencies(state_size: int, init: str) -> Float[np.ndarray, "states"]:
    """`Im A` at the start: of S4D-Lin or S4D-Inv (section 4).

    Args:
        state_size: `N`, twice the number of those returned.
        init: "lin" or "inv".
    """
    n = np.arange(state_size // 2)
    if init == "inv":
        return (state_size / np.pi * (state_size / (2 * n + 1) - 1.0)).astype(np.float32)
    return (np.pi * n).astype(np.float32)


def _initial_log_dt(key, width: int) -> Float[Array, "width"]:
    low, high = math.log(MIN_DT), math.log(MAX_DT)
    return jax.random.uniform(key, (width,), minval=low, maxval=high)


def _complex(pair: nnx.Param) -> Complex64[Array, "width states"]:
    return jax.lax.complex(*pair[...])


def _turns_after(
    turns: Float[Array, "*shape 1"], steps: Int32[Array, "steps"]
) -> Float[Array, "*shape steps"]:
    """`turns * steps` modulo 1, as exact for many steps as for one.

    A turn is 2^32 units of an integer, whose overflow takes away whole turns.
    """
    fraction = jax.lax.stop_gradient(turns - jnp.round(turns))
    units = jnp.clip(jnp.round(fraction * 2.0**32), -(2.0**31), 2.0**31 - 128.0).astype(jnp.int32)
    exact = (units * steps).astype(jnp.float32) * 2.0**-32
    # Nothing, but with the slope that an integer has not.
    return exact + (turns - jax.lax.stop_gradient(turns)) * steps


@jax.custom_vjp
def _convolve(
    u: Float[Array, "batch width time"], kernel: Float[Array, "width time"]
) -> Float[Array, "batch width time"]:
    """`y_t = sum_l kernel_l u_{t-l}`, by FFT of twice the length so that nothing goes around."""
    return _convolve_forward(u, kernel)[0]


def _convolve_forward(u, kernel):
    u_spectrum, kernel_spectrum = _spectrum(u), _spectrum(kernel)
    y = _from_spectrum(u_spectrum * kernel_spectrum, u.shape[-1])
    return y, (u_spectrum, kernel_spectrum)


def _convolve_backward(spectra, dy):
    # Correlations are products with a conjugate. By itself JAX takes FFTs of complex numbers here.
    u_spectrum, kernel_spectrum = spectra
    dy_spectrum, time = _spectrum(dy), dy.shape[-1]
    du = _from_spectrum(dy_spectrum * kernel_spectrum.conj(), time)
    return du, _from_spectrum(jnp.sum(dy_spectrum * u_spectrum.conj(), axis=0), time)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _spectrum(x: Float[Array, "*batch time"]) -> Complex64[Array, "*batch frequencies"]:
    return jnp.fft.rfft(x, scipy.fft.next_fast_len(2 * x.shape[-1], real=True))


def _from_spectrum(
    x: Complex64[Array, "*batch frequencies"], time: int
) -> Float[Array, "*batch time"]:
    return jnp.fft.irfft(x, scipy.fft.next_fast_len(2 * time, real=True))[..., :time]
