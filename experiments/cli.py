"""What the commands share: `--config` with its overrides, errors of one line, a short `--help`.

A command is a module of this shape:

    _CONFIG = cli.define_config()
    _WORKDIR = flags.DEFINE_string("workdir", None, "Where ...", required=True)

    def main(argv: Sequence[str]) -> None:
        train(_CONFIG.value, _WORKDIR.value)

    if __name__ == "__main__":
        cli.run(main)

The overrides are parsed here rather than by `ml_collections.config_flags`, which sets fields one by
one: a typed config is checked as a whole, once, when all its overrides are in.
"""

import ast
import importlib.util
import os
import pathlib
import re
import shutil
import sys
import textwrap
import traceback
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags, logging

from pf_jax import fields
from pf_jax.errors import UserError
from pf_jax.training.config import TrainConfig

CONFIG_DIRECTORY = pathlib.Path(__file__).parent / "configs"

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
_HELP_FLAGS = ("--help", "--helpshort", "-help", "-h", "-?")

flags.disclaim_key_flags()  # A flag that is defined here belongs to the command that asked for it.


def define_config() -> flags.FlagHolder[TrainConfig]:
    """Defines `--config`; its value is the TrainConfig, overrides included.

    Several commands may define it in one process: it is the same flag.
    """
    if "config" in flags.FLAGS:
        flags.declare_key_flag("config")
        return flags.FlagHolder(flags.FLAGS, flags.FLAGS["config"])
    return flags.DEFINE_string(
        "config",
        None,
        f"What to train on what: {', '.join(presets())}, or a .py file that has get_config(). Any "
        "field is overridden like --config.optimizer.learning_rate=1e-3.",
    )


def run(
    main: Callable[[list[str]], Any], argv: Sequence[str] | None = None, *, words: str = ""
) -> NoReturn:
    """Parses the flags and runs a command; a user's mistake ends it with one line and status 2.

    Args:
        main: Takes what is left of `argv`: the name of the program, and the words.
        argv: The command line; `sys.argv` when None.
        words: What `--help` calls the words that the command takes besides flags, such as
            "RUN [RUN ...]"; they may stand before, between and behind the flags, and how many there
            must be is for `main` to say. Empty for a command that takes none.
    """
    # absl files the flags of `python -m experiments.train` under the name of the program.
    module = sys.argv[0] if main.__module__ == "__main__" else main.__module__

    def parse(argv: Sequence[str]) -> list[str]:
        own = flags.FLAGS.get_key_flags_for_module(module)
        if any(argument in _HELP_FLAGS for argument in argv[1:]):
            print(_help(sys.modules[main.__module__], own, words))
            sys.exit(0)
        return _parse_flags(argv, own, takes_words=bool(words))

    if jax.config.jax_compilation_cache_dir is None:
        # What was compiled once, for minutes on a TPU, is found again when a run is resumed.
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "pf_jax" / "compiled"))
    try:
        app.run(main, argv=None if argv is None else list(argv), flags_parser=parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


def share_cpu() -> None:
    """Makes each core of the processor a JAX device, for commands that share work out over devices.

    Must come before anything is computed. Where the number was chosen already, or there is an
    accelerator, it changes nothing.
    """
    is_chosen = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices < 1 and not is_chosen:
        # Where the system can tell, the cores that this process may use.
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
        jax.config.update("jax_num_cpu_devices", len(cores) or os.cpu_count() or 1)


def presets() -> list[str]:
    """The names that `--config` knows."""
    return sorted(p.stem for p in CONFIG_DIRECTORY.glob("*.py") if p.stem != "__init__")


def load_config(name: str, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """The config of a preset or a config file, with some of its fields overridden.

    Args:
        name: A preset's name, or the path of a Python file with `get_config() -> TrainConfig`.
        overrides: Values by the dotted name of a field, e.g. `{"optimizer.learning_rate": 1e-3}`.

    Raises:
        UserError: There is no such preset, file or field, the file does not give a config, or a
            value is impossible.
    """
    if name in presets():
        config = _read_config_file(CONFIG_DIRECTORY / f"{name}.py")
    elif name.endswith(".py") or "/" in name:
        config = _read_config_file(pathlib.Path(name).expanduser())
    else:
        raise UserError(
            f"There is no config named {name!r}{fields.did_you_mean(name, presets())} "
            "A path to a .py file works too."
        )
    values = config.to_dict()
    for path, value in (overrides or {}).items():
        *sections, field = path.split(".")
        section = values
        for key in sections:
            section = section[key]
        section[field] = value
    return fields.from_dict(TrainConfig, values, where="--config.")


def split_overrides(argv: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Takes the overrides of config fields out of a command line.

    Understands `--config.field=value`, `--config.field value`, and for true or false also
    `--config.field` and `--noconfig.field`. The last one of a field wins.

    Returns:
        The values by the dotted name of the field, and the rest of the command line.

    Raises:
        UserError: There is no such field, or the value has another type.
    """
    known = fields.leaves(TrainConfig)
    overrides, rest, tokens = {}, [], list(argv)
    while tokens:
        token = tokens.pop(0)
        if not (match := _OVERRIDE.fullmatch(token)):
            rest.append(token)
            continue
        negated, name, text = match.groups()
        if name not in known:
            if any(leaf.startswith(f"{name}.") for leaf in known):
                raise UserError(f"--config.{name} has fields of its own: override one; see --help.")
            raise UserError(f"Unknown field --config.{name}{_near(name, known, '--config.')}")
        if known[name] is bool and text is None:
            text = "false" if negated else "true"
            if not negated and tokens and tokens[0].lower() in _BOOLEANS:
                text = tokens.pop(0)
        elif negated:
            raise UserError(f"{token} makes no sense: write --config.{name}=VALUE.")
        elif text is None:
            if not tokens or tokens[0].startswith("--"):
                raise UserError(f"{token} needs a value: write {token}=VALUE.")
            text = tokens.pop(0)
        overrides[name] = _parse_value(f"--config.{name}", text, known[name])
    return overrides, rest


def _parse_value(flag: str, text: str, hint: Any) -> Any:
    """The text of a flag as a value of its field's type."""
    try:
        if hint is str:
            return text
        if hint is bool:
            return _BOOLEANS[text.strip().lower()]
        if hint in (int, float):
            return hint(text)
        return fields.convert(ast.literal_eval(text.strip()), hint)
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError):
        raise UserError(f"{flag} must be {fields.describe(hint)}, got {text!r}.") from None


def _read_config_file(path: pathlib.Path) -> TrainConfig:
    """Runs a config file; whatever goes wrong in it becomes one line with its place."""
    if not path.is_file():
        raise UserError(f"There is no config file {path}.")
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"The config file {path} is not a .py file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:
        raise UserError(f"The config file {_place(error, path)}: {_in_one_line(error)}") from error
    if not isinstance(config, TrainConfig):
        raise UserError(
            f"get_config() in {path} must return a pf_jax.training.config.TrainConfig, "
            f"got {type(config).__name__}."
        )
    return config


def _place(error: Exception, path: pathlib.Path) -> str:
    """The path, with the last line of it that the error passed through."""
    if isinstance(error, SyntaxError):
        return f"{path}, line {error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _in_one_line(error: Exception) -> str:
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return message if isinstance(error, UserError) else f"{type(error).__name__}: {message}"


def _parse_flags(
    argv: Sequence[str], own: Sequence[flags.Flag], *, takes_words: bool = False
) -> list[str]:
    """Parses the command line for `app.run`.

    Args:
        argv: The command line.
        own: The flags of the command, as against those of the libraries it imports.
        takes_words: Whether what is no flag is for the command, or a mistake.

    Returns:
        The name of the program, and the words.

    Raises:
        UserError: A flag is unknown, missing or has an impossible value.
    """
    known = flags.FLAGS
    known.set_gnu_getopt(takes_words)  # Whether absl looks for flags behind a word.
    names = [flag.name for flag in own]
    arguments, overrides = known.read_flags_from_files(argv[1:], force_gnu=False), {}
    if "config" in names:
        overrides, arguments = split_overrides(arguments)
        names += [f"config.{name}" for name in fields.leaves(TrainConfig)]
    if not takes_words:
        _refuse_words(arguments)  # absl stops at a word, and would then miss the flags behind it.
    try:
        _, *words = known([argv[0], *arguments])
    except flags.UnrecognizedFlagError as error:
        near = _near(error.flagname, [*names, "help"], "--")
        raise UserError(f"Unknown flag --{error.flagname}{near}") from None
    except (flags.Error, ValueError) as error:
        raise UserError(_flag_error(error)) from None
    if not takes_words:
        _refuse_words(words)
    if "config" in names:
        config = known["config"]
        if config.value is None:
            raise UserError(
                f"--config is missing: give {', '.join(presets())}, or a path to a .py file."
            )
        config.value = load_config(config.value, overrides)
    if known["verbosity"].using_default_value:
        known.verbosity = logging.WARNING  # absl's own default would let every detail through.
    return [argv[0], *words]


def _refuse_words(arguments: Sequence[str]) -> None:
    """Raises UserError if the first argument is no flag, for a command that takes flags only."""
    if arguments and not arguments[0].startswith("-"):
        raise UserError(f"Unexpected argument {arguments[0]!r}: flags look like --name=value.")


def _near(name: str, known: Iterable[str], prefix: str) -> str:
    """The end of an error about an unknown name."""
    near = fields.did_you_mean(name, known, prefix)
    return near if near != "." else "; see --help."


def _flag_error(error: Exception) -> str:
    """What absl has to say about a flag, in one line and in the user's words."""
    message = " ".join(str(error).split()).removeprefix("flag ").removesuffix(".")
    if match := re.fullmatch(r"--(\w+)=None: .* must have a value other than None", message):
        return f"--{match[1]} is missing; see --help."
    if match := re.fullmatch(r"Missing value for flag (--?\w+)", message):
        return f"{match[1]} needs a value: write {match[1]}=VALUE."
    if match := re.match(r"--(\w+)=(.*?): ", message):
        parser = flags.FLAGS[match[1]].parser
        if isinstance(parser, flags.BooleanParser):
            return f"--{match[1]} must be true or false, got {match[2]!r}."
        if isinstance(parser, flags.IntegerParser | flags.FloatParser):
            return f"--{match[1]} must be {parser.syntactic_help}, got {match[2]!r}."
    return f"{message}."


def _help(command: types.ModuleType, own: Sequence[flags.Flag], words: str = "") -> str:
    """The command's docstring and its own flags; `--helpfull` has those of absl and JAX too."""
    width = min(shutil.get_terminal_size().columns, 100)
    indent = " " * 22

    def entry(label: str, text: str) -> str:
        wrapped = textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
        fits = len(label) < 19
        return f"  {label:<20}{wrapped.lstrip()}" if fits else f"  {label}\n{wrapped}"

    lines = [(command.__doc__ or "").strip(), "", "Flags:"]
    if words:
        name = command.__spec__.name if command.__spec__ else sys.argv[0]
        lines[1:1] = ["", f"Usage: python -m {name} {words} [--FLAG=VALUE ...]"]
    for flag in own:
        default = "" if flag.default in (None, "") else f" (default: {flag.default})"
        name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
        lines.append(entry(name, f"{flag.help}{default}"))
    if any(flag.name == "config" for flag in own):
        sections: dict[str, list[str]] = {}
        for leaf in fields.leaves(TrainConfig):
            section, dot, name = leaf.rpartition(".")
            sections.setdefault(f"{section}{dot}", []).append(name)
        lines += ["", "Fields of the config, each overridden like --config.model.remat=true:"]
        lines += [entry(section, ", ".join(names)) for section, names in sections.items()]
    return "\n".join(lines)
