"""The learning-rate schedules against their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pf_jax import UserError
from pf_jax.training.schedules import SCHEDULES, make_schedule

RUNS = [(100, 1000), (0, 1000), (5000, 1000), (0, 1), (500, 1), (1, 2), (7, 23)]
names = pytest.mark.parametrize("name", SCHEDULES)
runs = pytest.mark.parametrize(("warmup_steps", "num_steps"), RUNS)


def expected(name, step, peak, warmup_steps, num_steps, final_fraction):
    """One learning rate in float64, as the literature has it."""
    warmup = min(warmup_steps, num_steps // 2)
    if step < warmup:
        return peak * step / warmup
    final = final_fraction * peak
    progress = min(1.0, (step - warmup) / (num_steps - warmup))
    decay_steps = max(1, num_steps // 5)
    return {
        "cosine": final + (peak - final) * 0.5 * (1.0 + np.cos(np.pi * progress)),
        "linear": peak + (final - peak) * progress,
        "constant": peak,
        "wsd": final + (peak - final) * np.clip((num_steps - step) / decay_steps, 0.0, 1.0),
        "inverse_sqrt": max(final, peak * np.sqrt(max(warmup, 1) / max(step, 1))),
    }[name]


@names
@runs
@pytest.mark.parametrize("final_fraction", [0.0, 0.1])
def test_formula(name, warmup_steps, num_steps, final_fraction):
    arguments = {
        "peak": 3e-3,
        "warmup_steps": warmup_steps,
        "num_steps": num_steps,
        "final_fraction": final_fraction,
    }
    schedule = make_schedule(name, **arguments)
    steps = sorted({*range(min(num_steps, 12)), *np.linspace(0, num_steps + 9, 60).astype(int)})
    expect = [expected(name, step, **arguments) for step in steps]
    rates = jax.vmap(schedule)(jnp.array(steps))
    np.testing.assert_allclose(rates, expect, rtol=2e-5, atol=1e-9)
    # A step as Python has it, as the loop's log asks for it.
    np.testing.assert_allclose(schedule(int(steps[-1])), expect[-1], rtol=2e-5, atol=1e-9)


@runs
def test_cosine_is_that_of_optax_to_the_last_bit(warmup_steps, num_steps):
    schedule = make_schedule(
        "cosine", peak=2e-3, warmup_steps=warmup_steps, num_steps=num_steps, final_fraction=0.02
    )
    of_optax = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=2e-3,
        warmup_steps=min(warmup_steps, num_steps // 2),
        decay_steps=num_steps,
        end_value=0.02 * 2e-3,
    )
    steps = jnp.arange(num_steps + 1)
    np.testing.assert_array_equal(jax.vmap(schedule)(steps), jax.vmap(of_optax)(steps))


@names
def test_continuous(name):
    schedule = make_schedule(name, peak=1.0, warmup_steps=200, num_steps=2000, final_fraction=0.05)
    rates = jax.vmap(schedule)(jnp.arange(2050))
    # The steepest are the warm-up and the decay of wsd, over 200 and 400 steps.
    assert np.abs(np.diff(rates)).max() <= 1.0 / 200 + 1e-5
    assert rates[200] == rates.max() == 1.0


def test_wsd_does_not_depend_on_the_end_before_its_decay():
    short, long = (
        make_schedule("wsd", peak=1.0, warmup_steps=10, num_steps=n, final_fraction=0.0)
        for n in (100, 1000)
    )
    steps = jnp.arange(81)
    np.testing.assert_array_equal(jax.vmap(short)(steps), jax.vmap(long)(steps))


def test_unknown_name():
    arguments = {"peak": 1.0, "warmup_steps": 0, "num_steps": 1, "final_fraction": 0.0}
    with pytest.raises(UserError, match="Unknown schedule 'cosin'; did you mean cosine"):
        make_schedule("cosin", **arguments)
    with pytest.raises(UserError, match="known are cosine, linear, constant, wsd, inverse_sqrt"):
        make_schedule("xyz", **arguments)
