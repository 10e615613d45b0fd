"""The commands that make classifiers: trained, or converted from published weights."""

import json
import shutil

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import cli, convert_classifier, train
from pf_jax.data import open_dataset
from pf_jax.evaluation.classifier import load_classifier, mel_spectrogram
from pf_jax.evaluation.classifier.saved import load_variables, merge_network
from tests.evaluation.make_torch_fixture import FIXTURES, sounds
from tests.evaluation.tones import SAMPLES, write_tones

WEIGHTS = str(FIXTURES / "module_zip.pth")


@pytest.fixture
def run(capsys):
    """Runs a command as its `__main__` would; gives its status, stdout and stderr."""

    def run(command, *arguments):
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            status = 0
            try:
                cli.run(command.main, ["program", *arguments])
            except SystemExit as stop:
                status = stop.code or 0
        return status, *capsys.readouterr()

    return run


def test_train_makes_what_load_classifier_opens(run, tmp_path):
    write_tones(tmp_path / "archive", speakers=3)
    command = [
        *("--config=digits_classifier", f"--workdir={tmp_path / 'run'}"),
        *(f"--config.data.manual_dir={tmp_path / 'archive'}", "--config.num_steps=3"),
        *(f"--config.data.data_dir={tmp_path / 'data'}", f"--config.data.window={SAMPLES}"),
        *("--config.data.verify_checksums=false", "--config.model.stem_width=4"),
        *("--config.model.base_width=2", "--config.batch_size=4", "--config.model.widen_factor=1"),
    ]
    status, out, err = run(train, *command)
    assert (status, out) == (0, "")
    assert "Data: sc09, train 10 clips, validation 10 clips, test 10 clips." in err
    assert "Told right: train" in err
    classifier = load_classifier(tmp_path / "run")
    assert classifier.meta.config.batch_size == 4
    classifier.check_labels(open_dataset(classifier.meta.config.data))
    status, _, err = run(train, *command)
    assert status == 0
    assert err.startswith("This training has come to its end.")
    status, _, err = run(train, "--config=demo", f"--workdir={tmp_path / 'run'}")
    assert (status, err.count("\n")) == (2, 1)
    assert "holds a classifier: give another --workdir" in err


def test_converted_weights_hear_as_torch_does(run, tmp_path):
    arguments = [f"--weights={WEIGHTS}", f"--output={tmp_path / 'out'}"]
    status, out, err = run(convert_classifier, *arguments)
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

    status, _, err = run(convert_classifier, *arguments)
    assert status == 2
    assert "is there already: give another directory, or delete it." in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights=/no/such.pth"], "There is no file /no/such.pth."),
        ([f"--weights={FIXTURES / 'torch.npz'}"], "a zip archive, but not one of torch.save"),
        (
            [f"--weights={WEIGHTS}", "--labels=yes,no"],
            "tells 10 classes apart, and --labels names 2",
        ),
        ([f"--weights={WEIGHTS}", "--edges=wrap"], "--edges"),
        ([], "--weights is missing"),
    ],
)
def test_mistakes_of_conversion(run, tmp_path, arguments, message):
    status, out, err = run(convert_classifier, *arguments, f"--output={tmp_path / 'out'}")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_spoken_digits_are_an_archive_that_sc09_reads(run, tmp_path):
    from benchmarks import digits

    names = digits.voices(12)
    assert len(set(names)) == 12
    np.testing.assert_array_equal(
        digits.speak("seven", names[0], 0), digits.speak("seven", names[0], 0)
    )
    digits.write_archive(tmp_path / "archive", names[:3], takes=1)
    config = cli.load_config(
        "digits_classifier",
        {
            "data.manual_dir": str(tmp_path / "archive"),
            "data.data_dir": str(tmp_path / "data"),
            "data.verify_checksums": False,
        },
    )
    assert digits.data_flags(tmp_path) == [
        f"--config.data.{name}={json.dumps(value) if value is False else value}"
        for name, value in (
            ("manual_dir", config.data.manual_dir),
            ("data_dir", config.data.data_dir),
            ("verify_checksums", config.data.verify_checksums),
        )
    ]
    dataset = open_dataset(config.data)
    speakers = set()
    for split in ("train", "validation", "test"):
        recordings = dataset.split(split)
        assert sorted(recordings.labels["digit"]) == list(range(10))
        assert set(recordings.lengths) == {16_000}
        (speaker,) = set(recordings.labels["speaker"])
        speakers.add(speaker)
        loudness = [np.abs(recordings.read(i, 0, 16_000).astype(int)).max() for i in range(10)]
        assert min(loudness) > 0.05 * 2**15
    assert len(speakers) == 3  # No voice is in two splits.
