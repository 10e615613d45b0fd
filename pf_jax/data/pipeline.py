"""Batches for training and evaluation, shared out over processes and devices.

A batch is a dictionary of

    tokens: uint8 (local devices, per device, window)
    length: int32 (local devices, per device), of which positions from `length` on are padding.

A global batch is the same whatever the number of processes: each takes its own consecutive rows.
"""

import functools
from collections.abc import Iterator

import grain
import numpy as np

from pf_jax.data.config import DataConfig
from pf_jax.data.dataset import Dataset
from pf_jax.data.windows import Windows
from pf_jax.errors import UserError

Batch = dict[str, np.ndarray]

# No run reads as many. An endless `repeat()` is sys.maxsize long, which `batch(1)` rounds past it.
_WINDOWS_FOREVER = 2**48


def train_batches(
    dataset: Dataset,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_local_devices: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Returns the training windows, for ever, in a new order each epoch.

    The batches depend on `seed` alone, not on the number of threads. An epoch is every window once;
    a batch may straddle two epochs, so no window is left out.

    Args:
        dataset: An open dataset.
        config: Says how long a window is, and how many threads read ahead.
        batch_size: Windows in a batch over all devices of all processes.
        seed: Of the order, 0 to 2^32 - 1.
        process_index: Which of the processes this is.
        process_count: How many processes there are; each has `num_local_devices`.
        num_local_devices: Devices of this process.

    Returns:
        An iterator over this process's share of each batch. Its state (`get_state`, `set_state`)
        goes into a checkpoint with `grain.checkpoint.CheckpointSave`.

    Raises:
        UserError: `batch_size` is not a multiple of the number of devices.
    """
    windows = Windows(dataset.split("train"), config.window)
    rows = _local_rows(batch_size, process_index, process_count, num_local_devices)
    load = functools.partial(_load, windows, rows, num_local_devices)
    # `seed` by itself, before `shuffle`, so that seeds 0 and 1 do not share epochs.
    order = grain.MapDataset.range(len(windows)).seed(seed).shuffle()
    batches = order.repeat(_WINDOWS_FOREVER // len(windows)).batch(batch_size).map(load)
    return iter(batches.to_iter_dataset(_read_options(config)))


def eval_batches(
    dataset: Dataset,
    split: str,
    config: DataConfig,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_local_devices: int = 1,
) -> Iterator[Batch]:
    """Returns every window of a split once, in order.

    Each process gets the same number of batches; rows of length 0 fill up the last ones.

    Args:
        dataset: An open dataset.
        split: "train", "validation" or "test".
        config: Says how long a window is, and how many threads read ahead.
        batch_size: Windows in a batch over all devices of all processes.
        process_index: Which of the processes this is.
        process_count: How many processes there are; each has `num_local_devices`.
        num_local_devices: Devices of this process.

    Returns:
        An iterator over this process's share of each batch.

    Raises:
        UserError: `batch_size` is not a multiple of the number of devices, or there is no such
            split.
    """
    windows = Windows(dataset.split(split), config.window)
    rows = _local_rows(batch_size, process_index, process_count, num_local_devices)
    load = functools.partial(_load, windows, rows, num_local_devices)
    starts = grain.MapDataset.range(0, len(windows), batch_size)
    batches = starts.map(lambda start: load(start + np.arange(batch_size)))
    return iter(batches.to_iter_dataset(_read_options(config)))


def _local_rows(
    batch_size: int, process_index: int, process_count: int, num_local_devices: int
) -> slice:
    """Returns which rows of a global batch this process reads."""
    num_devices = process_count * num_local_devices
    if batch_size < 1 or batch_size % num_devices:
        below = batch_size // num_devices * num_devices
        near = " or ".join(str(size) for size in (below, below + num_devices) if size > 0)
        raise UserError(
            f"batch_size={batch_size} is not a multiple of the {num_devices} devices; try {near}."
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def _load(windows: Windows, rows: slice, num_local_devices: int, indices: np.ndarray) -> Batch:
    """Reads this process's rows of a global batch of window numbers."""
    tokens, lengths = windows.batch(indices[rows])
    return {
        "tokens": tokens.reshape(num_local_devices, -1, windows.window),
        "length": lengths.reshape(num_local_devices, -1),
    }


def _read_options(config: DataConfig) -> grain.ReadOptions:
    prefetch = config.prefetch if config.num_threads else 0
    threads = min(config.num_threads, prefetch)  # More threads than batches ahead would be idle.
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
