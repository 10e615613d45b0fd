"""The clock of training: what else runs on the machine does not count on CPUs."""

import time

import jax
import pytest

from pf_jax.training import speed
from pf_jax.training.clock import training_clock


def seconds_of(function):
    start = training_clock()
    function()
    return training_clock() - start


def compute():
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass


def test_only_the_time_of_this_process_counts_on_cpus():
    assert seconds_of(lambda: time.sleep(0.3)) < 0.2
    assert seconds_of(compute) >= 0.1


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_waiting_counts_on_accelerators(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert seconds_of(lambda: time.sleep(0.1)) >= 0.1


def test_speed_is_measured_by_both_clocks(tiny_config, monkeypatch):
    monkeypatch.setattr(speed, "training_clock", lambda: 4.0 * time.monotonic())
    measured = speed.measure_training(tiny_config, seconds=0.2)
    ratio = measured.steps_per_second / measured.steps_per_clock_second
    assert ratio == pytest.approx(4.0, rel=0.01)
