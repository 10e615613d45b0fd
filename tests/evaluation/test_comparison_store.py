"""Runs in an object store."""

import soundfile

from pf_jax.evaluation.comparison import read_runs
from pf_jax.evaluation.comparison_page import write_comparison
from pf_jax.evaluation.comparison_sounds import collect_sounds
from tests.data import test_object_store
from tests.evaluation import runs

bucket = test_object_store.bucket  # A fixture.


def test_a_run_in_a_store(bucket):
    for name in ("a", "b"):
        path = bucket / "runs" / name
        runs.write_log(
            path, (1, "train", {"loss": 1.0}), (1, "validation", {"bits_per_sample": 2.0})
        )
        runs.write_evaluation(path, runs.EVALUATION)
        (path / "samples").mkdir()
        soundfile.write(path / "samples" / "0.wav", [0.0, 0.5], 8_000)
        runs.write_checkpoint(path, 5, {5: 1.5}, runs.config())
    found = read_runs(["gs://bucket/runs/a", "gs://bucket/runs/b/"])
    assert [run.name for run in found] == ["a", "b"]
    assert [run.best for run in found] == [(5, 1.5)] * 2
    assert found[0].evaluations["test"].metrics["fid"] == 12.5
    sounds = collect_sounds(found, num_samples=1, seconds=1, most_seconds=1, most_bytes=1e9)
    assert [s.players[0].clip.source for s in sounds] == ["samples/0.wav"] * 2
    page = write_comparison("gs://bucket/page.html", found, sounds)
    assert page.exists()
    assert runs.Page(bucket / "page.html").column("Step") == dict.fromkeys("ab", "5 of 20")
