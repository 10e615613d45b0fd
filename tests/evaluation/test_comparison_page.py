"""The page, taken apart again."""

import re

import numpy as np
import pytest

from pf_jax.errors import UserError
from pf_jax.evaluation.comparison import read_run, read_runs
from pf_jax.evaluation.comparison_page import write_comparison
from pf_jax.evaluation.comparison_sounds import Clip, Sounds, make_players
from tests.evaluation import runs

UNKNOWN = "\N{EN DASH}"
HOSTILE = "<script>alert('&quot;\" & ü #?%')"


def a_run(tmp_path, name="run", config=None, evaluation=None, fingerprint="f"):
    path = tmp_path / name
    validation = ((s, "validation", {"bits_per_sample": 6.0 - s / 10}) for s in (5, 10))
    train = ((s, "train", {"loss": 4.0 - s / 10, "samples_per_second": 1e4}) for s in (3, 9))
    runs.write_log(path, *train, *validation)
    if config is not None:
        runs.write_checkpoint(path, 10, {}, config, fingerprint)
    if evaluation is not None:
        runs.write_evaluation(path, evaluation)
    return read_run(path, name)


def write(tmp_path, found, sounds=()):
    return runs.Page(write_comparison(tmp_path / "page.html", found, sounds))


def test_a_row_for_each_run(tmp_path):
    small, large = (runs.config(batch_size=size) for size in (4, 1_000))
    other = runs.EVALUATION | {"bits_per_sample": {"carried": {"value": 1.125}}, "distribution": {}}
    found = [
        a_run(tmp_path, "a", small, runs.EVALUATION),
        a_run(tmp_path, "b", large, other),
        a_run(tmp_path, "c"),
    ]
    page = write(tmp_path, found)
    for title, a, b, c in (
        ("Dataset", "demo", "demo", UNKNOWN),
        ("Model", *["2 levels widths 8, 16 pools 4"] * 2, UNKNOWN),
        ("Step", "10 of 20", "10 of 20", "10"),
        ("Training samples per second", *["10,000"] * 3),
        ("Best validation bits per sample", *["5.0000 at step 10"] * 3),
        ("Test bits per sample, carried", "1.5000 1.2500 to 1.7500", "1.1250", UNKNOWN),
        ("Test bits per sample, independent", "1.6250", UNKNOWN, UNKNOWN),
        ("FID, test", "12.5 ⚠\ufe0e1", UNKNOWN, UNKNOWN),
        ("Inception score, test", "2.5 ⚠\ufe0e1", UNKNOWN, UNKNOWN),
        ("Modified inception score, test", "22.5 ⚠\ufe0e1", UNKNOWN, UNKNOWN),
        ("AM score, test", "0.5 ⚠\ufe0e1", UNKNOWN, UNKNOWN),
        ("NDB, test", "11 ⚠\ufe0e1", UNKNOWN, UNKNOWN),
        ("NDB, share of bins, test", "0.11 ⚠\ufe0e1", UNKNOWN, UNKNOWN),
        ("Mel Fréchet distance, test", "321.5", "321.5", UNKNOWN),
    ):
        assert page.column(title) == {"a": a, "b": b, "c": c}
    parameters = page.column("Parameters")
    assert parameters["a"] == parameters["b"] == f"{found[0].parameters:,}"
    assert "a, test: Too <few> sounds." in page.text
    assert ["batch_size", "4", "1000", "unknown"] in page.rows
    assert len(page.all("svg")) == 3 * 3  # In the table and in two legends.
    captions = [a["alt"] for a in page.all("img")]
    absent = "Not here, since its batch size is not known: c."
    assert captions == [
        "Training: bits per sample over steps.",
        f"Training: bits per sample over samples seen. {absent}",
        "Validation: bits per sample over steps.",
        f"Validation: bits per sample over samples seen. {absent}",
        "Test bits per sample, carried: fewer are better.",
        "Mel Fréchet distance, test: less is better.",
    ]


def test_columns_that_are_empty_are_left_out(tmp_path):
    page = write(tmp_path, [a_run(tmp_path)])
    assert page.rows[0] == [
        "Run",
        "Step",
        "Training samples per second",
        "Best validation bits per sample",
    ]
    for absent in ("Metrics", "Configs", "Sounds"):
        assert absent not in page.text
    assert "Training run run" in page.text


def test_a_run_with_nothing_in_it(tmp_path):
    runs.write_log(tmp_path / "run")
    page = write(tmp_path, [read_run(tmp_path / "run", "run")])
    assert page.column("Step") == {"run": "0"}
    assert not page.all("img")


def test_losses_that_are_not_finite_draw_nothing(tmp_path):
    runs.write_log(tmp_path / "run", (1, "train", {"loss": None}), (2, "train", {"loss": None}))
    assert not write(tmp_path, [read_run(tmp_path / "run", "run")]).all("img")


def test_other_data_are_a_warning(tmp_path):
    a, b = (a_run(tmp_path, name, runs.config(), fingerprint=name) for name in "ab")
    page = write(tmp_path, [a, b])
    assert len(page.all("p", **{"class": "warning"})) == 1
    assert "not comparable: the data differ (a: a; b: b)." in page.text
    assert "All configs that are known are equal." in page.text
    assert not write(tmp_path, [a]).all("p", **{"class": "warning"})


def test_an_evaluation_of_another_checkpoint_is_marked(tmp_path):
    old = runs.EVALUATION | {"step": 5, "distribution": {"fid": 1.0, "warnings": ["W", "V"]}}
    a, b = a_run(tmp_path, "a", runs.config(), old), a_run(tmp_path, "b", runs.config())
    page = write(tmp_path, [a, b])
    assert page.column("FID, test")["a"] == "1 ⚠\ufe0e1, 2, 3"
    assert page.column("Test bits per sample, independent")["a"] == "1.6250 ⚠\ufe0e1"
    assert (
        "a, test: evaluated at step 5, while the best checkpoint is that of step 10." in page.text
    )
    links = {a["href"] for a in page.all("a")}
    assert links == {f"#{li['id']}" for li in page.all("li") if "id" in li}
    assert len(links) == 3


def test_names_and_warnings_are_text(tmp_path):
    evaluation = runs.EVALUATION | {"distribution": {"fid": 1.0, "warnings": [HOSTILE]}}
    found = [
        a_run(tmp_path, f"{HOSTILE}{number}", runs.config(path=f"{HOSTILE}{number}"), evaluation)
        for number in range(2)
    ]
    clip = Clip(HOSTILE, np.zeros(100, np.float32), 8_000, 1.0)
    (players, _), _ = make_players([[clip], []], most_bytes=1e9)
    page = write(tmp_path, found, [Sounds(players, [HOSTILE]), Sounds()])
    assert len(page.all("script")) == 1
    assert "<script>alert" not in page.source
    assert page.column("FID, test").keys() == {found[0].name, found[1].name}
    assert page.text.count(HOSTILE) >= 10
    assert page.all("audio", **{"aria-label": f"{HOSTILE}, the first 0.01 s of 1.00 s"})


def test_a_name_that_is_no_text(tmp_path):
    page = write(tmp_path, [read_run(a_run(tmp_path).path, "a\udcff$x^2$\nb")])
    assert page.column("Step") == {"a?$x^2$\nb": "10"}


def test_nothing_comes_from_elsewhere(tmp_path):
    found = [a_run(tmp_path, name, runs.config(), runs.EVALUATION) for name in "ab"]
    clip = Clip("x", np.zeros(100, np.float32), 8_000, 0.0125)
    players, _ = make_players([[clip], [clip]], most_bytes=1e9)
    page = write(tmp_path, found, [Sounds(p) for p in players])
    without_data = re.sub(r"base64,[A-Za-z0-9+/=]*", "", page.source)
    assert "//" not in without_data
    assert "@import" not in page.source
    assert "url(" not in page.source
    assert len(page.all("audio")) == 2
    for _, attributes in page.elements:
        for key in ("src", "href"):
            assert attributes.get(key, "data:").startswith(("data:", "#note-"))


def test_a_page_that_cannot_be_written(tmp_path):
    found = read_runs([a_run(tmp_path).path])
    with pytest.raises(UserError, match=r"Cannot write .*page\.html: No such file"):
        write_comparison(tmp_path / "missing" / "page.html", found)
