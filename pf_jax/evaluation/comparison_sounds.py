"""Sounds of training runs, to be listened to on a page that holds them."""

import dataclasses
import io
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
import soundfile
from etils import epath
from jaxtyping import Float32

from pf_jax.audio import io as sound_files
from pf_jax.audio import pictures, to_pcm
from pf_jax.evaluation.comparison import Run
from pf_jax.sampling import generate
from pf_jax.training import load


@dataclasses.dataclass(frozen=True)
class Clip:
    """The beginning of a sound.

    Attributes:
        source: Where it is from, in words.
        waveform: At least one sample.
        sample_rate: Samples per second.
        whole_seconds: How long the sound is that it is the beginning of.
    """

    source: str
    waveform: Float32[np.ndarray, "time"]
    sample_rate: int
    whole_seconds: float

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.waveform) / self.sample_rate


@dataclasses.dataclass(frozen=True)
class Player:
    """A clip, ready for a page.

    Attributes:
        clip: The clip.
        wav: Its WAV file.
        png: A picture of it.
    """

    clip: Clip
    wav: bytes
    png: bytes

    @property
    def size(self) -> int:
        """Bytes on a page, where three become four letters."""
        return sum(4 * math.ceil(len(part) / 3) for part in (self.wav, self.png))


@dataclasses.dataclass(frozen=True)
class Sounds:
    """What there is to hear of a run.

    Attributes:
        players: The sounds.
        remarks: What was left out and why, or why there are none; a sentence each.
    """

    players: Sequence[Player] = ()
    remarks: Sequence[str] = ()


def collect_sounds(
    runs: Sequence[Run],
    *,
    num_samples: int,
    seconds: float,
    most_seconds: float,
    most_bytes: float,
    tell: Callable[[str], None] = lambda message: None,
) -> list[Sounds]:
    """Finds sounds of each run, or draws them from its checkpoint where none lie in its directory.

    Args:
        runs: The runs.
        num_samples: The most sounds of each; 0 for none.
        seconds: How long a sound is that is drawn.
        most_seconds: The most that is kept of one that was found.
        most_bytes: What all of them may take on a page.
        tell: Is told before something that takes long.

    Returns:
        The sounds of each run.

    Raises:
        UserError: The checkpoint of a run that has no sounds is damaged.
    """
    if not num_samples:
        return [Sounds() for _ in runs]
    clips: list[list[Clip]] = []
    remarks: list[list[str]] = []
    for run in runs:
        found, passed_over = find_clips(run, num_samples=num_samples, most_seconds=most_seconds)
        if not found:
            if run.config is None:
                passed_over.append("There are no sounds, and no checkpoint to draw some from.")
            elif run.config.data.modality != "audio":
                passed_over.append(f"It is a model of {run.config.data.modality}, not of sound.")
            else:
                tell(f"Drawing sounds from {run.meta.path} ...")
                found = draw_clips(run, num_samples=num_samples, seconds=seconds)
        clips.append(found)
        remarks.append(passed_over)
    players, left_out = make_players(clips, most_bytes=most_bytes)
    for of_run, number in zip(remarks, left_out, strict=True):
        if number:
            of_run.append(
                f"Left out {number} more: all sounds and their pictures may take "
                f"{most_bytes / 1e6:g} MB."
            )
    return [Sounds(p, r) for p, r in zip(players, remarks, strict=True)]


def find_clips(run: Run, *, num_samples: int, most_seconds: float) -> tuple[list[Clip], list[str]]:
    """Reads sounds that lie in a run's directory.

    They are from `evaluation/SPLIT/generated/`, the test split first, and `samples/`, one of each
    directory in turn, by name.

    Args:
        run: The run.
        num_samples: The most there may be.
        most_seconds: The most of each.

    Returns:
        The clips; and why sounds were passed over, a sentence each.
    """
    splits = [run.path / "evaluation" / split / "generated" for split in run.evaluations]
    others = sorted((run.path / "evaluation").glob("*/generated"))
    places = [*dict.fromkeys([*splits, *others]), run.path / "samples"]
    files = (sorted(place.glob("*.wav")) for place in places)
    in_turn = (file for row in itertools.zip_longest(*files) for file in row if file is not None)
    clips, passed_over = [], []
    for file in in_turn:
        if len(clips) == num_samples:
            break
        try:
            clips.append(_read(file, str(file.relative_to(run.path)), most_seconds))
        except sound_files.UnusableSoundError as error:  # It may be one that is being written.
            passed_over.append(f"Passed over {file.relative_to(run.path)}: {error.reason}.")
    return clips, passed_over


def draw_clips(run: Run, *, num_samples: int, seconds: float, seed: int = 0) -> list[Clip]:
    """Draws sounds from a run's best checkpoint; the same seed gives the same ones.

    Args:
        run: A run of a model of sound, with a checkpoint.
        num_samples: How many.
        seconds: How long each will be.
        seed: The randomness.

    Raises:
        UserError: The checkpoint is damaged, or its model is none of sound.
    """
    model, meta = load(run.meta.path)
    rate = meta.audio_format.sample_rate
    tokens, _ = generate(
        model,
        jax.random.key(seed),
        num_samples=num_samples,
        num_steps=math.ceil(seconds * rate),
    )
    return [
        Clip(
            f"sound {number} drawn from step {meta.step:,}",
            meta.audio_format.decode(row),
            rate,
            len(row) / rate,
        )
        for number, row in enumerate(tokens, 1)
    ]


def make_players(
    clips: Sequence[Sequence[Clip]], *, most_bytes: float
) -> tuple[list[list[Player]], list[int]]:
    """Makes the players of each run's clips, all pictures with one scale of amplitude.

    The first clip of each run comes before the second ones, so that the room is shared.

    Args:
        clips: Those of each run.
        most_bytes: What all of them may take on a page.

    Returns:
        The players of each run; and how many of its clips found no room.
    """
    peaks = [float(np.abs(clip.waveform).max()) for of_run in clips for clip in of_run]
    limit = 1.05 * (max(peaks, default=0.0) or 1.0)
    players: list[list[Player]] = [[] for _ in clips]
    left_out, total = [0] * len(clips), 0
    for row in itertools.zip_longest(*clips):
        for number, clip in enumerate(row):
            if clip is None:
                continue
            png = pictures.waveform_png(clip.waveform, clip.sample_rate, limit=limit)
            player = Player(clip, _wav(clip), png)
            if total + player.size > most_bytes:
                left_out[number] += 1
                continue
            total += player.size
            players[number].append(player)
    return players, left_out


def _read(file: epath.Path, source: str, most_seconds: float) -> Clip:
    waveform, rate = sound_files.read(file)
    most = max(1, int(most_seconds * rate))
    return Clip(source, waveform[:most].copy(), rate, len(waveform) / rate)


def _wav(clip: Clip) -> bytes:
    """A file with one channel of 16-bit PCM."""
    file = io.BytesIO()
    soundfile.write(file, to_pcm(clip.waveform), clip.sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
