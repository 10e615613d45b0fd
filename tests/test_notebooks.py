"""Runs each notebook whole, at the size "test", in a kernel of its own and a home of their own."""

import os
import pathlib
import re
import sys

import nbformat
import numpy as np
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient

from pf_jax import audio

ROOT = pathlib.Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SIZE_CELL = "PF_JAX_NOTEBOOK_SIZE"


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def run(name, home):
    """Runs a notebook and returns what its cells gave, as text, and how many media they showed."""
    notebook = read(ROOT / "notebooks" / f"{name}.ipynb")
    manager = KernelManager()
    # Not the kernel that is registered under a name, which may be of another Python.
    manager.kernel_spec.argv[0] = sys.executable
    environment = os.environ | {
        "HOME": str(home),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": str(ROOT),
        SIZE_CELL: "test",
    }
    client = NotebookClient(
        notebook, km=manager, timeout=180, resources={"metadata": {"path": str(home)}}
    )
    client.execute(env=environment)
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    data = [output.get("data", {}) for output in outputs]
    html = [d["text/html"] for d in data if "text/html" in d]
    sounds = sum("<audio" in h for h in html)
    pictures = sum("image/png" in d for d in data) + sum("<img" in h for h in html)
    return text, sounds, pictures


def test_train_tpu(home):
    text, sounds, pictures = run("train_tpu", home)
    assert "Step 4; best validation" in text
    assert sounds == 4
    assert pictures == 2, "curves, and a waveform"
    assert "1 x cpu (cpu)" in text
    files = sorted((home / "runs" / "demo_test" / "samples" / "4").glob("*.wav"))
    assert len(files) == 4
    for file in files:
        waveform, rate = audio.read(file)
        assert (len(waveform), rate) == (800, 8_000)
        assert np.ptp(waveform) > 0


def test_sample(home):
    text, sounds, pictures = run("sample", home)
    assert "Step 2, 8,000 samples a second" in text
    found = [float(bits) for bits in re.findall(r"^This one took ([\d.]+) bits", text, re.M)]
    assert len(found) == 3
    assert 0 < min(found) <= max(found) < 12
    assert (sounds, pictures) == (6, 1 + 6 + 1), "curves, each sound, horizons"
    assert len(re.findall(r"^level \d: median [\d.,]+ ms", text, re.M)) == 3
    original = audio.read(home / "unheard.wav")[0][:1_600]
    wholes = [audio.read(home / f"continuation_{number}.wav")[0] for number in range(3)]
    for whole in wholes:
        assert len(whole) == 3_200
        np.testing.assert_allclose(whole[:1_600], original, atol=0.02)
    assert np.abs(wholes[0] - wholes[1]).max() > 0.01


def test_poolformer_from_scratch(home):
    text, sounds, pictures = run("poolformer_from_scratch", home)
    for checked in (
        "the scan, the loop and pf_jax agree",
        "our CG-LRU and that of pf_jax agree",
        "no output depends on a later input, and each on all before it",
        "step by step and in parallel: the same",
    ):
        assert checked in text
    losses = [float(bits) for bits in re.findall(r"^step \d+: ([\d.]+) bits", text, re.M)]
    assert losses[-1] < losses[0] < 9
    assert (sounds, pictures) == (2, 3), "the music and the model; a wave, a triangle, a curve"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_stripped_and_linked_and_of_one_size_cell(path):
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in code(notebook):
        assert not cell.outputs
        assert cell.execution_count is None
    links = re.findall(r"https://colab\.research\.google\.com/github/[^)\s]*", str(notebook))
    page = f"OWNER/pf_jax/blob/main/notebooks/{path.name}"
    assert links == [f"https://colab.research.google.com/github/{page}"]
    assert notebook.cells[0].source.count(links[0]) == 1
    assert sum(SIZE_CELL in cell.source for cell in notebook.cells) == 1
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", str(notebook)):
        assert (path.parent / target).exists(), target
