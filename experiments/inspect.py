"""Shows a dataset as a model will see it, before anybody pays for training.

Prepares the data if that has not been done, prints its splits, the number of windows and how evenly
the 256 levels are used, and writes some training windows: as files to hear (or read), and as one
picture.

Examples:
  python -m experiments.inspect --config=folder --config.data.path=~/music --output=look
  python -m experiments.inspect --config=sc09 --num_windows=16
"""

from collections.abc import Sequence

import numpy as np
from absl import flags
from etils import epath
from jaxtyping import UInt8

from experiments import cli
from pf_jax.audio import AudioFormat, pictures
from pf_jax.data import Dataset, open_dataset
from pf_jax.data.config import DataConfig
from pf_jax.data.windows import Windows
from pf_jax.errors import UserError
from pf_jax.formats import ImageFormat
from pf_jax.paths import checked_path

_CONFIG = cli.define_config()
_OUTPUT = flags.DEFINE_string("output", "inspection", "The directory that files are written to.")
_NUM_WINDOWS = flags.DEFINE_integer("num_windows", 6, "How many windows.", 1, 100)

_MOST_READ = 2_000  # Windows of a split that are counted; there may be hours of them.
_MOST_NAMED = 8


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    config = _CONFIG.value
    output = checked_path(_OUTPUT.value, "--output")
    try:
        output.mkdir(parents=True, exist_ok=True)  # Before the work, not after it.
    except OSError as error:
        raise UserError(f"Cannot write {output}: {error.strerror or error}.") from error
    dataset = open_dataset(config.data)
    print("\n".join(describe(dataset, config.data)))

    windows = Windows(dataset.split("train"), config.data)
    rng = np.random.default_rng(config.seed)
    number = min(_NUM_WINDOWS.value, len(windows))
    indices = rng.choice(len(windows), number, replace=False)
    tokens, lengths = windows.random(indices, rng.random(number))
    pieces = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
    print("\nAs the model will meet them:")
    for row, piece in enumerate(pieces):
        path = output / f"train_{row:03d}{dataset.format.extension}"
        dataset.format.write(path, piece)
        print(f"  {path}  {dataset.format.describe(len(piece))}, {entropy(piece):.2f} bits")
    draw(dataset, pieces, output)


def describe(dataset: Dataset, config: DataConfig) -> list[str]:
    """What there is to say about a dataset, in lines."""
    kind = config.modality
    if isinstance(dataset.format, AudioFormat):
        kind += f" at {config.sample_rate:,} Hz, {config.quantization}"
        if config.normalization != "none":
            kind += f", each {config.normalization} stretched to the full range"
    lines = [
        f"{dataset.name}: {kind}, in windows of {config.window:,} tokens "
        f"({dataset.format.describe(config.window)})",
        "",
        f"{'split':<12}{'recordings':>12}{'amount':>14}{'windows':>12}{'entropy of levels':>20}",
    ]
    for name in ("train", "validation", "test"):
        recordings = dataset.split(name)
        windows = Windows(recordings, config)
        lines.append(
            f"{name:<12}{len(recordings):>12,}"
            f"{dataset.format.describe(recordings.num_samples):>14}{len(windows):>12,}"
            f"{entropy(*_some(windows)):>15.3f} bits"
        )
    for label, values in dataset.split("train").labels.items():
        kinds, counts = np.unique(np.array(values), return_counts=True)
        most = [f"{kinds[i]} ({counts[i]:,})" for i in np.argsort(-counts)[:_MOST_NAMED]]
        more = f" and {len(kinds) - _MOST_NAMED:,} more" if len(kinds) > _MOST_NAMED else ""
        lines.append(f"{label}: {', '.join(most)}{more}")
    if dataset.event_columns:
        lines.append(f"with events: {', '.join(dataset.event_columns)}")
    if dataset.skipped:
        lines.append(f"Left out {len(dataset.skipped)} files:")
        lines += [f"  {file}: {reason}" for file, reason in dataset.skipped]
    return lines


def entropy(*tokens: UInt8[np.ndarray, "time"]) -> float:
    """The entropy of how often each level occurs, in bits: what a model of no memory could reach.

    Args:
        *tokens: Sequences, counted together.
    """
    counts = sum(np.bincount(piece, minlength=256) for piece in tokens)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # Not -0.


def draw(dataset: Dataset, pieces: Sequence[UInt8[np.ndarray, "time"]], output: epath.Path) -> None:
    """Draws windows as one picture, where they can be drawn."""
    path = output / "train.png"
    if isinstance(dataset.format, AudioFormat):
        waveforms = [dataset.format.decode(piece) for piece in pieces]
        titles = [f"train_{row:03d}" for row in range(len(pieces))]
        pictures.draw_waveforms(path, waveforms, dataset.format.sample_rate, titles)
    elif isinstance(dataset.format, ImageFormat):
        pictures.draw_images(path, np.stack([dataset.format.decode(piece) for piece in pieces]))
    else:
        return
    print(f"  {path}")


def _some(windows: Windows) -> list[np.ndarray]:
    """All windows of a split, or as many of them as can be read in a moment, spread evenly."""
    indices = np.linspace(0, len(windows) - 1, min(len(windows), _MOST_READ)).round().astype(int)
    pieces = []
    for some in np.array_split(indices, -(-len(indices) // 64)):
        tokens, lengths = windows.fixed(some)
        pieces += [row[:length] for row, length in zip(tokens, lengths, strict=True)]
    return pieces


if __name__ == "__main__":
    cli.run(main)
