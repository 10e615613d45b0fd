"""A classifier learns, goes on where it stopped, and is found again with all that it knows."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import pf_jax
from pf_jax.data import open_dataset
from pf_jax.data.sc09 import DIGITS
from pf_jax.errors import UserError
from pf_jax.evaluation.classifier import ResNeXtConfig, load_classifier, train_classifier
from pf_jax.evaluation.classifier import training as training_module
from pf_jax.evaluation.classifier.clips import open_clips
from pf_jax.evaluation.classifier.saved import (
    find_classifier,
    load_variables,
    merge_network,
    save_classifier,
)
from pf_jax.evaluation.classifier.spectrogram import mel_spectrogram
from tests.evaluation.toy_digits import SAMPLES, write_toy_digits


def heard(config, split):
    """The clips of a split, with their classes."""
    _, clips = open_clips(open_dataset(config.data), config)
    return clips[split].read(range(len(clips[split]))), clips[split].labels


def test_it_learns_and_says_so(trained):
    classifier = load_classifier(trained.workdir)
    assert classifier.labels == tuple(DIGITS)
    assert (classifier.label_name, classifier.sample_rate) == ("digit", 16_000)
    assert classifier.num_samples == SAMPLES
    assert classifier.path == str(trained.workdir / "classifier")
    assert classifier.meta.num_clips == {"train": 100, "validation": 10, "test": 10}
    assert classifier.meta.config == trained.config
    assert classifier.meta.data_fingerprint == open_dataset(trained.config.data).fingerprint
    for split, accuracy in classifier.accuracy.items():
        clips, labels = heard(trained.config, split)
        assert accuracy >= 0.9, split
        _, probabilities = classifier.classify(clips)
        assert accuracy == np.mean(probabilities.argmax(axis=1) == labels)
    assert not (trained.workdir / "training").exists()


def test_the_log_has_each_evaluation(trained):
    lines = [json.loads(x) for x in (trained.workdir / "metrics.jsonl").read_text().splitlines()]
    by_split = {"train": [], "validation": []}
    for line in lines:
        by_split[line["split"]].append(line["step"])
        assert 0 <= line["accuracy"] <= 1
        assert line["loss"] > 0
    assert by_split == {"train": [20, 40, 60, 80], "validation": [20, 40, 60, 80]}


def test_the_best_weights_are_kept(toy_config, tmp_path, monkeypatch):
    """Of accuracies 0.2, 0.8, 0.8, 0.5 the second; of the equals, the third has the lower loss."""
    config = dataclasses.replace(toy_config, num_steps=4, eval_every=1, log_every=1)
    scores = [(0.2, 2.0), (0.8, 1.5), (0.8, 1.0), (0.5, 0.1)]
    judged = iter(scores)
    seen = []

    def evaluate(eval_fn, config, variables, clips):
        seen.append(jax.device_get(variables))
        accuracy, loss = next(judged, (0.75, 1.0))
        return {"accuracy": accuracy, "loss": loss}

    monkeypatch.setattr(training_module, "_evaluate", evaluate)
    meta = train_classifier(config, tmp_path).meta
    assert meta.step == 3
    assert meta.accuracy == {"train": 0.75, "validation": 0.75, "test": 0.75}
    _, variables = load_variables(meta)
    jax.tree.map(np.testing.assert_array_equal, variables, seen[2])
    assert np.any(variables["params"]["head"]["kernel"] != seen[3]["params"]["head"]["kernel"])


class StopAt:
    """In place of StopRequest: asks to stop after some steps."""

    def __init__(self, steps):
        self.steps = steps

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def is_certain(self):
        self.steps -= 1
        return self.steps < 0


def test_it_goes_on_where_it_was_stopped(trained, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(training_module, "StopRequest", lambda: StopAt(33))
        assert train_classifier(trained.config, tmp_path) is None
    with pytest.raises(UserError, match="has not come to its end: run its command again"):
        load_classifier(tmp_path)
    assert "the same command goes on from there" in capsys.readouterr().err
    other = dataclasses.replace(trained.config, batch_size=8)
    with pytest.raises(UserError, match="batch_size was 50 and is now 8"):
        train_classifier(other, tmp_path)

    classifier = train_classifier(dataclasses.replace(trained.config, log_every=30), tmp_path)
    assert "Goes on from the checkpoint of step" in capsys.readouterr().err
    whole = find_classifier(trained.workdir)
    assert classifier.meta.checksum == whole.checksum
    assert classifier.accuracy == whole.accuracy


def test_a_finished_training_is_not_done_again(trained, tmp_path, capsys):
    workdir = shutil.copytree(trained.workdir, tmp_path / "run")
    before = sorted(path.stat().st_mtime_ns for path in workdir.rglob("*"))
    classifier = train_classifier(trained.config, workdir)
    assert classifier.accuracy == find_classifier(trained.workdir).accuracy
    error = capsys.readouterr().err
    assert "has come to its end. Told right: train" in error
    assert error.count("\n") == 1
    assert sorted(path.stat().st_mtime_ns for path in workdir.rglob("*")) == before
    with pytest.raises(UserError, match="seed was 0 and is now 1"):
        train_classifier(dataclasses.replace(trained.config, seed=1), workdir)


def test_a_damaged_checkpoint_of_training_is_named(trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training_module, "StopRequest", lambda: StopAt(0))
        train_classifier(trained.config, tmp_path)
    shutil.rmtree(tmp_path / "training" / "1" / "arrays")
    with pytest.raises(UserError, match=r"training/1 is damaged .* delete that directory"):
        train_classifier(trained.config, tmp_path)


def test_classify_is_the_network_on_spectrograms(trained):
    classifier = load_classifier(trained.workdir / "classifier")
    clips, _ = heard(trained.config, "train")
    features, probabilities = classifier.classify(clips)
    assert features.shape == (100, classifier.num_features) == (100, 32)
    assert (features.dtype, probabilities.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    network = merge_network(*load_variables(classifier.meta))
    wanted, logits = network(mel_spectrogram(clips, 16_000))
    np.testing.assert_allclose(features, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), rtol=1e-3, atol=1e-5)
    for batch_size in (1, 7, 64):
        again = classifier.classify(clips, batch_size=batch_size)
        np.testing.assert_allclose(again[0], features, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(again[1], probabilities, rtol=1e-3, atol=1e-5)
    no_features, no_probabilities = classifier.classify(clips[:0])
    assert (no_features.shape, no_probabilities.shape) == ((0, 32), (0, 10))


def test_clips_are_cut_and_filled_up(trained):
    classifier = load_classifier(trained.workdir)
    clips, _ = heard(trained.config, "test")
    longer = np.concatenate([clips, np.ones_like(clips)], axis=1)
    np.testing.assert_array_equal(classifier.classify(longer)[0], classifier.classify(clips)[0])
    filled = np.concatenate([clips[:, :900], np.zeros((10, SAMPLES - 900))], axis=1)
    np.testing.assert_array_equal(
        classifier.classify(clips[:, :900])[0], classifier.classify(filled)[0]
    )


@pytest.mark.parametrize(
    ("waveforms", "options", "message"),
    [
        (np.zeros(2_048), {}, r"floats of shape \(clips, time\), got float64 of shape \(2048,\)"),
        (np.zeros((1, 2_048), np.int16), {}, "got int16"),
        (np.full((1, 2_048), np.inf), {}, "NaN or infinite"),
        (np.zeros((1, 2_048)), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_what_is_no_clip(trained, waveforms, options, message):
    with pytest.raises(UserError, match=message):
        load_classifier(trained.workdir).classify(waveforms, **options)


def test_rates_and_labels_are_checked(trained):
    classifier = load_classifier(trained.workdir)
    dataset = open_dataset(trained.config.data)
    classifier.check_rate(16_000)
    classifier.check_labels(dataset)
    assert classifier.class_numbers(dataset, "test").tolist() == sorted(
        range(10), key=DIGITS.__getitem__
    )
    with pytest.raises(
        UserError, match="hears 16000 samples per second, and the samples have 8000"
    ):
        classifier.check_rate(8_000, "the samples")
    classifier.labels = classifier.labels[:8]
    with pytest.raises(UserError, match="classes known: eight, nine; known are zero, one"):
        classifier.check_labels(dataset)
    classifier.label_name = "composer"
    with pytest.raises(UserError, match="no label 'composer'; known are digit, speaker"):
        classifier.check_labels(dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "composer"}, "recordings of sc09 have no label 'composer'; known are digit"),
        ({"label": "digits"}, "no label 'digits'; did you mean digit?"),
        ({"label": "speaker"}, "validation split of sc09 has a speaker that is not among the 10"),
        ({"model": ResNeXtConfig(num_classes=9)}, "model.num_classes=9, but sc09 has 10 values"),
    ],
)
def test_data_that_does_not_fit(toy_config, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        train_classifier(dataclasses.replace(toy_config, **change), tmp_path / "run")


def test_a_class_without_examples(toy_config, tmp_path):
    archive = write_toy_digits(tmp_path / "archive", [d for d in DIGITS if d not in ("two", "six")])
    data = dataclasses.replace(
        toy_config.data, manual_dir=str(archive), data_dir=str(tmp_path / "data")
    )
    with pytest.raises(UserError, match="no example of the digit two, six: complete the data"):
        train_classifier(dataclasses.replace(toy_config, data=data), tmp_path / "run")


def test_directories_that_hold_something_else(trained, tmp_path):
    for path, message in (
        (tmp_path / "none", "No such classifier: .* --config=sc09_classifier --workdir=DIR"),
        (tmp_path, "holds no classifier; python -m experiments.train"),
        (trained.workdir / "metrics.jsonl", "is a file, not the directory of a classifier"),
    ):
        with pytest.raises(UserError, match=message):
            load_classifier(path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="training of a Poolformer, not of a classifier"):
        load_classifier(tmp_path)
    with pytest.raises(UserError, match="holds the training of a Poolformer: give another"):
        train_classifier(trained.config, tmp_path)
    for path in (trained.workdir, trained.workdir / "classifier"):
        with pytest.raises(UserError, match="is a classifier of sounds, not a Poolformer"):
            pf_jax.load(path)
    with pytest.raises(UserError, match="is there already: give another directory"):
        save_classifier(trained.workdir, {}, find_classifier(trained.workdir))


def test_a_poolformer_is_no_classifier(tmp_path):
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "checkpoints" / "10" / "meta", {"format_version": 2})
    with pytest.raises(UserError, match="not a classifier, but a checkpoint of a Poolformer"):
        load_classifier(tmp_path / "checkpoints" / "10")


def test_damage_is_named(trained, tmp_path):
    def copy(name):
        return shutil.copytree(trained.workdir / "classifier", tmp_path / name)

    newer, torn, labels = copy("newer"), copy("torn"), copy("labels")
    other, gone = copy("other"), copy("gone")
    fields = json.loads((newer / "meta" / "metadata").read_text())
    (newer / "meta" / "metadata").write_text(json.dumps(fields | {"format_version": 9}))
    (torn / "meta" / "metadata").write_text(json.dumps(fields)[:100])
    (labels / "meta" / "metadata").write_text(json.dumps(fields | {"labels": ["a"]}))
    (other / "meta" / "metadata").write_text(json.dumps(fields | {"checksum": 1}))
    shutil.rmtree(gone / "variables")
    for path, message in (
        (newer, "format version 9; this is pf_jax .* Upgrade"),
        (torn, "is damaged: its metadata cannot be read"),
        (labels, "is damaged: 1 labels for 10 classes"),
        (other, "is damaged: its arrays are not those that were saved"),
        (gone, "is damaged"),
    ):
        with pytest.raises(UserError, match=message):
            load_classifier(path)


def test_training_that_diverges_is_told(toy_config, tmp_path, monkeypatch):
    """By a step that has the same effect as too high a learning rate."""

    def step_functions(config, graphdef):
        return lambda state, batch: (state, {"loss": np.float32("nan")}), None

    monkeypatch.setattr(training_module, "_step_functions", step_functions)
    config = dataclasses.replace(toy_config, log_every=3)
    with pytest.raises(UserError, match=r"diverged by step 3: .* Lower --config.optimizer"):
        train_classifier(config, tmp_path)
