"""Budgets: as they are written, and what a run within one is."""

import dataclasses

import pytest

from pf_jax.errors import UserError
from pf_jax.training.budget import Budget, within
from pf_jax.training.config import OptimizerConfig


@pytest.mark.parametrize(
    ("text", "budget", "steps"),
    [
        ("60s", Budget(seconds=60.0), [150]),
        ("0.5min", Budget(seconds=30.0), [75]),
        ("2h", Budget(seconds=7_200.0), [18_000]),
        ("1_000steps", Budget(steps=1_000), [1_000]),
        ("1e3steps", Budget(steps=1_000), [1_000]),
        ("60s,1000steps", Budget(60.0, 1_000), [150, 1_000]),
        ("100steps, 60s", Budget(60.0, 100), [100, 150]),
        ("0.01s", Budget(seconds=0.01), [1]),
    ],
)
def test_budgets_are_read(text, budget, steps):
    assert Budget.parse(text) == budget
    assert Budget.parse(str(budget)) == budget
    assert budget.num_steps(2.5) == steps


@pytest.mark.parametrize(
    "text",
    [
        *("", "60", "s", "60 apples", "-3s", "0s", "0steps", "1.5steps", "1s,2s", "1s,1h", "1s,,"),
        *("1steps,2steps", "nans", "infs", "1e999s", "1e999steps"),
    ],
)
def test_what_is_no_budget(text):
    with pytest.raises(UserError, match="A budget"):
        Budget.parse(text)


def test_a_run_within_a_budget(tiny_config):
    config = dataclasses.replace(
        tiny_config,
        optimizer=OptimizerConfig(warmup_steps=30),
        num_steps=300,
        patience=3,
        sample_every=5,
    )
    run = within(config, Budget(seconds=60.0), 10.0, 12)
    assert (run.num_steps, run.eval_every, run.optimizer.warmup_steps) == (600, 50, 60)
    assert (run.patience, run.sample_every, run.profile) == (0, 0, ())
    assert (run.model, run.data, run.batch_size) == (config.model, config.data, config.batch_size)
    # Where both are given, the longer one ends the run, and the other has an evaluation.
    for budget in (Budget(60.0, 250), Budget(25.0, 600)):
        run = within(config, budget, 10.0, 12)
        assert run.num_steps == 600
        assert 250 % run.eval_every == 0
        assert 8 <= run.num_steps / run.eval_every <= 16
    run = within(config, Budget(steps=3), None, 12)
    assert (run.num_steps, run.eval_every, run.log_every) == (3, 1, 1)
