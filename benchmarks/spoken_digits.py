"""Spoken digits made by Debian's `espeak-ng`, laid out as Speech Commands 0.02 is.

So the dataset "sc09" reads them, by `--config.data.manual_dir=DIR` and
`--config.data.verify_checksums=false`. The ten digits are spoken in up to about a hundred voices,
accents, speeds and pitches; of the voices, some are for validation and some for the test alone.
"""

import concurrent.futures
import hashlib
import io
import os
import pathlib
import subprocess
import tarfile
from collections.abc import Sequence

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32

from pf_jax.data.sc09 import ARCHIVE, DIGITS

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
