"""A deprecated call in this package fails the tests, by `filterwarnings` in setup.cfg."""

import configparser
import pathlib
import warnings

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def warn_from(module, category):
    """Warns as a library does of a call in the module."""
    code = compile("warnings.warn('gone soon', category)", module, "exec")
    exec(code, {"__name__": module, "warnings": warnings, "category": category})


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
@pytest.mark.parametrize(
    "module", ["pf_jax", "pf_jax.training.loop", "experiments.train", "experiments.configs.demo"]
)
def test_a_deprecated_call_of_ours_is_an_error(module, category):
    with pytest.raises(category, match="gone soon"):
        warn_from(module, category)


@pytest.mark.parametrize("module", ["jax.numpy", "pf_jaxon", "experimentsmith"])
def test_one_of_another_package_is_not(module):
    with pytest.warns(DeprecationWarning, match="gone soon"):
        warn_from(module, DeprecationWarning)


def test_the_filter_stands_in_the_configuration():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["tool:pytest"]["filterwarnings"].split()
    assert r"error::DeprecationWarning:(pf_jax|experiments|benchmarks|tests)\b" in lines
