import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from pf_jax.audio import mu_law_encode
from pf_jax.data import DataConfig, builder, catalogue, open_dataset
from pf_jax.data.builder import SEGMENT, Builder
from pf_jax.data.dataset import Dataset
from pf_jax.data.recording import Collection, Recording, Skipped
from pf_jax.data.windows import Windows
from pf_jax.errors import UserError
from tests import processes


class Made(Builder, skip_registration=True):
    """Recordings of given lengths."""

    name = "made"
    made = 0

    def __init__(self, config, lengths):
        self.lengths = lengths
        super().__init__(config, "some-variant")

    def collect(self):
        Made.made += 1
        rng = np.random.default_rng(0)
        return Collection(
            {
                split: [
                    Recording(f"{split}-{i}", rng.integers(-(2**15), 2**15, n).astype(np.int16))
                    for i, n in enumerate(lengths)
                ]
                for split, lengths in self.lengths.items()
            },
            skipped=[Skipped("bad.wav", "the reason")],
        )


LENGTHS = {
    "train": [1, SEGMENT, SEGMENT + 1, 5, 3 * SEGMENT - 1, 2 * SEGMENT],
    "validation": [7],
    "test": [SEGMENT],
}


def config(tmp_path, **fields):
    return DataConfig("made", window=100, data_dir=str(tmp_path), **fields)


@pytest.mark.parametrize("part_records", [1, 3, 1_000])
def test_what_is_stored_is_read(tmp_path, monkeypatch, part_records):
    monkeypatch.setattr(builder, "_PART_RECORDS", part_records)
    made = Made(config(tmp_path), LENGTHS)
    expected = made.collect()
    made.prepare()
    reopened = Made(config(tmp_path), LENGTHS)
    count = Made.made
    reopened.prepare()
    assert Made.made == count, "what is prepared is not prepared again"
    dataset = Dataset(reopened)
    assert dataset.skipped == [("bad.wav", "the reason")]
    for split, recordings in expected.splits.items():
        stored = dataset.split(split)
        assert stored.names == tuple(r.name for r in recordings)
        assert stored.lengths == tuple(LENGTHS[split])
        assert stored.num_samples == sum(LENGTHS[split])
        rng = np.random.default_rng(1)
        for index, recording in enumerate(recordings):
            length = len(recording.samples)
            np.testing.assert_array_equal(stored.read(index, 0, length), recording.samples)
            assert stored.extents[index] == (recording.samples.min(), recording.samples.max())
            tokens = Windows(stored, config(tmp_path)).tokens(index)
            expected_tokens = mu_law_encode(recording.samples / 32_768)
            np.testing.assert_array_equal(tokens, expected_tokens)
            start, stop = np.sort(rng.choice(length + 1, 2, replace=False))
            pcm = stored.read(index, int(start), int(stop))
            np.testing.assert_array_equal(pcm, recording.samples[start:stop])
            with pytest.raises(IndexError):
                stored.read(index, 0, length + 1)
    with pytest.raises(UserError, match="did you mean validation"):
        dataset.split("valid")


def test_a_failed_preparation_leaves_nothing(tmp_path, monkeypatch):
    made = Made(config(tmp_path), LENGTHS)
    with monkeypatch.context() as patch:
        patch.setattr(np, "asarray", _fail)
        with pytest.raises(UserError, match=r"Cannot write prepared data .*No space left"):
            made.prepare()
    assert not os.path.exists(made.data_dir)
    Made(config(tmp_path), LENGTHS).prepare()
    assert os.path.exists(made.data_dir)


def test_a_killed_preparation_is_not_taken_for_a_finished_one(tmp_path):
    script = """
        import os, signal, sys
        import numpy as np
        from pf_jax.data import DataConfig, builder, demo, open_dataset

        def kill_at_the_end(self, *args):
            os.kill(os.getpid(), signal.SIGKILL)

        builder.tfds.core.DatasetInfo.write_to_directory = kill_at_the_end
        open_dataset(DataConfig("demo", 100, sample_rate=2_000, data_dir=sys.argv[1]))
    """
    killed = _run(script, tmp_path)
    assert killed.returncode == -9, killed.stderr
    assert list(tmp_path.rglob("*demo-train*")), "it was killed too early to show anything"
    dataset = open_dataset(
        DataConfig("demo", window=100, sample_rate=2_000, data_dir=str(tmp_path))
    )
    assert len(dataset.split("train").read(29, 0, 48_000)) == 48_000
    assert not list(tmp_path.rglob("incomplete.*")), "what the killed one left is cleared away"


def test_no_tensorflow(tmp_path):
    script = """
        import sys
        import pf_jax.audio, pf_jax.evaluation
        from pf_jax import data

        config = data.DataConfig("demo", 100, sample_rate=2_000, data_dir=sys.argv[1])
        dataset = data.open_dataset(config)
        next(data.train_batches(dataset, config, batch_size=2, seed=0))
        next(data.eval_batches(dataset, "test", config, batch_size=2))
        found = [name for name in sys.modules if name.split(".")[0] == "tensorflow"]
        assert not found, found
    """
    done = _run(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_a_copy_with_a_missing_file_is_noticed(tmp_path):
    made = Made(config(tmp_path), LENGTHS)
    made.prepare()
    next(iter(tmp_path.rglob("*test_00000*"))).unlink()
    with pytest.raises(UserError, match="is damaged; delete that directory"):
        Made(config(tmp_path), LENGTHS).prepare()


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="directory that has room"):
        Made(config(tmp_path / "file"), LENGTHS).prepare()


def test_processes_that_want_the_same_data_prepare_it_once(tmp_path):
    script = """
        import sys
        from pf_jax.data import DataConfig, demo, open_dataset

        def counted(*args):
            sys.stderr.write("composed\\n")
            return compose(*args)

        compose, demo.compose = demo.compose, counted
        dataset = open_dataset(DataConfig("demo", 100, sample_rate=2_000, data_dir=sys.argv[1]))
        assert len(dataset.split("train").read(29, 0, 48_000)) == 48_000
    """
    processes = [_start(script, tmp_path) for _ in range(3)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    composed = [error.count("composed") for _, error in outputs]
    assert sorted(composed) == [0, 0, 36], "the others waited for the one that was first"


@pytest.mark.parametrize(
    ("name", "message"),
    [("demos", "did you mean demo"), ("???", "beethoven, .*, youtubemix|demo, folder")],
)
def test_unknown_datasets(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        open_dataset(DataConfig(name, window=100, data_dir=str(tmp_path)))


def test_catalogue():
    audio = {"demo", "folder", "musicnet", "sc09", "beethoven", "youtubemix"}
    modalities = {name: builder.MODALITY for name, builder in catalogue.DATASETS.items()}
    assert modalities == dict.fromkeys(audio, "audio") | {"enwik8": "text", "cifar10": "image"}


def test_a_dataset_of_another_modality(tmp_path):
    with pytest.raises(UserError, match=r"'enwik8' is text: data.modality must be 'text'"):
        open_dataset(DataConfig("enwik8", window=100, data_dir=str(tmp_path)))


@pytest.mark.parametrize(
    "fields",
    [
        *({"window": 0}, {"window": 1.5}, {"sample_rate": 0}, {"quantization": "x"}),
        *({"prefetch": -1}, {"modality": "smell"}, {"normalization": "max"}, {"num_workers": -1}),
    ],
)
def test_config_refuses_impossible_values(fields):
    with pytest.raises(UserError, match=next(iter(fields))):
        DataConfig(**({"name": "demo", "window": 100} | fields))


def _fail(*args, **kwargs):
    raise OSError(28, "No space left on device")


def _start(script, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return processes.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _run(script, *arguments):
    process = _start(script, *arguments)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
