"""SaShiMi's weights in a Poolformer against SaShiMi's equations in NumPy, in PyTorch's layouts."""

import math
import pathlib
import re

import jax
import numpy as np
import pytest

from experiments import cli
from pf_jax import UserError
from pf_jax.training.sashimi_weights import sashimi_weights
from pf_jax.training.state import abstract_model, merge_model, split_model
from tests.training import numpy_sashimi

SMALL = {"width": 4, "layers": 2, "pools": (2, 3), "vocab": 9, "states": 6}
PUBLISHED = {"width": 64, "layers": 8, "pools": (4, 4), "vocab": 256}


def test_a_poolformer_of_its_weights_is_sashimi():
    cases = (
        {},
        {"around": "model.", "copies": 1},
        {"copies": 2, "ff": 0, "pools": (3,)},
        {"pools": (), "expand": 3, "ff": 3},
    )
    for number, change in enumerate(cases):
        fields = SMALL | change
        weights = numpy_sashimi.random_weights(numpy_sashimi.shapes(**fields), seed=number)
        tokens = np.random.default_rng(number).integers(0, 9, (2, 36))
        expected = numpy_sashimi.logits(
            weights, tokens, fields["pools"], start=4, around=fields.get("around", "")
        )
        config, params = sashimi_weights(weights)
        graphdef, _ = split_model(abstract_model(config))
        model = merge_model(graphdef, params)
        np.testing.assert_allclose(jax.jit(model)(tokens), expected, atol=5e-5)
        assert expected.std() > 0.3


def test_the_preset_is_the_published_model():
    shapes = numpy_sashimi.shapes(**PUBLISHED)
    config, params = sashimi_weights({n: np.broadcast_to(0.1, s) for n, s in shapes.items()})
    assert config == cli.load_config("sc09_sashimi").model
    assert params["body"]["nested"]["nested"]["before"][14]["layer"]["c"].shape == (2, 256, 32)


def test_the_preset_has_as_many_parameters_as_the_published_model():
    def block(w):
        state_space = w * (2 * 32 + 2 * 32 + 2 * 32 + 1 + 1)  # A, B and C; dt and D.
        output, norms = 2 * w * w + 2 * w, 2 * 2 * w
        return state_space + output + norms + (2 * w * w + 2 * w) + (2 * w * w + w)

    pools = (256 * 128 + 128) + (512 * 256 + 256) + (256 * 512 + 512) + (128 * 256 + 256)
    backbone = 8 * (block(64) + block(128) + block(256)) + pools + 2 * 64
    assert backbone == 5_185_280
    published = backbone + 256 * 64 + (64 * 256 + 256)
    assert sum(map(math.prod, numpy_sashimi.shapes(**PUBLISHED).values())) == published
    _, params = split_model(abstract_model(cli.load_config("sc09_sashimi").model))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == published == 5_218_304


def small(**change):
    return numpy_sashimi.random_weights(numpy_sashimi.shapes(**SMALL | change))


def without(weights, *names):
    return {name: array for name, array in weights.items() if name not in names}


SYSTEM = "c_layers.0.layer.layer.kernel."


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "no SaShiMi.* has 0. It has nothing"),
        (without(small(), "encoder.weight"), "there is decoder.bias, decoder.weight"),
        (without(small(), "decoder.bias"), "there is decoder.weight, encoder.weight"),
        (without(small(), "u_layers.1.3.norm.bias"), "no tensor u_layers.1.3.norm.bias"),
        (without(small(), f"{SYSTEM}inv_dt"), f"no tensor {SYSTEM}inv_dt"),
        (small() | {"c_layers.4.norm.weight": np.ones(16)}, "no tensor|not: c_layers.4"),
        (small() | {"c_layers.0.layer.scale": np.ones(16)}, "has not: c_layers.0.layer.scale"),
        (small() | {f"{SYSTEM}P": np.ones((1, 16, 3, 2))}, "has S4, whose .* tensor P"),
        (small() | {f"{SYSTEM}C": np.ones((2, 16, 3, 2))}, "2 directions or channels"),
        (small() | {"d_layers.0.norm.weight": np.ones(4)}, "before its pools"),
        (small() | {"norm.weight": np.ones(5)}, r"norm.weight has the shape \(5,\).*\(4,\) would"),
        (small() | {"norm.bias": np.full(4, np.nan)}, "norm.bias has numbers that are NaN"),
        (small(copies=3), "A_real is of 3 channels, which do not divide"),
        (small() | {"encoder.weight": np.ones(3)}, r"encoder.weight has the shape \(3,\)"),
    ],
)
def test_other_weights_are_refused(weights, message):
    with pytest.raises(UserError, match=message):
        sashimi_weights(weights)


def test_the_page_names_each_tensor_once_and_each_parameter():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "sashimi_weights.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][2:]
    letters = {
        **{"EMBEDDING": "encoder", "HEAD": "decoder", "L": r"\d+", "U": r"\d+"},
        **{"SPACE": r"(?:c_layers\.\d*[02468]|u_layers\.\d+\.\d*[13579])"},
        **{"MLP": r"(?:c_layers\.\d*[13579]|u_layers\.\d+\.\d*[02468])"},
        **{"BODY": r"body(?:\.nested)*"},
        **{"EVEN": r"body(?:\.nested)*\.(?:before|after)\.\d*[02468]"},
        **{"ODD": r"body(?:\.nested)*\.(?:before|after)\.\d*[13579]"},
    }

    def patterns(column):
        names = [name for row in rows for name in re.findall(r"`(.*?)`", row[column])]
        return [r"\.".join(letters.get(part, part) for part in name.split(".")) for name in names]

    _, params = split_model(abstract_model(cli.load_config("sc09_sashimi").model))
    keys = [path for path, _ in jax.tree.leaves_with_path(params)]
    here = [re.sub(r"\W+", ".", jax.tree_util.keystr(path)).strip(".") for path in keys]
    for column, names in ((0, numpy_sashimi.shapes(**PUBLISHED)), (2, here)):
        unused = set(patterns(column))
        for name in names:
            found = [p for p in patterns(column) if re.fullmatch(p, name)]
            assert len(found) == 1, name
            unused -= set(found)
        assert not unused
