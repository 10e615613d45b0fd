import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pf_jax.errors import UserError
from pf_jax.evaluation.comparison import (
    config_differences,
    incomparable,
    read_run,
    read_runs,
    short_names,
)
from tests.evaluation import runs

LN2 = math.log(2.0)


def a_log(run, **train):
    runs.write_log(
        run,
        (2, "train", {"loss": 8 * LN2, "bits_per_sample": 8.0, "skipped": 0.0}),
        (4, "train", {"loss": None, "samples_per_second": 100.0}),
        (5, "validation", {"bits_per_sample": 6.0}),
        (6, "train", {"loss": 4 * LN2, "samples_per_second": 900.0}),
        (8, "train", {"loss": 3 * LN2, "samples_per_second": 400.0}),
        (10, "validation", {"bits_per_sample": 5.0}),
        (12, "validation", {"bits_per_sample": 5.5}),
    )


def test_a_log(tmp_path):
    a_log(tmp_path / "run")
    (run,) = read_runs([tmp_path / "run"])
    assert (run.name, run.path, run.step) == ("run", tmp_path / "run", 12)
    assert run.training.steps.tolist() == [2, 4, 6, 8]
    np.testing.assert_allclose(run.training.values, [8, np.nan, 4, 3])
    assert run.validation.steps.tolist() == [5, 10, 12]
    assert run.best == (10, 5.0)
    assert run.samples_per_second == 400.0
    assert (run.config, run.parameters, run.dataset, run.samples_per_step) == (None, None, "", None)


def test_a_checkpoint_tells_the_rest(tmp_path):
    a_log(tmp_path)
    runs.write_checkpoint(tmp_path, 10, {5: 6.0, 10: 5.0}, runs.config())
    runs.write_checkpoint(tmp_path, 15, {5: 6.0, 10: 5.0, 15: 5.25}, runs.config())
    (tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp" / "meta").mkdir(parents=True)
    run = read_run(tmp_path, "name")
    assert (run.name, run.step, run.meta.step) == ("name", 15, 10)
    assert run.validation.steps.tolist() == [5, 10, 12, 15]
    assert run.best == (10, 5.0)
    assert (run.dataset, run.samples_per_step) == ("demo", 4 * 256)
    assert run.config == runs.config()


def test_a_checkpoint_without_a_log(tmp_path):
    runs.write_checkpoint(tmp_path, 3, {}, runs.config())
    run = read_run(tmp_path, "name")
    assert (run.step, run.best, run.samples_per_second) == (3, None, None)
    assert not len(run.training)


def test_evaluations(tmp_path):
    a_log(tmp_path)
    for split in ("validation", "test"):
        runs.write_evaluation(tmp_path, runs.EVALUATION, split)
    (tmp_path / "evaluation" / "train" / "generated").mkdir(parents=True)
    run = read_run(tmp_path, "name")
    assert list(run.evaluations) == ["test", "validation"]
    assert run.evaluations["test"].metrics["fid"] == 12.5
    assert (run.parameters, run.dataset) == (12_345, "demo")


@pytest.mark.parametrize("torn", ["", '{"st', '{"step": 14, "split": "tra', "{", "\x00\x00"])
def test_a_torn_last_line_is_passed_over(tmp_path, torn):
    a_log(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert read_run(tmp_path, "name").step == 12


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "3",
        "[]",
        "\x00",
        '{"split": "train"}',
        '{"step": 1}',
        '{"step": 1.5, "split": "train"}',
        '{"step": -1, "split": "train"}',
        '{"step": true, "split": "train"}',
        '{"step": 1, "split": "train", "loss": "low"}',
        '{"step": 1, "split": "train", "loss": [1]}',
    ],
)
def test_a_damaged_line_is_named(tmp_path, line):
    a_log(tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    for number in (1, 4, len(lines) + 1):
        damaged = [*lines[: number - 1], line, *lines[number - 1 :]]
        path.write_text("\n".join(damaged) + "\n")
        with pytest.raises(UserError) as caught:
            read_run(tmp_path, "name")
        assert str(caught.value).startswith(f"Line {number} of {path} is damaged: ")
        assert "\n" not in str(caught.value)


def test_mistakes(tmp_path):
    a_log(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    damaged = tmp_path / "damaged"
    a_log(damaged)
    (damaged / "checkpoints" / "3" / "meta").mkdir(parents=True)
    (damaged / "checkpoints" / "3" / "meta" / "metadata").write_text("{")
    run = str(tmp_path / "run")
    for paths, message in (
        ([], "No run was given"),
        ([tmp_path / "nowhere"], "nowhere does not exist; give the directory of a training run"),
        ([f"{run}/metrics.jsonl"], r"metrics\.jsonl is a file; give the directory"),
        ([tmp_path / "empty"], r"empty is not .* neither metrics\.jsonl nor checkpoints/STEP"),
        ([run, damaged, f"{run}/"], "run was given 2 times: name each run once"),
        ([run, tmp_path / "link"], "run was given 2 times"),
        ([run, os.path.relpath(run)], "run was given 2 times"),
        ([damaged], "3 is not a readable pf_jax checkpoint"),
        (["xx://runs/a"], "RUN=xx://runs/a"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read_runs(paths)
        assert "\n" not in str(caught.value)


def test_names_are_short():
    paths = ["/r/a/demo", "/r/b/demo", "/r/b", "gs://x/large", "/s/r/b", "demo"]
    names = ["a/demo", "b/demo", "/r/b", "large", "s/r/b", "demo"]
    assert short_names(paths) == names
    assert short_names(["/one/run"]) == ["run"]


PARTS = st.lists(st.sampled_from(["a", "b", "c"]) | st.text("a. \n<", min_size=1), min_size=1)


@given(
    st.lists(
        st.builds(lambda root, p: root + "/".join(p), st.sampled_from(["", "/", "gs://"]), PARTS),
        unique=True,
    )
)
def test_names_are_unique_ends_of_their_paths(paths):
    names = short_names(paths)
    assert len(set(names)) == len(names) == len(paths)
    for path, name in zip(paths, names, strict=True):
        assert path == name or path.endswith(f"/{name}")
        _, _, shorter = name.partition("/")
        if shorter:  # It is the end of another path, too; or it would be the name.
            others = [p for p in paths if p != path]
            assert path == name or any(p == shorter or p.endswith(f"/{shorter}") for p in others)


def make(tmp_path, name, config=None, fingerprint="f", **changes):
    a_log(tmp_path / name)
    if config is not None:
        runs.write_checkpoint(tmp_path / name, 10, {10: 5.0}, config, fingerprint)
    if changes:
        distribution = runs.EVALUATION["distribution"] | changes
        runs.write_evaluation(tmp_path / name, runs.EVALUATION | {"distribution": distribution})
    return read_run(tmp_path / name, name)


def test_differences_of_configs(tmp_path):
    a, b = (make(tmp_path, f"c{size}", runs.config(batch_size=size)) for size in (4, 8))
    c = make(tmp_path, "none")
    assert config_differences([a, b, c]) == {"batch_size": [4, 8, None]}
    assert config_differences([a, c]) == {}
    d = make(tmp_path, "d", runs.config(window=512, path="x"))
    assert config_differences([a, d]) == {"data.window": [256, 512], "data.path": ["", "x"]}


def test_what_cannot_be_compared(tmp_path):
    a = make(tmp_path, "a", runs.config(), num_generated=256)
    assert incomparable([a]) == incomparable([a, make(tmp_path, "same", runs.config())]) == []
    for name, other, messages in (
        ("data", {"fingerprint": "other"}, ["metrics are not comparable: the data differ (f: a; "]),
        ("log", {"config": None}, ["the data and the config are not known: log."]),
        (
            "linear",
            {"config": runs.config(quantization="linear")},
            ["not comparable: data.quantization differs (mu_law: a; linear: linear)."],
        ),
        (
            "window",
            {"config": runs.config(window=2_048)},
            ["data.window differs (256: a; 2,048: window)."],
        ),
        ("few", {"num_generated": 16}, ["in distribution the numbers differ (256: a; 16: few)."]),
        ("other", {"classifier": {"path": "d"}}, ["the classifiers differ (c: a; d: other)."]),
    ):
        b = make(tmp_path, name, **{"config": runs.config()} | other)
        found = incomparable([a, b])
        assert len(found) == len(messages)
        for sentence, message in zip(found, messages, strict=True):
            assert message in sentence


def test_a_log_that_cannot_be_read(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"Cannot read .*metrics\.jsonl: Is a directory\."):
        read_run(tmp_path, "name")
