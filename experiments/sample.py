"""Writes new sounds (or texts, or pictures) from a checkpoint, which is all it needs to know.

Examples:
  python -m experiments.sample --checkpoint=/tmp/demo
  python -m experiments.sample --checkpoint=~/runs/music --num_samples=8 --seconds=4 --output=out
  python -m experiments.sample --checkpoint=~/runs/music --prompt=tune.wav --continuations=4
  python -m experiments.sample --checkpoint=~/runs/music --stream | aplay -r 16000 -f S16_LE
"""

import contextlib
import dataclasses
import itertools
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from experiments import cli
from pf_jax import load
from pf_jax.audio import AudioFormat, to_pcm
from pf_jax.errors import UserError
from pf_jax.paths import checked_path
from pf_jax.sampling import Chunk, Position, Sampler, check_arguments
from pf_jax.sampling.files import SampleFile, check_space
from pf_jax.sampling.gallery import Entry, write_gallery
from pf_jax.sampling.guard import GUARD_STEPS, guarded_chunks, likelihood_band
from pf_jax.sampling.prompts import Prompt, read_prompt
from pf_jax.training.checkpoint import CheckpointMeta

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A training run's --workdir, one step's directory in it, or an exported folder.",
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", "samples", "The directory that files are written to.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 4, "How many, where there is no prompt.")
_SECONDS = flags.DEFINE_float(
    "seconds", None, "How long the new part of each sound is; 4 by default, a stream has no end."
)
_NUM_STEPS = flags.DEFINE_integer(
    "num_steps", None, "How many tokens each is, instead of --seconds; of a picture, all of them."
)
_PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "A sound file of any rate (or a text) to go on from; may be given several times."
)
_PROMPT_SECONDS = flags.DEFINE_float(
    "prompt_seconds", None, "Go on from this much of the beginning of each prompt."
)
_CONTINUATIONS = flags.DEFINE_integer("continuations", 1, "How many of each prompt.")
_NUM_CANDIDATES = flags.DEFINE_integer(
    "num_candidates",
    None,
    "Draw so many (of each prompt) and keep some in the band of likelihoods.",
)
_BAND = flags.DEFINE_list(
    "band", ["0.4", "0.95"], "Of candidates: the ranking's shares between which they are kept."
)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Below 1 is safer, above 1 wilder.")
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "Draw only from the likeliest levels that together have this probability."
)
_GUARD = flags.DEFINE_float(
    "guard",
    None,
    "Draw again what falls into noise: a quarter of a second that takes so many bits per sample "
    "more than the validation data does, such as 1.5.",
)
_STREAM = flags.DEFINE_bool(
    "stream", False, "Write one sound as raw 16-bit PCM to the standard output while it is drawn."
)
_SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same sounds.")
cli.group("Recordings to go on from", _PROMPT, _PROMPT_SECONDS, _CONTINUATIONS)
cli.group("How boldly", _TEMPERATURE, _TOP_P, _NUM_CANDIDATES, _BAND, _GUARD)

_STREAMS_AT_ONCE = 1024  # On each device. A CPU is as fast with fewer, and no slower with these.

# A flag that would be passed over in silence, and what it belongs to.
_BELONGS_TO = {
    "continuations": "prompt",
    "prompt_seconds": "prompt",
    "band": "num_candidates",
}


@dataclasses.dataclass
class Drawn:
    """A sample, as far as it has been drawn.

    Attributes:
        file: What it is written to.
        path: Where.
        log_likelihood: Of the new tokens, in nats.
        redrawn: How many chunks the guard drew again.
    """

    file: SampleFile
    path: epath.Path
    log_likelihood: float = 0.0
    redrawn: int = 0


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    _check_flags()
    cli.share_cpu()
    model, meta = load(_CHECKPOINT.value)
    prompts = [
        read_prompt(path, meta.config.data, seconds=_PROMPT_SECONDS.value) for path in _PROMPT.value
    ] or [None]
    sampler = Sampler(
        model,
        temperature=_TEMPERATURE.value,
        top_p=_TOP_P.value,
        chunk_steps=1024 if _GUARD.value is None else GUARD_STEPS,
    )
    if _STREAM.value:
        _stream(sampler, meta, prompts[0])
    else:
        _write_files(sampler, meta, prompts)


def _check_flags() -> None:
    """Raises UserError for what no checkpoint can make good."""
    for name, value in (("seconds", _SECONDS.value), ("guard", _GUARD.value)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"--{name} must be above 0, got {value}.")
    if not 0 <= _SEED.value < 2**32:
        raise UserError(f"--seed must be in [0, 2**32), got {_SEED.value}.")
    for name, value in (
        ("continuations", _CONTINUATIONS.value),
        ("num_candidates", _NUM_CANDIDATES.value),
    ):
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}.")
    check_arguments(
        num_samples=_NUM_SAMPLES.value,
        num_steps=1 if _NUM_STEPS.value is None else _NUM_STEPS.value,
        temperature=_TEMPERATURE.value,
        top_p=_TOP_P.value,
    )
    for name, owner in _BELONGS_TO.items():
        if flags.FLAGS[name].present and not flags.FLAGS[owner].value:
            raise UserError(f"--{name} says something about --{owner}, which is missing.")
    if flags.FLAGS["num_samples"].present and _PROMPT.value:
        raise UserError(
            "With --prompt, say how many of each by --continuations, not --num_samples."
        )
    if _STREAM.value and (_NUM_CANDIDATES.value or len(_PROMPT.value) > 1):
        raise UserError("--stream makes one sound: it takes one --prompt, and no --num_candidates.")
    if _NUM_CANDIDATES.value:
        kept, wanted = len(_kept(range(_NUM_CANDIDATES.value))), _number_of_each()
        if kept < wanted:
            raise UserError(
                f"--num_candidates={_NUM_CANDIDATES.value} leaves {kept} in the band "
                f"{','.join(_BAND.value)}, and {wanted} are asked for: draw more candidates."
            )


def _stream(sampler: Sampler, meta: CheckpointMeta, prompt: Prompt | None) -> None:
    """Plays into the standard output, until it is closed or as long as it was asked for."""
    rate = meta.audio_format.sample_rate
    if sys.stdout.isatty():
        raise UserError(
            "--stream writes sound, not text, to the standard output: "
            f"pipe it into a player, as in ... | aplay -r {rate} -f S16_LE"
        )
    print(f"16-bit PCM, one channel, {rate} samples per second.", file=sys.stderr)
    is_endless = _SECONDS.value is None and _NUM_STEPS.value is None
    num_steps = None if is_endless else _length(meta)
    position = sampler.start(_key(0), 1, None if prompt is None else prompt.tokens)
    new = (chunk.tokens[0] for chunk, _ in _chunks(sampler, position, meta, num_steps))
    try:
        for tokens in itertools.chain([] if prompt is None else [prompt.tokens], new):
            pcm = to_pcm(meta.audio_format.decode(tokens))
            sys.stdout.buffer.write(pcm.astype("<i2").tobytes())
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        # The player was closed. Python flushes once more at its end, to where nobody minds.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_files(sampler: Sampler, meta: CheckpointMeta, prompts: Sequence[Prompt | None]) -> None:
    """Draws, chooses, and writes the page."""
    num_steps, num_drawn = _length(meta), _NUM_CANDIDATES.value or _number_of_each()
    output = checked_path(_OUTPUT.value, "--output")
    longest = max(0 if prompt is None else len(prompt.tokens) for prompt in prompts)
    check_space(output, len(prompts) * num_drawn, longest + num_steps, meta.format)
    try:
        output.mkdir(parents=True, exist_ok=True)  # Before the work, not after it.
    except OSError as error:
        raise UserError(f"Cannot write {output}: {error.strerror or error}.") from error

    start, entries = time.monotonic(), []
    total = num_steps * num_drawn * len(prompts)
    with tqdm(total=total, unit=" samples", disable=not sys.stderr.isatty()) as bar:
        for number, prompt in enumerate(prompts):
            # What is not to be chosen from has its last name from the start.
            names = ("candidate", 0) if _NUM_CANDIDATES.value else ("sample", len(entries))
            paths = [
                output / f"{names[0]}_{names[1] + i:03d}{meta.format.extension}"
                for i in range(num_drawn)
            ]
            drawn = _draw(sampler, meta, paths, prompt, _key(number), num_steps, bar)
            for sample in _choose(drawn):
                path = output / f"sample_{len(entries):03d}{meta.format.extension}"
                if sample.path != path:
                    sample.path = sample.path.replace(path)
                entries.append(_entry(sample, prompt, num_steps))
    seconds = time.monotonic() - start

    print(f"From {meta.path}, in {seconds:.1f} s ({total / seconds:,.0f} samples per second):")
    for entry in entries:
        notes = f"  ({entry.notes})" if entry.notes else ""
        print(f"  {entry.path}  {entry.bits_per_sample:.3f} bits per sample{notes}")
    facts = {
        "checkpoint": meta.path,
        "training step": f"{meta.step:,}",
        **({"levels": meta.config.data.levels} if meta.config.data.levels else {}),
        "temperature": f"{_TEMPERATURE.value:g}",
        "top-p": f"{_TOP_P.value:g}",
        "seed": str(_SEED.value),
    }
    if _NUM_CANDIDATES.value:
        low, high = _BAND.value
        facts["chosen from"] = f"{num_drawn} candidates, the ranking's {low} to {high}"
    page = write_gallery(output, entries, meta.format, title="Samples", facts=facts)
    print(f"Look and listen: {page}")


def _draw(
    sampler: Sampler,
    meta: CheckpointMeta,
    paths: Sequence[epath.Path],
    prompt: Prompt | None,
    key: jax.Array,
    num_steps: int,
    bar: tqdm,
) -> list[Drawn]:
    """Draws from one prompt, straight into the files."""
    at_once = _STREAMS_AT_ONCE * jax.local_device_count()
    all_drawn = []
    for first in range(0, len(paths), at_once):
        with contextlib.ExitStack() as files:
            batch = paths[first : first + at_once]
            drawn = [Drawn(files.enter_context(SampleFile(p, meta.format)), p) for p in batch]
            if prompt is not None:
                for sample in drawn:
                    sample.file.append(prompt.tokens)
            position = sampler.start(
                key, len(batch), None if prompt is None else prompt.tokens, first_stream=first
            )
            for chunk, redrawn in _chunks(sampler, position, meta, num_steps):
                for i, sample in enumerate(drawn):
                    sample.file.append(chunk.tokens[i])
                    sample.log_likelihood += chunk.log_p[i].sum(dtype=np.float64)
                    sample.redrawn += int(redrawn[i])
                bar.update(chunk.tokens.size)
        all_drawn += drawn
    return all_drawn


def _chunks(
    sampler: Sampler, position: Position, meta: CheckpointMeta, num_steps: int | None
) -> Iterator[tuple[Chunk, np.ndarray]]:
    """Chunks, and which of their streams the guard drew again."""
    if _GUARD.value is None:
        nowhere = np.zeros(position.num_streams, bool)
        return ((chunk, nowhere) for chunk in sampler.chunks(position, num_steps))
    if meta.validation_bits_per_sample is None:
        raise UserError(
            f"--guard compares with the validation data, and {meta.path} was never evaluated: "
            "train with --config.eval_every above 0, or leave --guard out."
        )
    most_bits = meta.validation_bits_per_sample + _GUARD.value
    return guarded_chunks(sampler, position, num_steps, most_bits=most_bits)


def _choose(drawn: list[Drawn]) -> list[Drawn]:
    """The candidates that are kept; the files of the others are deleted."""
    if not _NUM_CANDIDATES.value:
        return drawn
    kept = set(_kept([sample.log_likelihood for sample in drawn])[: _number_of_each()].tolist())
    for number, sample in enumerate(drawn):
        if number not in kept:
            sample.path.unlink()
    return [sample for number, sample in enumerate(drawn) if number in kept]


def _kept(log_likelihoods: Sequence[float]) -> np.ndarray:
    """The numbers of those in the band."""
    try:
        low, high = map(float, _BAND.value)
    except ValueError:
        raise UserError(f"--band must be like 0.4,0.95, got {','.join(_BAND.value)}.") from None
    return likelihood_band(log_likelihoods, low=low, high=high)


def _entry(sample: Drawn, prompt: Prompt | None, num_steps: int) -> Entry:
    notes = f"the guard drew {sample.redrawn} pieces again" if sample.redrawn else ""
    return Entry(
        path=sample.path,
        bits_per_sample=-sample.log_likelihood / num_steps / math.log(2.0),
        num_steps=num_steps,
        prompt=None if prompt is None else prompt.name,
        prompt_steps=0 if prompt is None else len(prompt.tokens),
        notes=notes,
    )


def _key(prompt_number: int) -> jax.Array:
    """The randomness of a prompt's samples."""
    return jax.random.fold_in(jax.random.key(_SEED.value), prompt_number)


def _number_of_each() -> int:
    """How many samples of each prompt are kept."""
    return _CONTINUATIONS.value if _PROMPT.value else _NUM_SAMPLES.value


def _length(meta: CheckpointMeta) -> int:
    """How many new tokens are asked for, in the measure of what the model makes."""
    if _NUM_STEPS.value is not None:
        return _NUM_STEPS.value
    if not isinstance(meta.format, AudioFormat):
        return meta.config.data.window
    seconds = 4.0 if _SECONDS.value is None else _SECONDS.value
    num_steps = math.ceil(seconds * meta.format.sample_rate)
    if num_steps >= 2**31:
        raise UserError(f"--seconds={seconds} is too long: 2**31 samples or more.")
    return num_steps


if __name__ == "__main__":
    cli.run(main)
