import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pf_jax.errors import UserError
from pf_jax.evaluation.results import METRICS, Evaluation, Likelihood, read_evaluation
from tests.evaluation.runs import EVALUATION


def read(tmp_path, values):
    path = tmp_path / "evaluation.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return read_evaluation(path)


def test_all_of_a_file(tmp_path):
    found = read(tmp_path, EVALUATION)
    assert (found.step, found.dataset, found.parameters) == (10, "demo", 12_345)
    assert (found.quantization, found.normalization) == ("sashimi_mu_law", "recording")
    assert found.likelihoods == {
        "carried": Likelihood(1.5, 1.25, 1.75, 1_000, 7),
        "independent": Likelihood(1.625, None, None, 1_000, 7),
    }
    assert found.metrics == {
        "fid": 12.5,
        "inception_score": 2.5,
        "modified_inception_score": 22.5,
        "am_score": 0.5,
        "ndb": 11,
        "ndb_share": 0.11,
        "mel_frechet_distance": 321.5,
    }
    assert found.metrics.keys() == METRICS.keys()
    assert found.warnings == {"distribution": ("Too <few> sounds.",)}
    assert found.num_sounds == {"distribution": 256, "mel_frechet_distance": 64}
    assert found.classifier == "c"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"bits_per_sample": None, "distribution": None, "mel_frechet_distance": {}},
        {"bits_per_sample": {"carried": {"low": 1.0}}, "distribution": {"fid": None}},
        {"something": ["new"], "distribution": {"fid": float("nan"), "warnings": []}},
    ],
)
def test_nothing_need_be_there(tmp_path, values):
    assert read(tmp_path, values) == Evaluation()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ("", "it is not JSON"),
        ('{"step": 1', "it is not JSON"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "it is not JSON"),
        ("[1]", "it is not a JSON object"),
        ({"distribution": [1]}, "distribution must be an object, got [1]"),
        ({"distribution": {"fid": "low"}}, "fid must be a number, got 'low'"),
        ({"distribution": {"ndb": True}}, "ndb must be a number, got True"),
        ({"distribution": {"warnings": "few"}}, "warnings must be a list of texts, got 'few'"),
        ({"dataset": 3}, "dataset must be a text, got 3"),
        ({"bits_per_sample": {"carried": 1.5}}, "carried must be an object, got 1.5"),
    ],
)
def test_damage_is_named(tmp_path, values, reason):
    with pytest.raises(UserError, match=r"Run experiments\.evaluate again") as caught:
        read(tmp_path, values)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'evaluation.json'} is damaged: {reason}. ")
    assert "\n" not in message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
KEYS = [*EVALUATION, *EVALUATION["distribution"], "carried", "value", "low", "num_clips"]


@given(
    values=st.dictionaries(
        st.sampled_from(KEYS), JSON | st.dictionaries(st.sampled_from(KEYS), JSON)
    )
)
def test_any_json_is_an_evaluation_or_one_clear_error(tmp_path_factory, values):
    message = ""
    try:
        assert isinstance(read(tmp_path_factory.getbasetemp(), values), Evaluation)
    except UserError as error:
        message = str(error)
    assert not message or "evaluation.json is damaged: " in message


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read .*missing\.json: No such file"):
        read_evaluation(tmp_path / "missing.json")
