"""The augmentations, by name. A new augmentation needs a file, and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semantic_aug.registry import find_class, name_of

if TYPE_CHECKING:  # the names of augmentations must not load torch
    from semantic_aug.generative_augmentation import GenerativeAugmentation

AUGMENTATIONS = {
    "real-guidance": "semantic_aug.augmentations.real_guidance:RealGuidance",
    "textual-inversion": "semantic_aug.augmentations.textual_inversion:TextualInversion",
    "background": "semantic_aug.augmentations.background:Background",
    "paste": "semantic_aug.augmentations.paste:Paste",
}


def augmentation_name(given: object) -> str:
    """The name of an augmentation that is given as a name, a class or an object."""
    from semantic_aug.generative_augmentation import GenerativeAugmentation

    return name_of("--aug", given, AUGMENTATIONS, GenerativeAugmentation)


def augmentation_class(name: str) -> type[GenerativeAugmentation]:
    """The class of a registered name or of `package.module:ClassName`."""
    from semantic_aug.generative_augmentation import GenerativeAugmentation

    return find_class("--aug", name, AUGMENTATIONS, GenerativeAugmentation)
