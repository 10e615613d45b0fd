"""`experiments.compile` on a small model: its figures against what can be counted."""

import json
import os
import sys

import jax
import pytest

from experiments.cli import load_config
from pf_jax.training.state import init_train_state, make_optimizer
from tests import processes
from tests.training.test_program import needs_compiler

pytestmark = needs_compiler

SMALL = {"model.widths": (16, 24), "model.depths": (1, 1), "model.pool_factors": (4,)}
SMALL |= {"data.window": 256, "batch_size": 8}


def run(*arguments):
    flags = [f"--config.{name}={value}" for name, value in SMALL.items()]
    return processes.run(
        [sys.executable, "-m", "experiments.compile", "--config=demo", *flags, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def test_a_step_needs_its_state_and_exchanges_its_gradients():
    done = run("--topology=v5e:2x2", "--json", "--nolargest")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    config = load_config("demo", SMALL)
    state = jax.eval_shape(lambda: init_train_state(config, make_optimizer(config)[0])[1])

    def size(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    memory = report["memory"]
    assert memory["parameters"] == memory["moving average"] == size(state.params)
    assert memory["optimizer state"] == size(state.optimizer)
    assert memory["batch"] == 2 * 256 + 2 * 4
    assert memory["all"] == sum(memory.values()) - memory["all"] < report["available"]
    assert report["fits"]
    # Gradients, the loss, the count, and whether to stop.
    (exchange,) = report["collectives"]
    assert exchange["kind"] == "all-reduce"
    assert size(state.params) + 12 <= exchange["bytes"] <= 1.5 * size(state.params) + 4096
    least = max(report["least_seconds"].values())
    assert report["most_samples_per_second"] == pytest.approx(8 * 256 / least)
    dollars = report["dollars_per_device_hour"] * 4 / 3600 * least / (8 * 256) * 1e9
    assert report["least_dollars_per_billion_samples"] == pytest.approx(dollars)


def test_a_sequence_over_devices_and_the_table():
    done = run("--topology=v5e:2x2", "--config.sequence_devices=2", "--batch=4", "--nolargest")
    assert done.returncode == 0, done.stderr
    assert "for 4 windows of 256 tokens" in done.stdout
    assert "it fits" in done.stdout
    assert "collective-permute" in done.stdout


def test_the_sampler():
    done = run("--topology=v5e:1x1", "--sampling", "--streams=3", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["fits"]
    assert report["memory"]["weights"] > 0


def test_what_does_not_fit():
    done = run("--topology=v5e:1x1", "--batch=2000000", "--nolargest", "--json")
    assert done.returncode == 2
    report = json.loads(done.stdout)
    assert not report["fits"]
    # The logits and their gradients alone need as much.
    assert report["memory"]["all"] > 2 * 2_000_000 * 256 * 256 * 4 > report["available"]
    assert "does not fit; --largest finds a batch that does" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--topology=v9:1x1"], "Unknown topology 'v9:1x1'"),
        (["--topology=v5e:2x2", "--batch=6"], "not a multiple of the 4 devices"),
        ([], "--topology is missing"),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments, says):
    done = run(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
