"""How a setting is declared: once, as a field of a frozen dataclass.

    @settings("learned words")
    class Words:
        num_vectors: int = setting(1, "vectors per word", check=whole(1), result=True)

Flags (`add_flags`), keyword arguments (`build`), the compared part of `config.json` (`compared`)
and docs/reference.md all follow from this line. Nothing here imports a model.
"""

import argparse
import dataclasses
import difflib
import functools
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from semantic_aug import UserError


class Check(typing.NamedTuple):
    """What a value must fulfil, and the words for it in a message."""

    is_good: Callable[[Any], bool]
    expected: str


def whole(least: int, most: int = 10**9) -> tuple[Check, ...]:
    """Whole numbers in [least, most]."""
    return (
        Check(lambda value: value >= least, f"a whole number from {least}"),
        Check(lambda value: value <= most, f"{most} at most"),
    )


FINITE = (Check(math.isfinite, "a finite number"),)
NON_NEGATIVE = (Check(lambda value: 0 <= value < math.inf, "a number from 0"),)
POSITIVE = (Check(lambda value: 0 < value < math.inf, "a number above 0"),)
FRACTION = (Check(lambda value: 0 <= value <= 1, "a number in [0, 1]"),)
FRACTION_BELOW_1 = (Check(lambda value: 0 <= value < 1, "a number in [0, 1)"),)
FRACTION_ABOVE_0 = (Check(lambda value: 0 < value <= 1, "a number in (0, 1]"),)

_WHAT = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    check: tuple[Check, ...] = (),
    choices: Iterable | None = None,
    flags: tuple[str, ...] = (),
    metavar: str | None = None,
    result: bool | str = False,
    of: str | None = None,
    named: Mapping[str, Any] | None = None,
    bare: Any = None,
    shorthand: Mapping[str, Any] | None = None,
    repeated: bool = False,
    early: bool = False,
    newer: bool = False,
    takes_objects: bool = False,
    one_alone: bool = False,
    positional: bool = False,
    rare: bool = False,
) -> Any:
    """A field of a class of settings.

    Args:
        default: the value where none is given; a setting without a default must be given.
        help: the meaning, with its unit. `--help` leaves out what follows the first semicolon,
            except for a final `(default ...)`.
        check: what a value must fulfil; applies to each of several values.
        choices: the permitted values.
        flags: the flags, if their names differ from the field's; the first is the published one.
        result: True if the setting changes a result. A text is the fact of `config.json` that
            stands for the setting.
        of: the other setting that this setting needs.
        named: values that have a name.
        bare: the value of a flag without a value.
        shorthand: further flags, each with the value that it stands for.
        repeated: giving the flag again adds values.
        early: `config.json` lists the setting before the dataset.
        newer: older experiments lack the setting: `config.json` lists it only where its value is
            not the default.
        takes_objects: Python may give an object instead of a name.
        one_alone: a single value is written without a list, as before several were permitted.
        positional: Python may give the value without its name.
        rare: `--help` leaves the setting out; `--help_all` shows it.
    """
    keys = ("help", "check", "choices", "flags", "metavar", "result", "of", "named", "bare",
            "shorthand", "repeated", "early", "newer", "takes_objects", "one_alone",
            "rare")  # fmt: skip
    given = locals()
    metadata = {key: given[key] for key in keys}
    return dataclasses.field(default=default, kw_only=not positional, metadata=metadata)


@typing.dataclass_transform(frozen_default=True)
def settings(title: str = "", about: str | None = None, late: bool = False):
    """Make a frozen dataclass of settings, which checks its values when it is made.

    Args:
        title, about: the heading of the flags in `--help`.
        late: the flags stand at the end of `--help`.
    """

    def decorate(cls):
        cls.__post_init__ = _check_values
        cls.group = (late, title, about)
        return dataclasses.dataclass(frozen=True)(cls)

    return decorate


def _check_values(self) -> None:
    for name, field in fields_of(type(self)).items():
        object.__setattr__(self, name, _checked(name, field, getattr(self, name)))


def fields_of(cls: Any) -> dict[str, dataclasses.Field]:
    """The settings of a class by name, in the order of their declarations."""
    return {field.name: field for field in dataclasses.fields(cls) if "help" in field.metadata}


def kind_of(field: dataclasses.Field) -> tuple[Any, bool, bool]:
    """The type of a setting's values, whether it has several, and whether it may be None."""
    kinds: list[Any] = [field.type]
    if isinstance(field.type, types.UnionType):
        kinds = [kind for kind in typing.get_args(field.type) if kind is not types.NoneType]
    several = typing.get_origin(kinds[0]) is tuple
    kind = typing.get_args(kinds[0])[0] if several else kinds[0]
    kind = str if kind is Any else kind  # an object may stand for a name
    return kind, several, kinds != [field.type] or field.default is None


def _checked(name: str, field: dataclasses.Field, value: Any) -> Any:
    """`value` in the field's type; several values become a tuple. UserError if it does not fit."""
    kind, several, optional = kind_of(field)
    if value is None and optional:
        return None
    if not several:
        return _one(name, field, kind, value)
    if isinstance(value, Mapping):
        value = [
            f"{key}={str(v).lower() if isinstance(v, bool) else v}" for key, v in value.items()
        ]
    elif isinstance(value, str | bytes) or not isinstance(value, Iterable):
        value = [value]
    found = tuple(_one(name, field, kind, each) for each in value)
    if not found and field.default != ():
        raise UserError(f"{name}: got nothing, expected at least one value")
    return found


def _one(name: str, field: dataclasses.Field, kind: type, value: Any) -> Any:
    of, got = field.metadata, value
    if of["takes_objects"] and not isinstance(value, str | None):
        return value
    if of["named"] and isinstance(value, str) and value in of["named"]:
        return of["named"][value]
    if isinstance(value, os.PathLike) and kind is str:
        value = os.fspath(value)
    if hasattr(value, "item") and not isinstance(value, str):  # a number of numpy or torch
        value = value.item()
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is int and isinstance(value, bool) and set(of["choices"] or ()) == {0, 1}:
        value = int(value)
    if type(value) is not kind:
        expected = of["check"][0].expected if of["check"] else _WHAT[kind]
        raise UserError(f"{name}: got {got!r}, expected {expected}")
    if of["choices"] and value not in of["choices"]:
        raise UserError(f"{name}: got {got!r}, expected {', '.join(map(str, of['choices']))}")
    if value == "" and "prompt" not in name:
        raise UserError(f"{name} is empty: give a value, or leave it out")
    for check in of["check"]:
        if not check.is_good(value):
            raise UserError(f"{name}: got {got!r}, expected {check.expected}")
    return value


# --- from values -----------------------------------------------------------------------------


def build(cls: Any, values: Mapping[str, Any]):
    """An instance of a class of settings from keyword arguments.

    Raises:
        UserError: a name is unknown (the message suggests the nearest); a value is wrong.
    """
    return build_all(values, cls)[0]


def build_all(values: Mapping[str, Any], *classes: Any) -> list:
    """Instances of several classes, each from its own part of the keyword arguments.

    Raises:
        UserError: as `build`; a setting lacks the other setting that it needs.
    """
    spelled = {
        flag.lstrip("-"): name
        for cls in classes
        for name, field in fields_of(cls).items()
        for flag in (name, *field.metadata["flags"])
    }
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in spelled:
            near = difflib.get_close_matches(key, spelled, 1)
            hint = f"is {near[0]} meant?" if near else f"there are: {', '.join(spelled)}"
            raise UserError(f"there is no setting {key!r}; {hint}")
        if spelled[key] in given and given[spelled[key]] != value:
            raise UserError(f"{key}: got {value!r}, and {given[spelled[key]]!r} under another name")
        given[spelled[key]] = value
    made = []
    for cls in classes:
        own = fields_of(cls)
        missing = [n for n, f in own.items() if f.default is dataclasses.MISSING and n not in given]
        if missing:
            raise UserError(f"--{missing[0]} is missing")
        made.append(cls(**{name: value for name, value in given.items() if name in own}))
        for name, field in own.items():
            of = field.metadata["of"]
            is_default = getattr(made[-1], name) == field.default
            if of and not is_default and getattr(made[-1], of) is None:
                raise UserError(f"--{name} means nothing without --{of}: give both, or neither")
    return made


def compared(facts: Mapping[str, Any], *given) -> dict:
    """What `config.json` compares: the facts, and every setting that changes a result.

    Args:
        facts: further values, such as digests of photos and weights, in their order in the file.
            Some stand for settings (`result="edits"`).
        given: instances of classes of settings. A setting that the facts do not name follows them,
            unless it has its default: folders older than the setting imply the default.
    """
    found = dict(facts)
    for each in given:
        for name, field in fields_of(type(each)).items():
            value, result = getattr(each, name), field.metadata["result"]
            if result is True and name not in facts and value != field.default:
                found[name] = written(each, name)
    return found


def written(given, name: str) -> Any:
    """A setting's value for config.json and for commands to paste; several values are a list."""
    value = getattr(given, name)
    if not isinstance(value, tuple):
        return value
    alone = fields_of(type(given))[name].metadata["one_alone"] and len(value) == 1
    return value[0] if alone else list(value)


# --- flags -----------------------------------------------------------------------------------


def add_flags(
    parser: argparse.ArgumentParser, *classes: Any, only: Iterable[str] | None = None
) -> None:
    """Add the flags of all settings, or of the settings in `only`: a group for each title."""
    owners: dict[Any, None] = {}
    for cls in classes:
        owners |= dict.fromkeys(each for each in reversed(cls.__mro__) if hasattr(each, "group"))
    groups: dict[str | None, Any] = {each.title: each for each in parser._action_groups}
    for owner in sorted(owners, key=lambda each: each.group[0]):
        _, title, about = owner.group
        if title not in groups:
            groups[title] = parser.add_argument_group(title, about) if title else parser
        own = inspect.get_annotations(owner).keys() & (only or fields_of(owner))
        for name, field in fields_of(owner).items():
            if name in own:
                _add_flag(groups[title], name, field)


def _add_flag(group, name: str, field: dataclasses.Field) -> None:
    (kind, several, _), of = kind_of(field), field.metadata
    names = of["flags"] or (f"--{name}",)
    options: dict[str, Any] = {"dest": name, "help": of["help"]}
    if field.default is dataclasses.MISSING:
        options["required"] = True
    else:
        options["default"] = field.default
    if kind is bool:
        group.add_argument(*names, action="store_true", **options).rare = of["rare"]
        return
    if of["repeated"]:
        options |= {"action": "extend", "default": list(options["default"])}  # argparse adds to it
    if several:
        options["nargs"] = "+"
    if of["bare"] is not None:
        options |= {"nargs": "?", "const": of["bare"]}
    if of["choices"]:
        options["choices"] = tuple(of["choices"])
    if kind is not str or of["check"]:
        options["type"] = functools.partial(_from_text, kind, of)
    short = {int: "N", float: "X"}.get(kind, name.rpartition("_")[2].upper())
    metavar = of["metavar"] or ("|".join(map(str, of["choices"])) if of["choices"] else short)
    group.add_argument(*names, metavar=metavar, **options).rare = of["rare"]
    for flag, value in (of["shorthand"] or {}).items():
        said = f"the same as {names[0]} {' '.join(value) if several else value}"
        options = {"dest": name, "default": field.default, "help": said}
        group.add_argument(flag, action="store_const", const=value, **options).rare = True


def _from_text(kind: type, of: Mapping, text: str) -> Any:
    """An argparse type: the value of a text."""
    if of["named"] and text in of["named"]:
        return of["named"][text]
    try:
        value = kind(text)
    except ValueError:
        value = None
    failed = [check for check in of["check"] if value is None or not check.is_good(value)]
    if failed or value is None:
        expected = failed[0].expected if failed else _WHAT[kind]
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value
