"""A run becomes a folder, and commands take the folder; one process runs them all."""

import json
import os
import subprocess
import sys

import numpy as np
import soundfile

from pf_jax.training.checkpoint import find
from tests.experiments.test_train_and_sample import ROOT
from tests.sharing.runs import STEP, make_run

ONE, XLA_FLAGS = "--xla_force_host_platform_device_count=1", os.environ.get("XLA_FLAGS", "")

SERVE = """
import contextlib, io, json, runpy, sys
from absl import flags
from experiments import cli

known, answers = set(flags.FLAGS), []
for module, *arguments in json.load(sys.stdin):
    flags.FLAGS.unparse_flags()
    for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)
    sys.argv = [module, *arguments]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            status = stop.code or 0
    answers.append((status, out.getvalue(), err.getvalue()))
json.dump(answers, sys.stdout)
"""


def run(*commands):
    """The status, stdout and stderr of each command."""
    done = subprocess.run(
        [sys.executable, "-c", SERVE],
        input=json.dumps([[f"experiments.{name}", *arguments] for name, *arguments in commands]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        # Commands would make a device of each core, for which it is too late from the second on.
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": f"{ONE} {XLA_FLAGS}"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_from_a_run_to_a_folder_that_commands_take(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "sounds").mkdir()
    for number in range(3):
        soundfile.write(tmp_path / "sounds" / f"{number}.wav", rng.uniform(-1, 1, 900), 1_000)
    trained, _ = make_run(tmp_path)
    model, few = f"--checkpoint={tmp_path / 'model'}", ["--num_samples=2", "--num_steps=20"]
    make = ["export", f"--checkpoint={trained}", f"--output={tmp_path / 'model'}"]
    made, licensed, refused, unknown, *drawn, evaluated, no_data = run(
        make,
        [*make, "--license=mit"],
        ["export", f"--checkpoint={trained}", f"--output={tmp_path}"],
        [*make, "--licence=mit"],
        ["sample", f"--checkpoint={trained}", f"--output={tmp_path / 'a'}", *few],
        ["sample", model, f"--output={tmp_path / 'b'}", *few],
        [
            *("evaluate", model, f"--data_path={tmp_path / 'sounds'}"),
            *(f"--data_dir={tmp_path / 'data'}", f"--output={tmp_path / 'figures'}"),
        ],
        ["evaluate", model, f"--data_dir={tmp_path / 'data'}", f"--output={tmp_path / 'none'}"],
    )
    status, out, err = made
    assert status == 0, err
    assert err.count("\n") == 1
    assert "no licence was stated" in err
    assert "Left out" in out
    assert "data.path" in out
    for name in ("model.safetensors", "pf_jax.json", "README.md"):
        size = (tmp_path / "model" / name).stat().st_size
        assert str(tmp_path / "model" / name) in out
        if name == "model.safetensors":  # The others differ by the licence.
            assert f"{size:,} bytes" in out
    assert (licensed[0], licensed[2]) == (0, "")
    assert find(tmp_path / "model").exported.license == "mit"
    for (status, _, err), words in (
        (refused, ["exists already and is not an export"]),
        (unknown, ["--licence", "--license"]),
        (no_data, ["--data_path"]),
    ):
        assert status == 2
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert all(word in err for word in words), err

    assert [status for status, _, _ in drawn] == [0, 0], drawn
    for number in range(2):
        name = f"sample_{number:03d}.wav"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert evaluated[0] == 0, evaluated[2]
    results = json.loads((tmp_path / "figures" / "evaluation.json").read_text())
    assert results["step"] == STEP
    assert results["bits_per_sample"]["carried"]["num_samples"] == 3 * 45
