"""An archive that looks like Speech Commands, in which each digit is a tone of its own."""

import io
import pathlib
import tarfile

import numpy as np
import soundfile

from pf_jax.data.sc09 import ARCHIVE, DIGITS

SAMPLES = 2_048


def write_tones(directory: pathlib.Path, digits=DIGITS, speakers=6) -> pathlib.Path:
    """An archive of the layout of Speech Commands, in which each digit is a tone in noise."""
    rng, time = np.random.default_rng(0), np.arange(SAMPLES) / 16_000
    directory.mkdir(parents=True, exist_ok=True)
    held_out = {0: "validation_list.txt", 1: "testing_list.txt"}
    lists = {name: [] for name in held_out.values()}
    with tarfile.open(directory / ARCHIVE.filename, "w:gz", compresslevel=1) as archive:

        def add(name, content):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        for digit in digits:
            for speaker in range(speakers):
                pitch = 150 * 1.5 ** DIGITS.index(digit) * rng.uniform(0.97, 1.03)
                tone = 0.3 * np.sin(2 * np.pi * pitch * time + rng.uniform(0, 6))
                sound = io.BytesIO()
                tone += 0.01 * rng.standard_normal(SAMPLES)
                soundfile.write(sound, tone, 16_000, format="WAV", subtype="PCM_16")
                name = f"{digit}/{speaker:08x}_nohash_0.wav"
                add(f"./{name}", sound.getvalue())
                if speaker in held_out:
                    lists[held_out[speaker]].append(name)
        for name, clips in lists.items():
            add(f"./{name}", "\n".join(clips).encode())
    return directory
