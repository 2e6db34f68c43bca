"""The augmentations, by name. A new one is one file and one line here."""

import importlib
import sys
from pathlib import Path

from semantic_aug import UserError
from semantic_aug.generative_augmentation import GenerativeAugmentation

AUGMENTATIONS = {
    "real-guidance": "semantic_aug.augmentations.real_guidance:RealGuidance",
    "textual-inversion": "semantic_aug.augmentations.textual_inversion:TextualInversion",
}


def augmentation_class(name: str) -> type[GenerativeAugmentation]:
    """The class behind a registered name or `package.module:ClassName`."""
    module_name, colon, class_name = AUGMENTATIONS.get(name, name).partition(":")
    if not colon:
        known = ", ".join(AUGMENTATIONS)
        raise UserError(f"--aug: got {name!r}, expected {known}, or package.module:ClassName")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's module lies where the command is typed
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # a user's module may fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"--aug: cannot import {name!r}: {reason}") from error
    if not (isinstance(found, type) and issubclass(found, GenerativeAugmentation)):
        raise UserError(f"--aug: {name} is not a GenerativeAugmentation")
    return found
