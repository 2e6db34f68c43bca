"""Photos in memory, because they are read many times, as by `Elsewhere` in every fold."""

import functools
import hashlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.images.framing import mask_within, photo_within


class HeldPhotos(FewShotDataset):
    """The photos of a dataset and their masks, reduced to a longer side of at most `side` pixels.

    Each photo and each mask is decoded at its first use, and then kept.
    """

    def __init__(self, photos: FewShotDataset, side: int):
        super().__init__(split=photos.split)
        self.photos, self.side, self.bits = photos, side, photos.bits
        self.class_names, self.num_classes = photos.class_names, len(photos.class_names)
        self.get_image_by_idx = functools.cache(self._image)  # type: ignore[method-assign]
        self.get_mask_by_idx = functools.cache(self._mask)  # type: ignore[method-assign]

    def __len__(self) -> int:
        return len(self.photos)

    def get_label_by_idx(self, idx: int) -> int:
        return self.photos.get_label_by_idx(idx)

    def get_metadata_by_idx(self, idx: int) -> dict:
        return self.photos.get_metadata_by_idx(idx)

    def content_digests(self, indices: Iterable[int]) -> list[str]:
        """A digest of each reduced photo, 64 hex digits each."""
        contents = self.photos.content_digests(indices)
        return [hashlib.sha256(f"{each} {self.side}".encode()).hexdigest() for each in contents]

    def mask_digests(self, indices: Iterable[int]) -> list[str]:
        return self.photos.mask_digests(indices)

    def _image(self, idx: int) -> Image.Image:
        return photo_within(self.photos.get_image_by_idx(idx), self.side)

    def _mask(self, idx: int) -> np.ndarray:
        return mask_within(self.photos.get_mask_by_idx(idx), self.side)
