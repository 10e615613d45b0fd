"""Runs every command and code block of the README, at a size that takes seconds."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from pf_jax import audio

ROOT = pathlib.Path(__file__).parents[1]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]

# What makes a command small; it does not change which flags are understood.
SMALL = (
    "--config.num_steps=2 --config.batch_size=16 --config.data.window=256 "
    '--config.model.depths="(0,0,1)" --config.model.num_heads=2'
)


@pytest.fixture
def home(tmp_path):
    """A home directory with some recordings, and small widths for whatever is trained in it."""
    home = tmp_path / "home"
    rng = np.random.default_rng(0)
    for name in ("tune", "second", "third"):
        noise = np.convolve(rng.normal(size=16_000), np.ones(20) / 20, "same")
        audio.write(home / "music" / f"{name}.wav", 0.5 * noise / np.abs(noise).max(), 16_000)
    return home


def run(command: str, home: pathlib.Path) -> None:
    """Runs a line of shell with `python` being this one, and everything kept in `home`."""
    environment = os.environ | {
        "HOME": str(home),
        "TFDS_DATA_DIR": str(home / "data"),
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "",  # Compiled as users have it, unlike in other tests.
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=home, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_commands_and_then_python_blocks_run_in_their_order(home):
    assert len(COMMANDS) >= 6
    for command in COMMANDS:
        if command.startswith("make "):
            # The tests are themselves run by make: that its targets exist is all to be shown here.
            subprocess.run([*command.split(), "-n"], cwd=ROOT, check=True, capture_output=True)
            continue
        if "experiments.train" in command and "--help" not in command:
            widths = "" if "model.widths" in command else ' --config.model.widths="(8,8,8)"'
            command = command.replace("/tmp/", f"{home}/") + f" {SMALL}{widths}"
        elif "experiments.sample" in command:
            command = command.replace("--seconds=4", "--seconds=0.02")
            # Not every machine has a player, nor would one wish to hear this.
            command = command.replace("aplay -r 16000 -f S16_LE", "cat > heard.pcm")
        elif "experiments.analyze" in command:
            command += " --num_windows=2 --num_positions=4"
        elif "experiments.report" in command:
            command += " --num_samples=1 --seconds=0.02"
        run(command, home)
    for name, number in {"new": 8, "more": 2, "best": 4}.items():
        assert len(list((home / name).glob("*.wav"))) == number
    assert (home / "heard.pcm").stat().st_size == 2 * 320
    for page in ("runs/music/evaluation/test/index.html", "analysis/index.html", "report.html"):
        assert (home / page).exists()

    blocks = [block for kind, block in BLOCKS if kind == "python"]
    assert len(blocks) >= 2
    for number, block in enumerate(blocks):
        script = home / f"block_{number}.py"
        script.write_text(block.replace("num_steps=16_000", "num_steps=160"))
        run(f"python {script}", home)
    assert (home / "first.wav").exists()
