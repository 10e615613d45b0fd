"""Presets: each loads, and is as large as it and the README say."""

import functools
import importlib
import pathlib
import re

import jax
import pytest

from pf_jax.evaluation.classifier.config import ClassifierConfig
from pf_jax.training import TrainConfig
from pf_jax.training.state import abstract_model, split_model

ROOT = pathlib.Path(__file__).parents[2]
NAMES = sorted(file.stem for file in (ROOT / "experiments/configs").glob("[a-z]*.py"))


def count(config):
    return count_parameters(config.model)


@functools.cache
def count_parameters(model):
    _, params = split_model(abstract_model(model))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def rounded(parameters, text):
    """In millions, with as many decimals as a text has."""
    return f"{parameters / 1e6:.{len(text.partition('.')[2])}f}"


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_as_large_as_its_docstring_says(name):
    module = importlib.import_module(f"experiments.configs.{name}")
    config = module.get_config()
    if isinstance(config, ClassifierConfig):
        return
    assert isinstance(config, TrainConfig)
    said = re.search(r"([\d.]+|a) million parameters", module.get_config.__doc__)
    said = said[1].replace("a", "1")
    assert rounded(count(config), said) == said


def test_the_table_of_the_readme_has_their_sizes():
    rows = re.findall(r"^\| (`.*?) \|.*\| ([^|]* M(?: parameters)?[^|]*) \|", README, re.MULTILINE)
    found = {}
    for names, sizes in rows:
        sizes = re.findall(r"([\d.]+) M", sizes)
        found |= dict(zip(re.findall(r"`(\w+)`", names), sizes, strict=True))
    assert len(found) >= 12
    for name, said in found.items():
        config = importlib.import_module(f"experiments.configs.{name}").get_config()
        assert rounded(count(config), said) == said, name


README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "parameters"),
    # What the code of the papers' authors builds.
    [("sc09", 7_272_704), ("sc09_sashimi", 5_218_304)],
)
def test_published_models_have_the_published_number_of_parameters(name, parameters):
    config = importlib.import_module(f"experiments.configs.{name}").get_config()
    assert count(config) == parameters
