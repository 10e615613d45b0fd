import json
import math

import numpy as np
import pytest

from pf_jax.data import Recordings
from pf_jax.evaluation.likelihood import Likelihood, Positions
from pf_jax.evaluation.results import read_evaluation
from pf_jax.evaluation.results_page import write_results
from pf_jax.evaluation.summary import likelihood_results

NAMES = ("zero", "one & two")


def likelihood(nats, num_samples, carried=True):
    edges = np.array([0, 1, 2])
    positions = Positions(edges, np.array([nats.sum(), 0.0]), np.array([num_samples.sum(), 0]))
    return Likelihood(carried, nats, num_samples, positions, positions)


@pytest.fixture
def results():
    rng = np.random.default_rng(0)
    num_samples = rng.integers(10, 1_000, 30)
    nats = rng.uniform(1, 2, 30) * num_samples
    table = {
        "name": [f"<clip {i}>" for i in range(30)],
        "length": num_samples.tolist(),
        "low": [0] * 30,
        "high": [1] * 30,
        "labels": {
            "digit": [i % 2 for i in range(30)],
            "speaker": [f"speaker {i}" for i in range(30)],
            "all": ["alike"] * 30,
        },
    }
    found = likelihood_results(
        likelihood(nats, num_samples),
        likelihood(1.5 * nats, num_samples, carried=False),
        Recordings(table, []),
        label_names={"digit": NAMES},
        num_resamples=200,
    )
    return found, nats, num_samples


def test_classes_are_called_by_their_names(results):
    found, nats, num_samples = results
    assert set(found["by_class"]) == {"digit"}  # Neither one of a kind nor all of one.
    for number, name in enumerate(NAMES):
        of_class = found["by_class"]["digit"][name]
        bits = nats[number::2].sum() / num_samples[number::2].sum() / math.log(2)
        assert of_class["value"] == pytest.approx(bits)
        assert of_class["low"] < bits < of_class["high"]
        assert of_class["num_recordings"] == 15
    per_recording = nats / num_samples / math.log(2)
    assert found["hardest"][0]["name"] == f"<clip {per_recording.argmax()}>"
    assert found["easiest"][0]["bits_per_sample"] == pytest.approx(per_recording.min())
    assert found["warnings"] == []
    assert found["by_position"]["carried"]["octaves"] == [
        {
            "start": 0,
            "stop": 1,
            "bits_per_sample": found["bits_per_sample"]["carried"]["value"],
            "count": num_samples.sum(),
        }
    ]


def test_the_page_and_the_file_say_the_same(results, tmp_path):
    found, nats, num_samples = results
    about = {"dataset": "digits", "split": "test", "step": 7, "parameters": 5, "window": 100}
    about |= {"quantization": "sashimi_mu_law", "normalization": "window"}
    content = found | about
    (tmp_path / "evaluation.json").write_text(json.dumps(content, allow_nan=False))
    read = read_evaluation(tmp_path / "evaluation.json")
    bits = nats.sum() / num_samples.sum() / math.log(2)
    assert read.likelihoods["carried"].value == pytest.approx(bits)
    assert read.likelihoods["independent"].value == pytest.approx(1.5 * bits)
    page = write_results(tmp_path / "index.html", content).read_text()
    for text in (f"{bits:.4f}", f"{1.5 * bits:.4f}", "&lt;clip", "Bits per sample by digit"):
        assert text in page
    assert "sashimi_mu_law levels, normalization: window" in page
    assert "<clip" not in page
    assert page.count("data:image/png;base64,") == 3
