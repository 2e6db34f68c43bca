"""COCO 2017: everyday photos; the class of a photo is that of its largest object."""

import contextlib
import functools
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pycocotools.mask
from pycocotools.coco import COCO

from semantic_aug import UserError, stable_hash
from semantic_aug.few_shot_dataset import FewShotDataset, Record

# In the order of COCO's category ids, which have gaps: 1 to 90.
CLASS_NAMES = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
]  # fmt: skip

log = logging.getLogger(__name__)


class COCODataset(FewShotDataset):
    """COCO 2017 as it is published, or any excerpt of it.

        ROOT/annotations/instances_{train,val}2017.json
        ROOT/{train,val}2017/*.jpg

    Photos without annotations have no class and are left out. `train` is train2017. val2017 is
    halved by a hash of the image ids into `val` and `test`, so that nothing is selected on the
    photos that are reported.

    Args:
        published_val: all of val2017 is `val`, as in published results; there is no `test` then.
    """

    class_names = CLASS_NAMES
    num_classes = len(CLASS_NAMES)
    env = "COCO_DIR"
    default_dir = "data/coco2017"

    def __init__(self, *, published_val: bool = False, **kwargs):
        self.published_val = published_val
        super().__init__(**kwargs)

    def list_records(self, split: str) -> Iterator[Record]:
        if split == "test" and self.published_val:
            raise UserError(
                "published_val=true makes all of val2017 the val split: no test is left"
            )
        folder = self.data_dir / ("train2017" if split == "train" else "val2017")
        annotations = self.data_dir / "annotations" / f"instances_{folder.name}.json"
        for needed in (annotations.parent, annotations, folder):
            if not needed.exists():
                raise UserError(
                    f"{needed} is missing: a COCO root holds {folder.name}/ and annotations/"
                    f"{annotations.name} (https://cocodataset.org/#download); "
                    "pass it as --data_dir or set COCO_DIR"
                )
        photos = read_photos(annotations.resolve(), annotations.stat().st_mtime_ns)
        on_disk = {path.name for path in folder.iterdir()}  # a look at every single file is slow
        absent = sum(photo.file_name not in on_disk for photo in photos)
        if absent:
            log.warning(
                "%d of the %d annotated photos in %s are not in %s: left out",
                absent,
                len(photos),
                annotations,
                folder,
            )
        for photo in photos:
            if photo.file_name not in on_disk:
                continue
            if split != "train" and not self.published_val and val_or_test(photo.id) != split:
                continue
            mask = None
            if photo.segmentation:  # not a closure, so that records can be pickled
                mask = functools.partial(
                    decode_segmentation,
                    photo.segmentation,
                    photo.height,
                    photo.width,
                    photo.file_name,
                )
            yield self.record(folder / photo.file_name, photo.class_name, mask)


def val_or_test(image_id: int) -> str:
    """The half of val2017 in which an image lies."""
    return "test" if stable_hash(image_id) & 1 else "val"


class Photo(NamedTuple):
    """An image of an annotation file, reduced to its largest annotation."""

    id: int
    file_name: str
    height: int
    width: int
    class_name: str
    segmentation: list | dict | None


@functools.lru_cache(maxsize=2)
def read_photos(path: Path, mtime_ns: int) -> list[Photo]:
    """The annotated images of a COCO annotation file, by image id.

    The largest annotation is the one with the largest `area` (none counts as 0), crowds included;
    of equals it is the one with the lowest id.

    Args:
        path: an `instances_*.json`. All of train2017 takes some twenty seconds, and every trial
            asks for it again: the result is kept.
        mtime_ns: when the file was written, so that the result of another file is not taken.

    Raises:
        UserError: the file is no readable COCO annotation file, or has other categories.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            coco = COCO(str(path))
        missing = {"images", "annotations", "categories"} - coco.dataset.keys()
        if missing:
            raise KeyError(*sorted(missing))
        names = {number: category["name"] for number, category in coco.cats.items()}
        unknown = sorted(set(names.values()) - set(CLASS_NAMES))
        if unknown:
            raise UserError(
                f"{path} has {len(unknown)} categories that COCO 2017 has not, such as "
                f"{unknown[0]!r}: for classes of your own use --dataset=folder"
            )
        photos = []
        for number, image in sorted(coco.imgs.items()):
            annotations = coco.imgToAnns.get(number)
            if annotations:
                largest = min(annotations, key=lambda each: (-(each.get("area") or 0), each["id"]))
                name = names[largest["category_id"]]
                size = image["height"], image["width"]
                photos.append(
                    Photo(number, image["file_name"], *size, name, largest.get("segmentation"))
                )
        return photos
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is no readable JSON ({error}): is it complete? Unpack or download it again"
        ) from error
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(
            f"{path} is no COCO annotation file ({type(error).__name__}: {error}): expected "
            "the keys images, annotations and categories of an instances_*2017.json"
        ) from error


def decode_segmentation(
    segmentation: list | dict, height: int, width: int, name: str = "a photo"
) -> np.ndarray:
    """The [height, width] uint8 mask, 0 or 1, of polygons or of a run-length encoding.

    Args:
        segmentation: polygons, each as x, y, x, y ...; or `{"size", "counts"}` with the counts as
            numbers or compressed to a string.
        name: of the photo, for the message.

    Raises:
        UserError: it is malformed.
    """
    try:
        if isinstance(segmentation, list):
            # Two points enclose nothing, and pycocotools would take them for a box.
            polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
            if not polygons:
                return np.zeros((height, width), np.uint8)
            if not np.all(np.abs(np.concatenate(polygons).astype(float)) < 1e5):
                raise ValueError("a point lies far outside the photo")
            encoded = pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygons, height, width))
        elif isinstance(segmentation["counts"], list):
            # Fewer pixels than the photo has would leave the rest of the mask undefined.
            if sum(segmentation["counts"]) != height * width:
                raise ValueError("its counts do not add up to the photo")
            encoded = pycocotools.mask.frPyObjects(segmentation, height, width)
        else:
            encoded = segmentation
        return pycocotools.mask.decode(encoded)
    except Exception as error:  # pycocotools raises bare Exception too
        raise UserError(f"malformed segmentation of {name} in COCO's file: {error}") from error
