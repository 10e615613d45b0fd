"""Batches for training and evaluation, shared out over processes and devices.

A batch is a dictionary of

    tokens: uint8 (local devices, per device, window)
    length: int32 (local devices, per device), of which positions from `length` on are padding.

A global batch is the same whatever the number of processes: each takes its own consecutive rows.
Where several devices share each window, they count as one here.
"""

import contextlib
import functools
import signal
import threading
from collections.abc import Iterator, Mapping

import grain
import numpy as np
from absl import flags

from pf_jax.data.config import DataConfig
from pf_jax.data.dataset import Dataset
from pf_jax.data.windows import Windows
from pf_jax.errors import UserError

Batch = dict[str, np.ndarray]

# No run reads as many. An endless `repeat()` is sys.maxsize long, which `batch(1)` rounds past it.
_WINDOWS_FOREVER = 2**48


class TrainBatches(Iterator[Batch]):
    """An endless iterator over a process's share of the training batches.

    Its state is the number of the next batch and no more: it fits any number of threads, workers,
    processes and devices, and putting an iterator there reads none of the batches before.
    """

    def __init__(self, batches: grain.MapDataset[Batch], config: DataConfig):
        self._batches = batches
        self._config = config
        self._next = 0
        self._iterator = None

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
            UserError: A worker process died.
        """
        if not self._config.num_workers:
            return self._read()
        try:
            with _sigint_ignored() if self._iterator is None else contextlib.nullcontext():
                return self._read()
        except RuntimeError as error:  # As Grain says that a process is gone.
            raise UserError(
                f"A data worker died ({' '.join(str(error).split())[:200]}), perhaps for want of "
                "memory: lower data.num_workers or data.prefetch and run the same command again."
            ) from error

    def _read(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._next += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns what a checkpoint keeps of it, as JSON-ready values."""
        return {"next_batch": self._next}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes on with the batch that would have come when `get_state` was called."""
        self._next = state["next_batch"]
        self._iterator = None

    def _start(self) -> Iterator[Batch]:
        rest = self._batches[self._next :].to_iter_dataset(_read_options(self._config))
        if self._config.num_workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's workers want its flags, in notebooks too.
            options = grain.MultiprocessingOptions(
                self._config.num_workers, per_worker_buffer_size=max(1, self._config.prefetch)
            )
            rest = rest.mp_prefetch(options)
        return iter(rest)


@contextlib.contextmanager
def _sigint_ignored() -> Iterator[None]:
    """Processes that start here leave Ctrl-C to this one, which saves a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may handle signals.
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def train_batches(
    dataset: Dataset,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_local_devices: int = 1,
) -> TrainBatches:
    """Returns the training windows, for ever, in a new order and at new places each epoch.

    The batches depend on `seed` alone, not on the number of threads, workers or processes. An epoch
    is every window once, at a random place within its share of its recording (`Windows`); a batch
    may straddle two epochs, so no window is left out.

    Args:
        dataset: An open dataset.
        config: Says how long a window is, and how many threads and workers read ahead.
        batch_size: Windows in a batch over all devices of all processes.
        seed: Of the order and the places, 0 to 2^32 - 1.
        process_index: Which of the processes this is.
        process_count: How many processes there are; each has `num_local_devices`.
        num_local_devices: Devices of this process.

    Returns:
        An iterator over this process's share of each batch. Its state goes into a checkpoint.

    Raises:
        UserError: `batch_size` is not a multiple of the number of devices.
    """
    windows = Windows(dataset.split("train"), config)
    rows = _local_rows(batch_size, process_index, process_count, num_local_devices)
    load = functools.partial(_load_random, windows, seed, rows, num_local_devices)
    # `seed` by itself, before `shuffle`, so that seeds 0 and 1 do not share epochs.
    order = grain.MapDataset.range(len(windows)).seed(seed).shuffle()
    batches = order.repeat(_WINDOWS_FOREVER // len(windows)).batch(batch_size).map_with_index(load)
    return TrainBatches(batches, config)


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
        config: Says how long a window is, and how many threads read ahead; workers do not.
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
    windows = Windows(dataset.split(split), config)
    rows = _local_rows(batch_size, process_index, process_count, num_local_devices)

    def load(start: int) -> Batch:
        return _share(*windows.fixed(start + np.arange(batch_size)[rows]), num_local_devices)

    batches = grain.MapDataset.range(0, len(windows), batch_size).map(load)
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


def _load_random(
    windows: Windows, seed: int, rows: slice, num_local_devices: int, number: int, order: np.ndarray
) -> Batch:
    """Reads this process's rows of a batch, given its number and which windows it has."""
    uniform = np.random.default_rng((seed, number)).random(len(order))
    return _share(*windows.random(order[rows], uniform[rows]), num_local_devices)


def _share(tokens: np.ndarray, lengths: np.ndarray, num_local_devices: int) -> Batch:
    """Returns rows as a batch with an axis of devices."""
    return {
        "tokens": tokens.reshape(num_local_devices, -1, tokens.shape[-1]),
        "length": lengths.reshape(num_local_devices, -1),
    }


def _read_options(config: DataConfig) -> grain.ReadOptions:
    prefetch = config.prefetch if config.num_threads else 0
    threads = min(config.num_threads, prefetch)  # More threads than batches ahead would be idle.
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
