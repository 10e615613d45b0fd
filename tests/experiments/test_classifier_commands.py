"""The commands that make classifiers: trained, or converted from published weights."""

import os
import sys

import numpy as np

from pf_jax.data import open_dataset
from pf_jax.evaluation.classifier import load_classifier, mel_spectrogram
from pf_jax.evaluation.classifier.saved import load_variables, merge_network
from tests import processes
from tests.evaluation.make_torch_fixture import FIXTURES, sounds
from tests.evaluation.toy_digits import SAMPLES, write_toy_digits

WEIGHTS = str(FIXTURES / "module_zip.pth")


def run(command, *arguments):
    """Runs a command as a user does; gives its status, stdout and stderr."""
    done = processes.run(
        [sys.executable, "-m", f"experiments.{command}", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    return done.returncode, done.stdout, done.stderr


def test_train_makes_what_load_classifier_opens(tmp_path):
    write_toy_digits(tmp_path / "archive", speakers=3)
    command = [
        *("--config=digits_classifier", f"--workdir={tmp_path / 'run'}"),
        *(f"--config.data.manual_dir={tmp_path / 'archive'}", "--config.num_steps=3"),
        *(f"--config.data.data_dir={tmp_path / 'data'}", f"--config.data.window={SAMPLES}"),
        *("--config.data.verify_checksums=false", "--config.model.stem_width=4"),
        *("--config.model.base_width=2", "--config.batch_size=4", "--config.model.widen_factor=1"),
    ]
    status, out, err = run("train", *command)
    assert (status, out) == (0, "")
    assert "Data: sc09, train 10 clips, validation 10 clips, test 10 clips." in err
    assert "Told right: train" in err
    classifier = load_classifier(tmp_path / "run")
    assert classifier.meta.config.batch_size == 4
    classifier.check_labels(open_dataset(classifier.meta.config.data))
    status, _, err = run("train", "--config=demo", f"--workdir={tmp_path / 'run'}")
    assert (status, err.count("\n")) == (2, 1)
    assert "holds a classifier: give another --workdir" in err


def test_another_command_names_the_one_that_takes_a_classifier():
    status, out, err = run("baseline", "--config=sc09_classifier", "--config.model.depth=11")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "=sc09_classifier describes a classifier, which python -m experiments.train takes" in err
    assert "this command takes beethoven, cifar10, demo, enwik8," in err


def test_converted_weights_hear_as_torch_does(tmp_path):
    arguments = [f"--weights={WEIGHTS}", f"--output={tmp_path / 'out'}"]
    status, out, err = run("convert_classifier", *arguments)
    assert (status, err) == (0, "")
    assert "ResNeXt-11, 2x2, 16 features, 10 classes" in out
    classifier = load_classifier(tmp_path / "out")
    assert classifier.labels[:3] == ("zero", "one", "two")
    assert (classifier.sample_rate, classifier.num_samples) == (16_000, 16_000)
    assert classifier.accuracy == {}
    assert classifier.meta.source == "module_zip.pth"

    expected = np.load(FIXTURES / "torch.npz")
    network = merge_network(*load_variables(classifier.meta))
    np.testing.assert_allclose(network(expected["inputs"])[1], expected["logits"], rtol=1e-4)
    # From sound on, with librosa's spectrograms.
    spectrograms = np.load(FIXTURES / "librosa.npz")["reflect"]
    np.testing.assert_allclose(mel_spectrogram(sounds(), 16_000), spectrograms, atol=1e-4)
    features, _ = classifier.classify(sounds())
    np.testing.assert_allclose(features, network(spectrograms)[0], rtol=1e-3, atol=1e-4)

    status, _, err = run("convert_classifier", *arguments)
    assert status == 2
    assert "is there already: give another directory, or delete it." in err


def test_a_mistake_of_conversion(tmp_path):
    status, out, err = run(
        *("convert_classifier", f"--weights={WEIGHTS}", "--labels=yes,no"),
        f"--output={tmp_path / 'out'}",
    )
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "tells 10 classes apart, and --labels names 2: yes, no." in err
    assert not (tmp_path / "out").exists()
