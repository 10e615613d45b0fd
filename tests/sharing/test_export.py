"""A folder that anybody can load has the averaged weights, no place of the machine, and a card."""

import dataclasses
import errno
import hashlib
import json
import re
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import yaml
from etils import epath
from flax import nnx

import pf_jax
from pf_jax.data import DATASETS, DataConfig
from pf_jax.errors import UserError
from pf_jax.layers import MIXERS
from pf_jax.training import OptimizerConfig, TrainConfig, TrainState, checkpoint
from pf_jax.training.saving import Checkpoints
from pf_jax.training.state import split_model

STEP = 7
TOKENS = np.random.default_rng(0).integers(0, 256, (2, 21))


def make_run(root, mixer="rglru", **changes):
    """A run's directory as training leaves it, with weights that were drawn and not trained."""
    config = TrainConfig(
        model=pf_jax.PoolformerConfig(
            widths=(4, 8), depths=(1, 2), pool_factors=(4,), num_heads=2, mixer=mixer, state_size=4
        ),
        data=DataConfig(
            name="folder",
            path=str(root / "secret recordings"),
            sample_rate=1_000,
            window=64,
            data_dir=str(root / "data"),
            manual_dir=str(root / "manual"),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        init_from=str(root / "another run"),
        batch_size=3,
        **changes,
    )
    _, params = split_model(pf_jax.Poolformer(config.model, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    # As no initial weights are: no zeros, and nothing that bfloat16 could hold.
    averaged = jax.tree.map(lambda x: (x + 0.1 * rng.normal(size=x.shape)).astype(x.dtype), params)
    state = TrainState(
        step=np.array(STEP),
        skipped=np.array(0),
        skipped_in_a_row=np.array(0),
        key=np.zeros(2, np.uint32),
        params=params,
        ema_params=averaged,
        optimizer=(np.zeros(3, np.float32),),
    )
    with Checkpoints(root / "run", config, "0123456789abcdef") as checkpoints:
        checkpoints.note_evaluation(STEP, 3.25)
        checkpoints.save(state, types.SimpleNamespace(get_state=dict))
    return root / "run", jax.device_get(state)


def evaluation(step=STEP):
    bits = {"value": 3.125, "low": 3.0, "high": 3.5, "num_samples": 100, "num_recordings": 2}
    return {
        "checkpoint": "/home/somebody/run",
        "step": step,
        "dataset": "folder",
        "parameters": 1,
        "bits_per_sample": {"carried": bits, "independent": {"value": 3.1875}},
        "hardest": [{"name": "secret.wav", "bits_per_sample": 4.0}],
        "distribution": {
            "fid": 12.5,
            "num_generated": 256,
            "classifier": {"path": "/home/somebody/classifier"},
            "warnings": ["fid: too few."],
        },
        "warnings": ["The intervals come from 2 recordings."],
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's directory with an evaluation of these weights and one of others, and its state."""
    run, state = make_run(tmp_path_factory.mktemp("trained"))
    for split, step in (("test", STEP), ("validation", STEP - 1)):
        (run / "evaluation" / split).mkdir(parents=True)
        (run / "evaluation" / split / "evaluation.json").write_text(json.dumps(evaluation(step)))
    return run, state


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """Its export; not to be changed."""
    place = tmp_path_factory.mktemp("exported") / "deep" / "model"
    pf_jax.export(trained[0], place, license="Apache-2.0")
    return place


@pytest.fixture
def copy(folder, tmp_path):
    return epath.Path(shutil.copytree(folder, tmp_path / "model"))


def weights(path):
    return split_model(pf_jax.load(path)[0])[1]


def about(place):
    return json.loads((place / "pf_jax.json").read_text())


def assert_same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


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
    assert "body.nested.before.1.mixer.rglru.decay" in found
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


class Phases(MIXERS["s4d"]):
    """A mixer of somebody's own, with parameters of unusual types."""

    def __init__(self, width, config, *, rngs):
        super().__init__(width, config, rngs=rngs)
        self.phases = nnx.Param(jnp.full((width,), 0.5 + 2j, jnp.complex64))
        self.half = nnx.Param(jnp.full((), 1.5, jnp.bfloat16))


def test_a_mixer_of_ones_own_is_asked_for(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(MIXERS, "phases", Phases)
        run, state = make_run(tmp_path, "phases")
        pf_jax.export(run, tmp_path / "model")
        found = weights(tmp_path / "model")
        assert_same(found, state.ema_params)
        types = {str(leaf.dtype) for leaf in jax.tree.leaves(found)}
        assert types == {"float32", "complex64", "bfloat16"}
    assert "--import=FILE.py" in (tmp_path / "model" / "README.md").read_text()
    for path in (tmp_path / "run", tmp_path / "model"):
        with pytest.raises(UserError, match=r"Unknown mixer 'phases'; .* --import=FILE\.py"):
            pf_jax.load(path)


def edit_tensors(**changes):
    """Changes tensors as somebody does who knows about the checksum."""

    def edit(place):
        path = place / "model.safetensors"
        tensors = dict(safetensors.numpy.load(path.read_bytes()))
        for name, value in changes.items():
            if value is None:
                del tensors[name]
            else:
                tensors[name] = value
        path.write_bytes(safetensors.numpy.save(tensors))
        edit_about(export__sha256=hashlib.sha256(path.read_bytes()).hexdigest())(place)

    return edit


def edit_about(**changes):
    def edit(place):
        fields = about(place)
        for name, value in changes.items():
            *sections, last = name.split("__")
            inner = fields
            for section in sections:
                inner = inner[section]
            inner[last] = value
        (place / "pf_jax.json").write_text(json.dumps(fields))

    return edit


def cut(place):
    content = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(content[:-100])


def cut_knowingly(place):
    cut(place)
    content = (place / "model.safetensors").read_bytes()
    edit_about(export__sha256=hashlib.sha256(content).hexdigest())(place)


def flip(place):
    content = bytearray((place / "model.safetensors").read_bytes())
    content[-50] ^= 1
    (place / "model.safetensors").write_bytes(content)


NOT_WRITTEN = r"is damaged: model\.safetensors is not the file that was written"
DAMAGE = [
    (cut, NOT_WRITTEN),
    (flip, NOT_WRITTEN),
    (cut_knowingly, "it is no whole file of safetensors"),
    (lambda place: (place / "model.safetensors").unlink(), "is damaged: FileNotFoundError"),
    (edit_tensors(**{"head.bias": None}), r"it lacks the tensor head\.bias"),
    (edit_tensors(tail=np.zeros(3)), "it has the tensor tail, which the model has not"),
    (
        edit_tensors(**{"head.bias": np.zeros(3, np.float32)}),
        r"head\.bias has the shape \(3,\) and not \(256,\)",
    ),
    (
        edit_tensors(**{"head.bias": np.zeros(256)}),
        r"head\.bias is of the type F64 and not float32",
    ),
    (edit_about(config__model__widths=[4, 16]), r"has the shape \(8,\) and not \(16,\)"),
    (
        lambda place: (place / "pf_jax.json").write_text('{"step'),
        "not a readable pf_jax checkpoint",
    ),
    (lambda place: (place / "pf_jax.json").write_text("{}"), "its metadata has no version"),
    (edit_about(export=None), "is damaged"),
    (edit_about(export={}), "is damaged"),
    (edit_about(export__rounded="no"), "is damaged"),
    (edit_about(export__format_version="1"), "is damaged"),
    (
        edit_about(export__format_version=2, pf_jax_version="9.9"),
        r"was made by pf_jax 9\.9, whose exported folders have format version 2; .* Upgrade pf_jax",
    ),
    (edit_about(format_version=3, pf_jax_version="9.9"), r"pf_jax 9\.9, .* Upgrade pf_jax"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_one_clear_line(copy, damage, message):
    damage(copy)
    with pytest.raises(UserError, match=message) as caught:
        pf_jax.load(copy)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


def test_what_is_in_the_place_is_never_lost(trained, copy, tmp_path):
    run, _ = trained
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    pf_jax.export(run, tmp_path / "empty")
    assert about(tmp_path / "empty")["step"] == STEP

    def refused(place, message):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match=message) as caught:
            pf_jax.export(run, place)
        assert "\n" not in str(caught.value)
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    refused(tmp_path / "file", "file is a file")
    refused(tmp_path / "file" / "below", "Cannot write .*Not a directory")
    refused(tmp_path, "exists already and is not an export")
    refused(run, "exists already and is not an export")
    (copy / "notes.txt").write_text("mine")
    refused(copy, r"holds notes\.txt, which no export makes")
    (copy / "notes.txt").unlink()
    (copy / "README.md").write_text((copy / "README.md").read_text() + "Mine.\n")
    refused(copy, r"README\.md was changed since")
    (copy / "README.md").unlink()
    flip(copy)
    pf_jax.export(run, copy, license="mit")  # A damaged one is mended.
    assert_same(weights(copy), trained[1].ema_params)
    assert about(copy)["export"]["license"] == "mit"


@pytest.mark.parametrize("when", ["writing", "moving"])
def test_a_full_disk_leaves_the_earlier_export(trained, copy, monkeypatch, when):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    full = OSError(errno.ENOSPC, "No space left on device")
    write, rename = type(copy).write_bytes, type(copy).rename

    def failing_write(path, content):
        if path.name == "model.safetensors":
            write(path, content[:100])
            raise full
        return write(path, content)

    def failing_rename(path, target):
        if path.name.endswith(".partial"):
            raise full
        return rename(path, target)

    if when == "writing":
        monkeypatch.setattr(type(copy), "write_bytes", failing_write)
    else:
        monkeypatch.setattr(type(copy), "rename", failing_rename)
    with pytest.raises(UserError, match=r"^Cannot write \S+model: No space left on device\.$"):
        pf_jax.export(trained[0], copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert [path.name for path in copy.parent.iterdir()] == ["model"]


def test_what_cannot_be_exported(trained, tmp_path):
    run, _ = trained
    (tmp_path / "junk").mkdir()
    classifier = tmp_path / "classifier" / "classifier" / "meta"
    classifier.mkdir(parents=True)
    (classifier / "metadata").write_text('{"kind": "classifier"}')
    for path, changes, message in (
        (tmp_path / "junk", {}, "holds no pf_jax checkpoint"),
        (tmp_path / "nothing", {}, "No such checkpoint directory"),
        (tmp_path / "classifier", {}, "is a classifier of sounds, not a Poolformer"),
        (run, {"license": "all rights\nreserved"}, "license must be an identifier"),
        (run, {"dtype": "float16"}, "dtype must be float32 or bfloat16, got 'float16'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            pf_jax.export(path, tmp_path / "model", **changes)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()
