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
from experiments.config_files import load_config
from experiments.trials import Ended, Trials
from pf_jax.config import PoolformerConfig
from pf_jax.data import DataConfig
from pf_jax.errors import UserError
from pf_jax.evaluation.comparison_variants_page import write_variants
from pf_jax.training import OptimizerConfig, TrainConfig, train
from pf_jax.training.budget import Budget
from pf_jax.training.variants import make_variants
from tests import processes
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
        model=PoolformerConfig(
            widths=(8, 16), depths=((0, 1), 1), pool_factors=(4,), pool_groups=1, num_heads=2
        ),
        data=DataConfig(
            name="folder",
            path=str(root / "sounds"),
            sample_rate=RATE,
            window=64,
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
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def check_model(model, directory, seeds):
    """The numbers of a model are those of its runs' logs."""
    values = []
    for seed in seeds:
        log = lines_of(directory / f"seed{seed}")
        steps = [line["step"] for line in log if line["split"] == "validation"]
        assert steps[-1] == model["num_steps"]
        assert len(steps) == len(set(steps)) >= 3
        assert all("seconds" in line for line in log)
        values.append(log[-1]["bits_per_sample"])
    assert model["final_bits_per_sample"]["values"] == values
    assert model["peak_memory"]["mean"] > 2**26
    assert abs(model["parameter_deviation"]) < 0.05  # So narrow, one channel more is 3 %.


def test_the_command(config_file, tmp_path):
    """As users run it; one of two models cannot be trained."""
    workdir = tmp_path / "comparison"
    command = [sys.executable, "-m", "experiments.compare", f"--config={config_file}"]
    command += [f"--models=poolformer,{BROKEN}", "--budget=0.1s,6steps", "--seeds=0"]
    command += ["--seconds=0.1", "--evaluations=3", f"--workdir={workdir}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = processes.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    page = Page(workdir / "comparison.html")
    assert page.column("Runs") == {"poolformer": "1", BROKEN: "0"}
    assert re.search(f"{BROKEN}: It could not be measured: .*nothing", page.text)
    assert len(page.all("audio")) == 1
    model, broken = json.loads((workdir / "comparison.json").read_text())["models"]
    check_model(model, workdir / "poolformer", [0])
    assert model["measurement"]["sampling_samples_per_second"] > 0
    assert (broken["name"], broken["runs"]) == (BROKEN, [])
    for when in ("0.1 s", "6 steps"):
        assert re.search(rf"poolformer: .*bits per sample after {when}", done.stdout)


def test_models_and_seeds(config_file, tmp_path):
    """Two of both, trained in this process; the third run is interrupted in its middle."""
    interrupted = []

    def in_process(arguments, log):
        module, *given = arguments
        given = dict(argument.removeprefix("--").split("=", 1) for argument in given)
        if module == "experiments.measure":
            return Ended("", json.dumps({"steps_per_clock_second": 20.0, "device": "1 x cpu"}))
        config = load_config(given["config"])
        if config.seed == 1 and not interrupted:
            interrupted.append(given["workdir"])
            train(dataclasses.replace(config, num_steps=5), given["workdir"])
            raise KeyboardInterrupt
        train(config, given["workdir"])
        return Ended("", "")

    base, budget = load_config(str(config_file)), Budget(seconds=0.25, steps=8)
    comparison = Trials(tmp_path, budget, (0, 1), 4, 1.0, lambda message: None, in_process)
    comparison.claim({"config": base.to_dict()})
    variants = make_variants("poolformer,no_mlp", base)
    seen = []

    def go_on():
        for results in comparison.run(variants):
            seen.append([len(result.runs) for result in results])
        return results

    with pytest.raises(KeyboardInterrupt):
        go_on()
    assert seen == [[0, 0], [1, 0], [1, 1]]
    assert interrupted == [str(tmp_path / "poolformer" / "seed1")]
    results = go_on()
    assert seen[3:] == [[0, 0], [1, 0], [1, 1], [2, 1], [2, 2]]
    for result in results:
        model = result.to_dict(budget)
        assert model["num_steps"] == 8
        check_model(json.loads(json.dumps(model)), tmp_path / result.name, (0, 1))
        final = model["final_bits_per_sample"]["values"]
        assert model["bits_per_sample_at_equal_samples"]["values"] == final
        assert len(set(final)) == 2  # Seeds differ.
    steps = [line["step"] for line in lines_of(tmp_path / "poolformer" / "seed1")]
    assert steps == sorted(steps)
    page = Page(write_variants(tmp_path / "page.html", results, budget, base))
    assert page.column("Runs") == {"poolformer": "2", "no_mlp": "2"}
    assert len(page.all("img")) == 3 + 4  # Results, and curves.


def test_what_ends_a_comparison_has_its_process_save_first(tmp_path):
    (tmp_path / "a_module.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(0.3)\n"
        "    pathlib.Path('saved').touch()\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)\n"
    )
    code = (
        "import pathlib; from experiments import cli, trials\n"
        "cli.run(lambda argv: trials.launch(['a_module'], pathlib.Path('log')))"
    )
    paths = os.pathsep.join([str(ROOT), str(tmp_path)])
    process = processes.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
    )
    while not (tmp_path / "ready").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"Interrupted.\n")
    assert (tmp_path / "saved").exists()


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
            return Ended("", 'a warning\n{"steps_per_clock_second": 5.0, "device": "d"}\n')
        config, run = load_config(given["config"]), self.root / where
        last = config.num_steps
        write_log(run, (last, "validation", {"bits_per_sample": 2.0 + config.seed, "seconds": 9.0}))
        write_checkpoint(run, last, {}, config)
        return Ended("", "")


@pytest.fixture
def acted(config_file, tmp_path):
    """A comparison of two models, its variants, and who acts its processes."""
    variants = make_variants("poolformer,no_mlp", load_config(str(config_file)))
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
    done = processes.run(
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
