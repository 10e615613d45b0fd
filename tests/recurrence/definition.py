"""The recurrence by its definition, and problems to compare with it: what its tests share."""

import jax.numpy as jnp
import numpy as np

# Of the sum of the magnitudes of all terms: float32 rounds to 6e-8 of a term, some of them often.
ROUNDING = 1e-6


def loop(a, b, h0):
    """The definition."""
    h, states = h0, np.empty_like(b)
    for t in range(a.shape[1]):
        h = a[:, t] * h + b[:, t]
        states[:, t] = h
    return states


def loop_gradients(a, b, h0, dh):
    """Gradients of `sum(dh * h)` with respect to a, b and h0, by the chain rule, from the end."""
    previous = np.concatenate([h0[:, None], loop(a, b, h0)[:, :-1]], axis=1)
    da, db, g = np.empty_like(a), np.empty_like(b), np.zeros_like(h0)
    for t in reversed(range(a.shape[1])):
        g = g + dh[:, t]
        da[:, t], db[:, t] = g * previous[:, t], g
        g = g * a[:, t]
    return da, db, g


def double(*arrays):
    """The arrays in float64."""
    return [np.asarray(x).astype(np.float64) for x in arrays]


def assert_close(actual, expected, magnitude, relative=0.0):
    """Within rounding: `relative` of the value itself and `ROUNDING` of the terms summed."""
    actual = np.asarray(actual).astype(np.float64)
    assert np.isfinite(actual).all()
    error = np.abs(actual - expected) - relative * np.abs(expected)
    assert (error <= ROUNDING * magnitude + 1e-30).all(), (error / (magnitude + 1e-30)).max()


DECAYS = {
    "any": lambda rng, shape: rng.uniform(-1.0, 1.0, shape),
    "zero": lambda rng, shape: np.zeros(shape),
    "one": lambda rng, shape: np.ones(shape),
    "near one": lambda rng, shape: 1.0 - rng.uniform(0.0, 1e-6, shape),
    "negative": lambda rng, shape: rng.uniform(-1.0, -0.9, shape),
    "zeros and ones": lambda rng, shape: rng.integers(0, 2, shape),
    "slow": lambda rng, shape: rng.uniform(0.9, 1.0, shape),
}


def random_problem(seed, batch, time, decays=tuple(DECAYS), dtype=np.float32):
    """Inputs a, b, h0 and a cotangent; each channel has its kind of decay."""
    rng = np.random.default_rng(seed)
    a = np.stack([DECAYS[decay](rng, (batch, time)) for decay in decays], axis=-1)
    b, dh = rng.standard_normal((2, *a.shape))
    h0 = rng.standard_normal((batch, len(decays)))
    return [jnp.asarray(x, dtype) for x in (a, b, h0, dh)]
