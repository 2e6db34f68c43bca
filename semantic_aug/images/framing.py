"""From photos of any shape, and their masks, to the model's square, and back.

`images.masks.binary_mask` thresholds masks; here they are resized with their photos.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Frame:
    """The place of a photo in the model's square.

    Attributes:
        source: (left, top, right, bottom) of the part of the photo that is edited, in its pixels.
        target: the box of the square that this part fills; the rest is mirrored from it.
        side: length of the square's sides in pixels.
    """

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]
    side: int


def size_within(size: tuple[int, int], longest: int | None) -> tuple[int, int]:
    """The (width, height) of a photo, reduced so that its longer side is at most `longest`."""
    if longest is None or max(size) <= longest:
        return size
    width, height = (max(1, round(length * longest / max(size))) for length in size)
    return width, height


def photo_within(image: Image.Image, longest: int | None) -> Image.Image:
    """A photo, reduced to its `size_within`."""
    size = size_within(image.size, longest)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def mask_within(mask: np.ndarray, longest: int | None) -> np.ndarray:
    """A mask, uint8 [H, W], reduced to the `size_within` of its photo."""
    height, width = mask.shape
    size = size_within((width, height), longest)
    if size == (width, height):
        return mask
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def frame_of(size: tuple[int, int], side: int, fit: str) -> Frame:
    """The frame of a photo of this (width, height).

    Args:
        size: width and height in pixels.
        side: length of the square's sides in pixels.
        fit: `pad` keeps the shape and mirrors the photo at its edges; `crop` keeps the shape and
            edits only the square in the middle; `squash` fills the square with the whole photo.
    """
    width, height = size
    if fit == "crop":
        short = min(size)
        left, top = (width - short) // 2, (height - short) // 2
        return Frame((left, top, left + short, top + short), (0, 0, side, side), side)
    if fit == "squash":
        return Frame((0, 0, width, height), (0, 0, side, side), side)
    scale = side / max(size)
    new = [max(1, round(length * scale)) for length in size]
    left, top = (side - new[0]) // 2, (side - new[1]) // 2
    return Frame((0, 0, width, height), (left, top, left + new[0], top + new[1]), side)


def to_square(image: Image.Image, frame: Frame) -> Image.Image:
    """The square of a photo: the resized part, with mirrored edges around it."""
    left, top, right, bottom = frame.target
    part = image.crop(frame.source).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    if part.size == (frame.side, frame.side):
        return part
    around = ((top, frame.side - bottom), (left, frame.side - right), (0, 0))
    return Image.fromarray(np.pad(np.asarray(part), around, mode="symmetric"))


def share_of_photo(frame: Frame, cells: int) -> np.ndarray:
    """For each cell of the square, the share that shows the photo, not its mirrored edges.

    Args:
        cells: number of cells along a side, a divisor of the frame's side.

    Returns:
        [cells, cells] in [0, 1].
    """
    left, top, right, bottom = frame.target
    inside = np.zeros((frame.side, frame.side), np.float32)
    inside[top:bottom, left:right] = 1
    width = frame.side // cells
    return inside.reshape(cells, width, cells, width).mean(axis=(1, 3))


def mask_to_square(mask: np.ndarray, frame: Frame) -> Image.Image:
    """A region, bool [H, W], as the square's mask (`L`, 0 or 255); mirrored parts are 0."""
    left, top, right, bottom = frame.target
    part = Image.fromarray(mask.astype(np.uint8) * 255).crop(frame.source)
    square = Image.new("L", (frame.side, frame.side), 0)
    square.paste(part.resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
    return square


def from_square(edited: Image.Image, photo: Image.Image, frame: Frame) -> Image.Image:
    """The photo, whose part in the frame is replaced by the edited square."""
    left, top, right, bottom = frame.source
    part = edited.crop(frame.target).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    if part.size == photo.size:
        return part
    whole = photo.copy()
    whole.paste(part, (left, top))
    return whole


def grow(region: np.ndarray, radius: float) -> np.ndarray:
    """A region, bool [H, W], grown by all pixels within `radius` pixels.

    A negative radius removes all pixels within this distance of the outside; the region may vanish.
    The photo's edges are not edges of the region.
    """
    from scipy import ndimage  # imported late: reading photos does not need it

    if radius < 0:
        return ~grow(~region, -radius)
    if radius == 0 or not region.any():
        return region
    return ndimage.distance_transform_edt(~region) <= radius


def blend(
    edited: Image.Image, photo: Image.Image, region: np.ndarray, feather: float
) -> Image.Image:
    """The edit within a region, the photo outside, and between them a seam of `feather` pixels.

    The edit's share falls linearly from 1 at the region's edge to 0 beyond `feather` pixels, where
    the photo's pixels are unchanged.

    Args:
        region: bool [H, W].
    """
    from scipy import ndimage  # imported late: reading photos does not need it

    if not region.any():
        return photo.copy()
    share = region.astype(np.float64)
    if feather > 0:
        distance = ndimage.distance_transform_edt(~region)
        share = np.where(distance <= feather, 1 - distance / (feather + 1), 0)
    shares = Image.fromarray(np.round(share * 255).astype(np.uint8))
    return Image.composite(edited, photo, shares)
