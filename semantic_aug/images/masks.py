"""Masks: which pixels of a photo show the object."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semantic_aug.images.reading import open_image, orientation_of, upright

CROP_MARGIN = 16  # pixels around the object, for crop_to_object


def read_mask(path: str | Path) -> np.ndarray:
    """A mask file as [H, W] uint8: 255 where any colour channel (or palette index) is nonzero."""
    with open_image(path, "mask") as image:
        image.load()
        return binary_mask(upright(image, orientation_of(image)))


def binary_mask(mask: np.ndarray | Image.Image) -> np.ndarray:
    """[H, W] uint8, 255 where `mask` ([H, W] or [H, W, C]) is nonzero. The one threshold.

    Of a PIL image, colours and palette indices count, transparency does not.
    """
    if isinstance(mask, Image.Image) and mask.mode in ("LA", "RGBA", "CMYK", "YCbCr", "PA"):
        mask = mask.convert("RGB")
    inside: Any = np.asarray(mask) != 0
    if inside.ndim == 3:
        inside = inside.any(axis=-1)
    return inside.astype(np.uint8) * 255


def object_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The square around an object, as left, top, right, bottom in pixels.

    The mask's bounding box is grown by 16 px on each side, made a square about its middle and
    shifted to lie inside the photo; its side is at most the photo's shorter one. An empty mask
    gives the largest square in the middle.

    Args:
        mask: [H, W], nonzero on the object.
    """
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        top, bottom, left, right = 0, height, 0, width
    else:
        top, bottom = int(rows[0]) - CROP_MARGIN, int(rows[-1]) + 1 + CROP_MARGIN
        left, right = int(columns[0]) - CROP_MARGIN, int(columns[-1]) + 1 + CROP_MARGIN
    side = min(max(bottom - top, right - left), height, width)
    x = min(max((left + right - side) // 2, 0), width - side)
    y = min(max((top + bottom - side) // 2, 0), height - side)
    return x, y, x + side, y + side
