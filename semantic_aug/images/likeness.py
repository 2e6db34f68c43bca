"""How much a picture differs from another."""

import numpy as np
from PIL import Image

COMPARED = 32  # side in pixels at which a variant is compared with its photo
BLOCK = 8  # side of a part of that, see `change_of`


def reduced(image: Image.Image) -> np.ndarray:
    """An image of any size as float32 [32, 32, 3] in [0, 255], each value the mean of its area."""
    size = (COMPARED, COMPARED)
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX), np.float32)


def change_of(photo: np.ndarray, variant: np.ndarray) -> float:
    """How much a variant differs from its photo, in [0, 255].

    The mean absolute difference within that sixteenth of the picture where it is largest, so that
    an edit of a small object counts, and the noise of encoding and decoding does not.

    Args:
        photo, variant: two results of `reduced`.
    """
    parts = np.abs(photo - variant).reshape(COMPARED // BLOCK, BLOCK, COMPARED // BLOCK, BLOCK, 3)
    return float(parts.mean(axis=(1, 3, 4)).max())
