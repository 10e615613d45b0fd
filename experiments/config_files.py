"""Configs by name or file, with fields overridden on the command line.

The overrides are parsed here rather than by `ml_collections.config_flags`, which sets fields one by
one: a typed config is checked as a whole, once, when all its overrides are in.

A config is of one of several kinds, the dataclasses of `KINDS`: a command says which it takes.
"""

import importlib.util
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pf_jax import fields
from pf_jax.errors import UserError
from pf_jax.evaluation.classifier.config import ClassifierConfig
from pf_jax.training.config import TrainConfig

Config = TrainConfig | ClassifierConfig

CONFIG_DIRECTORY = pathlib.Path(__file__).parent / "configs"

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
# The kinds of configs: of what they are, and the command that takes all of them.
KINDS = {TrainConfig: "a Poolformer", ClassifierConfig: "a classifier"}
_COMMAND_FOR_ALL = "python -m experiments.train"


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
    kinds = tuple(kinds) or tuple(KINDS)
    if (path := _config_file(name)) is None:
        raise UserError(
            f"There is no config named {name!r}{fields.did_you_mean(name, presets(*kinds))} "
            "A path to a .py file works too."
        )
    config = _read_config_file(path, kinds)
    if type(config) not in kinds:
        raise UserError(
            f"--config={name} describes {KINDS[type(config)]}, which {_COMMAND_FOR_ALL} takes; "
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
    known = fields_of_command(tokens, tuple(kinds) or tuple(KINDS))
    while tokens:
        token = tokens.pop(0)
        if not (match := _OVERRIDE.fullmatch(token)):
            rest.append(token)
            continue
        negated, name, text = match.groups()
        if name not in known:
            if any(leaf.startswith(f"{name}.") for leaf in known):
                raise UserError(f"--config.{name} has fields of its own: override one; see --help.")
            raise UserError(f"Unknown field --config.{name}{near(name, known, '--config.')}")
        if known[name] is bool and text is None:
            text = "false" if negated else "true"
            if not negated and tokens and tokens[0].lower() in fields.BOOLEANS:
                text = tokens.pop(0)
        elif negated:
            raise UserError(f"{token} makes no sense: write --config.{name}=VALUE.")
        elif text is None:
            if not tokens or tokens[0].startswith("--"):
                raise UserError(f"{token} needs a value: write {token}=VALUE.")
            text = tokens.pop(0)
        overrides[name] = _parse_value(f"--config.{name}", text, known[name])
    return overrides, rest


def fields_of_command(tokens: Sequence[str], kinds: Sequence[type[Config]]) -> dict[str, Any]:
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
        return fields.parse(text, hint)
    except ValueError:
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


def _read_config_file(path: pathlib.Path, kinds: Iterable[type[Config]] = tuple(KINDS)) -> Config:
    """Runs a config file; whatever goes wrong in it becomes one line with its place.

    Args:
        path: The file.
        kinds: What an error says that it must give.
    """
    config = run_file(path, "config file", lambda module: module.get_config())
    if type(config) not in KINDS:
        wanted = " or a ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
        raise UserError(
            f"get_config() in {path} must return a {wanted}, got {type(config).__name__}."
        )
    return config


def run_file(path: pathlib.Path, what: str, then: Callable[[types.ModuleType], Any]) -> Any:
    """Runs a Python file, and what is to follow; a mistake in it becomes one line with its place.

    Args:
        path: The file.
        what: What an error calls it.
        then: Of the module; its result is returned.

    Raises:
        UserError: There is no such file, or it raises something.
    """
    if not path.is_file():
        raise UserError(f"There is no {what} {path}.")
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"The {what} {path} is not a .py file.")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return then(module)
    except Exception as error:
        raise UserError(f"The {what} {_place(error, path)}: {_in_one_line(error)}") from error


def _place(error: Exception, path: pathlib.Path) -> str:
    """The path, with the last line of it that the error passed through."""
    if isinstance(error, SyntaxError):
        return f"{path}, line {error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _in_one_line(error: Exception) -> str:
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return message if isinstance(error, UserError) else f"{type(error).__name__}: {message}"


def near(name: str, known: Iterable[str], prefix: str) -> str:
    """The end of an error about an unknown name."""
    near = fields.did_you_mean(name, known, prefix)
    return near if near != "." else "; see --help."
