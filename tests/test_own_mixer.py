"""Does what the page "A mixer of your own" says: its file is trained and then sampled from."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own_mixer.md").read_text()
CODE, CHECK = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)
    for line in block.splitlines()
]
SMALL = (
    "--config.model.widths=8,16 --config.model.depths=1,1 --config.model.pool_factors=8, "
    "--config.model.num_heads=2 --config.num_steps=2 --config.eval_every=2 "
    "--config.checkpoint_every=2 --config.data.window=256 --config.data.data_dir=data"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a line of shell where the user's file is."""
    place = tmp_path_factory.mktemp("own")
    (place / "moving_average.py").write_text(CODE)

    def run(line):
        path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
        line = line.replace("/tmp/moving_average", str(place / "run"))
        command = ["bash", "-c", line]
        return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)

    run.place = place
    return run


@pytest.fixture(scope="module")
def trained(run):
    """What the first command of the page says when it is done."""
    done = run(f"{COMMANDS[0]} {SMALL}")
    assert done.returncode == 0, done.stderr
    return done


def test_the_whole_mixer_is_less_than_60_lines():
    assert 10 < len(CODE.splitlines()) < 60


def test_its_forms_agree_as_the_page_checks(run):
    (run.place / "check.py").write_text(CHECK)
    done = run("PYTHONPATH=$PYTHONPATH:. python check.py")
    assert done.returncode == 0, done.stderr


def test_what_was_trained_is_sampled_by_the_next_commands_of_the_page(run, trained):
    train, sample, evaluate = COMMANDS
    assert train.startswith("python -m experiments.train --config=moving_average.py")
    done = run(f"{sample} --num_samples=2 --num_steps=64")
    assert done.returncode == 0, done.stderr
    assert len(list((run.place / "new").glob("*.wav"))) == 2
    assert evaluate.startswith("python -m experiments.evaluate")
    assert "--import=moving_average.py" in evaluate
    # Which training tells, too.
    (told,) = (line for line in trained.stderr.splitlines() if "experiments.sample" in line)
    assert told.endswith(f" --output=samples --import={run.place / 'moving_average.py'}")


def test_without_the_class_one_is_told_what_to_do(run, trained):
    done = run("python -m experiments.sample --checkpoint=/tmp/moving_average")
    assert done.returncode == 2
    assert done.stderr.startswith("error: Unknown mixer 'moving_average'; known: ")
    assert done.stderr.endswith("or give the command --import=FILE.py.\n")
    assert done.stderr.count("\n") == 1
