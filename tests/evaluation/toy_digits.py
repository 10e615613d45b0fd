"""An archive that looks like Speech Commands, in which each digit is a hiss of its own."""

import io
import pathlib
import tarfile

import numpy as np
import soundfile

from pf_jax.data.sc09 import ARCHIVE, DIGITS

SAMPLES = 2_048


def write_toy_digits(directory: pathlib.Path, digits=DIGITS, speakers=12) -> pathlib.Path:
    """An archive of the layout of Speech Commands; of later digits the hiss goes higher."""
    rng, frequencies = np.random.default_rng(0), np.fft.rfftfreq(SAMPLES, 1 / 16_000)
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
                highest = 250 * 1.45 ** (DIGITS.index(digit) + rng.uniform(-0.1, 0.1))
                spectrum = np.fft.rfft(rng.standard_normal(SAMPLES)) * (frequencies < highest)
                noise = 1e-4 * rng.standard_normal(SAMPLES)
                hiss = 0.1 * np.fft.irfft(spectrum, SAMPLES) + noise
                sound = io.BytesIO()
                soundfile.write(sound, hiss, 16_000, format="WAV", subtype="PCM_16")
                name = f"{digit}/{speaker:08x}_nohash_0.wav"
                add(f"./{name}", sound.getvalue())
                if speaker in held_out:
                    lists[held_out[speaker]].append(name)
        for name, clips in lists.items():
            add(f"./{name}", "\n".join(clips).encode())
    return directory
