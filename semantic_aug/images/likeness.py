"""The difference between two pictures."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

COMPARED = 32  # side in pixels at which a variant is compared with its photo
BLOCK = 8  # side in pixels of a part of the reduced picture, see `change_of`


def reduced(image: Image.Image) -> np.ndarray:
    """An image of any size as float32 [32, 32, 3] in [0, 255], each value the mean of its area."""
    size = (COMPARED, COMPARED)
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX), np.float32)


def change_of(photo: np.ndarray, variant: np.ndarray) -> float:
    """The difference between a variant and its photo, in [0, 255].

    It is the mean absolute difference within the sixteenth of the picture where it is largest. So
    an edit of a small object counts, and the noise of encoding and decoding does not.

    Args:
        photo, variant: two results of `reduced`.
    """
    parts = np.abs(photo - variant).reshape(COMPARED // BLOCK, BLOCK, COMPARED // BLOCK, BLOCK, 3)
    return float(parts.mean(axis=(1, 3, 4)).max())


def similar_pairs(pictures: Sequence[np.ndarray], limit: float) -> list[tuple[int, int]]:
    """The pairs of pictures whose `change_of` is below `limit`, in [0, 255].

    Args:
        pictures: results of `reduced`.
    """
    if not pictures:
        return []
    every, blocks = np.stack(pictures), COMPARED // BLOCK
    found = []
    for one in range(len(every) - 1):
        parts = np.abs(every[one + 1 :] - every[one])
        parts = parts.reshape(-1, blocks, BLOCK, blocks, BLOCK, 3).mean(axis=(2, 4, 5))
        near = np.flatnonzero(parts.max(axis=(1, 2)) < limit)
        found += [(one, one + 1 + int(other)) for other in near]
    return found
