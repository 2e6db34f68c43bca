"""PASCAL VOC 2012: everyday photos; the largest object of a photo gives its class."""

import functools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from semantic_aug import UserError
from semantic_aug.datasets.index import cached
from semantic_aug.datasets.layout import (
    check_root,
    complete_splits,
    images_by_stem,
    listed_images,
    read_indices,
    read_lines,
)
from semantic_aug.few_shot_dataset import FewShotDataset, Record

# In the order of the palette of SegmentationClass, from index 1.
CLASS_NAMES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa",
    "train", "tv monitor",
]  # fmt: skip
LISTS = "ImageSets/Segmentation"
LISTED = ("train", "val")
MASKS = ("SegmentationClass", "SegmentationObject")
BORDER = 255  # around every object; belongs to no object

log = logging.getLogger(__name__)


class PascalDataset(FewShotDataset):
    """The segmentation part of PASCAL VOC 2012 (VOCtrainval_11-May-2012.tar).

        ROOT/JPEGImages/*.jpg                              ROOT is VOCdevkit/VOC2012
        ROOT/SegmentationClass/*.png, SegmentationObject/*.png
        ROOT/ImageSets/Segmentation/{train,val}.txt

    The largest object has the most pixels in SegmentationObject, without its border; it is the
    mask. The labels of the published test split are secret, so half of val is `test`.

    Args:
        published_val: all of val is `val`, as in published results; `test` is then absent.
    """

    class_names = CLASS_NAMES
    env = "PASCAL_DIR"
    default_dir = "data/VOCdevkit/VOC2012"

    def __init__(self, *, published_val: bool = False, **kwargs):
        self.published_val = published_val
        super().__init__(**kwargs)

    def list_records(self, split: str) -> Iterable[Record]:
        check_root(self, "JPEGImages", *MASKS, *(f"{LISTS}/{each}.txt" for each in LISTED))
        if split == "train":
            return self._published("train")
        if self.published_val:
            if split == "test":
                raise UserError(
                    "published_val=true makes all of val the val split: no test is left"
                )
            return self._published("val")
        return complete_splits(self.data_dir, {"val": self._published("val")})[split]

    def _published(self, split: str) -> Iterator[Record]:
        images = images_by_stem(self.data_dir / "JPEGImages")
        masks = [images_by_stem(self.data_dir / name) for name in MASKS]
        names = self._listed(split, masks[1])
        path = self.data_dir / LISTS / f"{split}.txt"
        for what, files in (("images", images), ("masks", masks[0]), ("masks", masks[1])):
            names = listed_images(names, files, path, what)

        def build():
            largest = ((name, largest_object(*(each[name] for each in masks))) for name in names)
            return [(name, *found) for name, found in largest if found is not None]

        made_from = [path, *(self.data_dir / name for name in (*MASKS, "JPEGImages"))]
        for name, label, number in cached("pascal", made_from, build):
            mask = functools.partial(object_mask, masks[1][name], number)
            yield self.record(images[name], CLASS_NAMES[label], mask)

    def _listed(self, split: str, masks: dict[str, Path]) -> list[str]:
        """The names in the list of a split; a warning counts masks that are in neither list."""
        lists = {each: read_lines(self.data_dir / LISTS / f"{each}.txt") for each in LISTED}
        unlisted = set(masks).difference(*lists.values())
        if unlisted:
            log.warning(
                "%d of the %d photos with masks are neither in train.txt nor in val.txt of %s, "
                "such as %s: left out",
                len(unlisted),
                len(masks),
                self.data_dir / LISTS,
                min(unlisted),
            )
        return lists[split]


def largest_object(classes: Path, objects: Path) -> tuple[int, int] | None:
    """Label and number of the largest object by pixels, the first of equals; None without objects.

    Args:
        classes, objects: PNG files whose palette indices are classes from 1, and objects from 1.
    """
    numbers = read_indices(objects)
    counts = np.bincount(numbers.ravel(), minlength=256)
    counts[[0, BORDER]] = 0
    number = int(counts.argmax())
    if counts[number] == 0:
        return None
    labels = read_indices(classes)
    if labels.shape != numbers.shape:
        raise UserError(f"{classes} and {objects} have different sizes: unpack the archive again")
    label = int(np.bincount(labels[numbers == number], minlength=256).argmax()) - 1
    if not 0 <= label < len(CLASS_NAMES):
        raise UserError(f"{classes} has index {label + 1} on an object, expected 1 to 20")
    return label, number


def object_mask(objects: Path, number: int) -> np.ndarray:
    """[H, W] bool: the pixels with this number in a PNG file of objects."""
    return read_indices(objects) == number
