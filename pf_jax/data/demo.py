"""The dataset "demo": plucked melodies over a slow bass, made on the spot.

A listener hears at once whether a model has learned it: the notes are in tune, keep the beat and
decay. It is small enough for a tiny model on a CPU.
"""

import numpy as np
from jaxtyping import Float, Int16

from pf_jax.audio import to_pcm
from pf_jax.data.builder import Builder
from pf_jax.data.origin import Origin
from pf_jax.data.recording import Collection, Recording

_RECORDINGS = {"train": 30, "validation": 3, "test": 3}
_BARS = 12
_STEPS = 8  # Eighth notes in a bar.
_STEP_SECONDS = 0.25  # 120 beats a minute.

_PENTATONIC = np.array([0, 3, 5, 7, 10])  # A minor pentatonic, in semitones.
_SCALE = np.concatenate([_PENTATONIC, _PENTATONIC + 12, [24]])  # Two octaves of melody.
_MELODY_BASE, _BASS_BASE = 220.0, 110.0  # Hz: A3 and A2.

# How a bar may be divided into notes, in eighths.
_RHYTHMS = ((2, 2, 2, 2), (1, 1, 2, 2, 2), (2, 1, 1, 2, 2), (3, 1, 2, 2), (2, 2, 4), (3, 3, 2))
_LEAPS, _LEAP_CHANCES = (-2, -1, 0, 1, 2), (0.15, 0.3, 0.1, 0.3, 0.15)
_REST_CHANCE = 0.08


class Demo(Builder):
    """Twelve minutes of procedural music, and one minute each for validation and test."""

    name = "demo"
    ORIGIN = Origin(
        title="procedural music, which pf_jax composes and plays itself", license="Apache-2.0"
    )

    def collect(self) -> Collection:
        """Composes and plays every recording; the same each time."""
        splits = {}
        for number, (split, count) in enumerate(_RECORDINGS.items()):
            splits[split] = [
                Recording(f"{split}-{index:02d}", compose((number, index), self.config.sample_rate))
                for index in range(count)
            ]
        return Collection(splits)


def compose(seed: int | tuple[int, ...], sample_rate: int) -> Int16[np.ndarray, "time"]:
    """Composes and plays 24 seconds of music.

    Args:
        seed: Of the composition.
        sample_rate: Samples per second.

    Returns:
        16-bit PCM.
    """
    rng = np.random.default_rng(seed)
    step = round(_STEP_SECONDS * sample_rate)
    melody = np.zeros(_BARS * _STEPS * step)
    bass = np.zeros_like(melody)
    degree, root = int(rng.integers(3, 8)), 0
    for bar in range(_BARS):
        last = bar == _BARS - 1
        if last:
            degree, root = 5, 0  # Home, and time to fade away.
        at = bar * _STEPS * step
        for duration in (_STEPS,) if last else _RHYTHMS[rng.integers(len(_RHYTHMS))]:
            if last or rng.random() >= _REST_CHANCE:
                pitch = _MELODY_BASE * 2 ** (_SCALE[degree] / 12)
                _add(melody, at, _pluck(pitch, duration * step, sample_rate, decay=0.35))
            at += duration * step
            degree = abs(degree + int(rng.choice(_LEAPS, p=_LEAP_CHANCES)))
            degree = min(degree, 2 * (len(_SCALE) - 1) - degree)  # Turn back at either end.
        for half in (0,) if last else (0, 1):
            pitch = _BASS_BASE * 2 ** (_PENTATONIC[root] / 12)
            length = (_STEPS if last else _STEPS // 2) * step
            at = (bar * _STEPS + half * _STEPS // 2) * step
            _add(bass, at, _pluck(pitch, length, sample_rate, decay=0.8))
            root = int(rng.choice(len(_PENTATONIC), p=(0.4, 0.1, 0.2, 0.2, 0.1)))
    return to_pcm(0.8 * melody + 0.6 * bass)


def _add(track: np.ndarray, at: int, note: np.ndarray) -> None:
    track[at : at + len(note)] += note


def _pluck(
    frequency: float, length: int, sample_rate: int, decay: float
) -> Float[np.ndarray, "length"]:
    """Returns one note: four harmonics, of which the higher ones are softer and die sooner.

    Args:
        frequency: Of the first harmonic, in Hz.
        length: Samples until the note is damped.
        sample_rate: Samples per second.
        decay: Seconds in which the first harmonic falls to 1/e.

    Returns:
        The note, within [-1, 1].
    """
    time = np.arange(length) / sample_rate
    harmonics = [k for k in (1, 2, 3, 4) if k * frequency < 0.45 * sample_rate]
    note = sum(
        0.5**k * np.sin(2 * np.pi * k * frequency * time) * np.exp(-time * k**0.7 / decay)
        for k in harmonics
    )
    attack = np.minimum(1, time / 0.004)
    release = np.minimum(1, (length / sample_rate - time) / 0.02)
    return note * attack * release
