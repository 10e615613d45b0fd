"""What `experiments.analyze` makes of a checkpoint, and what it says to each mistake."""

import html
import json
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image

from pf_jax.training.checkpoint import find
from tests import processes
from tests.experiments.test_train_and_sample import ROOT, check_errors, run

RATE, WINDOW = 8_000, 256


def tones(folder, number, seed):
    folder.mkdir()
    rng, time = np.random.default_rng(seed), np.arange(RATE // 4) / RATE
    for i in range(number):
        tone = 0.5 * np.sin(2 * np.pi * rng.uniform(100, 1_000) * time)
        soundfile.write(folder / f"{i}.wav", tone, RATE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's directory, where its prepared data is, and its sounds, which have moved since."""
    root = tmp_path_factory.mktemp("run")
    tones(root / "sounds", 12, seed=0)
    done = processes.run(
        [
            *(sys.executable, "-m", "experiments.train", "--config=folder"),
            f"--workdir={root / 'run'}",
            f"--config.data.path={root / 'sounds'}",
            f"--config.data.data_dir={root / 'data'}",
            f"--config.data.sample_rate={RATE}",
            f"--config.data.window={WINDOW}",
            *("--config.model.widths=8,16", "--config.model.depths=(0,1),1"),
            *("--config.model.pool_factors=(4,)", "--config.model.num_heads=2"),
            *("--config.batch_size=8", "--config.num_steps=2", "--config.eval_every=2"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    (root / "sounds").rename(root / "moved")
    return root


def test_from_a_checkpoint_to_a_page(trained, tmp_path):
    tones(tmp_path / "others", 12, seed=1)
    (tmp_path / "others" / "0.wav").rename(tmp_path / "others" / "another.wav")
    common = [f"--checkpoint={trained / 'run'}", "--num_positions=5"]
    moved = f"--data_path={trained / 'moved'}"
    few = "--num_windows=3"
    out = tmp_path / "deep" / "out"
    first, again, seed, others = run(
        "experiments.analyze",
        [*common, moved, f"--output={out}"],
        [*common, moved, f"--output={tmp_path / 'again'}"],
        [*common, moved, few, f"--output={tmp_path / 'seed'}", "--seed=1", "--split=test"],
        [*common, few, f"--data_path={tmp_path / 'others'}", f"--output={tmp_path / 'others_out'}"],
    )
    assert first[0] == 0, first[2]
    assert first[2] == ""
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("index.html", "analysis.json", "horizons.png", "influence.png", "silenced.png")
    }
    for path in out.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 100
    numbers = json.loads((out / "analysis.json").read_text())
    page = html.unescape((out / "index.html").read_text())
    for sentence in numbers["sentences"].values():
        assert sentence in page
        assert sentence in first[1]
    assert f"Look: {out / 'index.html'}" in first[1]
    assert [h["samples_per_position"] for h in numbers["horizons"]] == [1, 4]
    assert numbers["warning"] == ""
    assert numbers["facts"]["data"] == "folder, validation split"
    assert again[0] == 0, again[2]
    assert json.loads((tmp_path / "again" / "analysis.json").read_text()) == numbers

    assert seed[0] == 0, seed[2]
    other = json.loads((tmp_path / "seed" / "analysis.json").read_text())
    assert other["silencing"]["num_windows"] == 3
    assert other["facts"]["data"] == "folder, test split"
    assert others[0] == 0
    assert others[2].startswith("Warning: These are not the recordings")
    assert 'class="warning"' in (tmp_path / "others_out" / "index.html").read_text()
    # All windows of the split were looked at: as many bits as training measured.
    measured = find(trained / "run").validation_bits_per_sample
    assert numbers["silencing"]["bits_per_sample"][0] == pytest.approx(measured, rel=1e-5)


def test_mistakes(trained, tmp_path):
    (tmp_path / "file").write_text("in the way")
    moved = f"--data_path={trained / 'moved'}"
    good = [f"--checkpoint={trained / 'run'}", moved, f"--output={tmp_path / 'never'}"]
    check_errors(
        "experiments.analyze",
        [
            ([], ["--checkpoint is missing"]),
            ([*good, f"--checkpoint={tmp_path / 'nowhere'}"], ["No such checkpoint", "nowhere"]),
            ([*good, "--split=training"], ["--split", "training", "validation"]),
            ([good[0], good[2]], ["sounds does not exist", "--data_path", "--data_dir"]),
            ([*good, f"--data_path={tmp_path / 'file'}"], ["file is not a directory"]),
            ([*good, f"--data_dir={tmp_path / 'file' / 'below'}"], ["file", "--data_dir"]),
            ([*good, f"--output={tmp_path / 'file'}"], ["Cannot write", "file"]),
            ([*good, "--num_windows=0"], ["--num_windows", "0"]),
            ([*good, "--num_positions=0"], ["--num_positions", "0"]),
            ([*good, "--seed=-1"], ["--seed", "-1"]),
            ([*good, "--window=3"], ["--window", "--num_windows"]),
        ],
    )
    assert not (tmp_path / "never").exists()
