"""A command line names a config of one kind, and its fields are those of that kind."""

import dataclasses
import json
from collections.abc import Sequence

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import cli
from pf_jax.errors import UserError
from pf_jax.evaluation.classifier.config import ClassifierConfig
from pf_jax.training.config import TrainConfig

_CONFIG = cli.define_config(TrainConfig, ClassifierConfig)
CLASSIFIERS = ["digits_classifier", "sc09_classifier"]


def main(argv: Sequence[str]) -> None:
    print(json.dumps([type(_CONFIG.value).__name__, _CONFIG.value.to_dict()]))


@pytest.fixture
def run(capsys):
    """Runs a command as its `__main__` would; gives its status, stdout and stderr."""

    def run(*arguments, command=main):
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            status = 0
            try:
                cli.run(command, ["program", *arguments])
            except SystemExit as stop:
                status = stop.code or 0
        return status, *capsys.readouterr()

    return run


def test_presets_of_each_kind():
    assert cli.presets(ClassifierConfig) == CLASSIFIERS
    assert set(cli.presets()) == set(cli.presets(TrainConfig))
    assert not set(cli.presets()) & set(CLASSIFIERS)
    assert cli.presets(TrainConfig, ClassifierConfig) == sorted([*cli.presets(), *CLASSIFIERS])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_presets_say_what_they_need_and_round_trip_through_json(name):
    config = cli.load_config(name)
    assert ClassifierConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    docstring = (cli.CONFIG_DIRECTORY / f"{name}.py").read_text().split('"""')[1]
    assert "\nNeeds: " in docstring
    assert "\nTakes: " in docstring


@pytest.mark.parametrize(
    ("arguments", "kind", "section", "field", "value"),
    [
        (
            ["--config=sc09_classifier", "--config.model.depth=11"],
            "Classifier",
            "model",
            "depth",
            11,
        ),
        (
            ["--config.model.depth", "20", "--config", "sc09_classifier"],
            "Classifier",
            "model",
            "depth",
            20,
        ),
        (["--config=demo", "--config.model.remat"], "Train", "model", "remat", True),
        (["-config=demo", "--config.data.window=512"], "Train", "data", "window", 512),
        (
            ["--config=demo", "--config=digits_classifier", "--config.augmentation.shift=0"],
            "Classifier",
            "augmentation",
            "shift",
            0.0,
        ),
    ],
)
def test_overrides_are_of_the_named_kind(run, arguments, kind, section, field, value):
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    name, config = json.loads(out)
    assert name == f"{kind}Config"
    assert config[section][field] == value


def test_a_file_of_ones_own(run, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text((cli.CONFIG_DIRECTORY / "digits_classifier.py").read_text())
    status, out, _ = run(f"--config={path}", "--config.label=speaker")
    wanted = dataclasses.replace(cli.load_config("digits_classifier"), label="speaker")
    assert (status, json.loads(out)[1]) == (0, json.loads(json.dumps(wanted.to_dict())))


MISTAKES = [
    (
        ["--config=sc09_classifier", "--config.model.widths=(1,)"],
        "Unknown field --config.model.widths",
    ),
    (["--config=demo", "--config.label=digit"], "Unknown field --config.label"),
    (["--config=sc09_clasifier"], "no config named 'sc09_clasifier'; did you mean sc09_classifier"),
    ([], "--config is missing: give beethoven, cifar10, demo, digits_classifier, enwik8"),
    (["--config=sc09_classifier", "--config.model.depth=12"], "depth must be 11, 20, 29"),
    (["--config=sc09_classifier", "--config.edges=wrap"], "edges must be reflect or constant"),
    (["--config=sc09_classifier", "--config.data.modality=text"], "A classifier hears sounds"),
    (["--config=sc09_classifier", "--config.data.window=1000"], "data.window must be above 1024"),
    (["--config=sc09_classifier", "--config.augmentation.speed=1"], "speed must be in [0, 1)"),
    (["--config=digits_classifier", "--learning_rate=1"], "--config.optimizer.learning_rate?"),
    (["--config=digits_classifier", "--dept=1"], "--dept; did you mean --config.model.depth?"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_line(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_a_file_of_no_kind(run, tmp_path):
    (tmp_path / "x.py").write_text("def get_config():\n    return 3\n")
    _, _, err = run(f"--config={tmp_path / 'x.py'}")
    assert "must return a pf_jax.training.config.TrainConfig or a pf_jax.evaluation" in err


def test_help_has_the_fields_of_both(run):
    status, out, _ = run("--help")
    assert status == 0
    assert "Fields of the config of a Poolformer" in out
    assert "Fields of the config of a classifier" in out
    assert "sc09_classifier" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 100


def test_outside_of_a_command_any_kind_will_do():
    overrides, rest = cli.split_overrides(["--config=sc09_classifier", "--config.model.depth=11"])
    assert rest == ["--config=sc09_classifier"]
    assert cli.load_config("sc09_classifier", overrides).model.depth == 11
    with pytest.raises(UserError, match="this command takes beethoven"):
        cli.load_config("sc09_classifier", kinds=[TrainConfig])
