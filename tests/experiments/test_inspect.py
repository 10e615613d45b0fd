"""What `experiments.inspect` prints, against what is in the data; and what it writes."""

import os
import re
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image

from experiments import inspect
from pf_jax.data import DataConfig, open_dataset
from tests import processes
from tests.data import archives


def run(*arguments):
    return processes.run(
        [sys.executable, "-m", "experiments.inspect", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def test_sounds(tmp_path):
    expected = archives.sc09(tmp_path)
    place = [f"--config.data.data_dir={tmp_path}/d", "--config.data.verify_checksums=false"]
    done = run(
        *("--config=sc09", f"--config.data.manual_dir={tmp_path}", *place),
        *("--config.data.normalization=none", f"--output={tmp_path}/out", "--num_windows=3"),
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(\w+) +(\d+) +([\d.]+ s) +(\d+) +([\d.]+) bits$", done.stdout, re.M)
    assert [row[:2] for row in rows] == [("train", "20"), ("validation", "10"), ("test", "10")]
    digits = {name: pcm for name, pcm in expected.items() if name.split("/")[0] in archives.DIGITS}
    test = np.concatenate([pcm for name, pcm in digits.items() if "c50f55b8" in name])
    assert rows[2][2] == f"{len(test) / 16_000:.1f} s"
    levels = np.array([_sashimi_mu_law(x) for x in test / 32_768])
    shares = np.bincount(levels)[np.bincount(levels) > 0] / len(levels)
    assert float(rows[2][4]) == pytest.approx(-(shares * np.log2(shares)).sum(), abs=2e-3)
    assert "digit: " in done.stdout

    for number in range(3):
        sound, rate = soundfile.read(tmp_path / "out" / f"train_{number:03d}.wav")
        assert rate == 16_000
        matches = [
            np.abs(pcm / 32_768 - sound).max()
            for name, pcm in digits.items()
            if len(pcm) == len(sound) and ("0a7c2a8d" in name or "ffd2ba2f" in name)
        ]
        # Decoding gives the edge of a level, and of the loudest one the other edge is 0.043 away.
        assert min(matches) < 0.044, "what is heard is a clip of the training split, quantized"
    assert Image.open(tmp_path / "out" / "train.png").size[1] > 300


def _sashimi_mu_law(x):
    x = x + 1e-8
    y = np.sign(x) * np.log(1 + 255 * abs(x)) / np.log(256)
    return int(np.floor(255.99 * (y + 1) / 2 + 0.005))


@pytest.mark.parametrize("name", ["cifar10", "enwik8"])
def test_pictures_and_text(tmp_path, name):
    expected = getattr(archives, name)(tmp_path)
    fields = [f"--config.data.data_dir={tmp_path}/d", "--config.data.verify_checksums=false"]
    done = run(
        *(f"--config={name}", f"--config.data.manual_dir={tmp_path}", *fields),
        *(f"--output={tmp_path}/out", "--num_windows=2"),
    )
    assert done.returncode == 0, done.stderr
    if name == "cifar10":
        pictures = np.concatenate([pictures for _, pictures in expected.values()])
        shown = np.asarray(Image.open(tmp_path / "out" / "train_001.png"))
        assert any((picture == shown).all() for picture in pictures)
        assert "kind: " in done.stdout
        assert sorted(os.listdir(tmp_path / "out")) == [
            *("train.png", "train_000.png", "train_001.png")
        ]
    else:
        assert (tmp_path / "out" / "train_001.txt").read_bytes() in expected
        assert sorted(os.listdir(tmp_path / "out")) == ["train_000.txt", "train_001.txt"]


def test_what_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    done = run("--config=demo", f"--output={tmp_path}/file/x")
    assert done.returncode == 2
    assert re.fullmatch(r"error: Cannot write .*\n", done.stderr)
    done = run("--config=sc09", f"--config.data.manual_dir={tmp_path}/none", f"--output={tmp_path}")
    assert re.fullmatch(r"error: data.manual_dir=.* is not a directory.\n", done.stderr)


def test_left_out_files_are_all_named(tmp_path):
    for number in range(30):
        (tmp_path / f"{number}.wav").write_text("no sound")
    soundfile.write(tmp_path / "good.wav", np.zeros(16_000), 16_000)
    config = DataConfig("folder", 1_000, path=str(tmp_path), data_dir=str(tmp_path / "d"))
    lines = inspect.describe(open_dataset(config), config)
    assert sum("not a WAV" in line for line in lines) == 30


def test_entropy():
    assert inspect.entropy(np.zeros(10, np.uint8)) == 0
    assert inspect.entropy(np.arange(256).astype(np.uint8), np.arange(256)) == pytest.approx(8)
