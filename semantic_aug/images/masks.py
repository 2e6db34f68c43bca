"""Masks: the pixels of a photo that show the object."""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from semantic_aug import UserError, counted
from semantic_aug.images.reading import (
    image_names_in,
    open_image,
    orientation_of,
    readable_suffixes,
    upright,
)

MADE_BY = ".made"  # in a folder of masks: the records that `semantic-aug masks` keeps
CROP_MARGIN = 16  # pixels around the object, for crop_to_object
NAMED = 5  # photos in a warning, at most

log = logging.getLogger(__name__)


def read_mask(path: str | Path) -> np.ndarray:
    """A mask file as [H, W] uint8: 255 where any colour channel (or palette index) is nonzero."""
    with open_image(path, "mask") as image:
        image.load()
        return binary_mask(upright(image, orientation_of(image)))


def binary_mask(mask: np.ndarray | Image.Image) -> np.ndarray:
    """[H, W] uint8, 255 where `mask` ([H, W] or [H, W, C]) is nonzero.

    All masks are thresholded here. In a PIL image, colours and palette indices count, but not
    transparency.
    """
    if isinstance(mask, Image.Image) and mask.mode in ("LA", "RGBA", "CMYK", "YCbCr", "PA"):
        mask = mask.convert("RGB")
    inside: Any = np.asarray(mask) != 0
    if inside.ndim == 3:
        inside = inside.any(axis=-1)
    return inside.astype(np.uint8) * 255


def names_of_masks(folder: Path, suffixes: Collection[str] | None = None) -> Callable:
    """A function from a photo's file name to its mask's path in `folder`, or None.

    photo.jpg may have photo.jpg, photo.png or photo.jpg.png.
    """
    names = image_names_in(folder, suffixes or readable_suffixes()) if folder.is_dir() else []
    known = {Path(name).stem: name for name in reversed(names)} | {name: name for name in names}

    def mask_of(photo: str) -> Path | None:
        name = known.get(photo, known.get(PurePosixPath(photo).stem))
        return None if name is None else folder / name

    return mask_of


def masks_in(root: Path, sources: Iterable[str]) -> dict[str, Path]:
    """The masks below `root` of some photos, by source: at the same relative paths."""
    folders: dict[str, Callable] = {}
    found = {}
    for source in sources:
        folder, _, name = source.rpartition("/")
        if folder not in folders:
            folders[folder] = names_of_masks(root / folder)
        if (mask := folders[folder](name)) is not None:
            found[source] = mask
    return found


def masks_of(root: str | Path, sources: Sequence[str], split: str) -> dict[str, Path]:
    """The masks that `--mask_dir` gives the photos of a split, by source.

    Raises:
        UserError: the folder is missing, or has no mask for any photo of `train`.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"--mask_dir: {folder} is no folder; semantic-aug masks --mask_dir {folder} makes it"
        )
    found = masks_in(folder, sources)
    if not found:
        place = folder / PurePosixPath(sources[0]).with_suffix(".png")
        message = (
            f"--mask_dir: {folder} has no mask for any of {counted(len(sources), 'photo')} of "
            f"split {split!r}; expected masks at the relative paths of photos, such as {place}"
        )
        if split == "train":
            raise UserError(message)
        log.warning("%s", message)
    return found


def say_empty(sources: Sequence[str], number: int) -> None:
    """Log a warning that names the photos to be cropped whose masks are empty."""
    if sources:
        named = ", ".join(sources[:NAMED]) + ", ..." * (len(sources) > NAMED)
        log.warning(
            "%d of %s with an empty mask (%s): the square in the middle is taken, as in training",
            len(sources), counted(number, "photo"), named,
        )  # fmt: skip


def object_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The square around an object, as left, top, right, bottom in pixels.

    The mask's bounding box grows by 16 px on each side, becomes a square about its middle, and is
    shifted into the photo; its side is at most the photo's shorter side. An empty mask gives the
    largest square in the middle.

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
