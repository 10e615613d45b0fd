import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx


@pytest.fixture
def randomize():
    """Makes a layer by `build()` with noise in every parameter: no bias hides behind a zero."""

    def make(build, scale=1.0, seed=0):
        rng = np.random.default_rng(seed)
        # Shapes only: the initializers, which are not wanted, are slow to compile.
        graph, params = nnx.split(nnx.eval_shape(build))

        def noise(p):
            deviation = scale * (p.shape[-2] ** -0.5 if len(p.shape) > 1 else 0.5)
            return jnp.asarray((deviation * rng.standard_normal(p.shape)).astype(np.float32))

        return nnx.merge(graph, jax.tree.map(noise, params))

    return make


@pytest.fixture
def assert_forms_agree():
    """Checks that a layer's parallel form, its steps, and any mix of both give the same.

    Without a `split`, of the first six positions, so that one program does for both halves.
    """

    def check(layer, x, split=None, atol=1e-5):
        if split is None:
            x, split = x[:, :6], 3
        forward = nnx.jit(lambda layer, x, state: layer(x, state))
        step = nnx.jit(lambda layer, x, state: layer.step(x, state))
        batch_size, time, _ = x.shape

        def steps(positions, state):
            ys = []
            for t in positions:
                y, state = step(layer, x[:, t], state)
                ys.append(np.asarray(y).astype(np.float32))
            return np.stack(ys, axis=1), state

        expected, after_parallel = forward(layer, x, layer.init_state(batch_size))
        expected = np.asarray(expected).astype(np.float32)
        y, after_steps = steps(range(time), layer.init_state(batch_size))
        np.testing.assert_allclose(y, expected, atol=atol)
        first, state = forward(layer, x[:, :split], layer.init_state(batch_size))
        np.testing.assert_allclose(
            np.asarray(first).astype(np.float32), expected[:, :split], atol=atol
        )
        np.testing.assert_allclose(
            steps(range(split, time), state)[0], expected[:, split:], atol=atol
        )
        rest, after_pieces = forward(layer, x[:, split:], state)
        np.testing.assert_allclose(
            np.asarray(rest).astype(np.float32), expected[:, split:], atol=atol
        )

        def same(actual, expected):
            assert actual.dtype == expected.dtype
            exact = np.complex64 if jnp.iscomplexobj(actual) else np.float32
            np.testing.assert_allclose(
                np.asarray(actual).astype(exact), np.asarray(expected).astype(exact), atol=atol
            )

        jax.tree.map(same, after_steps, after_parallel)
        jax.tree.map(same, after_pieces, after_parallel)

    return check
