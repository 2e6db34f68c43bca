"""Shared by `background` and `paste`: the settings of layouts, and their needs of photos."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from semantic_aug import UserError, counted
from semantic_aug.images.layout import Layouts, can_fit, check_layouts

LAYOUT_SETTINGS = (
    "layout_scale",
    "layout_rotate",
    "layout_shift",
    "layout_mirror",
    "layout_colour",
)
LAYOUT_DETAILS = ("scale", "angle", "shift", "mirror", "colour")


def layouts_of(options: Mapping[str, Any]) -> Layouts:
    """The range of layouts of an augmentation's settings; all off by default.

    Raises:
        UserError: a value is impossible.
    """
    scale = options.get("layout_scale") or (1.0, 1.0)
    if len(scale) != 2:
        raise UserError(f"--layout_scale: got {len(scale)} numbers, expected the smallest and the "
                        "largest factor, such as 0.6 1.1")  # fmt: skip
    found = Layouts(
        scale=(float(scale[0]), float(scale[1])),
        rotate=options.get("layout_rotate") or 0.0,
        shift=options.get("layout_shift") or 0.0,
        mirror=bool(options.get("layout_mirror")),
        colour=options.get("layout_colour") or 0.0,
    )
    check_layouts(found)
    return found


def check_fit(options: Mapping[str, Any], masks: Iterable[tuple[str, np.ndarray]]) -> None:
    """Raise UserError if a photo's object has no room in any layout."""
    layouts = layouts_of(options)
    if layouts == Layouts():
        return
    fits = {source: can_fit(layouts, mask) for source, mask in masks}
    without_room = [source for source in fits if not fits[source]]
    if without_room:
        raise UserError(
            f"--layout_scale: at {layouts.scale[0]:g} times its size, the object does not fit into "
            f"its photo in {len(without_room)} of {counted(len(fits), 'photo')}, such as "
            f"{without_room[0]}; choose a smaller factor"
        )
