"""sha256 of the contents of photos and masks."""

import hashlib
import os
from collections.abc import Sequence

from PIL import Image

from semantic_aug import UserError
from semantic_aug.experiment.digests import file_digests
from semantic_aug.images.masks import binary_mask
from semantic_aug.images.reading import open_bytes, to_rgb


def photo_digests(paths: Sequence) -> list[str]:
    """sha256 of files and of objects that open like files: parts of archives, rows of tables."""
    files = [path for path in paths if isinstance(path, os.PathLike)]
    of_files, found = iter(file_digests(files)), []
    for path in paths:
        if isinstance(path, os.PathLike):
            found.append(next(of_files))
        else:
            with open_bytes(path) as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found


def pixel_digest(image: Image.Image) -> str:
    """sha256 of an image's size and RGB pixels."""
    rgb = to_rgb(image)
    return hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest()


def mask_digest(mask) -> str:
    """sha256 of a mask in memory or from a function; see `mask_digests`."""
    if mask is None:
        return ""
    try:
        mask = binary_mask(mask() if callable(mask) else mask)
    except (UserError, OSError, ValueError) as error:
        return f"unreadable: {error}"  # reported when the mask is read
    return hashlib.sha256(f"{mask.shape}".encode() + mask.tobytes()).hexdigest()
