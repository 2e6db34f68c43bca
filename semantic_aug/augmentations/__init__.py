"""The augmentations, by name. A new one is one file and one line here."""

from semantic_aug.generative_augmentation import GenerativeAugmentation
from semantic_aug.registry import find_class

AUGMENTATIONS = {
    "real-guidance": "semantic_aug.augmentations.real_guidance:RealGuidance",
    "textual-inversion": "semantic_aug.augmentations.textual_inversion:TextualInversion",
}


def augmentation_class(name: str) -> type[GenerativeAugmentation]:
    """The class behind a registered name or `package.module:ClassName`."""
    return find_class("--aug", name, AUGMENTATIONS, GenerativeAugmentation)
