"""What the commands share: `--config` with its overrides, errors of one line, a short `--help`.

A command is a module of this shape:

    _CONFIG = cli.define_config()
    _WORKDIR = flags.DEFINE_string("workdir", None, "Where ...", required=True)

    def main(argv: Sequence[str]) -> None:
        train(_CONFIG.value, _WORKDIR.value)

    if __name__ == "__main__":
        cli.run(main)

What `--config` can name is in `experiments.config_files`.
"""

import os
import pathlib
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags, logging

from experiments.config_files import CONFIG_DIRECTORY as CONFIG_DIRECTORY
from experiments.config_files import KINDS, Config, fields_of_command, near, run_file
from experiments.config_files import load_config as load_config
from experiments.config_files import presets as presets
from experiments.config_files import split_overrides as split_overrides
from pf_jax import fields
from pf_jax.errors import UserError
from pf_jax.training.config import TrainConfig

_HELP_FLAGS = ("--help", "--helpshort", "-help", "-h", "-?")

# Of every command.
_IMPORT = flags.DEFINE_multi_string(
    "import",
    [],
    "A .py file to run first, such as one that adds a mixer of your own; may be given again.",
)

flags.disclaim_key_flags()  # A flag that is defined here belongs to the command that asked for it.


_kinds_of_command: dict[str, tuple[type[Config], ...]] = {}
_groups: dict[tuple[str, str], str] = {}  # By the module and the name of a flag.


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


def group(title: str, *holders: flags.FlagHolder[Any], shared: bool = False) -> None:
    """Puts flags under a heading of their own in `--help`.

    Args:
        title: The heading, such as "Prompts"; headings come in the order of their flags.
        *holders: The flags.
        shared: Whether they are in whatever command has them, and not only in the calling module.
    """
    command = "" if shared else sys._getframe(1).f_globals["__name__"]
    _groups.update({(command, holder.name): title for holder in holders})


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
        own = [*flags.FLAGS.get_key_flags_for_module(module), flags.FLAGS[_IMPORT.name]]
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
        names += [f"config.{name}" for name in fields_of_command(arguments, kinds)]
        overrides, arguments = split_overrides(arguments, kinds)
    if not takes_words:
        _refuse_words(arguments)  # absl stops at a word, and would then miss the flags behind it.
    try:
        _, *words = known([argv[0], *arguments])
    except flags.UnrecognizedFlagError as error:
        close = near(error.flagname, [*names, "help"], "--")
        raise UserError(f"Unknown flag --{error.flagname}{close}") from None
    except (flags.Error, ValueError) as error:
        raise UserError(_flag_error(error)) from None
    if not takes_words:
        _refuse_words(words)
    for name in _IMPORT.value:
        run_file(pathlib.Path(name).expanduser(), "file of --import", lambda module: None)
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


def _default_of(flag: flags.Flag) -> str:
    return ",".join(map(str, flag.default)) if isinstance(flag.default, list) else str(flag.default)


def _is_required(flag: flags.Flag) -> bool:
    return any("must have a value other than None" in v.message for v in flag.validators)


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

    lines = [(command.__doc__ or "").strip()]
    if words:
        name = command.__spec__.name if command.__spec__ else sys.argv[0]
        lines += ["", f"Usage: python -m {name} {words} [--FLAG=VALUE ...]"]
    groups: dict[str, list[flags.Flag]] = {"Flags": []}
    for flag in own:
        shared = _groups.get(("", flag.name), "Flags")
        title = _groups.get((command.__name__, flag.name), shared)
        groups.setdefault(title, []).append(flag)
    for title, members in groups.items():
        lines += ["", f"{title}:"]
        for flag in members:
            default = "" if flag.default in (None, "", []) else f" (default: {_default_of(flag)})"
            name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
            text = _config_help(kinds) if flag.name == "config" else flag.help
            text = text.partition(";\n")[0]  # absl tells of its own accord what may be repeated.
            needed = " (required)" if flag.name == "config" or _is_required(flag) else ""
            lines.append(entry(name, f"{text}{default}{needed}"))
    for kind in kinds if any(flag.name == "config" for flag in own) else ():
        sections: dict[str, list[str]] = {}
        for leaf in fields.leaves(kind):
            section, dot, name = leaf.rpartition(".")
            sections.setdefault(f"{section}{dot}", []).append(name)
        whose = "the config" if len(kinds) == 1 else f"the config of {KINDS[kind]}"
        example = next(name for name, hint in fields.leaves(kind).items() if hint is bool)
        lines += ["", f"Fields of {whose}, each overridden like --config.{example}=true:"]
        lines += [entry(section, ", ".join(names)) for section, names in sections.items()]
    return "\n".join(lines)
