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


def _float32(tree):
    """Leaves that NumPy compares: bfloat16 as float32."""
    return jax.tree.map(
        lambda x: np.asarray(x) if jnp.iscomplexobj(x) else np.asarray(x).astype(np.float32), tree
    )


def _dtype(x):
    return x.dtype


def _assert_close(actual, expected, atol):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=atol),
        _float32(actual),
        _float32(expected),
    )


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
                ys.append(np.asarray(y))
            return np.stack(ys, axis=1), state

        expected, end = forward(layer, x, layer.init_state(batch_size))
        y, after_steps = steps(range(time), layer.init_state(batch_size))
        first, state = forward(layer, x[:, :split], layer.init_state(batch_size))
        rest, after_pieces = forward(layer, x[:, split:], state)
        _assert_close(
            (y, first, steps(range(split, time), state)[0], rest),
            (expected, expected[:, :split], expected[:, split:], expected[:, split:]),
            atol,
        )
        for state in (after_steps, after_pieces):
            _assert_close(state, end, atol)
            assert jax.tree.map(_dtype, state) == jax.tree.map(_dtype, end)

    return check


@pytest.fixture
def assert_gradients_agree():
    """Checks the gradients of a layer's outputs by central differences of its equations.

    `run(layer, *inputs)` are the outputs, one array or several, and `equations` the same in NumPy
    and float64, of a layer with parameters in float64.
    """

    def check(layer, run, equations, *inputs, rtol=1e-4, atol=1e-5):
        graph, params = nnx.split(layer)
        exact = jax.tree.map(lambda x: np.array(x, np.float64), (params, inputs))

        def exact_outputs():
            layer = nnx.merge(graph, exact[0])
            return jax.tree.leaves(equations(layer, *exact[1]))

        rng = np.random.default_rng(3)
        weights = [rng.standard_normal(y.shape) for y in exact_outputs()]

        def loss(params, inputs):
            outputs = jax.tree.leaves(run(nnx.merge(graph, params), *inputs))
            pairs = zip(outputs, weights, strict=True)
            return sum(jnp.sum(y * w.astype(np.float32)) for y, w in pairs)

        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, inputs)
        for (path, values), actual in zip(
            jax.tree.leaves_with_path(exact), jax.tree.leaves(gradients), strict=True
        ):
            expected = np.empty_like(values)
            for index in np.ndindex(values.shape):
                kept, difference = values[index], 0.0
                for sign in (1, -1):
                    values[index] = kept + sign * 1e-6
                    outputs = zip(exact_outputs(), weights, strict=True)
                    difference += sign * sum(np.sum(y * w) for y, w in outputs)
                values[index] = kept
                expected[index] = difference / 2e-6
            name = jax.tree_util.keystr(path)
            assert np.abs(expected).max() > 1e-3, name
            np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=name)

    return check
