"""The names of settings, as flags and as keys of config.json."""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from semantic_aug.settings import fields_of
from semantic_aug.settings.classification import Classification
from semantic_aug.settings.common import Run
from semantic_aug.settings.fine_tuning import FineTuning
from semantic_aug.settings.generation import Generation


@functools.cache
def flags() -> dict[str, str]:
    """The flag of each setting, by the setting's name and by its fact in config.json."""
    named: dict[str, str] = {}
    facts: dict[str, str] = {}
    for cls in (Run, FineTuning, Generation, Classification):
        for name, field in fields_of(cls).items():
            named[name] = (field.metadata["flags"] or (f"--{name}",))[0]
            facts.setdefault(str(field.metadata["result"]), named[name])
    return facts | named


def differences(before: Mapping, now: Mapping) -> list[str]:
    """The differences between settings in config.json, by flag, with both values."""
    return [
        f"{flags().get(name, name)}: there {text_of(there)}, now {text_of(here)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        for name, there, here in _columns(key, before.get(key), now.get(key))
    ]


def _columns(key: str, there: Any, here: Any) -> Iterator[tuple[str, Any, Any]]:
    """A setting with both values; for edits, their differing settings."""
    lists = [value for value in (there, here) if isinstance(value, list)]
    if key != "edits" or len(lists) < 2 or not all(isinstance(e, dict) for v in lists for e in v):
        yield key, there, here
        return
    for name in sorted({name for edits in lists for edit in edits for name in edit}):
        old, new = ([edit.get(name) for edit in edits] for edits in lists)
        if old != new:
            pairs = [_apart(*pair) for pair in zip_longest(old, new)]
            yield name, [one for one, _ in pairs][: len(old)], [two for _, two in pairs][: len(new)]


def _apart(one: Any, other: Any) -> tuple[Any, Any]:
    """Two values; if they are mappings, without their common entries."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return one, other
    keys = [key for key in one | other if one.get(key) != other.get(key)]
    pairs = {key: _apart(one.get(key), other.get(key)) for key in keys}
    return {key: pair[0] for key, pair in pairs.items()}, {
        key: pair[1] for key, pair in pairs.items()
    }


def text_of(value: Any) -> str:
    """A value in the form of its flag."""
    if value is None or value in ([], (), ""):
        return "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(text_of, value))
    return value if isinstance(value, str) else json.dumps(value)
