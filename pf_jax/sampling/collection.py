"""A folder of sounds of one checkpoint, which grows when more of them are asked for."""

import contextlib
import json
from collections.abc import Callable

import jax
import soundfile
from etils import epath

from pf_jax.errors import UserError
from pf_jax.poolformer import Poolformer
from pf_jax.sampling.files import SampleFile, check_space
from pf_jax.sampling.sampler import Sampler, check_arguments
from pf_jax.training.checkpoint import CheckpointMeta

_SETTINGS = "samples.json"
_STREAMS_AT_ONCE = 1024  # On each device.


def collect_samples(
    model: Poolformer,
    meta: CheckpointMeta,
    directory: epath.PathLike,
    *,
    num_samples: int,
    num_steps: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda num_tokens: None,
) -> list[epath.Path]:
    """Draws as many sounds as are missing in a directory, and returns the files.

    Sound `i` depends on the seed and on `i` alone, so what was drawn earlier, or before an
    interruption, is kept. What they were drawn with stands in `samples.json` beside them.

    Args:
        model: The model.
        meta: What its checkpoint says of it, as of `pf_jax.load`.
        directory: Where `sample_00000.wav` and so on go; it is made if need be.
        num_samples: How many there shall be.
        num_steps: Samples in each.
        temperature: As of `pf_jax.generate`.
        top_p: Likewise.
        seed: Of the randomness.
        on_progress: Is told of tokens that were drawn.

    Returns:
        The first `num_samples` files.

    Raises:
        UserError: An argument is out of range, it is no model of sound, the directory holds sounds
            of another checkpoint or with other settings, or it cannot be written.
    """
    check_arguments(
        num_samples=num_samples, num_steps=num_steps, temperature=temperature, top_p=top_p
    )
    format, directory = meta.audio_format, epath.Path(directory)
    settings = {
        "weights": meta.checksums.get("params", meta.path),
        "num_steps": num_steps,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    paths = [directory / f"sample_{i:05d}{format.extension}" for i in range(num_samples)]
    _claim(directory, settings)
    done = next((i for i, path in enumerate(paths) if not _is_whole(path, num_steps)), num_samples)
    check_space(directory, num_samples - done, num_steps, format)

    sampler = Sampler(model, temperature=temperature, top_p=top_p)
    at_once = _STREAMS_AT_ONCE * jax.local_device_count()
    for first in range(done, num_samples, at_once):
        batch = paths[first : first + at_once]
        position = sampler.start(jax.random.key(seed), len(batch), first_stream=first)
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(SampleFile(path, format)) for path in batch]
            for chunk in sampler.chunks(position, num_steps):
                for file, tokens in zip(files, chunk.tokens, strict=True):
                    file.append(tokens)
                on_progress(chunk.tokens.size)
    return paths


def _claim(directory: epath.Path, settings: dict) -> None:
    """Writes down what the sounds in a directory are, or compares with what is written there."""
    path = directory / _SETTINGS
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(json.dumps(settings, indent=2))
            return
        there = json.loads(path.read_text())
        differing = [name for name in settings if there.get(name) != settings[name]]
    except OSError as error:
        raise UserError(f"Cannot write {directory}: {error.strerror or error}.") from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: delete {directory}.") from error
    if differing:
        raise UserError(
            f"{directory} holds sounds of other {' and '.join(differing)}: delete it, or write "
            "elsewhere."
        )


def _is_whole(path: epath.Path, num_steps: int) -> bool:
    """Whether a sound was drawn to its end."""
    try:
        with path.open("rb") as file:
            return soundfile.info(file).frames == num_steps
    except (OSError, soundfile.SoundFileError):
        return False
