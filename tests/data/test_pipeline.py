import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pf_jax.audio import mu_law_encode
from pf_jax.data import DataConfig, Recordings, eval_batches, open_dataset, train_batches
from pf_jax.data.builder import SEGMENT
from pf_jax.errors import UserError


class InMemory:
    """A dataset whose one split was never on disk."""

    def __init__(self, lengths):
        rng = np.random.default_rng(len(lengths))
        pcm = [rng.integers(-(2**15), 2**15, n).astype(np.int16) for n in lengths]
        records = [
            {"samples": p[start : start + SEGMENT]}
            for p in pcm
            for start in range(0, len(p), SEGMENT)
        ]
        table = {
            "name": [str(i) for i in range(len(lengths))],
            "length": lengths,
            "low": [int(p.min()) for p in pcm],
            "high": [int(p.max()) for p in pcm],
            "labels": {},
        }
        self._recordings = Recordings(table, records)
        self.pcm = pcm
        self.tokens = [mu_law_encode(p / 32_768) for p in pcm]

    def split(self, name):
        return self._recordings


def config(window, **fields):
    return DataConfig("in memory", window, **fields)


def real_rows(batch):
    """Returns the rows of a batch without their padding, after checking it."""
    tokens = batch["tokens"].reshape(-1, batch["tokens"].shape[-1])
    rows = []
    for row, length in zip(tokens, batch["length"].ravel(), strict=True):
        assert (row[length:] == 128).all(), "padding is silence"
        rows.append(row[:length])
    return rows


def windows(dataset, window):
    """Returns every window, by the definition."""
    return [t[i : i + window] for t in dataset.tokens for i in range(0, len(t), window)]


def same_multiset(rows, expected):
    return sorted(map(bytes, rows)) == sorted(map(bytes, expected))


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 300) | st.just(SEGMENT + 5), min_size=1, max_size=8),
    window=st.integers(1, 200),
    per_device=st.integers(1, 5),
    devices=st.sampled_from([1, 2]),
    processes=st.sampled_from([1, 2, 4]),
)
def test_evaluation_covers_every_sample_once(lengths, window, per_device, devices, processes):
    dataset = InMemory(lengths)
    window = max(window, sum(lengths) // 500)
    shares = [
        list(
            eval_batches(
                dataset,
                "test",
                config(window, num_threads=0),
                batch_size=per_device * devices * processes,
                process_index=index,
                process_count=processes,
                num_local_devices=devices,
            )
        )
        for index in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1, "each process has as many batches"
    batches = list(itertools.chain(*shares))
    assert all(b["tokens"].shape == (devices, per_device, window) for b in batches)
    assert all(b["length"].shape == (devices, per_device) for b in batches)
    assert all(b["tokens"].dtype == np.uint8 and b["length"].dtype == np.int32 for b in batches)
    rows = [row for batch in batches for row in real_rows(batch) if len(row)]
    assert same_multiset(rows, windows(dataset, window))


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=8),
    window=st.integers(20, 200),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_training_epochs_have_a_window_from_each_share(lengths, window, batch_size, seed):
    dataset = InMemory(lengths)
    counts = [-(-length // window) for length in lengths]
    iterator = train_batches(
        dataset, config(window, num_threads=0), batch_size=batch_size, seed=seed
    )
    rows = []
    while len(rows) < 3 * sum(counts):
        rows += real_rows(next(iterator))
    for epoch in range(3):
        found = []
        for row in rows[epoch * sum(counts) : (epoch + 1) * sum(counts)]:
            recording, start = place(dataset, row, window)
            starts = max(1, lengths[recording] - window + 1)
            assert len(row) == min(window, lengths[recording]), "only short recordings are padded"
            # Shares are starts / count long and need not be whole: a start may lie in two.
            count = counts[recording]
            shares = {start * count // starts, -(-(start + 1) * count // starts) - 1}
            found.append((recording, shares))
        for recording, count in enumerate(counts):
            mine = [shares for r, shares in found if r == recording]
            assert len(mine) == count
            assert all(any(k in shares for shares in mine) for k in range(count))


def place(dataset, row, window):
    """Returns from which recording a row comes, and where in it it begins."""
    for recording, tokens in enumerate(dataset.tokens):
        if len(row) == min(window, len(tokens)):
            start = tokens.tobytes().find(row.tobytes())
            if start >= 0:
                return recording, start
    raise AssertionError("a row that is in no recording")


def test_training_windows_begin_everywhere_alike():
    dataset = InMemory([1_000])
    batches = train_batches(dataset, config(100, num_threads=0), batch_size=1_000, seed=0)
    rows = [row for _ in range(3) for row in real_rows(next(batches))]
    starts = [place(dataset, row, 100)[1] for row in rows]
    histogram, _ = np.histogram(starts, bins=17, range=(0, 901))
    assert histogram.min() > 125, "3,000 starts in 17 bins"
    assert histogram.max() < 230
    assert min(starts) < 5
    assert max(starts) > 895


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])
        np.testing.assert_array_equal(a["length"], b["length"])


LENGTHS = [1_000, 70, 333, 2_500]


def test_epochs_and_seeds_differ():
    dataset = InMemory([10] * 40)
    first, second, other = (
        take(train_batches(dataset, config(10), batch_size=40, seed=seed), 2) for seed in (0, 0, 1)
    )
    assert_equal(first, second)
    for a, b in ((first[0], first[1]), (first[0], other[0]), (first[1], other[0])):
        assert not np.array_equal(a["tokens"], b["tokens"])


def test_places_and_order_depend_on_the_seed_and_the_batch():
    """One window alone has no order: what differs is where it begins."""
    dataset = InMemory([1_000])
    config_ = config(990, num_threads=0)
    rows = [
        real_rows(batch)[0].tobytes()
        for seed in (0, 1)
        for batch in take(train_batches(dataset, config_, batch_size=2, seed=seed), 2)
    ]
    assert len(set(rows)) > 2
    first, again = (train_batches(dataset, config_, batch_size=2, seed=s) for s in (0, 1))
    assert any(
        not np.array_equal(a["tokens"], b["tokens"])
        for a, b in zip(take(first, 5), take(again, 5), strict=True)
    )


@pytest.mark.parametrize(
    "readers",
    [{"num_threads": 4, "prefetch": 7}, {"prefetch": 0}, {"num_workers": 1}, {"num_workers": 3}],
)
def test_threads_and_workers_change_nothing(readers):
    dataset = InMemory(LENGTHS)
    one = train_batches(dataset, config(50, num_threads=1), batch_size=8, seed=3)
    more = train_batches(dataset, config(50, **readers), batch_size=8, seed=3)
    assert_equal(take(one, 40), take(more, 40))
    more.set_state(one.get_state())
    assert_equal(take(one, 5), take(more, 5))


def test_workers_read_what_is_on_disk(tmp_path):
    fields = {"sample_rate": 2_000, "data_dir": str(tmp_path)}
    dataset = open_dataset(DataConfig("demo", 500, **fields))
    alone, shared = (
        train_batches(
            dataset, DataConfig("demo", 500, num_workers=workers, **fields), batch_size=4, seed=1
        )
        for workers in (0, 2)
    )
    assert_equal(take(alone, 10), take(shared, 10))


@pytest.mark.parametrize(("processes", "devices"), [(1, 4), (2, 2), (4, 1), (2, 4)])
def test_the_global_batch_is_the_same_for_any_number_of_processes(processes, devices):
    dataset = InMemory(LENGTHS)
    whole = take(train_batches(dataset, config(50), batch_size=8, seed=3), 20)
    shares = [
        take(
            train_batches(
                dataset,
                config(50),
                batch_size=8,
                seed=3,
                process_index=index,
                process_count=processes,
                num_local_devices=devices,
            ),
            20,
        )
        for index in range(processes)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        for name in ("tokens", "length"):
            rows = np.concatenate([p[name].reshape(-1, *p[name].shape[2:]) for p in parts])
            np.testing.assert_array_equal(rows, batch[name][0])


@pytest.mark.parametrize("steps", [0, 1, 13])
def test_a_restored_iterator_goes_on_where_it_was(steps):
    dataset = InMemory(LENGTHS)

    def start(**fields):
        return train_batches(dataset, config(50, **fields), batch_size=8, seed=3)

    iterator = start()
    take(iterator, steps)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 20)
    for restored in (start(), start(num_threads=0), iterator):
        take(restored, 3)  # What was read ahead is forgotten.
        restored.set_state(state)
        assert_equal(take(restored, 20), expected)


@pytest.mark.parametrize("normalization", ["none", "recording", "window"])
@pytest.mark.parametrize("quantization", ["mu_law", "linear", "sashimi_mu_law"])
def test_normalization(normalization, quantization):
    dataset = InMemory([500, 7, 60])
    dataset.pcm[0][:100] //= 50  # The first window is quiet,
    dataset.pcm[0][100:200] = 5  # the second says nothing.
    dataset.split("test").extents = tuple((p.min(), p.max()) for p in dataset.pcm)
    fields = {"normalization": normalization, "quantization": quantization, "num_threads": 0}
    batches = eval_batches(dataset, "test", config(100, **fields), batch_size=1)
    for pcm in dataset.pcm:
        for start in range(0, len(pcm), 100):
            x = pcm[start : start + 100] / 32_768
            whole = {"none": np.array([-1.0, 1.0]), "recording": pcm / 32_768, "window": x}
            low, high = whole[normalization].min(), whole[normalization].max()
            x = np.zeros_like(x) if low == high else 2 * (x - low) / (high - low) - 1
            if quantization == "sashimi_mu_law":
                epsilon = 0 if normalization == "none" else 1e-6
                x = np.full_like(x, -1) if low == high else x - epsilon * (x + 1) / (high - low)
                y = np.sign(x) * np.log(1 + 255 * np.abs(x + 1e-8)) / np.log(256)
                expected = np.floor(255.99 * (y + 1) / 2 + 0.005)
            elif quantization == "linear":
                expected = np.clip(np.floor(128 * (x + 1)), 0, 255)
            else:
                y = np.sign(x) * np.log(1 + 255 * np.abs(x)) / np.log(256)
                expected = np.floor((y + 1) / 2 * 255 + 0.5)
            (row,) = real_rows(next(batches))
            assert np.abs(row - expected).max() <= 1, "rounding may differ at an edge,"
            assert (row != expected).mean() <= 0.02, "but hardly ever"


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [(12, r"batch_size=12 .* the 8 devices; try 8 or 16\."), (3, r"try 8\."), (0, r"try 8\.")],
)
def test_batches_that_devices_cannot_share(batch_size, message):
    dataset = InMemory(LENGTHS)
    devices = {"process_count": 2, "num_local_devices": 4}
    with pytest.raises(UserError, match=message):
        train_batches(dataset, config(50), batch_size=batch_size, seed=0, **devices)
    with pytest.raises(UserError, match=message):
        eval_batches(dataset, "test", config(50), batch_size=batch_size, **devices)
