"""Exports at gs://, where nothing can be renamed at once."""

import json

import jax
import numpy as np
import pytest

import pf_jax
from pf_jax.errors import UserError
from tests.data.test_object_store import bucket  # noqa: F401 (used by all tests here)
from tests.sharing.runs import make_run, weights


def test_what_was_interrupted_does_not_load_and_is_written_again(tmp_path, monkeypatch):
    run, state = make_run(tmp_path)
    place = "gs://bucket/models/mine"
    pf_jax.export(run, place, license="mit")
    jax.tree.map(np.testing.assert_array_equal, weights(place), state.ema_params)

    with monkeypatch.context() as patch:
        to_bytes = pf_jax.training.tensors.to_bytes
        # Other weights, of which half arrives.
        patch.setattr(
            pf_jax.training.tensors,
            "to_bytes",
            lambda params: to_bytes(jax.tree.map(lambda x: x + 1, params)),
        )
        write = type(pf_jax.training.checkpoint.absolute(place)).write_bytes

        def failing(path, content):
            if path.name == "model.safetensors":
                write(path, content[: len(content) // 2])
                raise ConnectionError("connection reset")
            return write(path, content)

        patch.setattr(type(pf_jax.training.checkpoint.absolute(place)), "write_bytes", failing)
        with pytest.raises(UserError, match=r"^Cannot write gs://bucket/models/mine: .*reset"):
            pf_jax.export(run, place)
    with pytest.raises(UserError, match=r"is damaged: model\.safetensors is not the file"):
        pf_jax.load(place)
    pf_jax.export(run, place)
    jax.tree.map(np.testing.assert_array_equal, weights(place), state.ema_params)
    assert json.loads((tmp_path / "store/bucket/models/mine/pf_jax.json").read_text())
