"""Trains the `folder` preset on spoken digits and compares it with a Markov model.

Speaks the ten digits in several voices with Debian's `espeak-ng` (22,050 Hz), puts among them what
real folders hold (a stereo file, one at 8 kHz, an empty one, a text named .wav, one of 0.01 s), and
runs the commands as a user does. Prints one JSON line.

Example:
  python -m benchmarks.speech --steps=300
  python -m benchmarks.speech --steps=20 -- --config.batch_size=2
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np
import soundfile
from absl import app, flags, logging

from pf_jax import load

_STEPS = flags.DEFINE_integer("steps", 300, "Training steps.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Kept if given; else a temporary directory.")

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_VOICES = ("en-gb", "en-us", "en-gb-scotland", "en-us+f1", "en-us+f3", "en-gb+f4", "en-us+m2")
_VOICES += ("en-gb+m3", "en-us+m7", "en-gb-x-rp+f2")
_SPEEDS = (120, 150, 180)  # Words a minute.


def speak(directory: pathlib.Path) -> None:
    """Writes a folder of spoken digits, and among them five unusual files."""
    for voice in _VOICES:
        for speed in _SPEEDS:
            for digit in _DIGITS:
                path = directory / voice / f"{digit}_{speed}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                command = ["espeak-ng", "-v", voice, "-s", str(speed), "-w", str(path), digit]
                subprocess.run(command, check=True)
    voice, rate = soundfile.read(directory / _VOICES[0] / "seven_150.wav")
    odd = directory / "odd"
    odd.mkdir()
    soundfile.write(odd / "stereo.wav", np.stack([voice, 0.5 * voice], axis=1), rate)
    soundfile.write(odd / "at_8_khz.wav", voice[: len(voice) // 3 * 3].reshape(-1, 3).mean(1), 8000)
    (odd / "empty.wav").touch()
    (odd / "text.wav").write_text("This is no sound.")
    soundfile.write(odd / "short.wav", voice[: rate // 100], rate)


def main(argv: Sequence[str]) -> None:
    """Speaks, trains, compares."""
    logging.set_verbosity(logging.WARNING)
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng is not installed: apt-get install espeak-ng")
    with tempfile.TemporaryDirectory() as temporary:
        workdir = pathlib.Path(_WORKDIR.value or temporary)
        speech = workdir / "speech"
        shutil.rmtree(speech, ignore_errors=True)
        speak(speech)
        config = [
            "--config=folder",
            f"--config.data.path={speech}",
            f"--config.data.data_dir={workdir / 'data'}",
            f"--config.num_steps={_STEPS.value}",
            *argv[1:],
        ]
        training = _run("experiments.train", f"--workdir={workdir / 'run'}", *config)
        baseline = _run("experiments.baseline", *config)
        _, meta = load(workdir / "run")
        markov = float(re.match(r"[\d.]+", baseline.stdout).group())
        print(
            json.dumps(
                {
                    "benchmark": "speech",
                    "steps": _STEPS.value,
                    "bits_per_sample": round(meta.validation_bits_per_sample, 4),
                    "markov_bits_per_sample": markov,
                    "left_out": re.findall(r"^  (\S+): (.*)$", training.stderr, re.MULTILINE),
                }
            )
        )


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{module} failed:\n{done.stderr}")
    return done


if __name__ == "__main__":
    app.run(main)
