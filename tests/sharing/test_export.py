"""A folder that anybody can load has the averaged weights, no place of the machine, and a card."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import yaml
from flax import nnx

import pf_jax
from pf_jax.data import DATASETS
from pf_jax.errors import UserError
from pf_jax.layers import LAYERS
from pf_jax.training import checkpoint
from tests.sharing.runs import STEP, about, assert_same, make_run, weights

TOKENS = np.random.default_rng(0).integers(0, 256, (2, 21))


def test_the_model_that_is_loaded_is_the_same_bit_for_bit(trained, folder):
    there, meta = pf_jax.load(trained[0])
    here, exported = pf_jax.load(folder)
    np.testing.assert_array_equal(there(TOKENS), here(TOKENS))
    drawn = [
        pf_jax.generate(model, jax.random.key(3), num_samples=2, num_steps=9)
        for model in (there, here)
    ]
    assert_same(*drawn)
    assert exported.path == str(folder)
    # Sounds drawn from the one are known to be of the other; `--guard` has what it compares with.
    for field in ("step", "evaluations", "format", "data_fingerprint"):
        assert getattr(exported, field) == getattr(meta, field), field
    assert exported.checksums["params"] == meta.checksums["params"]
    assert exported.config.model == meta.config.model
    assert exported.config.optimizer == meta.config.optimizer


def test_safetensors_alone_read_the_average_by_the_names_of_the_card(trained, folder):
    _, state = trained
    found = safetensors.numpy.load_file(folder / "model.safetensors")
    expected = {
        re.sub(r"^\.", "", re.sub(r"\['?(\w+)'?\]", r".\1", jax.tree_util.keystr(path))): leaf
        for path, leaf in jax.tree.leaves_with_path(state.ema_params)
    }
    assert found.keys() == expected.keys()
    assert "body.nested.before.2.layer.cell.decay" in found
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf)
        assert found[name].dtype == leaf.dtype == np.float32
    raw = jax.tree.leaves(state.params)
    assert not any(map(np.array_equal, raw, jax.tree.leaves(state.ema_params)))

    # The card's table is the file's, with the numbers of equal blocks in braces.
    listed = {}
    rows = re.findall(
        r"^\| `(.*)` \| \((.*)\) \| (\w+) \|$", (folder / "README.md").read_text(), re.M
    )
    for name, shape, dtype in rows:
        before, *rest = re.split(r"\{([\d,]+)\}", name)
        for number in rest[0].split(",") if rest else [""]:
            whole = f"{before}{number}{rest[1]}" if rest else name
            assert whole not in listed
            listed[whole] = tuple(int(n) for n in shape.split(",") if n), dtype
    assert listed == {name: (leaf.shape, str(leaf.dtype)) for name, leaf in found.items()}


def test_no_place_of_the_machine_is_in_it(trained, folder):
    config = about(folder)["config"]
    assert config["init_from"] == config["data"]["path"] == ""
    assert config["data"]["data_dir"] == config["data"]["manual_dir"] == ""
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "model.safetensors", "pf_jax.json")
    ]
    for path in folder.iterdir():
        content = path.read_bytes()
        for private in (str(trained[0].parent), "secret", "somebody", "another run"):
            assert private.encode() not in content, path
    assert list(folder.parent.iterdir()) == [folder]


def test_figures_are_in_the_json_and_on_the_card(folder):
    export = about(folder)["export"]
    assert export["figures"].keys() == {"test"}  # That of validation was of other weights.
    found = export["figures"]["test"]
    assert found["likelihoods"]["carried"]["value"] == 3.125
    assert found["likelihoods"]["independent"]["value"] == 3.1875
    assert found["metrics"] == {"fid": 12.5}
    assert export["license"] == "apache-2.0"
    card = (folder / "README.md").read_text()
    for text in (
        *("3.1250 (95 %: 3.0000 to 3.5000)", "3.1875", "3.2500", "| FID", "12.5", "256 generated"),
        *("fid: too few.", "come from 2 recordings", "Ask them where the recordings come from"),
        f"steps: {STEP}, of 3 windows of 64 samples",
        f"samples seen: {STEP * 3 * 64:,}",
        "weights of another model",
        "Bits per sample are of mu_law levels, normalization: none.",
    ):
        assert text in card, text
    number = sum(x.size for x in jax.tree.leaves(weights(folder)))
    assert export["parameters"] == number
    assert f"{number:,} parameters" in card


def test_the_front_matter_is_what_hosts_read(folder, trained, tmp_path):
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["license"] == "apache-2.0"
    assert fields["library_name"] == "pf_jax"
    assert fields["pipeline_tag"] == "audio-to-audio"
    assert {"poolformer", "audio"} <= set(fields["tags"])
    assert "weights: apache-2.0" in body
    pf_jax.export(trained[0], tmp_path / "model")
    _, front, body = (tmp_path / "model" / "README.md").read_text().split("---\n", 2)
    assert "license" not in yaml.safe_load(front)
    assert "No licence of the weights was stated" in body


def test_every_dataset_has_an_origin_but_the_users_own(trained, tmp_path):
    assert {name for name, builder in DATASETS.items() if builder.ORIGIN is None} == {"folder"}
    step = shutil.copytree(trained[0], tmp_path / "run") / "checkpoints" / str(STEP)
    fields = json.loads((step / "meta" / "metadata").read_text())
    fields["config"]["data"]["name"] = "musicnet"
    (step / "meta" / "metadata").write_text(json.dumps(fields))
    pf_jax.export(step, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    for text in ("MusicNet", "CC BY 4.0", "1611.09827", "zenodo.org/records/5120004"):
        assert text in card


def test_an_export_is_exported_again_and_warms_a_run(folder, copy, trained):
    pf_jax.export(copy, copy)  # In its own place.
    for name in ("model.safetensors", "README.md", "pf_jax.json"):
        assert (copy / name).read_bytes() == (folder / name).read_bytes(), name
    _, state = trained
    config = dataclasses.replace(checkpoint.find(folder).config, init_from=str(folder))
    warm = checkpoint.warm_start(state._replace(ema_params=state.params), config)
    assert_same(warm.params, state.ema_params)
    assert_same(warm.ema_params, state.ema_params)


def test_bfloat16_rounds_kernels_only(trained, folder, tmp_path):
    pf_jax.export(trained[0], tmp_path / "small", dtype="bfloat16")
    expected = jax.tree.map_with_path(
        lambda path, x: x.astype(jnp.bfloat16).astype(x.dtype) if path[-1].key == "kernel" else x,
        trained[1].ema_params,
    )
    assert_same(weights(tmp_path / "small"), expected)
    sizes = [(p / "model.safetensors").stat().st_size for p in (folder, tmp_path / "small")]
    kernels = sum(
        leaf.size for path, leaf in jax.tree.leaves_with_path(expected) if path[-1].key == "kernel"
    )
    assert sizes[0] - sizes[1] == pytest.approx(2 * kernels, abs=200)  # The header's length.
    card = (tmp_path / "small" / "README.md").read_text()
    assert card.count("before the kernels were rounded") == 2
    assert "| bfloat16 |" in card
    # What is rounded stays so, and says so.
    pf_jax.export(tmp_path / "small", tmp_path / "again")
    assert_same(weights(tmp_path / "again"), expected)
    assert checkpoint.find(tmp_path / "again").exported.rounded


class Phases(LAYERS["s4d"]):
    """A layer of somebody's own, with parameters of unusual types."""

    def __init__(self, width, config, *, rngs):
        super().__init__(width, config, rngs=rngs)
        self.phases = nnx.Param(jnp.full((width,), 0.5 + 2j, jnp.complex64))
        self.half = nnx.Param(jnp.full((), 1.5, jnp.bfloat16))


def test_a_layer_of_ones_own_is_asked_for(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(LAYERS, "phases", Phases)
        run, state = make_run(tmp_path, "phases")
        pf_jax.export(run, tmp_path / "model")
        found = weights(tmp_path / "model")
        assert_same(found, state.ema_params)
        types = {str(leaf.dtype) for leaf in jax.tree.leaves(found)}
        assert types == {"float32", "complex64", "bfloat16"}
    assert "--import=FILE.py" in (tmp_path / "model" / "README.md").read_text()
    for path in (tmp_path / "run", tmp_path / "model"):
        with pytest.raises(UserError, match=r"Unknown layer 'phases'; .* --import=FILE\.py"):
            pf_jax.load(path)
