"""Runs every command and code block of the README and of the docs.

The blocks of a page that are marked `sh` or `python` run in their order, in one shell and one
session of Python, in a home directory of the page with three recordings in `~/music`. What the
page says to save ("Save this as `FILE`:") is saved and not run. By these rules it takes seconds,
and leaves the machine as it is:

- Runs are small: `small.py` says how, by flags that any user could give. So none of the figures on
  the pages is checked.
- `make` is run with `-n`; nothing is installed by `pip`, cloned or put into a virtual environment
  (`prelude.sh`), but the extras exist (`test_text.py`). A player and TensorBoard take what they
  are given. `/tmp/` is a directory of the page.
- A run `~/runs/NAME` that the page does not make has been made before, and so have the weights of
  others, `resnext.pth` and `sashimi.npz`.
- `python` starts fast, see `interpreters.py`.
- Where the TPU's compiler is not installed, what takes it prints its help.

A block that needs hardware, an account or a large download has a comment on the line above,
`<!-- not run: REASON -->`; `test_text.py` looks its commands and flags up, too.
"""

import functools
import subprocess

import pytest

from tests.docs import pages
from tests.docs.running import runner as make_runner

# Files that must be there afterwards, and how many of them.
FILES = {
    "README.md": {
        "new/*.wav": 8,
        "runs/music/evaluation/test/index.html": 1,
        "first.wav": 1,
        "music_model/model.safetensors": 1,
    },
    "docs/sampling.md": {"sounds/*.wav": 3, "continued/*.wav": 2, "chosen/*.wav": 4},
    "docs/evaluation.md": {"analysis/index.html": 1, "report.html": 1},
    "docs/own_mixer.md": {"new/*.wav": 4, "tmp/moving_average/evaluation/test/index.html": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a page, once."""
    with make_runner() as runner:

        @functools.cache
        def run(page):
            # What the README shows is compiled as users have it.
            environment = {"XLA_FLAGS": ""} if page == pages.ROOT / "README.md" else {}
            done = runner.run(page, tmp_path_factory.mktemp("home"), **environment)
            if done.failure:
                line, command, status = done.failure
                where = f"{pages.where(page, line)}: {command}\nended with status {status}"
                pytest.fail(f"{where}\n{done.log[-5_000:]}", pytrace=False)
            return done

        run.bin, run.environment = runner.bin, runner.environment
        yield run


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: str(page.relative_to(pages.ROOT)))
def test_commands_and_blocks_run_in_their_order(run, page):
    home = run(page).home
    for pattern, number in FILES.get(str(page.relative_to(pages.ROOT)), {}).items():
        assert len(list(home.glob(pattern))) == number, pattern


def test_sound_is_streamed(run):
    home = run(pages.ROOT / "docs" / "sampling.md").home
    assert (home / "heard.pcm").stat().st_size == 2 * 160


OWN_MIXER = pages.ROOT / "docs" / "own_mixer.md"


def test_an_own_mixer_is_less_than_60_lines_and_training_tells_how_to_go_on_with_it(run):
    mixer, *_ = pages.blocks(OWN_MIXER)
    assert mixer.file == "moving_average.py"
    assert 10 < mixer.text.count("\n") < 60
    done = run(OWN_MIXER)
    (told,) = (line for line in done.log.splitlines() if "python -m experiments.sample" in line)
    assert told.endswith(f" --output=samples --import={done.home / 'moving_average.py'}")


def test_without_its_class_one_is_told_what_to_do(run):
    home = run(OWN_MIXER).home
    command = "python -m experiments.sample --checkpoint=tmp/moving_average"
    done = subprocess.run(
        [run.bin / "python", *command.split()[1:]],
        cwd=home,
        env=run.environment | {"HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: Unknown layer 'moving_average'; known: ")
    assert done.stderr.endswith("or give the command --import=FILE.py.\n")
    assert done.stderr.count("\n") == 1
