"""Masks for photos without masks: a model finds the object, and rules clean and judge its mask.

Each kind of `--masker` has its own module: `named`, `salient`, and `segmenting` for a model's name.
"""

from __future__ import annotations

import typing

from semantic_aug.settings.masking import NAMED, SALIENT, Masking

if typing.TYPE_CHECKING:
    from semantic_aug.masking.masker import Masker


def make_masker(settings: Masking) -> Masker:
    """The masker of these settings; its models are not loaded yet.

    Raises:
        UserError: a model does not exist or is of an unsupported kind, or a package is missing.
    """
    if settings.masker == NAMED:
        from semantic_aug.masking.named import make
    elif settings.masker == SALIENT:
        from semantic_aug.masking.salient import make
    else:
        from semantic_aug.masking.segmenting import make
    return make(settings)
