"""What the tests of exports share."""

import json
import shutil

import pytest
from etils import epath

import pf_jax
from tests.sharing.runs import STEP, evaluation, make_run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run's directory with an evaluation of these weights and one of others, and its state."""
    run, state = make_run(tmp_path_factory.mktemp("trained"))
    for split, step in (("test", STEP), ("validation", STEP - 1)):
        (run / "evaluation" / split).mkdir(parents=True)
        (run / "evaluation" / split / "evaluation.json").write_text(json.dumps(evaluation(step)))
    return run, state


@pytest.fixture(scope="session")
def folder(trained, tmp_path_factory):
    """Its export; not to be changed."""
    place = tmp_path_factory.mktemp("exported") / "deep" / "model"
    pf_jax.export(trained[0], place, license="Apache-2.0")
    return place


@pytest.fixture
def copy(folder, tmp_path):
    return epath.Path(shutil.copytree(folder, tmp_path / "model"))
