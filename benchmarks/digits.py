"""Trains the small classifier of digits on speech that is made here, and hears voices it never met.

Debian's `espeak-ng` speaks the ten digits in about a hundred voices, accents, speeds and pitches.
The clips are laid out as Speech Commands 0.02 is, so that the dataset "sc09" reads them; of the
voices, some are for validation and some for the test alone. Then the classifier is trained by the
command that a user types. Prints one JSON line.

Example:
  python -m benchmarks.digits
  python -m benchmarks.digits --workdir=/tmp/digits --takes=2 -- --config.num_steps=300
"""

import concurrent.futures
import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import soundfile
import soxr
from absl import app, flags, logging
from jaxtyping import Float32

from pf_jax.data.sc09 import ARCHIVE, DIGITS
from pf_jax.evaluation.classifier import load_classifier

_WORKDIR = flags.DEFINE_string("workdir", None, "Kept if given; else a temporary directory.")
_VOICES = flags.DEFINE_integer("voices", 120, "How many at most.", lower_bound=3)
_TAKES = flags.DEFINE_integer("takes", 4, "Clips of each digit in each voice.", lower_bound=1)

RATE = 16_000
_ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-us-nyc")
_HELD_OUT = {0: "validation", 1: "test"}  # Of every ten voices.


def voices(limit: int) -> list[str]:
    """The names of espeak-ng's voice variants, `limit` of them at most, in an order without rhyme.

    They differ in sex, age, pitch, formants and in how the voice is excited.
    """
    table = subprocess.run(
        ["espeak-ng", "--voices=variant"], check=True, capture_output=True, text=True
    ).stdout
    names = {line.split("!v/")[1][:20].strip() for line in table.splitlines() if "!v/" in line}
    return sorted((name for name in names if " " not in name), key=_speaker)[:limit]


def speak(word: str, voice: str, take: int) -> Float32[np.ndarray, "16000"]:
    """A word in a voice, one second long; each take has an accent, a speed and so on of its own.

    The same arguments give the same clip.
    """
    seed = int.from_bytes(hashlib.sha256(f"{word} {voice} {take}".encode()).digest()[:8])
    rng = np.random.default_rng(seed)
    options = {
        "-v": f"{_ACCENTS[rng.integers(len(_ACCENTS))]}+{voice}",
        "-s": rng.integers(110, 220),  # Words a minute.
        "-p": rng.integers(25, 75),
    }
    arguments = [str(part) for option in options.items() for part in option]
    sound = subprocess.run(
        ["espeak-ng", *arguments, "--stdout", word], check=True, capture_output=True
    ).stdout
    waveform, rate = soundfile.read(io.BytesIO(_with_length(sound)), dtype="float32")
    return _as_recorded(soxr.resample(waveform, rate, RATE), rng)


def write_archive(directory: pathlib.Path, names: Sequence[str], takes: int) -> pathlib.Path:
    """Writes `speech_commands_v0.02.tar.gz`: the digits alone, and its two lists.

    Args:
        directory: Made if need be; what is there is left as it is.
        names: Of voices; of every ten, the first is for validation and the second for the test.
        takes: Clips of each digit in each voice.

    Returns:
        The archive.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / ARCHIVE.filename
    clips = [
        (number, name, word, take)
        for number, name in enumerate(names)
        for word in DIGITS
        for take in range(takes)
    ]
    lists = {"validation": [], "test": []}
    # espeak-ng is a process of its own: threads keep all cores busy.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        spoken = pool.map(lambda clip: speak(clip[2], clip[1], clip[3]), clips)
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            for (number, name, word, take), waveform in zip(clips, spoken, strict=True):
                file = f"{word}/{_speaker(name)}_nohash_{take}.wav"
                if split := _HELD_OUT.get(number % 10):
                    lists[split].append(file)
                sound = io.BytesIO()
                soundfile.write(sound, waveform, RATE, format="WAV", subtype="PCM_16")
                _add(archive, f"./{file}", sound.getvalue())
            for split, list_name in (("validation", "validation"), ("test", "testing")):
                _add(archive, f"./{list_name}_list.txt", "\n".join(lists[split]).encode() + b"\n")
    return path


def data_flags(workdir: pathlib.Path) -> list[str]:
    """How a command is told to read the archive in `workdir/archive` as the dataset "sc09"."""
    return [
        f"--config.data.manual_dir={workdir / 'archive'}",
        f"--config.data.data_dir={workdir / 'data'}",
        "--config.data.verify_checksums=false",
    ]


def main(argv: Sequence[str]) -> None:
    """Speaks, trains, tells how many it got right."""
    logging.set_verbosity(logging.WARNING)
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng is not installed: apt-get install espeak-ng")
    with tempfile.TemporaryDirectory() as temporary:
        workdir = pathlib.Path(_WORKDIR.value or temporary).absolute()
        names = voices(_VOICES.value)
        start = time.monotonic()
        if not (workdir / "archive" / ARCHIVE.filename).exists():
            write_archive(workdir / "archive", names, _TAKES.value)
        spoken = time.monotonic()
        command = [
            *(sys.executable, "-m", "experiments.train", "--config=digits_classifier"),
            *(f"--workdir={workdir / 'classifier'}", *data_flags(workdir), *argv[1:]),
        ]
        if subprocess.run(command).returncode:
            sys.exit("The training failed.")
        classifier = load_classifier(workdir / "classifier")
        print(
            json.dumps(
                {
                    "benchmark": "digits",
                    "voices": len(names),
                    "clips": dict(classifier.meta.num_clips),
                    "accuracy": {k: round(v, 4) for k, v in classifier.accuracy.items()},
                    "seconds_speaking": round(spoken - start, 1),
                    "seconds_training": round(time.monotonic() - spoken, 1),
                }
            )
        )


def _speaker(voice: str) -> str:
    """A speaker as Speech Commands names them: eight hexadecimal digits."""
    return hashlib.sha256(voice.encode()).hexdigest()[:8]


def _with_length(wav: bytes) -> bytes:
    """A WAV file that says how long it is, which espeak-ng does not know when it begins."""
    size = len(wav)
    return b"".join(
        [
            *(wav[:4], (size - 8).to_bytes(4, "little")),
            *(wav[8:40], (size - 44).to_bytes(4, "little"), wav[44:]),
        ]
    )


def _as_recorded(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Speech somewhere within a second, louder or quieter, in a room that is not quite silent."""
    heard = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max())
    speech = speech[heard[0] : heard[-1] + 1][:RATE]
    clip = np.zeros(RATE, np.float32)
    start = rng.integers(0, RATE - len(speech) + 1)
    clip[start : start + len(speech)] = speech / np.abs(speech).max() * rng.uniform(0.1, 0.9)
    return clip + rng.standard_normal(RATE, np.float32) * np.float32(10 ** rng.uniform(-5, -3))


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    app.run(main)
