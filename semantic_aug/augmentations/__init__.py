"""The augmentations, by name. A new one is one file and one line here."""

import importlib

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
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--aug: cannot import {name!r}: {error}") from error
    if not issubclass(found, GenerativeAugmentation):
        raise UserError(f"--aug: {name} is not a GenerativeAugmentation")
    return found
