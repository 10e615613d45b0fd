"""Gated recurrences by their definition in NumPy's complex128, and problems to compare with it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pf_jax.recurrence.gates import CGLRU, MAX_SLOPE, RGLRU
from tests.recurrence.definition import double, loop, loop_gradients

COEFFICIENTS = {"rglru": RGLRU, "cglru": CGLRU}


def problem(
    coefficients, seed, shape, dtypes=(jnp.float32,) * 3, *, log_decay=(-1.0, -1e-4), turn=0.5
):
    """Inputs, channel parameters, `h0`, and cotangents of the states and of the last of them."""
    rng = np.random.default_rng(seed)
    (batch, time, width), parts = shape, coefficients.parts

    def normal(*shape, dtype=jnp.float32):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    inputs = tuple(
        normal(batch, time, width * wider, dtype=dtype)
        for wider, dtype in zip((1, 1, parts), dtypes, strict=True)
    )
    channel = [rng.uniform(*log_decay, width), rng.uniform(-turn, turn, width)][:parts]
    h0, dlast = normal(batch, parts * width), normal(batch, parts * width)
    dh = normal(batch, time, parts * width, dtype=dtypes[-1])
    return inputs, tuple(jnp.asarray(x, jnp.float32) for x in channel), h0, dh, dlast


def expected(coefficients, inputs, channel, h0, dh, dlast):
    """What `everything` gives, by the definition, in float64."""
    parts = coefficients.parts
    (r_gate, i_gate, u), (log_decay, *theta) = double(*inputs), double(*channel)
    h0, dh, dlast = double(h0, dh, dlast)
    u, h0, dh, dlast = (_complex(x, parts) for x in (u, h0, dh, dlast))
    rate = log_decay + 1j * (theta[0] if theta else 0.0)

    r, i = _sigmoid(r_gate), _sigmoid(i_gate)
    a, scale = np.exp(rate * r), np.sqrt(-np.expm1(2.0 * log_decay * r))
    b = scale * i * u
    h = loop(a, b, h0)
    whole = dh.copy()
    whole[:, -1] += dlast
    da, db, dh0 = _complex_gradients(a, b, h0, whole)

    # A gradient is dL/dRe + i dL/dIm, so that of a real x is Re(conj(dy) dy/dx).
    dexponent = da * np.conj(a)  # Real part: that of log |a|; imaginary part: that of arg a.
    dscale = np.real(np.conj(db) * i * u)
    slope = -np.exp(2.0 * log_decay * r) / np.maximum(scale, 0.5 / MAX_SLOPE)
    dlog, dturn = np.real(dexponent) + dscale * slope, np.imag(dexponent)
    dr = dlog * log_decay + dturn * np.imag(rate)
    di = np.real(np.conj(db) * scale * u)
    dinputs = dr * r * (1.0 - r), di * i * (1.0 - i), _real(scale * i * db, parts)
    dchannel = np.sum(dlog * r, axis=(0, 1)), np.sum(dturn * r, axis=(0, 1))

    carry = np.prod(a, axis=1), loop(a, b, np.zeros_like(h0))[:, -1]
    adjoint = _complex_gradients(a, b, h0, dh)[2]
    return {
        "h": _real(h, parts),
        "last": _real(h[:, -1], parts),
        "gradients": (dinputs, dchannel[:parts], _real(dh0, parts)),
        "carry": tuple(_real(x, parts) for x in carry),
        "adjoint_carry": _real(adjoint, parts),
    }


def everything(module, coefficients, inputs, channel, h0, dh, dlast, **options):
    """What the four functions of an implementation give, by name."""
    kept = tuple(None if n in coefficients.linear_inputs else x for n, x in enumerate(inputs))
    h, last = module.forward(coefficients, inputs, channel, h0, dh.dtype, **options)
    gradients = module.gradient(coefficients, kept, channel, h0, h, dh, dlast, **options)
    return {
        "h": h,
        "last": last,
        "gradients": gradients,
        "carry": module.carry(coefficients, inputs, channel, **options),
        "adjoint_carry": module.adjoint_carry(coefficients, kept, channel, dh, **options),
    }


interpreted = jax.jit(
    functools.partial(everything, interpret=True),
    static_argnums=(0, 1),
    compiler_options={"xla_backend_optimization_level": 0},  # Compiling takes all the time.
)


def assert_equal(actual, wanted, tolerance):
    """Within a tolerance, relative to values and to the largest one of each array."""
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    for (path, x), y in zip(
        jax.tree.leaves_with_path(actual), jax.tree.leaves(wanted), strict=True
    ):
        x, y = double(x, y)
        atol = tolerance * np.abs(y).max()
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=atol, err_msg=str(path))


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def _complex(x, parts):
    """Real parts, then imaginary parts, as complex numbers; a real array has no imaginary ones."""
    real, *imaginary = np.split(x, parts, axis=-1)
    return real + 1j * (imaginary[0] if imaginary else 0.0)


def _real(x, parts):
    return np.concatenate([np.real(x), np.imag(x)][:parts], axis=-1)


def _complex_gradients(a, b, h0, dh):
    """`loop_gradients` in the convention of `expected`; that of the former has no conjugates."""
    return [np.conj(x) for x in loop_gradients(a, b, h0, np.conj(dh))]
