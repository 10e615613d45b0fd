"""Reads the pages: their commands would be understood, their flags, links and extras exist.

So are the commands that are not run, and those inside sentences and tables.
"""

import configparser
import json
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from experiments import cli
from pf_jax import fields
from pf_jax.evaluation.classifier import ClassifierConfig
from pf_jax.training.config import TrainConfig
from pf_jax.training.variants import VARIANTS
from tests.docs import pages
from tests.docs.pages import PAGES, ROOT

# Two commands may have a flag of one name, so each module's are forgotten before the next one's.
PARSE = """
import importlib, inspect, json, sys
from absl import flags

known, errors = [], []
for module, lines in json.load(sys.stdin).items():
    try:
        importlib.import_module(module)
    except ImportError as error:
        errors.append(str(error))
        continue
    own = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(module)]
    known += own
    for line in lines:
        for name in own:
            flags.FLAGS[name].unparse()
        try:
            words = flags.FLAGS([module, *line])[1:]
        except flags.Error as error:
            errors.append(f"{module}: {error}")
            continue
        if "words=" not in inspect.getsource(sys.modules[module]):  # Of those that take words.
            errors += [f"{module}: what is {word}?" for word in words]
    for name in set(own) - {"config"}:
        delattr(flags.FLAGS, name)
print(json.dumps([known, errors]))
"""


# A command may be excused from being run only for one of these.
EXCUSES = r"\b(GPUs?|TPUs?|Cloud|cluster|machines|account|login|large download)\b"
EXCUSES += r"|\bdownload of [\d.]+ [MG]B\b"


def commands_of(page: pathlib.Path) -> Iterator[str]:
    """The commands on a page, in blocks and within text."""
    for block in pages.blocks(page):
        if block.kind == "sh":
            yield from (command for _, command in pages.commands(block))
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.M | re.S)
    yield from re.findall(r"`(python -m [^`]*)`", text)


def runs_of_modules(command: str) -> Iterator[tuple[str, list[str]]]:
    """The modules of this project that a command runs, here or inside quotes, with their flags."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=";&|<>\n")
    lexer.whitespace, lexer.whitespace_split = " \t", True
    words = list(lexer)  # Raises ValueError where quotes are not balanced.
    for place, word in enumerate(words):
        if re.search(r"\s-m\s", word):
            yield from runs_of_modules(word.removeprefix("--command="))
        python = re.fullmatch(r"(.*/)?python[\d.]*", word)
        if python and words[place + 1] == "-m" and words[place + 2] not in ("pip", "venv"):
            rest = [*words[place + 3 :], "\n"]
            end = next(i for i, w in enumerate(rest) if re.fullmatch(r"[;&|<>\n]+", w))
            yield words[place + 2], rest[:end]


def test_commands_and_flags_exist():
    seen = {}
    commands = [command for page in PAGES for command in commands_of(page)]
    for module, arguments in [run for command in commands for run in runs_of_modules(command)]:
        if "--help" in arguments:
            continue
        overrides, rest = cli.split_overrides(arguments)  # Raises where one is unknown.
        configs = [word.removeprefix("--config=") for word in rest if word.startswith("--config=")]
        for name in configs:
            if not name.endswith(".py") and name != "NAME":  # The user's own; any.
                cli.load_config(name, overrides)
        assert configs or not overrides, f"{module} takes no config"
        for models in [word for word in rest if word.startswith("--models=")]:
            names = models.partition("=")[2].split(",")
            assert {name for model in names for name in model.split("+")} <= set(VARIANTS)
        seen.setdefault(module, []).append(rest)
    assert {"experiments.train", "experiments.inspect", "experiments.sample"} <= set(seen)

    parse = [sys.executable, "-c", PARSE]
    given = json.dumps(seen)
    done = subprocess.run(parse, cwd=ROOT, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    known, errors = json.loads(done.stdout)
    assert not errors
    overridable = {*fields.leaves(TrainConfig), *fields.leaves(ClassifierConfig)}
    # In the text as well. Flags with an underscore are ours; those of gcloud and Slurm have none.
    for page in PAGES:
        text = page.read_text()
        assert set(re.findall(r"--config\.([\w.]*\w)", text)) <= overridable
        assert set(re.findall(r"--([a-z]+_[a-z_]+)", text)) <= set(known)


def test_what_is_not_run_says_for_want_of_what():
    reasons = [block.reason for page in PAGES for block in pages.blocks(page) if block.reason]
    assert len(reasons) >= 10
    assert all(re.search(EXCUSES, reason) and len(reason) < 100 for reason in reasons)
    # Each marker stands before a block that would be run without it.
    assert len(reasons) == sum(page.read_text().count("<!-- not run") for page in PAGES)
    for page in PAGES:
        for block in pages.blocks(page):
            assert not block.reason or block.kind in ("sh", "python")
            if block.reason and block.kind == "python":
                compile(block.text, pages.where(page, block.line), "exec")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_and_extras_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        if "://" in target:
            continue
        file = page.parent / path if path else page
        assert file.exists(), target
        titles = re.findall(r"^#+ (.*)", file.read_text(), re.M) if heading else []
        slugs = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
        assert not heading or heading in slugs, target
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extras in re.findall(r"""-e ["']\.\[([\w,]+)\]""", text):
        assert set(extras.split(",")) <= set(setup["options.extras_require"])
