"""A small command, which this file also is: the tests run it in-process, and once as a program."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest
from absl import flags, logging
from absl.testing import flagsaver
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments import cli
from pf_jax import fields
from pf_jax.config import CONVOLUTIONS, EMBEDDINGS, NORMS
from pf_jax.errors import UserError
from pf_jax.training.config import TrainConfig
from pf_jax.training.schedules import SCHEDULES

_CONFIG = cli.define_config()
_NUM_THINGS = flags.DEFINE_integer("num_things", 8, "How many things.", lower_bound=1)
_LOUDLY = flags.DEFINE_bool("loudly", False, "Whether to say it loudly.")
_TAG = flags.DEFINE_string("tag_of_things", "", "What the things are called.")
_FRIENDS = flags.DEFINE_multi_string("friends", ["a", "b"], "Whose they are.")
cli.group("Names", _TAG, _FRIENDS)


def main(argv: Sequence[str]) -> None:
    logging.info("a detail that nobody asked for")
    if _TAG.value == "mistake":
        raise UserError("There are no such things.")
    if _TAG.value == "bug":
        raise ZeroDivisionError
    print(json.dumps([argv[1:], _NUM_THINGS.value, _LOUDLY.value, _CONFIG.value.to_dict()]))


@pytest.fixture
def run(capsys):
    """Runs the command as its `__main__` would; gives its status, stdout and stderr."""

    def run(*arguments, **options):
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            status = 0
            try:
                cli.run(main, ["program", *arguments], **options)
            except SystemExit as stop:
                status = stop.code or 0
        return status, *capsys.readouterr()

    return run


def config_of(result) -> TrainConfig:
    status, out, err = result
    assert (status, err) == (0, "")
    return TrainConfig.from_dict(json.loads(out)[3])


OVERRIDES = [
    (["--config.optimizer.learning_rate=1e-3"], "optimizer.learning_rate", 1e-3),
    (["--config.optimizer.learning_rate=1"], "optimizer.learning_rate", 1.0),
    (["--config.optimizer.learning_rate", "2.5"], "optimizer.learning_rate", 2.5),
    (["-config.batch_size=3"], "batch_size", 3),
    (["--config.num_steps=1_000_000"], "num_steps", 1_000_000),
    (["--config.seed", "3"], "seed", 3),
    (["--config.seed=1", "--config.seed=2"], "seed", 2),
    (["--config.model.widths=(8, 16, 24)"], "model.widths", (8, 16, 24)),
    (["--config.model.widths=8,16,24"], "model.widths", (8, 16, 24)),
    (["--config.model.widths=[8, 16, 24]"], "model.widths", (8, 16, 24)),
    (["--config.model.depths", "((0,2),4,1)"], "model.depths", ((0, 2), 4, 1)),
    (
        ["--config.model.depths=((('cglru',),2),('gru','attention'),1)"],
        "model.depths",
        ((("cglru",), 2), ("gru", "attention"), 1),
    ),
    (["--config.model.pool_groups=2"], "model.pool_groups", 2),
    (["--config.model.radii=(1e-1,0.5)"], "model.radii", (0.1, 0.5)),
    (["--config.model.remat=true"], "model.remat", True),
    (["--config.model.remat=False"], "model.remat", False),
    (["--config.model.remat"], "model.remat", True),
    (["--config.model.remat", "false"], "model.remat", False),
    (["--config.model.remat", "--loudly"], "model.remat", True),
    (["--noconfig.model.remat"], "model.remat", False),
    (["--config.data.path=/a=b/c d"], "data.path", "/a=b/c d"),
    (["--config.data.path="], "data.path", ""),
    (["--config.data.path", "-x"], "data.path", "-x"),
]


def get(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(("arguments", "path", "value"), OVERRIDES)
def test_override(run, arguments, path, value):
    config = config_of(run("--config=demo", *arguments))
    assert get(config, path) == value
    assert type(get(config, path)) is type(value)
    restored = cli.load_config("demo", {path: get(cli.load_config("demo"), path)})
    assert restored == cli.load_config("demo")


def test_overrides_may_stand_before_the_config(run):
    assert config_of(run("--config.seed=7", "--config", "demo")).seed == 7


def test_overrides_are_checked_together(run):
    config = config_of(
        run(
            "--config=demo",
            "--config.model.widths=(30, 60)",
            "--config.model.depths=((0, 1), 2)",
            "--config.model.pool_factors=(8,)",
            "--config.model.num_heads=3",
        )
    )
    assert config.model.widths == (30, 60)
    assert config.model.num_heads == 3


def test_other_flags_and_flag_files(run, tmp_path):
    (tmp_path / "flags").write_text("--num_things=5\n--config.seed=9\n")
    status, out, _ = run("--config=demo", "--loudly", f"--flagfile={tmp_path / 'flags'}")
    words, num_things, loudly, config = json.loads(out)
    assert (status, words, num_things, loudly, config["seed"]) == (0, [], 5, True, 9)


NAMES = (
    "beethoven, cifar10, demo, enwik8, folder, folder_small, musicnet, musicnet_long, sc09, "
    "sc09_attention, sc09_mamba, sc09_no_pooling, sc09_realtime, sc09_sashimi, youtubemix"
)
MISTAKES = [
    ([], f"--config is missing: give {NAMES}, or a path to a .py file."),
    (["--config=demo", "--import=/no/such.py"], "There is no file of --import /no/such.py."),
    (["--config=demo", "--import=/etc"], "There is no file of --import /etc."),
    (["--config=demmo"], "There is no config named 'demmo'; did you mean demo? A path to"),
    (["--config=zzz"], f"no config named 'zzz'; known are {NAMES}."),
    (["--config=/no/such.py"], "There is no config file /no/such.py."),
    (["--config"], "--config needs a value: write --config=VALUE."),
    (["config=demo"], "Unexpected argument 'config=demo': flags look like --name=value."),
    (["--config=demo", "x"], "Unexpected argument 'x'"),
    (["--confg=demo"], "Unknown flag --confg; did you mean --config?"),
    (["--num_thigns=3"], "Unknown flag --num_thigns; did you mean --num_things?"),
    (["--learning_rate=1"], "--learning_rate; did you mean --config.optimizer.learning_rate?"),
    (["--qqqqqqq"], "Unknown flag --qqqqqqq; see --help."),
    (["--num_things=few"], "--num_things must be a positive integer, got 'few'."),
    (["--num_things=0"], "--num_things must be a positive integer, got '0'."),
    (["--loudly=perhaps"], "--loudly must be true or false, got 'perhaps'."),
    (["--noloudly=1"], "--noloudly=1 does not take an argument."),
    (["--config.batch_sise=1"], "--config.batch_sise; did you mean --config.batch_size?"),
    (["--config.learning_rate=1"], "did you mean --config.optimizer.learning_rate?"),
    (["--config.optimizer.rate=1"], "Unknown field --config.optimizer.rate"),
    (["--config.qqqqqqq=1"], "Unknown field --config.qqqqqqq; see --help."),
    (["--config.=1"], "Unknown field --config.; see --help."),
    (["--config.model=demo"], "--config.model has fields of its own: override one; see --help."),
    (["--config.batch_size=abc"], "--config.batch_size must be an integer, got 'abc'."),
    (["--config.batch_size=1.5"], "--config.batch_size must be an integer, got '1.5'."),
    (["--config.batch_size="], "--config.batch_size must be an integer, got ''."),
    (
        ["--config.batch_size"],
        "--config.batch_size needs a value: write --config.batch_size=VALUE.",
    ),
    (["--config.seed", "--loudly"], "--config.seed needs a value"),
    (["--noconfig.seed"], "--noconfig.seed makes no sense: write --config.seed=VALUE."),
    (["--config.optimizer.learning_rate=fast"], "must be a number, got 'fast'."),
    (["--config.model.remat=maybe"], "--config.model.remat must be true or false, got 'maybe'."),
    (["--config.model.widths=(64,"], "must be a tuple of integers such as (64, 128), got '(64,'."),
    (["--config.model.widths=64"], "must be a tuple of integers such as (64, 128), got '64'."),
    (["--config.model.widths=(64, 1.5)"], "must be a tuple of integers"),
    (["--config.model.widths=f(1)"], "must be a tuple of integers"),
    (["--config.model.depths=((1,2,3),1)"], "must be a tuple such as (2, 4) or ((0, 2), 4)"),
    (["--config=demo", "--config.batch_size=0"], "batch_size must be at least 1, got 0."),
    (["--config=demo", "--config.optimizer.b1=nan"], "b1 must be in [0, 1), got nan."),
    (["--config=demo", "--config.model.num_heads=7"], "num_heads=7 must divide the 32 channels"),
    (["--config=demo", "--config.model.dtype=int8"], "dtype must be float32 or bfloat16"),
    (["--config=demo", "--tag_of_things=mistake"], "There are no such things."),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_line(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_bug_keeps_its_traceback(run):
    with pytest.raises(ZeroDivisionError):
        run("--config=demo", "--tag_of_things=bug")


CONFIG_FILE = (cli.CONFIG_DIRECTORY / "demo.py").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "config.py, line 1: SyntaxError: invalid syntax"),
        ("x = 1\n\ny = x / 0\n", "config.py, line 3: ZeroDivisionError: division by zero"),
        ("x = 1\n", "AttributeError: module '_config_config' has no attribute 'get_config'"),
        (
            "def get_config():\n    return {}\n",
            "must return a pf_jax.training.config.TrainConfig, got",
        ),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        (CONFIG_FILE.replace("batch_size=2", "batch_size=0"), "batch_size must be at least 1"),
        (CONFIG_FILE.replace("batch_size", "batchsize"), "unexpected keyword argument 'batchsize'"),
    ],
)
def test_a_wrong_config_file(run, tmp_path, text, message):
    (tmp_path / "config.py").write_text(text)
    status, _, err = run(f"--config={tmp_path / 'config.py'}")
    assert status == 2
    assert err.count("\n") == 1
    assert str(tmp_path / "config.py") in err
    assert message in err


def test_a_config_file_of_ones_own(run, tmp_path):
    (tmp_path / "my.py").write_text(CONFIG_FILE.replace("batch_size=2", "batch_size=5"))
    config = config_of(run(f"--config={tmp_path / 'my.py'}", "--config.seed=1"))
    assert config == dataclasses.replace(cli.load_config("demo"), batch_size=5, seed=1)


@pytest.mark.parametrize("help_flag", ["--help", "-h", "--helpshort"])
def test_help_is_short(run, help_flag):
    status, out, err = run(help_flag)
    assert (status, err) == (0, "")
    assert out.startswith(__doc__)
    assert "--num_things        How many things. (default: 8)" in out
    assert "--[no]loudly" in out
    flags_alone, names, in_fields = re.split("\n\nNames:|\n\nFields of the config", out)[:3]
    assert "--config " in flags_alone
    assert " (required)\n" in flags_alone
    assert names.split("\n")[1:] == [
        "  --tag_of_things     What the things are called.",
        "  --friends           Whose they are. (default: a,b)",
    ]
    assert "--" not in in_fields.replace("--config.", "")
    assert "learning_rate" in out
    assert len(out.splitlines()) < 40
    assert max(map(len, out.splitlines())) <= 100
    assert "jax" not in out


WORDS = [
    (["a", "b", "--num_things=3", "--config=demo"], ["a", "b"]),
    (["--num_things=3", "--config", "demo", "a", "b"], ["a", "b"]),
    (["a", "--num_things", "3", "b", "--config=demo", "a"], ["a", "b", "a"]),
    (["a", "--config.seed", "1", "b", "--config=demo", "--num_things=3"], ["a", "b"]),
    (["a=b", "", "--num_things=3", "--config=demo", "--", "--loudly"], ["a=b", "", "--loudly"]),
    (["--config=demo", "--num_things=3"], []),
]


@pytest.mark.parametrize(("arguments", "words"), WORDS)
def test_words_for_a_command_that_takes_them(run, arguments, words):
    status, out, err = run(*arguments, words="RUN [RUN ...]")
    assert (status, err) == (0, "")
    assert json.loads(out)[:3] == [words, 3, False]


def test_flags_behind_words_are_checked(run):
    _, _, err = run("a", "--num_thigns=3", "--config=demo", words="RUN [RUN ...]")
    assert err == "error: Unknown flag --num_thigns; did you mean --num_things?\n"
    _, _, err = run("a", "--num_things=few", words="RUN [RUN ...]")
    assert err == "error: --num_things must be a positive integer, got 'few'.\n"
    # A command that takes none, in the same process, goes on refusing them.
    status, _, err = run("--config=demo", "a", "--num_thigns=3")
    assert (status, err[:33]) == (2, "error: Unexpected argument 'a': f")


def test_help_shows_where_words_go(run):
    status, out, _ = run("--help", words="RUN [RUN ...]")
    assert status == 0
    assert re.search(r"\n\nUsage: python -m \S*test_cli RUN \[RUN \.\.\.\] \[--FLAG=", out)
    assert "Usage:" not in run("--help")[1]


@pytest.mark.parametrize("name", cli.presets())
def test_presets_say_what_they_need_and_round_trip_through_json(name):
    config = cli.load_config(name)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    docstring = (cli.CONFIG_DIRECTORY / f"{name}.py").read_text().split('"""')[1]
    assert "\nNeeds: " in docstring
    assert "\nTakes: " in docstring


def values(path, hint, config):
    """Values that a field can have while the others stay as they are."""
    levels = config.model.num_levels
    mixers = st.sampled_from(["cglru", "rglru", "convolution", "attention"])
    side = st.integers(0, 9) | st.lists(mixers, max_size=3).map(tuple)
    # Equal ones, which pools of all kinds take, and the heads of any preset divide.
    widths = st.integers(1, 9).map(lambda n: (192 * n,) * levels)
    # Pieces of a split window are whole groups.
    factors = [2, 4] if config.sequence_devices > 1 else [2, 4, 8, 16, 32]
    groups = [1, 2, 4] if len(set(config.model.widths)) > 1 else [None, 1, 2, 4]
    by_name = {
        "model.widths": widths,
        "model.depths": st.tuples(*[side | st.tuples(side, side)] * (levels - 1), side),
        "model.pool_factors": st.tuples(*[st.sampled_from(factors)] * (levels - 1)),
        "model.pool_groups": st.sampled_from(groups),
        "model.num_heads": st.sampled_from([1, 2, 4, 8]),
        "model.embedding": st.sampled_from(EMBEDDINGS),
        "model.mixer": mixers,
        "model.mixer_expansion": st.sampled_from([1.0, 2.0]),
        "model.radii": st.sampled_from([(0.5, 0.5), (0.9, 0.999)]),
        "model.turns": st.tuples(st.floats(0, 1), st.floats(0, 1)),
        "model.convolution": st.sampled_from(CONVOLUTIONS),
        "model.norm": st.sampled_from(NORMS),
        "model.mlp": st.sampled_from(["gated_mlp", "plain_mlp", "none"]),
        "model.ssm_init": st.sampled_from(["lin", "inv"]),
        "model.recurrence": st.sampled_from(["auto", "sequential", "associative"]),
        "model.sequence_axis": st.just(""),
        "sequence_devices": st.just(config.sequence_devices),  # Divides a window into groups.
        "model.dtype": st.sampled_from(["float32", "bfloat16"]),
        "data.modality": st.just(config.data.modality),
        "data.window": st.just(config.data.window),  # Of images, it is their size.
        "data.quantization": st.sampled_from(["mu_law", "linear", "sashimi_mu_law"]),
        "data.normalization": st.sampled_from(["none", "recording", "window"]),
        "model.vocab_size": st.just(256),
        "optimizer.schedule": st.sampled_from(sorted(SCHEDULES)),
        "optimizer.weight_decay_on": st.sampled_from(["kernels", "all"]),
        "profile": st.just(()) | st.tuples(st.integers(1, 9), st.integers(9, 20)),
        "data.sample_rate": st.sampled_from([8_000, 16_000, 44_100]),
    }
    by_type = {
        bool: st.booleans(),
        int: st.integers(2, 10_000),
        float: st.floats(0, 1, exclude_min=True, exclude_max=True),
        str: st.text(),
    }
    return by_name[path] if path in by_name else by_type[hint]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), name=st.sampled_from(cli.presets()))
def test_any_fields_of_any_preset_can_be_overridden(data, name):
    preset = cli.load_config(name)
    leaves = fields.leaves(TrainConfig)
    wanted, tokens = {}, []
    for path in data.draw(st.sets(st.sampled_from(list(leaves)), min_size=1)):
        value = wanted[path] = data.draw(values(path, leaves[path], preset))
        if leaves[path] is str and value.startswith("--"):
            tokens += [f"--config.{path}={value}"]
        else:
            tokens += data.draw(
                st.sampled_from([[f"--config.{path}={value}"], [f"--config.{path}", str(value)]])
            )
    overrides, rest = cli.split_overrides(tokens)
    config = cli.load_config(name, overrides)
    assert rest == []
    for path in leaves:
        assert get(config, path) == wanted.get(path, get(preset, path))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@settings(deadline=None)
@given(text=st.text())
def test_any_text_is_a_value_or_one_clear_error(text):
    for path in fields.leaves(TrainConfig):
        message = ""
        try:
            cli.split_overrides([f"--config.{path}={text}"])
        except UserError as error:
            message = str(error)
        assert not message or message.startswith(f"--config.{path} must be ")
        assert "\n" not in message


def test_as_a_program():
    """Flags of a program are filed under its name, so that in-process tests do not see them."""
    root = pathlib.Path(cli.__file__).parents[1]

    def program(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "tests.experiments.test_cli", *arguments],
            capture_output=True,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )

    shown = program("--help")
    assert shown.returncode == 0
    assert "--num_things" in shown.stdout
    ran = program("--config=demo", "--config.seed", "4", "--num_things=2")
    assert (ran.returncode, ran.stderr) == (0, "")  # And quiet: main logs a detail.
    assert json.loads(ran.stdout)[3]["seed"] == 4
    wrong = program("--config=demo", "--num_thing=2")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: Unknown flag --num_thing; did you mean --num_things?\n"


if __name__ == "__main__":
    cli.run(main)
