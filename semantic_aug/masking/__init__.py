"""Masks for photos that have none: a model finds the object, rules clean and judge its mask.

The ways to find it, by what `--masker` says, are a file each.
"""

from __future__ import annotations

import typing

from semantic_aug.settings.masking import NAMED, SALIENT, Masking

if typing.TYPE_CHECKING:
    from semantic_aug.masking.masker import Masker


def make_masker(settings: Masking) -> Masker:
    """The masker that the settings mean; of models only configurations and tokenizers are read.

    Raises:
        UserError: there is no such model, it is none of the kinds that can be used, or a package is
            missing.
    """
    if settings.masker == NAMED:
        from semantic_aug.masking.named import make
    elif settings.masker == SALIENT:
        from semantic_aug.masking.salient import make
    else:
        from semantic_aug.masking.segmenting import make
    return make(settings)
