"""What variants reached within a budget, from runs written by hand."""

import dataclasses
import json

import numpy as np
import pytest

from pf_jax.evaluation.comparison import read_run
from pf_jax.evaluation.comparison_sounds import Clip, Sounds, make_players
from pf_jax.evaluation.comparison_variants import (
    Result,
    Spread,
    bits_at_seconds,
    bits_at_step,
    in_words,
    mean_curve,
    seconds_at,
    write_results,
)
from pf_jax.evaluation.comparison_variants_page import write_variants
from pf_jax.training.budget import Budget
from pf_jax.training.variants import Variant
from tests.evaluation import runs

MEASURED = {
    "device": "1 x abacus",
    "steps_per_second": 2.0,
    "sampling_samples_per_second": 12_345.6,
    "flops_per_sample": 6_000,
    "step_memory": 2_500_000_000,
}
BUDGET = Budget(seconds=8.0, steps=10)


def a_run(tmp_path, name, seed, *, bits, seconds):
    """A run of 20 steps with evaluations at 5, 10, 15 and 20, each step of the same length."""
    config = dataclasses.replace(runs.config(), seed=seed)
    path = tmp_path / name / f"seed{seed}"
    lines = []
    for step, value in zip((5, 10, 15, 20), bits, strict=True):
        time = {"seconds": seconds * step}
        cost = {"loss": value * np.log(2), "peak_memory": 5e8}
        lines += [
            (step, "train", time | cost),
            (step, "validation", time | {"bits_per_sample": value}),
        ]
    runs.write_log(path, *lines)
    runs.write_checkpoint(path, 20, {20: bits[-1]}, config)
    return read_run(path, f"{name}, seed {seed}")


def results(tmp_path):
    small, large, failed = (
        Variant(name, runs.config(), parameters, parameters / 1_000 - 1.0)
        for name, parameters in (("a", 1_000), ("b", 1_040), ("c:conv_width=1", 1_000))
    )
    slow = [a_run(tmp_path, "a", s, bits=(8 + s, 6 + s, 4 + s, 2 + s), seconds=0.5) for s in (0, 1)]
    fast = [a_run(tmp_path, "b", 0, bits=(8.0, 7.0, 5.0, 3.0), seconds=0.25)]
    return [
        Result(small, MEASURED, slow, ()),
        Result(large, MEASURED, fast, ("The run of seed 1 failed: it was <killed>.",)),
        Result(failed, {}, (), ("It could not be measured: no way.",)),
    ]


def test_readings_are_on_the_lines_between_evaluations(tmp_path):
    run = a_run(tmp_path, "a", 0, bits=(8.0, 6.0, 4.0, 2.0), seconds=0.5)
    assert [bits_at_step(run, step) for step in (1, 5, 7.5, 20, 30)] == [8.0, 8.0, 7.0, 2.0, 2.0]
    assert [bits_at_seconds(run, s) for s in (2.5, 4.5, 10.0, 99.0)] == [8.0, 6.4, 2.0, 2.0]
    np.testing.assert_allclose(seconds_at(run, np.array([5, 12])), [2.5, 6.0])
    runs.write_log(tmp_path / "old", (5, "train", {"loss": 1.0}), (5, "validation", {}))
    old = read_run(tmp_path / "old", "old")
    assert np.isnan(bits_at_seconds(old, 1.0))
    assert np.isnan(seconds_at(old, np.array([5]))).all()


def test_spread_is_that_of_the_known():
    assert Spread.of([1.0, None, 3.0, np.nan]) == Spread(
        2.0, pytest.approx(np.sqrt(2.0)), (1.0, 3.0)
    )
    assert Spread.of([5.0]) == Spread(5.0, None, (5.0,))
    assert Spread.of([None, np.nan]) is None


def test_mean_curves_are_at_common_steps(tmp_path):
    first = a_run(tmp_path, "a", 0, bits=(8.0, 6.0, 4.0, 2.0), seconds=0.5)
    runs.write_log(
        tmp_path / "b",
        *((s, "validation", {"bits_per_sample": 4.0, "seconds": float(s)}) for s in (10, 20, 30)),
    )
    second = read_run(tmp_path / "b", "b")
    x, y = mean_curve([first, second], lambda run: run.validation, seconds_at)
    np.testing.assert_allclose(x, [7.5, 15.0])
    np.testing.assert_allclose(y, [5.0, 3.0])


def test_the_page(tmp_path):
    found, config = results(tmp_path), runs.config()
    clip = Clip("sound", np.zeros(80, np.float32), 8_000, 0.01)
    players, _ = make_players([[clip], [], []], most_bytes=1e9)
    sounds = [Sounds(players[0]), Sounds(remarks=["No <sounds>."]), Sounds()]
    page = runs.Page(write_variants(tmp_path / "page.html", found, BUDGET, config, sounds))
    unknown, third = "\N{EN DASH}", "c:conv_width=1"
    for title, a, b, c in (
        # 8 s are 16 steps of the slow one, and more than all of the fast one.
        (
            "Bits per sample after 8 s",
            "4.1000 ± 0.7071 step 16 of 20",
            "3.0000 step 20 of 20",
            unknown,
        ),
        (
            "Bits per sample after 10,240 samples",
            "6.5000 ± 0.7071 in 5.0 s",
            "7.0000 in 2.5 s",
            unknown,
        ),
        ("Parameters", "1,000 +0.0 %", "1,040 +4.0 %", "1,000 +0.0 %"),
        ("Model", *["2 levels widths 8, 16 pools 4"] * 3),
        ("Training samples per second", "2,048 ± 0", "4,096", unknown),
        ("Sampling, samples per second of one stream", "12,346", "12,346", unknown),
        ("FLOPs of training a sample", "6,000", "6,000", unknown),
        ("Memory of a training step", "2.50 GB", "2.50 GB", unknown),
        ("Peak memory of training", "500 MB", "500 MB", unknown),
        ("Runs", "2", "1", "0"),
    ):
        assert page.column(title) == {"a": a, "b": b, third: c}
    assert page.source.count("<strong>") == 2
    for part in ("<strong>6.5000", "<strong>3.0000"):
        assert part in page.source
    for sentence in (
        "b: The run of seed 1 failed: it was <killed>.",
        "c:conv_width=1: It could not be measured: no way.",
        "Parameters are not equal to within 3 %: b by +4.0 %.",
        "a 10.0 s instead of 8.0 s, b 5.0 s instead of 8.0 s",
        "the learning rate had not come down",
        "cosine after a warm-up",
        "8 s of training; 10,240 samples (10 steps)",
        "1 x abacus",
        "No <sounds>.",
    ):
        assert sentence in page.text
    assert len(page.all("audio")) == 1
    assert len(page.all("img")) == 4 + 4 + 1  # Numbers, curves, and a sound.


def test_a_page_without_a_finished_run(tmp_path):
    failed = [Result(r.variant, {}, (), ("Broken.",)) for r in results(tmp_path)]
    page = runs.Page(write_variants(tmp_path / "page.html", failed, Budget(steps=3), runs.config()))
    assert page.column("Runs") == {"a": "0", "b": "0", "c:conv_width=1": "0"}
    assert "a: Broken." in page.text
    assert not page.all("img")


def test_numbers_as_json_and_in_words(tmp_path):
    found = results(tmp_path)
    write_results(tmp_path / "numbers.json", found, BUDGET, runs.config())
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["budget"] == {"seconds": 8.0, "steps": 10}
    a, _, c = numbers["models"]
    assert a["bits_per_sample_at_equal_samples"]["values"] == [6.0, 7.0]
    assert a["bits_per_sample_at_equal_time"]["mean"] == pytest.approx(4.1)
    assert a["measurement"]["flops_per_sample"] == 6_000
    assert [run["seed"] for run in a["runs"]] == [0, 1]
    assert a["runs"][0]["validation"] == {
        "steps": [5, 10, 15, 20],
        "seconds": [2.5, 5.0, 7.5, 10.0],
        "bits_per_sample": [8.0, 6.0, 4.0, 2.0],
    }
    assert (c["runs"], c["num_steps"], c["peak_memory"]) == ([], None, None)
    assert c["failures"] == ["It could not be measured: no way."]
    assert in_words(found[1], BUDGET) == (
        "b: 3.0000 bits per sample after 8 s, 7.0000 bits per sample after 10 steps, "
        "1,040 parameters, 1 failed"
    )
