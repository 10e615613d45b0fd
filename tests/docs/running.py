"""Runs all commands and blocks of a page as one script of bash, in a home directory of its own."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import numpy as np

from pf_jax import audio
from tests.data import archives
from tests.docs import pages, small
from tests.docs.interpreters import interpreters
from tests.training import numpy_sashimi

_HERE = pathlib.Path(__file__).parent
_MOST_SECONDS = 3_600  # Then something waits for what will not come.
_RESNEXT = _HERE.parent / "evaluation" / "fixtures" / "module_zip.pth"
_TRAIN = "python -m experiments.train --config=folder --config.data.path=~/music"
_TRAIN += " --workdir=~/runs/music"


@dataclasses.dataclass(frozen=True)
class Done:
    """A page whose commands have been run.

    Attributes:
        home: Where they ran.
        log: All that they printed.
        failure: The line of the command that failed, the command and its status; None if none did.
    """

    home: pathlib.Path
    log: str
    failure: tuple[int, str, int] | None


class Runner:
    """What runs pages.

    Args:
        directory: For its own files.
        programs: Where `python` is.
        environment: That of the commands.
    """

    def __init__(
        self, directory: pathlib.Path, programs: pathlib.Path, environment: dict[str, str]
    ):
        self.bin = programs
        self.environment = environment
        self._directory = directory

    def run(self, page: pathlib.Path, home: pathlib.Path, **environment: str) -> Done:
        """Runs a page in an empty directory, which becomes its home."""
        _make_music(home)
        text = "".join(block.text for block in pages.blocks(page) if not block.reason)
        if "resnext.pth" in text:  # Models of others, that a page takes over.
            shutil.copy(_RESNEXT, home / "resnext.pth")
        if "sashimi.npz" in text:
            shapes = numpy_sashimi.shapes(4, 2, (2, 3), vocab=9, states=6)
            np.savez(home / "sashimi.npz", **numpy_sashimi.random_weights(shapes))
        if "/tmp/digits/archive" in text:  # What benchmarks.digits speaks.
            (home / "tmp" / "digits" / "archive").mkdir(parents=True)
            archives.sc09(home / "tmp" / "digits" / "archive")
        made = set(re.findall(r"--(?:workdir|output)=~/runs/(\w+)", text))
        for name in set(re.findall(r"~/runs/(\w+)", text)) - made:
            shutil.copytree(self._trained, home / "runs" / name)
        return self._bash(list(_steps(page, home)), home, environment)

    @functools.cached_property
    def _trained(self) -> pathlib.Path:
        """A run that pages speak of but do not make themselves."""
        home = self._directory / "before"
        _make_music(home)
        done = self._bash([(0, _TRAIN, _TRAIN)], home, {})
        assert done.failure is None, done.log
        return home / "runs" / "music"

    def _bash(
        self, steps: list[tuple[int, str, str]], home: pathlib.Path, environment: dict[str, str]
    ) -> Done:
        script = [f". {shlex.quote(str(_HERE / 'prelude.sh'))}"]
        for number, (_, _, command) in enumerate(steps):
            script += [f"echo '@@ {number}'", command, "_check"]
        log = home / ".log"
        with log.open("w") as output:
            done = subprocess.run(
                ["bash", "-c", "\n".join([*script, "_settle"])],
                cwd=home,
                env=self.environment
                | {
                    "HOME": str(home),
                    "TFDS_DATA_DIR": str(self._directory / "data"),
                    "PATH": f"{self.bin}:{os.environ['PATH']}",
                    "BIN": str(self.bin),
                    "HERE": str(_HERE),
                    "ROOT": str(pages.ROOT),
                }
                | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=_MOST_SECONDS,
            )
        text = log.read_text(errors="replace")
        failure = None
        if done.returncode:
            line, command, _ = steps[int(re.findall(r"^@@ (\d+)$", text, re.M)[-1])]
            failure = line, command, done.returncode
        return Done(home, text, failure)


def _steps(page: pathlib.Path, home: pathlib.Path) -> Iterator[tuple[int, str, str]]:
    """Lines of the page, what stands there, and what is run for it."""
    (home / "tmp").mkdir(exist_ok=True)

    def here(text: str) -> str:
        return re.sub(r"(?<![\w.~])/tmp/", f"{home}/tmp/", text)

    for block in pages.blocks(page):
        if block.file:
            file = home / "saved" / pathlib.Path(block.file).name
            file.parent.mkdir(exist_ok=True)
            file.write_text(here(block.text))
            to = re.sub("^~", str(home), here(block.file))
            yield block.line, block.text, f"mkdir -p $(dirname {to}) && cp {file} {to}"
        elif block.reason:
            continue
        elif block.kind == "sh":
            yield from ((line, text, here(text)) for line, text in pages.commands(block))
        elif block.kind == "python":
            file = home / f".{page.stem}_{block.line}.py"
            # As many lines before it as there are on the page, for tracebacks.
            file.write_text("\n" * (block.line - 1) + small.shrink_python(here(block.text)))
            yield block.line, block.text, f"_block {shlex.quote(str(file))}"


def _make_music(home: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("tune", "second", "third"):
        noise = np.convolve(rng.normal(size=16_000), np.ones(20) / 20, "same")
        audio.write(home / "music" / f"{name}.wav", 0.5 * noise / np.abs(noise).max(), 16_000)


@contextlib.contextmanager
def runner() -> Iterator[Runner]:
    """A runner, with its interpreters."""
    environment = os.environ | {"PYTHONPATH": str(pages.ROOT)}
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        with interpreters(directory) as programs:
            yield Runner(directory, programs, environment)
