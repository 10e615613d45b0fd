"""Files of torch.save are read without PyTorch, give its numbers, and can do no harm."""

import builtins
import collections
import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from pf_jax.errors import UserError
from pf_jax.evaluation.classifier import torch_file
from pf_jax.evaluation.classifier.resnext import ResNeXtConfig
from pf_jax.evaluation.classifier.saved import abstract_network, merge_network
from pf_jax.evaluation.classifier.torch_file import read_tensors
from pf_jax.evaluation.classifier.torch_weights import convert, read_weights
from tests.evaluation.make_torch_fixture import FIXTURES, TINY, contents, make_network

FILES = [f"{form}_{kind}.pth" for form in ("module", "dictionary") for kind in ("zip", "stream")]


@pytest.fixture(scope="module")
def expected():
    return np.load(FIXTURES / "torch.npz")


@pytest.mark.parametrize("file", FILES)
def test_as_torch_computed_it(file, expected):
    config, variables = read_weights(FIXTURES / file)
    assert config == ResNeXtConfig(**TINY)
    graphdef, _ = abstract_network(config)
    features, logits = merge_network(graphdef, variables)(expected["inputs"])
    np.testing.assert_allclose(features, expected["features"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, expected["logits"], rtol=1e-4, atol=1e-5)


def test_all_forms_hold_the_same_tensors():
    first, *others = (read_tensors(FIXTURES / file) for file in FILES)
    assert "conv_1_3x3.weight" in first
    assert first["bn_1.num_batches_tracked"].shape == ()
    for other in others:
        assert list(other) == list(first)
        for name in first:
            np.testing.assert_array_equal(other[name], first[name])


@pytest.mark.parametrize(
    "shape",
    [
        ResNeXtConfig(29, 4, 4, 2, 8, 10),
        ResNeXtConfig(11, 1, 6, 3, 4, 3),
        ResNeXtConfig(20, 3, 2, 1, 4, 2),
    ],
    ids=lambda shape: f"{shape.depth}_{shape.cardinality}x{shape.base_width}",
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_live_torch(shape, is_zip, tmp_path):
    torch = pytest.importorskip("torch")
    network = make_network(vars(shape), seed=1)
    inputs = 80 * torch.rand(2, 32, 32) - 80
    with torch.no_grad():
        wanted = network.features(inputs[:, None]).numpy(), network(inputs[:, None]).numpy()
    for content in contents(network).values():
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=is_zip)
        config, variables = read_weights(tmp_path / "x.pth")
        assert config == shape
        got = merge_network(abstract_network(config)[0], variables)(inputs.numpy())
        for mine, theirs in zip(got, wanted, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_live_views_and_types(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "transposed": base.T[1:, ::2],
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "scalar": torch.tensor(3),
        "flags": base > 5,
        "empty": torch.zeros(0, 3),
        "expanded": base[:1].expand(4, 6),
    }
    for is_zip in (True, False):
        torch.save(tensors, tmp_path / "x.pth", _use_new_zipfile_serialization=is_zip)
        arrays = read_tensors(tmp_path / "x.pth")
        for name, tensor in tensors.items():
            wanted = tensor.float() if tensor.is_floating_point() else tensor
            np.testing.assert_array_equal(arrays[name].astype(wanted.numpy().dtype), wanted)


def zipped(path, content, storages=None):
    """A zip archive as torch.save makes it, around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("touch {}",)),
        (subprocess.check_output, (["touch", "{}"],)),
        (builtins.exec, ("open('{}', 'w')",)),
        (builtins.eval, ("open('{}', 'w')",)),
        (builtins.open, ("{}", "w")),
        (os.mkdir, ("{}",)),
        (io.open, ("{}", "w")),
        (builtins.getattr, (os, "system")),
    ],
)
@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("form", ["zip", "stream", "state_dict"])
def test_nothing_in_a_file_is_run(function, arguments, protocol, form, tmp_path):
    proof = tmp_path / "proof"

    def filled(argument):
        if isinstance(argument, list):
            return [filled(part) for part in argument]
        return argument.format(proof) if isinstance(argument, str) else "os"

    evil = Call(function, *map(filled, arguments))
    content = {"state_dict": collections.OrderedDict(x=evil)} if form == "state_dict" else evil
    data = pickle.dumps(content, protocol)
    path = tmp_path / "evil.pth"
    if form == "stream":
        head = [torch_file._MAGIC_NUMBER, torch_file._PROTOCOL, {"little_endian": True}]
        tail = pickle.dumps([], 2)
        path.write_bytes(b"".join(pickle.dumps(x, 2) for x in head) + data + tail)
    else:
        zipped(path, data)
    with pytest.raises(UserError) as caught:
        read_weights(path)
    assert function.__name__ in str(caught.value)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Call(os.mkdir, str(proof))))  # What would have happened otherwise.
    assert proof.exists()


def test_a_file_cannot_change_what_it_may_call(tmp_path):
    """BUILD, which sets attributes, on a function that is allowed, and on a class that is."""
    for name in ("torch._utils\n_rebuild_tensor_v2", "collections\nOrderedDict", "os\nsystem"):
        for state in ({"__call__": 1, "function": print}, (None, {"function": 1, "name": "x"})):
            body = pickle.dumps(state, 2)[2:-1].replace(b"cbuiltins\nprint\n", b"cos\nsystem\n")
            code = b"\x80\x02c" + name.encode() + b"\n" + body + b"b."
            with pytest.raises(UserError):
                read_tensors(zipped(tmp_path / "x.pth", code))
    assert read_tensors(FIXTURES / "module_zip.pth").keys()
    assert torch_file.Record.name == ""


class Identified(pickle.Pickler):
    """Pickles `Stored` as torch.save does a storage."""

    def persistent_id(self, thing):
        return thing.identity if isinstance(thing, Stored) else None


class Stored:
    def __init__(self, *identity):
        self.identity = identity


def tensor_file(path, offset, shape, strides, size=6, data=None, kind="FloatStorage"):
    """A file with one tensor "x", whose description may be a lie."""
    stream = io.BytesIO()
    pickler = Identified(stream, 2)
    place = "GLOBAL_PLACE"
    pickler.dump((Stored("storage", place, "0", "cpu", size), offset, shape, strides, False))
    body = stream.getvalue()[2:-1]
    text = pickle.dumps(place, 2)[2:-1].split(b"q")[0]
    assert text in body
    body = body.replace(text, f"ctorch\n{kind}\n".encode(), 1)
    code = b"\x80\x02}X\x01\x00\x00\x00xctorch._utils\n_rebuild_tensor_v2\n" + body + b"Rs."
    if data is None:
        data = np.arange(size, dtype="f4").tobytes()
    return zipped(path, code, {"0": data})


def test_a_tensor_made_by_hand(tmp_path):
    arrays = read_tensors(tensor_file(tmp_path / "x.pth", 1, (2, 2), (3, 1)))
    np.testing.assert_array_equal(arrays["x"], [[1, 2], [4, 5]])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((1, (2, 3), (3, 1)), {}, "reaches out of its storage"),
        ((-1, (2,), (1,)), {}, "reaches out of its storage"),
        ((5, (2,), (-1,)), {}, "reaches out of its storage"),
        ((0, (2**40, 2**40), (0, 2**30)), {}, "reaches out of its storage"),
        ((0, (6,), (1,)), {"data": b"1234"}, "storage 0 is not as large as it says"),
        ((0, (6,), (1,)), {"kind": "QInt8Storage"}, "QInt8Storage"),
    ],
)
def test_a_tensor_that_lies(arguments, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_tensors(tensor_file(tmp_path / "x.pth", *arguments, **options))


def test_files_that_are_something_else(tmp_path):
    cases = {
        "empty": (b"", "no file of torch.save, or is damaged"),
        "text": (b"<html>Please log in</html>", "no file of torch.save, or is damaged"),
        "pickle": (pickle.dumps({"a": 1}), "a pickle, but not one of torch.save"),
        "cut": ((FIXTURES / "module_stream.pth").read_bytes()[:20_000], "damaged"),
        "cut_zip": ((FIXTURES / "module_zip.pth").read_bytes()[:20_000], "damaged"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            read_weights(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "Hello.")
    with pytest.raises(UserError, match=r"not one of torch.save: it has no data.pkl"):
        read_weights(tmp_path / "other.zip")
    for content, message in (
        ({"a": 1}, "a dictionary, but not of tensors: 'a' is a int"),
        ([1], "holds no network, but a list"),
        (collections.OrderedDict(), "holds no network, but a OrderedDict"),
    ):
        with pytest.raises(UserError, match=message):
            read_weights(zipped(tmp_path / "x.pth", pickle.dumps(content, 2)))
    with pytest.raises(UserError, match="There is no file"):
        read_weights(tmp_path / "missing.pth")


def test_a_module_in_itself_ends(tmp_path):
    """A state whose `_modules` hold the module again."""
    code = (
        b"\x80\x02cx\nModule\n)\x81q\x00}(X\x0b\x00\x00\x00_parameters}X\x08\x00\x00\x00_modules"
        b"}X\x01\x00\x00\x00ah\x00sub."
    )
    with pytest.raises(UserError, match="is no module"):
        read_tensors(zipped(tmp_path / "x.pth", code))


@pytest.fixture
def tensors():
    return read_tensors(FIXTURES / "dictionary_zip.pth")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("conv_1_3x3.weight"), "has no tensor conv_1_3x3.weight; it has bn_1.bias"),
        (lambda t: t.pop("bn_1.running_var"), "misses tensors: bn_1.running_var."),
        (
            lambda t: t.pop("stage_2.stage_2_bottleneck_0.shortcut.shortcut_conv.weight"),
            "misses tensors: stage_2.stage_2_bottleneck_0.shortcut.shortcut_conv.weight.",
        ),
        (lambda t: t.update(extra=np.zeros(3)), "has too many tensors: extra."),
        (
            lambda t: t.update({f"extra_{i}": np.zeros(3) for i in range(8)}),
            "extra_0, extra_1, extra_2, extra_3, extra_4, extra_5 and 2 more.",
        ),
        (
            lambda t: t.update({"classifier.bias": np.zeros(11)}),
            r"classifier.bias has the shape \(11,\), which does not fit the others",
        ),
        (
            lambda t: t.update({"classifier.bias": np.full(10, np.nan)}),
            "classifier.bias has numbers that are NaN",
        ),
        (lambda t: t.update({"classifier.weight": np.zeros(3)}), r"has the shape \(3,\)"),
    ],
)
def test_tensors_that_do_not_fit(tensors, edit, message):
    edit(tensors)
    with pytest.raises(UserError, match=message):
        convert(tensors)


def test_the_errors_of_weights_name_the_file(tmp_path):
    tensor_file(tmp_path / "x.pth", 0, (6,), (1,))
    with pytest.raises(UserError, match=re.escape(str(tmp_path))) as caught:
        read_weights(tmp_path / "x.pth")
    assert "has no tensor conv_1_3x3.weight; it has x" in str(caught.value)


def test_no_torch_is_needed():
    """In a process where it could not be imported."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import json, pathlib\n"
        "from pf_jax.evaluation.classifier.torch_weights import read_weights\n"
        "print(json.dumps(read_weights(sys.argv[1])[0].num_classes))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, FIXTURES / "module_zip.pth"], capture_output=True, text=True
    )
    assert json.loads(done.stdout) == 10, done.stderr
