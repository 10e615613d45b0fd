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

A config is of one of several kinds, the dataclasses of `_KINDS`: a command says which it takes.
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
from pf_jax.evaluation.classifier.config import ClassifierConfig
from pf_jax.training.config import TrainConfig

Config = TrainConfig | ClassifierConfig

CONFIG_DIRECTORY = pathlib.Path(__file__).parent / "configs"

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
# The kinds of configs: of what they are, and the command that takes all of them.
_KINDS = {TrainConfig: "a Poolformer", ClassifierConfig: "a classifier"}
_COMMAND_FOR_ALL = "python -m experiments.train"
_HELP_FLAGS = ("--help", "--helpshort", "-help", "-h", "-?")

flags.disclaim_key_flags()  # A flag that is defined here belongs to the command that asked for it.


_kinds_of_command: dict[str, tuple[type[Config], ...]] = {}


def define_config(*kinds: type[Config]) -> flags.FlagHolder[Config]:
    """Defines `--config`; its value is the config, overrides included.

    Several commands may define it in one process: it is one flag, but each takes its own kinds.

    Args:
        *kinds: The dataclasses that the calling module takes; TrainConfig alone when none is given.
    """
    caller = sys._getframe(1).f_globals["__name__"]
    kinds = _kinds_of_command[caller] = kinds or (TrainConfig,)
    if "config" in flags.FLAGS:
        flags.declare_key_flag("config")
        return flags.FlagHolder(flags.FLAGS, flags.FLAGS["config"])
    return flags.DEFINE_string(
        "config",
        None,
        _config_help(kinds),
    )


def _config_help(kinds: Sequence[type[Config]]) -> str:
    return (
        f"What to train on what: {', '.join(presets(*kinds))}, or a .py file that has "
        "get_config(). Any field is overridden like --config.optimizer.learning_rate=1e-3."
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
    kinds = _kinds_of_command.get(main.__module__, (TrainConfig,))

    def parse(argv: Sequence[str]) -> list[str]:
        own = flags.FLAGS.get_key_flags_for_module(module)
        if any(argument in _HELP_FLAGS for argument in argv[1:]):
            print(_help(sys.modules[main.__module__], own, kinds, words))
            sys.exit(0)
        return _parse_flags(argv, own, kinds, takes_words=bool(words))

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


def presets(*kinds: type[Config]) -> list[str]:
    """The names that `--config` knows, of configs of these kinds; by default of TrainConfig.

    A preset that cannot be read is of any kind, so that whoever asks for it is told why.
    """
    kinds = kinds or (TrainConfig,)
    names = sorted(p.stem for p in CONFIG_DIRECTORY.glob("*.py") if p.stem != "__init__")
    return [name for name in names if _kind_of(name) in (*kinds, None)]


def load_config(
    name: str, overrides: Mapping[str, Any] | None = None, kinds: Iterable[type[Config]] = ()
) -> Config:
    """The config of a preset or a config file, with some of its fields overridden.

    Args:
        name: A preset's name, or the path of a Python file with `get_config()`.
        overrides: Values by the dotted name of a field, e.g. `{"optimizer.learning_rate": 1e-3}`.
        kinds: The dataclasses that will do; any when empty.

    Raises:
        UserError: There is no such preset, file or field, the file does not give a config, the
            config is of another kind, or a value is impossible.
    """
    kinds = tuple(kinds) or tuple(_KINDS)
    if (path := _config_file(name)) is None:
        raise UserError(
            f"There is no config named {name!r}{fields.did_you_mean(name, presets(*kinds))} "
            "A path to a .py file works too."
        )
    config = _read_config_file(path, kinds)
    if type(config) not in kinds:
        raise UserError(
            f"--config={name} describes {_KINDS[type(config)]}, which {_COMMAND_FOR_ALL} takes; "
            f"this command takes {', '.join(presets(*kinds))}, or a path to a .py file."
        )
    values = config.to_dict()
    for path, value in (overrides or {}).items():
        *sections, field = path.split(".")
        section = values
        for key in sections:
            section = section[key]
        section[field] = value
    return fields.from_dict(type(config), values, where="--config.")


def split_overrides(
    argv: Iterable[str], kinds: Iterable[type[Config]] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Takes the overrides of config fields out of a command line.

    Understands `--config.field=value`, `--config.field value`, and for true or false also
    `--config.field` and `--noconfig.field`. The last one of a field wins. Which fields there are
    depends on the kind of the config that `--config` names on the same command line.

    Args:
        argv: The command line.
        kinds: The dataclasses that the config may be; any when empty.

    Returns:
        The values by the dotted name of the field, and the rest of the command line.

    Raises:
        UserError: There is no such field, or the value has another type.
    """
    overrides, rest, tokens = {}, [], list(argv)
    known = _fields_of_command(tokens, tuple(kinds) or tuple(_KINDS))
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


def _fields_of_command(tokens: Sequence[str], kinds: Sequence[type[Config]]) -> dict[str, Any]:
    """The fields that can be overridden on a command line: of the config it names, if it does."""
    kind = None
    for token, following in zip(tokens, [*tokens[1:], ""], strict=False):
        if match := re.fullmatch(r"--?config(?:=(.*))?", token, re.DOTALL):
            kind = _kind_of(following if match[1] is None else match[1])
    kinds = [kind] if kind else kinds
    return {name: hint for kind in reversed(kinds) for name, hint in fields.leaves(kind).items()}


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


def _config_file(name: str) -> pathlib.Path | None:
    """The file of a preset, or of a path; None where a name is neither."""
    if (path := CONFIG_DIRECTORY / f"{name}.py").is_file() and name.isidentifier():
        return path
    return pathlib.Path(name).expanduser() if name.endswith(".py") or "/" in name else None


def _kind_of(name: str) -> type[Config] | None:
    """The kind of a config; None where it cannot be read."""
    try:
        return None if (path := _config_file(name)) is None else type(_read_config_file(path))
    except UserError:
        return None


def _read_config_file(path: pathlib.Path, kinds: Iterable[type[Config]] = tuple(_KINDS)) -> Config:
    """Runs a config file; whatever goes wrong in it becomes one line with its place.

    Args:
        path: The file.
        kinds: What an error says that it must give.
    """
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
    if type(config) not in _KINDS:
        wanted = " or a ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
        raise UserError(
            f"get_config() in {path} must return a {wanted}, got {type(config).__name__}."
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
    argv: Sequence[str],
    own: Sequence[flags.Flag],
    kinds: Sequence[type[Config]],
    *,
    takes_words: bool = False,
) -> list[str]:
    """Parses the command line for `app.run`.

    Args:
        argv: The command line.
        own: The flags of the command, as against those of the libraries it imports.
        kinds: The kinds of config that the command takes.
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
        names += [f"config.{name}" for name in _fields_of_command(arguments, kinds)]
        overrides, arguments = split_overrides(arguments, kinds)
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
                f"--config is missing: give {', '.join(presets(*kinds))}, or a path to a .py file."
            )
        config.value = load_config(config.value, overrides, kinds)
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


def _help(
    command: types.ModuleType,
    own: Sequence[flags.Flag],
    kinds: Sequence[type[Config]],
    words: str = "",
) -> str:
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
        text = _config_help(kinds) if flag.name == "config" else flag.help
        lines.append(entry(name, f"{text}{default}"))
    for kind in kinds if any(flag.name == "config" for flag in own) else ():
        sections: dict[str, list[str]] = {}
        for leaf in fields.leaves(kind):
            section, dot, name = leaf.rpartition(".")
            sections.setdefault(f"{section}{dot}", []).append(name)
        whose = "the config" if len(kinds) == 1 else f"the config of {_KINDS[kind]}"
        example = next(name for name, hint in fields.leaves(kind).items() if hint is bool)
        lines += ["", f"Fields of {whose}, each overridden like --config.{example}=true:"]
        lines += [entry(section, ", ".join(names)) for section, names in sections.items()]
    return "\n".join(lines)
