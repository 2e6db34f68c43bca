"""Classes by registered name or by `package.module:ClassName`."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path

from semantic_aug import UserError


def name_of(flag: str, given: object, registry: Mapping[str, str], base: type) -> str:
    """The name by which `find_class` finds a given name, class or object.

    Raises:
        UserError: `given` is none of these, or its class is defined in a function.
    """
    if isinstance(given, str):
        return given
    cls = given if isinstance(given, type) else type(given)
    if not issubclass(cls, base):
        raise UserError(f"{flag}: got {given!r}, expected a name or a {base.__name__}")
    path = f"{cls.__module__}:{cls.__qualname__}"
    if "<locals>" in path:
        raise UserError(f"{flag}: {path} is defined in a function: move it to its module")
    return next((name for name, known in registry.items() if known == path), path)


def find_class(flag: str, name: str, registry: Mapping[str, str], base: type) -> type:
    """The class of this name.

    Args:
        flag: the flag that gave the name, for messages.
        registry: registered names and their `package.module:ClassName`.
        base: the class from which it must inherit.

    Raises:
        UserError: there is no such name, module or class, or the class is no `base`.
    """
    path = registry.get(name, name)
    module_name, colon, class_name = path.partition(":")
    if not colon or not module_name or not class_name:
        known = ", ".join(registry)
        raise UserError(f"{flag}: got {name!r}, expected {known}, or package.module:ClassName")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's module lies in the current folder
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way
        reason = (
            str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        )
        raise UserError(f"{flag}: cannot import {module_name!r}: {reason}") from error
    found = getattr(module, class_name, None)
    if found is None:
        raise UserError(f"{flag}: {module_name} has no class {class_name}")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{flag}: {path} is not a {base.__name__}")
    return found
