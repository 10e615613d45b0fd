"""Comparisons: one with true runs that is interrupted, and others whose processes are acted."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from experiments import trials
from experiments.trials import Ended, Trials
from pf_jax.config import PoolformerConfig
from pf_jax.data import DataConfig
from pf_jax.errors import UserError
from pf_jax.training import OptimizerConfig, TrainConfig
from pf_jax.training.budget import Budget
from pf_jax.training.variants import make_variants
from tests.evaluation.runs import Page, write_checkpoint, write_log

ROOT = pathlib.Path(__file__).parents[2]
RATE = 1_000
BROKEN = "poolformer:recurrence=nothing"

# Runs the command for each of the command lines, all in one process.
SERVER = """
import contextlib, io, json, sys
from absl import flags
from absl.testing import flagsaver
from experiments import cli, compare

answers = []
for arguments in json.load(sys.stdin):
    out, err, status = io.StringIO(), io.StringIO(), 0
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        flags.FLAGS.unparse_flags()
        try:
            cli.run(compare.main, ["compare", *arguments])
        except SystemExit as stop:
            status = stop.code or 0
    answers.append((status, out.getvalue(), err.getvalue()))
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    rng, seconds = np.random.default_rng(0), np.arange(1_536) / RATE
    (root / "sounds").mkdir()
    for number in range(8):
        tone = 0.5 * np.sin(2 * np.pi * rng.uniform(50, 200) * seconds)
        soundfile.write(root / "sounds" / f"{number}.wav", tone, RATE)
    config = TrainConfig(
        model=PoolformerConfig(widths=(8, 16), depths=((0, 1), 1), pool_factors=(4,), num_heads=2),
        data=DataConfig(
            name="folder",
            path=str(root / "sounds"),
            sample_rate=RATE,
            window=256,
            data_dir=str(root / "data"),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        batch_size=8,
        num_steps=6,
    )
    file = root / "config.py"
    file.write_text(
        "from pf_jax.training import TrainConfig\n"
        f"def get_config(): return TrainConfig.from_dict({config.to_dict()!r})\n"
    )
    return file


def lines_of(run):
    lines = (run / "metrics.jsonl").read_text().splitlines() if run.exists() else []
    return [json.loads(line) for line in lines]


def test_a_comparison_is_interrupted_and_goes_on(config_file, tmp_path):
    workdir = tmp_path / "comparison"
    command = [sys.executable, "-m", "experiments.compare", f"--config={config_file}"]
    command += [f"--models=poolformer,no_mlp,{BROKEN}", "--budget=0.2s,150steps", "--seeds=0,1"]
    command += ["--seconds=0.1", f"--workdir={workdir}"]
    options = {"text": True, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    metrics = workdir / "poolformer" / "seed0" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 2):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Interrupted." in err
    assert "seed 1" not in err
    page = Page(workdir / "comparison.html")  # There is one at any time.
    assert page.column("Runs") == {"poolformer": "0", "no_mlp": "0", BROKEN: "0"}

    done = subprocess.run(command, capture_output=True, **options)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "poolformer: measuring" not in done.stderr
    said = (workdir / "poolformer" / "seed0" / "output.log").read_text()
    (stopped,) = re.findall(r"Stopped after step (\d+)", said)
    assert f"Goes on from the checkpoint of step {stopped}." in said

    page = Page(workdir / "comparison.html")
    assert page.column("Runs") == {"poolformer": "2", "no_mlp": "2", BROKEN: "0"}
    assert re.search(f"{BROKEN}: It could not be measured: .*nothing", page.text)
    assert len(page.all("audio")) == 2
    numbers = json.loads((workdir / "comparison.json").read_text())
    models = {model["name"]: model for model in numbers["models"]}
    for name in ("poolformer", "no_mlp"):
        assert abs(models[name]["parameter_deviation"]) < 0.03
        assert models[name]["measurement"]["sampling_samples_per_second"] > 0
        assert models[name]["peak_memory"]["mean"] > 2**26
        values = []
        for seed in (0, 1):
            log = lines_of(workdir / name / f"seed{seed}")
            steps = [line["step"] for line in log if line["split"] == "validation"]
            assert steps[-1] == models[name]["num_steps"] >= 150
            assert len(steps) == len(set(steps)) >= 5
            assert all("seconds" in line for line in log)
            values.append(log[-1]["bits_per_sample"])
        assert models[name]["final_bits_per_sample"]["values"] == values
        assert len(models[name]["bits_per_sample_at_equal_time"]["values"]) == 2
        assert f"{name}: " in done.stdout
    assert max(models["poolformer"]["final_bits_per_sample"]["values"]) < 7.0


@dataclasses.dataclass
class Actor:
    """Does as if it ran commands: writes what is left of a run, in which some break."""

    breaks: set = dataclasses.field(default_factory=set)
    calls: list = dataclasses.field(default_factory=list)

    def __call__(self, arguments, log):
        module, *given = arguments
        given = dict(argument.removeprefix("--").split("=", 1) for argument in given)
        where = pathlib.Path(given.get("workdir", given["config"])).relative_to(self.root)
        self.calls.append(str(where.parent if module == "experiments.measure" else where))
        if self.calls[-1] in self.breaks:
            return Ended(f"{self.calls[-1]} is broken.", "")
        if module == "experiments.measure":
            return Ended("", 'a warning\n{"steps_per_second": 5.0, "device": "d"}\n')
        namespace = {}
        exec(pathlib.Path(given["config"]).read_text(), namespace)
        config, run = namespace["get_config"](), self.root / where
        last = config.num_steps
        write_log(run, (last, "validation", {"bits_per_sample": 2.0 + config.seed, "seconds": 9.0}))
        write_checkpoint(run, last, {}, config)
        return Ended("", "")


@pytest.fixture
def acted(config_file, tmp_path):
    """A comparison of two models, its variants, and who acts its processes."""
    namespace = {}
    exec(config_file.read_text(), namespace)
    variants = make_variants("poolformer,no_mlp", namespace["get_config"]())
    actor = Actor()
    actor.root = tmp_path / "comparison"
    said = []
    comparison = Trials(
        directory=actor.root,
        budget=Budget(seconds=8.0),
        seeds=(3, 4),
        num_evaluations=5,
        measuring_seconds=1.0,
        tell=said.append,
        launch=actor,
    )
    comparison.claim({"config": variants[0].config.to_dict(), "budget": "8s"})
    return comparison, variants, actor


def test_what_is_done_is_not_done_again_and_what_failed_is(acted):
    comparison, variants, actor = acted
    actor.breaks = {"poolformer/seed3"}
    *_, results = comparison.run(variants)
    runs = [f"{name}/seed{seed}" for seed in (3, 4) for name in ("poolformer", "no_mlp")]
    assert actor.calls == ["poolformer", "no_mlp", *runs]
    assert [[run.config.seed for run in r.runs] for r in results] == [[4], [3, 4]]
    assert results[0].failures == ("The run of seed 3 failed: poolformer/seed3 is broken.",)
    assert results[1].failures == ()
    assert {run.config.num_steps for result in results for run in result.runs} == {40}

    actor.breaks, actor.calls = set(), []
    *_, results = comparison.run(variants)
    assert actor.calls == ["poolformer/seed3"]
    assert [len(result.runs) for result in results] == [2, 2]
    *_, results = dataclasses.replace(comparison, seeds=(3, 4, 5)).run(variants)
    assert actor.calls[1:] == ["poolformer/seed5", "no_mlp/seed5"]


def test_what_cannot_be_measured_is_not_trained(acted):
    comparison, variants, actor = acted
    actor.breaks = {"no_mlp"}
    *_, results = comparison.run(variants)
    assert actor.calls == ["poolformer", "no_mlp", "poolformer/seed3", "poolformer/seed4"]
    assert results[1].failures == ("It could not be measured: no_mlp is broken.",)
    assert [len(result.runs) for result in results] == [2, 0]


def test_a_directory_belongs_to_one_comparison(acted, tmp_path):
    comparison, variants, _ = acted
    plan = {"config": variants[0].config.to_dict(), "budget": "8s"}
    comparison.claim(plan)
    with pytest.raises(
        UserError, match="holds another comparison: budget was '8s' and is now '9s'"
    ):
        comparison.claim(plan | {"budget": "9s"})
    other = dataclasses.replace(variants[0].config, batch_size=4)
    with pytest.raises(UserError, match=r"config\.batch_size was 8 and is now 4"):
        comparison.claim(plan | {"config": other.to_dict()})
    # A field that has come since, with its default.
    old = plan | {"config": {k: v for k, v in plan["config"].items() if k != "patience"}}
    (comparison.directory / "plan.json").write_text(json.dumps(old))
    comparison.claim(plan)
    (comparison.directory / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json is damaged"):
        comparison.claim(plan)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="run is not empty, and holds no comparison"):
        dataclasses.replace(comparison, directory=tmp_path / "run").claim(plan)
    file = tmp_path / "run" / "metrics.jsonl"
    with pytest.raises(UserError, match="Cannot write"):
        dataclasses.replace(comparison, directory=file / "below").claim(plan)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; print('x\\nerror: No way.\\nmore', file=sys.stderr); sys.exit(2)", "No way."),
        ("import os; os.kill(os.getpid(), 9)", "killed; there may not have been enough memory"),
        ("import os; os.kill(os.getpid(), 15)", "ended by SIGTERM"),
        ("raise ValueError('what?')", "ValueError: what?"),
        ("raise SystemExit(7)", "status 7"),
        ("print('fine')", ""),
    ],
)
def test_why_a_process_failed(code, reason, tmp_path, monkeypatch):
    (tmp_path / "a_module.py").write_text(code)
    (tmp_path / "log").write_text("error: of an earlier one\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = trials.launch(["a_module"], tmp_path / "log")
    assert reason in ended.reason
    assert bool(ended.reason) == bool(reason)
    assert ended.output == ("" if reason else "fine\n")


def test_mistakes(config_file, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    good = {
        "config": config_file,
        "models": "poolformer",
        "budget": "1s",
        "workdir": tmp_path / "w",
    }
    mistakes = [
        ({"models": "poolfrmer"}, "Unknown model 'poolfrmer'; did you mean poolformer"),
        ({"models": ","}, "No model is named"),
        ({"models": None}, "--models is missing"),
        ({"budget": "1 fortnight"}, "A budget is like 60s"),
        ({"budget": None}, "--budget is missing"),
        ({"workdir": None}, "--workdir is missing"),
        ({"workdir": tmp_path / "run"}, "is not empty, and holds no comparison"),
        ({"seeds": "0,0"}, "--seeds must be different numbers"),
        ({"seeds": "a"}, "--seeds must be different numbers"),
        ({"seeds": "-1"}, "--seeds must be different numbers"),
        ({"seconds": "0"}, "--seconds must be above 0"),
        ({"parameters": "0"}, "parameters must be at least 1"),
        ({"evaluations": "0"}, "--evaluations"),
    ]
    lines = [
        [f"--{name}={value}" for name, value in (good | changed).items() if value is not None]
        for changed, _ in mistakes
    ]
    done = subprocess.run(
        [sys.executable, "-c", SERVER],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    for (changed, part), (status, out, err) in zip(mistakes, json.loads(done.stdout), strict=True):
        assert (status, out) == (2, ""), changed
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert part in err
    assert not (tmp_path / "w").exists()
