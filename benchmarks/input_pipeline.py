"""Speed of the input pipeline: samples per second from disk to batches on a device.

Prepares noise and tones like recordings of MusicNet, once, in a temporary directory, and reads
windows of it at random places. Three figures: with the files dropped from the page cache before
each measurement (from disk), with them in it, and from arrays in memory, where what is left is the
work on samples: the difference says what limits the pipeline.

Examples:
  python -m benchmarks.input_pipeline --config=musicnet
  python -m benchmarks.input_pipeline --config=sc09 --config.data.num_threads=2
"""

import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from experiments import cli
from pf_jax.data import Dataset, TrainBatches, train_batches
from pf_jax.data.builder import Builder
from pf_jax.data.config import DataConfig
from pf_jax.data.recording import Collection, Recording

_CONFIG = cli.define_config()
_MINUTES = flags.DEFINE_integer("minutes", 60, "How much audio is prepared.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "How often each is measured.", lower_bound=1)

_BATCHES = 16  # In a measurement.
_RECORDING_MINUTES = 6  # As MusicNet's are, on average.


class LikeMusicnet(Builder):
    """Quiet tones with some noise, which compress about as music does."""

    name = "like_musicnet"

    def __init__(self, config: DataConfig, minutes: int):
        self.minutes = minutes
        super().__init__(config)

    def collect(self) -> Collection:
        """Makes the recordings."""
        rng = np.random.default_rng(0)
        count = max(1, self.minutes // _RECORDING_MINUTES)
        recordings = [Recording(str(number), self._make(rng)) for number in range(count)]
        short = [Recording("short", recordings[0].samples[:1000])]
        return Collection({"train": recordings, "validation": short, "test": short})

    def _make(self, rng: np.random.Generator) -> np.ndarray:
        rate = self.config.sample_rate
        times = np.arange(60 * _RECORDING_MINUTES * rate, dtype=np.float32) / rate
        tones = sum(np.sin(2 * np.pi * f * times) for f in rng.uniform(50, 2_000, 4))
        noise = rng.normal(size=len(times)).astype(np.float32)
        return (1_500 * tones + 30 * noise).astype(np.int16)


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark."""
    del argv
    config = _CONFIG.value
    with tempfile.TemporaryDirectory() as temporary:
        data = dataclasses.replace(config.data, data_dir=temporary)
        builder = LikeMusicnet(data, _MINUTES.value)
        builder.prepare()
        dataset = Dataset(builder)
        files = [file for part in builder.info.splits.values() for file in part.filepaths]
        os.sync()

        def measure(drop: bool) -> int:
            batches = train_batches(dataset, data, batch_size=config.batch_size, seed=0)
            return speed(batches, config.batch_size * data.window, files if drop else [])

        from_disk, from_cache = measure(drop=True), measure(drop=False)
        recordings = dataset.split("train")
        samples = [recordings.read(i, 0, length) for i, length in enumerate(recordings.lengths)]
        recordings.read = lambda index, start, stop: samples[index][start:stop]
        from_memory = measure(drop=False)
        size = sum(os.path.getsize(file) for file in files)
    print(
        json.dumps(
            {
                "benchmark": "input_pipeline",
                "config": config.data.name,
                "window": data.window,
                "batch_size": config.batch_size,
                "threads": data.num_threads,
                "workers": data.num_workers,
                "cores": len(os.sched_getaffinity(0)),
                "device": jax.devices()[0].device_kind,
                "megabytes_prepared": round(size / 1e6),
                "samples_per_second": from_disk,
                "samples_per_second_from_page_cache": from_cache,
                "samples_per_second_from_memory": from_memory,
                "minutes_of_audio_per_second": round(from_disk / data.sample_rate / 60, 1),
            }
        )
    )


def speed(batches: TrainBatches, samples: int, to_drop: Sequence[str]) -> int:
    """Samples per second, the median over measurements, each of more than was read ahead."""
    for _ in range(8):
        next(batches)
    seconds = []
    for _ in range(_REPEATS.value):
        for file in to_drop:
            with open(file, "rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        for _ in range(_BATCHES):
            jax.block_until_ready(jax.device_put(next(batches)))
        seconds.append(time.perf_counter() - start)
    return round(_BATCHES * samples / statistics.median(seconds))


if __name__ == "__main__":
    cli.run(main)
