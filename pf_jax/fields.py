"""Typed dataclass configs from untyped fields: JSON, a config file, the command line."""

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pf_jax.errors import UserError

BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_DESCRIPTIONS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    type(None): "None",
}
_PLURALS = {int: "integers", float: "numbers"}


def convert(value: Any, hint: Any) -> Any:
    """The value as the type of an annotation: lists become tuples, integers become floats.

    Nothing else changes its type: 3.0 is no integer, and True is no number.

    Args:
        value: What JSON or a Python literal gave.
        hint: `bool`, `int`, `float`, `str`, a tuple or union of these, or a dataclass.

    Raises:
        TypeError: The value has another type.
    """
    if isinstance(hint, types.UnionType):
        for member in typing.get_args(hint):
            try:
                return convert(value, member)
            except TypeError:
                continue
    elif typing.get_origin(hint) is tuple:
        if isinstance(value, list | tuple):
            members = typing.get_args(hint)
            if members[-1] is Ellipsis:
                members = members[:1] * len(value)
            if len(members) == len(value):
                return tuple(convert(v, m) for v, m in zip(value, members, strict=True))
    elif isinstance(value, bool):
        if hint is bool:
            return value
    elif hint is float and isinstance(value, int | float):
        return float(value)
    elif isinstance(value, hint):
        return value
    raise TypeError(f"expected {describe(hint)}, got {value!r}")


def parse(text: str, hint: Any) -> Any:
    """A text that a user wrote as a value of an annotated type.

    Args:
        text: As on a command line: "true", "1e-3", "(64, 128)".
        hint: As for `convert`.

    Raises:
        ValueError: It is none.
    """
    try:
        if hint is str:
            return text
        if hint is bool:
            return BOOLEANS[text.strip().lower()]
        if hint in (int, float):
            return hint(text)
        return convert(ast.literal_eval(text.strip()), hint)
    except (TypeError, KeyError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"expected {describe(hint)}, got {text!r}") from error


def describe(hint: Any) -> str:
    """What a value of an annotated type is called in an error message."""
    members = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        if len(members) == 2 and members[0] == members[1] and members[0] in _PLURALS:
            return f"a pair of {_PLURALS[members[0]]}"
        if members == (int, ...):
            return "a tuple of integers such as (64, 128)"
        return "a tuple such as (2, 4) or ((0, 2), 4) or (('convolution', 'cglru'), 4)"
    if isinstance(hint, types.UnionType):
        return " or ".join(map(describe, members))
    return _DESCRIPTIONS.get(hint) or getattr(hint, "__name__", str(hint))


def check_types(config: Any) -> None:
    """Converts every field of a frozen dataclass to its annotated type, from `__post_init__`.

    Raises:
        UserError: A field has a value of another type.
    """
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        try:
            object.__setattr__(config, name, convert(value, hint))
        except TypeError:
            raise UserError(f"{name} must be {describe(hint)}, got {value!r}.") from None


def check_intervals(config: Any, **intervals: str) -> None:
    """Checks that numbers lie where they must; NaN lies nowhere, infinity only in "[.., inf]".

    Args:
        config: What has the fields.
        **intervals: By the name of a field, its interval as mathematics writes it, e.g. "[0, 1)".

    Raises:
        UserError: A field lies outside of its interval.
    """
    for name, interval in intervals.items():
        value = getattr(config, name)
        low, high = interval[1:-1].split(", ")
        inside = value >= float(low) if interval[0] == "[" else value > float(low)
        inside &= value <= float(high) if interval[-1] == "]" else value < float(high)
        if not inside:
            place = {"[": "at least ", "(": "above "}[interval[0]] + low
            place = place if high == "inf" else f"in {interval}"
            raise UserError(f"{name} must be {place}, got {value!r}.")


def from_dict(cls: type, fields: Mapping[str, Any], where: str = "") -> Any:
    """Makes a dataclass, and those in it, from `dataclasses.asdict`'s dictionary or its JSON.

    Args:
        cls: The dataclass.
        fields: Its fields by name.
        where: What the names of the fields start with in an error message, e.g. "model.".

    Raises:
        UserError: A field is unknown, missing, or has an impossible value.
    """
    if not isinstance(fields, Mapping):
        raise UserError(
            f"{where.rstrip('.') or 'A config'} must hold named fields, got {fields!r}."
        )
    hints = _hints(cls)
    for name in fields:
        if name not in hints:
            raise UserError(f"Unknown field {where}{name}{did_you_mean(name, hints, where)}")
    values = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if field.name not in fields:
            if field.default is field.default_factory is dataclasses.MISSING:
                raise UserError(f"The field {where}{field.name} is missing.")
        elif dataclasses.is_dataclass(hint):
            values[field.name] = from_dict(hint, fields[field.name], f"{where}{field.name}.")
        else:
            value = fields[field.name]
            try:
                values[field.name] = convert(value, hint)
            except TypeError:
                raise UserError(
                    f"{where}{field.name} must be {describe(hint)}, got {value!r}."
                ) from None
    return cls(**values)


def leaves(cls: type, prefix: str = "") -> dict[str, Any]:
    """The dotted names of all fields of a dataclass and of those in it, with their types."""
    found = {}
    for name, hint in _hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found |= leaves(hint, f"{prefix}{name}.")
        else:
            found[prefix + name] = hint
    return found


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], ignored: Iterable[str] = ()
) -> list[str]:
    """What differs between two configs as dictionaries, in words, one dotted field each."""
    old, new = _flat(old), _flat(new)
    return [
        f"{name} was {old.get(name)!r} and is now {value!r}"
        for name, value in new.items()
        if name not in ignored and old.get(name) != value
    ]


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in fields.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        flat |= {prefix + name: value} if inner is None else inner
    return flat


def _hints(cls: type) -> dict[str, Any]:
    """The type of each field of a dataclass; what belongs to the class is no field."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown name: near names, or else all of them if they are few.

    A dotted name is near one whose last part is near, so that a field is found without its section.
    """
    known = list(known)
    last = {full: full.rpartition(".")[2] for full in known}
    near = difflib.get_close_matches(name.rpartition(".")[2], list(dict.fromkeys(last.values())))
    close = [full for full in known if last[full] in near]
    # Names that are near as a whole tell apart those that share their last part.
    whole = difflib.get_close_matches(name, known, n=3, cutoff=0.75)
    if names := [prefix + full for full in whole or close]:
        return f"; did you mean {' or '.join(names[:3])}?"
    if len(known) > 20:
        return "."
    return f"; known are {', '.join(prefix + full for full in known)}."
