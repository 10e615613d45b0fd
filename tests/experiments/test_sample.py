"""What `experiments.sample` writes and plays, against the model's own parallel form."""

import functools
import math
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.special
import soundfile
from flax import nnx

import pf_jax
from pf_jax.audio import io
from tests import processes

ROOT = pathlib.Path(__file__).parents[2]
RATE = 8_000
STEPS = 400


def command(name, *arguments, **options):
    return processes.run(
        [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)],
        capture_output=True,
        cwd=ROOT,
        **options,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model that has learnt next to nothing, which makes its samples differ the more."""
    root = tmp_path_factory.mktemp("run")
    done = command(
        *("train", "--config=demo", f"--workdir={root / 'run'}"),
        f"--config.data.data_dir={root / 'data'}",
        "--config.model.widths=8,16",
        "--config.model.depths=(0,1),1",
        "--config.model.pool_factors=(8,)",
        "--config.model.num_heads=2",
        *("--config.num_steps=10", "--config.eval_every=10", "--config.checkpoint_every=10"),
        "--config.data.window=512",
    )
    assert done.returncode == 0, done.stderr
    return root / "run"


@pytest.fixture(scope="module")
def tune(tmp_path_factory):
    """A prompt at another rate than the model's, in stereo."""
    path = tmp_path_factory.mktemp("prompts") / "a tune & more.flac"
    seconds = np.arange(4_410) / 44_100
    tones = [np.sin(3_000 * seconds), 0.2 * np.sin(900 * seconds)]
    soundfile.write(path, np.stack(tones, axis=1), 44_100)
    return path


def sample(checkpoint, output, *arguments):
    done = command(
        "sample",
        *(f"--checkpoint={checkpoint}", f"--output={output}", f"--num_steps={STEPS}"),
        *arguments,
    )
    assert done.returncode == 0, done.stderr
    bits = re.findall(r"sample_\d+\.wav  ([\d.]+) bits", done.stdout.decode())
    return sorted(pathlib.Path(output).glob("*.wav")), np.array(bits, float)


@nnx.jit
def parallel(model, tokens):
    return model(tokens)


loaded = functools.cache(pf_jax.load)


def bits_of(checkpoint, paths):
    """Bits per sample of the last STEPS samples of files, by the parallel form."""
    model, meta = loaded(checkpoint)
    tokens = np.stack([meta.audio_format.encode(io.read(path)[0]) for path in paths])
    logits = np.asarray(parallel(model, tokens.astype(np.int32)), np.float64)
    log_p = scipy.special.log_softmax(logits, axis=-1)
    log_p = np.take_along_axis(log_p, tokens[..., None].astype(int), axis=-1)[..., 0]
    return -log_p[:, -STEPS:].mean(axis=1) / math.log(2)


@pytest.fixture(scope="module")
def ten(checkpoint, tmp_path_factory):
    return sample(checkpoint, tmp_path_factory.mktemp("ten"), "--num_samples=10")


def test_the_likelihood_told_is_that_of_the_tokens_in_the_file(checkpoint, ten):
    paths, bits = ten
    assert len(set(bits)) > 5
    np.testing.assert_allclose(bits, bits_of(checkpoint, paths), atol=6e-4)


def test_a_prompt_is_continued_in_several_ways(checkpoint, tune, tmp_path):
    paths, bits = sample(checkpoint, tmp_path, f"--prompt={tune}", "--continuations=3")
    sounds = [io.read(path)[0] for path in paths]
    prompt = len(sounds[0]) - STEPS
    assert prompt == 800  # A tenth of a second, at the model's rate.
    expected, _ = io.read(tune, RATE)
    for sound in sounds:
        np.testing.assert_allclose(sound[:prompt], expected, atol=0.02)  # Of 256 levels.
    assert len({sound[prompt:].tobytes() for sound in sounds}) == 3
    np.testing.assert_allclose(bits, bits_of(checkpoint, paths), atol=6e-4)
    assert "a tune &amp; more.flac" in (tmp_path / "index.html").read_text()


def test_prompts_may_be_several_and_cut(checkpoint, tune, ten, tmp_path):
    paths, _ = sample(
        checkpoint, tmp_path, f"--prompt={tune}", f"--prompt={ten[0][0]}", "--prompt_seconds=0.02"
    )
    assert [len(io.read(path)[0]) for path in paths] == [160 + STEPS] * 2


def test_candidates_are_kept_in_the_band_of_likelihoods(checkpoint, ten, tmp_path):
    paths, _ = sample(checkpoint, tmp_path, "--num_candidates=10", "--num_samples=3")
    assert [path.name for path in paths] == [f"sample_00{number}.wav" for number in range(3)]
    ranking = np.argsort(-bits_of(checkpoint, ten[0]))  # The least likely first.
    band = sorted(ranking[4:10])  # 40 % and, of ten, no whole one of 5 %.
    assert [p.read_bytes() for p in paths] == [ten[0][i].read_bytes() for i in band[:3]]


def test_a_stream_is_the_sound_of_the_file(checkpoint, ten, tune, tmp_path):
    arguments = (f"--checkpoint={checkpoint}", f"--num_steps={STEPS}", "--stream")
    done = command("sample", *arguments)
    assert done.returncode == 0, done.stderr
    pcm = np.frombuffer(done.stdout, "<i2")
    np.testing.assert_array_equal(pcm, soundfile.read(ten[0][0], dtype="int16")[0])
    assert b"8000" in done.stderr  # What a player must be told.

    paths, _ = sample(checkpoint, tmp_path, f"--prompt={tune}")
    done = command("sample", *arguments, f"--prompt={tune}")
    pcm = np.frombuffer(done.stdout, "<i2")
    np.testing.assert_array_equal(pcm, soundfile.read(paths[0], dtype="int16")[0])


def test_a_closed_pipe_ends_an_endless_stream_quietly(checkpoint):
    process = processes.Popen(
        [sys.executable, "-m", "experiments.sample", f"--checkpoint={checkpoint}", "--stream"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert len(process.stdout.read(50_000)) == 50_000
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait(timeout=60) == 0
    assert errors.count("\n") == 1, errors


def test_the_guard_compares_with_the_validation_data(checkpoint, ten, tmp_path):
    """At 10 bits more nothing is noise. What is drawn too hot is, and the page says so."""
    paths, _ = sample(checkpoint, tmp_path / "calm", "--guard=10", "--num_samples=2")
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in ten[0][:2]]
    hot = ("--temperature=100", "--num_samples=2")
    plain, _ = sample(checkpoint, tmp_path / "hot", *hot)
    paths, bits = sample(checkpoint, tmp_path / "guarded", *hot, "--guard=0.01")
    assert [p.read_bytes() for p in paths] != [p.read_bytes() for p in plain]
    np.testing.assert_allclose(bits, bits_of(checkpoint, paths), atol=6e-4)
    assert "the guard drew" in (tmp_path / "guarded" / "index.html").read_text()


def test_an_interrupt_keeps_what_was_drawn(checkpoint, tmp_path):
    process = processes.Popen(
        [
            *(sys.executable, "-m", "experiments.sample", f"--checkpoint={checkpoint}"),
            *(f"--output={tmp_path}", "--num_samples=2", "--seconds=2000"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ,
    )
    path = tmp_path / "sample_000.wav"
    while not (path.exists() and path.stat().st_size > 10_000):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(2)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Interrupted" in errors
    assert soundfile.info(path).frames > 4_000
