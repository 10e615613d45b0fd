"""What the optimizer's options do, against AdamW written out by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pf_jax.errors import UserError
from pf_jax.training import OptimizerConfig, hosts
from pf_jax.training.state import make_optimizer
from pf_jax.training.step import DATA_AXIS, train_step
from tests.training.test_step import CONFIG, global_batch, go_on, make_step, shared_out

PUBLISHED = OptimizerConfig(
    learning_rate=2e-3,
    schedule="constant",
    warmup_steps=1_000,
    weight_decay=1e-4,
    weight_decay_on="all",
    clip_norm=200.0,
    skip_norm=1_000.0,
    b2=0.999,
)
PARAMS = {"kernel": np.array([[0.5, -2.0], [3.0, 0.0]]), "decay": np.array([-4.0, 1.0])}


@pytest.mark.parametrize("weight_decay_on", ["all", "kernels"])
def test_the_published_recipe_is_adamw_with_decay_warm_up_and_clipping(weight_decay_on):
    optimizer, _ = make_optimizer(
        dataclasses.replace(
            CONFIG,
            optimizer=dataclasses.replace(
                PUBLISHED, weight_decay=0.1, weight_decay_on=weight_decay_on
            ),
            num_steps=487_000,
        )
    )
    params = jax.tree.map(jnp.float32, PARAMS)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    weights = {name: w.copy() for name, w in PARAMS.items()}
    first = {name: np.zeros_like(w) for name, w in PARAMS.items()}
    second = {name: np.zeros_like(w) for name, w in PARAMS.items()}
    rng = np.random.default_rng(0)
    for step, size in enumerate([1.0, 300.0, 2.0, 900.0]):
        gradients = {name: size * rng.normal(size=w.shape) for name, w in PARAMS.items()}
        updates, state = update(jax.tree.map(jnp.float32, gradients), state, params)
        params = jax.tree.map(jnp.add, params, updates)

        norm = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
        rate = 2e-3 * step / 1_000
        for name, g in gradients.items():
            g = g * min(1.0, 200.0 / norm)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            m, v = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            decayed = 0.1 * weights[name] if name == "kernel" or weight_decay_on == "all" else 0.0
            change = -rate * (m / (np.sqrt(v) + 1e-8) + decayed)
            np.testing.assert_allclose(updates[name], change, rtol=2e-4, atol=1e-12)
            weights[name] += change


def test_the_published_schedule_is_constant_after_warm_up():
    config = dataclasses.replace(CONFIG, optimizer=PUBLISHED, num_steps=487_000)
    _, schedule = make_optimizer(config)
    rates = [schedule(step) for step in (0, 1, 500, 1_000, 1_001, 486_999)]
    np.testing.assert_allclose(rates, [0.0, 2e-6, 1e-3, 2e-3, 2e-3, 2e-3], rtol=1e-5)


@functools.cache
def step_with(skip_norm):
    optimizer, schedule = make_optimizer(CONFIG)
    _, graphdef, _ = make_step()
    step = functools.partial(
        train_step,
        graphdef=graphdef,
        optimizer=optimizer,
        schedule=schedule,
        ema_decay=CONFIG.ema_decay,
        skip_norm=skip_norm,
    )
    return jax.pmap(step, axis_name=DATA_AXIS)


def test_a_step_with_too_large_a_gradient_changes_nothing_but_its_counts():
    free, _, state = make_step()
    state, _ = free(hosts.replicate(state), shared_out(global_batch(0)), go_on())
    state = hosts.first_replica(state)
    _, metrics = free(hosts.replicate(state), shared_out(global_batch(1)), go_on())
    norm = float(metrics["gradient_norm"][0])
    assert norm > CONFIG.optimizer.clip_norm, "the limit is on the norm before clipping"

    def step(skip_norm):
        results = step_with(skip_norm)(hosts.replicate(state), shared_out(global_batch(1)), go_on())
        return jax.tree.map(lambda x: x[0], jax.device_get(results))

    after, metrics = step(0.999 * norm)
    assert (metrics["skipped"], metrics["skipped_in_a_row"], after.step) == (1, 1, 2)
    for part in ("params", "ema_params", "optimizer", "key"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(state, part))

    after, metrics = step(1.001 * norm)
    assert (metrics["skipped"], metrics["skipped_in_a_row"], after.step) == (0, 0, 2)
    for part in ("params", "ema_params", "optimizer"):
        changed = [
            (a != b).any()
            for a, b in zip(
                jax.tree.leaves(getattr(after, part)),
                jax.tree.leaves(getattr(state, part)),
                strict=True,
            )
        ]
        assert any(changed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip_norm": -1.0}, "skip_norm must be at least 0, got -1.0"),
        ({"skip_norm": float("inf")}, "skip_norm must be at least 0, got inf"),
        ({"weight_decay_on": "biases"}, "weight_decay_on must be kernels or all, got 'biases'"),
    ],
)
def test_impossible_values_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**changes)
