"""COCO 2017: everyday photos; the class of a photo is that of its largest object."""

import functools
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pycocotools.mask

from semantic_aug import UserError, stable_hash
from semantic_aug.datasets.index import cached
from semantic_aug.datasets.layout import images_by_stem, right_root, what_is_in
from semantic_aug.few_shot_dataset import FewShotDataset, Record, collection_paused

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
                    f"{annotations.name} (https://cocodataset.org/#download), found "
                    f"{what_is_in(self.data_dir)}; "
                    f"{right_root(self, ['annotations', folder.name])}"
                )
        photos = read_photos(annotations.resolve(), annotations.stat().st_mtime_ns)
        with os.scandir(folder) as entries:  # a look at every single file is slow
            files = {entry.name: entry.name for entry in entries}
        if any(photo.file_name not in files for photo in photos):  # .jpg may have become .JPEG
            by_stem = images_by_stem(folder)
            files |= {
                photo.file_name: by_stem[stem].name
                for photo in photos
                if photo.file_name not in files and (stem := Path(photo.file_name).stem) in by_stem
            }
        absent = sum(photo.file_name not in files for photo in photos)
        if absent:
            log.warning(
                "%d of the %d annotated photos in %s are not in %s: left out",
                absent,
                len(photos),
                annotations,
                folder,
            )
        for photo in photos:
            if photo.file_name not in files:
                continue
            if split != "train" and not self.published_val and val_or_test(photo.id) != split:
                continue
            mask = photo.mask if photo.segmentation else None
            yield self.record(f"{folder.name}/{files[photo.file_name]}", photo.class_name, mask)


def val_or_test(image_id: int) -> str:
    """The half of val2017 in which an image lies."""
    return "test" if stable_hash(image_id) & 1 else "val"


# --- the annotation file ---------------------------------------------------------------------


class Photo(NamedTuple):
    """An image of an annotation file, reduced to its largest annotation.

    `segmentation` is `[offset, length]` of its key and value in the file, in bytes; or the value
    itself, if it is no outline at all; or None without one.
    """

    annotations: Path
    id: int
    file_name: str
    height: int
    width: int
    class_name: str
    segmentation: list | dict | str | None

    def mask(self) -> np.ndarray:
        """The [height, width] uint8 mask, 0 or 1, of the annotation.

        Raises:
            UserError: it is malformed, or the file has changed.
        """
        value = self.segmentation
        if isinstance(value, list) and [type(each) for each in value] == [int, int]:
            offset, length = value
            with open(self.annotations, "rb") as file:
                file.seek(offset)
                key, _, text = file.read(length).partition(b":")
            if key.strip() != _KEY:
                raise UserError(f"{self.annotations} has changed since it was read: start again")
            try:
                value = json.loads(text)
            except ValueError as error:
                raise UserError(
                    f"malformed segmentation of {self.file_name} in {self.annotations}: {error}"
                ) from error
        return decode_segmentation(value, self.height, self.width, self.file_name)


@functools.lru_cache(maxsize=2)
@collection_paused()
def read_photos(path: Path, mtime_ns: int) -> list[Photo]:
    """The annotated images of a COCO annotation file, by image id.

    The largest annotation is the one with the largest `area` (none counts as 0), crowds included;
    of equals it is the one with the lowest id. The outlines, three quarters of the file, are
    neither parsed nor kept; an index is (see `datasets.index`).

    Args:
        path: an `instances_*.json`.
        mtime_ns: when the file was written, so that the result of another file is not taken.

    Raises:
        UserError: the file is no readable COCO annotation file, or has other categories.
    """
    try:
        rows = cached("coco", [path], lambda: _largest_objects(path))
        return [Photo(path, *row) for row in rows]
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is no readable JSON ({error}): is it complete? Unpack or download it again"
        ) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no COCO annotation file ({type(error).__name__}: {error}): expected "
            "the keys images, annotations and categories of an instances_*2017.json"
        ) from error


def _largest_objects(path: Path) -> list[tuple]:
    """The fields of a `Photo`, from the second, of every annotated image, by image id."""
    largest = {}  # image id -> (-area, annotation id, category id, segmentation)

    def take_annotation(found: dict) -> dict | None:
        # Every annotation is dropped as soon as it is read; what lacks a key is seen below.
        if not ("image_id" in found and "category_id" in found and "id" in found):
            return found
        rank = -(found.get("area") or 0), found["id"]
        image_id = found["image_id"]
        if image_id not in largest or rank < largest[image_id][:2]:
            largest[image_id] = *rank, found["category_id"], found.get("segmentation")
        return None

    content = json.loads(_without_outlines(path), object_hook=take_annotation)
    missing = {"images", "annotations", "categories"} - content.keys()
    if missing:
        raise KeyError(*sorted(missing))
    for left in content["annotations"]:
        if left is not None:
            raise KeyError(*sorted({"image_id", "category_id", "id"} - left.keys()))
    names = {category["id"]: category["name"] for category in content["categories"]}
    unknown = sorted(set(names.values()) - set(CLASS_NAMES))
    if unknown:
        raise UserError(
            f"{path} has {len(unknown)} categories that COCO 2017 has not, such as "
            f"{unknown[0]!r}: for classes of your own use --dataset=folder"
        )
    rows = {}
    for image in content["images"]:
        if image["id"] in largest:
            *_, category, segmentation = largest[image["id"]]
            size = image["height"], image["width"]
            rows[image["id"]] = (
                image["id"], image["file_name"], *size, names[category], segmentation
            )  # fmt: skip
    return [rows[number] for number in sorted(rows)]


_KEY = b'"segmentation"'
# A segmentation whose end can be seen without parsing it: numbers in brackets, or a flat object,
# as a run-length encoding is; and then the object's end or its next key.
_SEGMENTATION = re.compile(
    rb"""
    "segmentation" (?<! \\"segmentation") \s*:\s*
    (?: \[ [^"{}]* \]
      | \{ [^{}"]*+ (?: "(?:[^"\\]|\\.)*+" [^{}"]*+ )*+ \} )
    (?= \s* (?: \} | ,\s* "(?:[^"\\]|\\.)*+" \s*: ))
    """,
    re.VERBOSE,
)


def _without_outlines(path: Path, chunk_size: int = 1 << 23) -> str:
    """The text of an annotation file with `[offset, length]` in place of every segmentation.

    What remains is a quarter of it, and is JSON if the file is. Values of other kinds stay as
    they are: that they are malformed is found when their mask is asked for.
    """
    kept, text, start = bytearray(), b"", 0  # `text` is not done yet, and lies at `start`
    with open(path, "rb") as file:
        while chunk := file.read(chunk_size):
            text, done = text + chunk, 0
            for match in _SEGMENTATION.finditer(text):
                begin, end = match.span()
                kept += text[done:begin]
                # Few are so short that they may be empty, [] or {}, which means no mask.
                if end - begin < 24 and not re.search(rb"\d", match[0]):
                    kept += _KEY + b":null"
                else:
                    kept += b'"segmentation":[%d,%d]' % (start + begin, end - begin)
                done = end
            # The last key may have its value, and the last bytes may be half a key, in what comes.
            last = text.rfind(_KEY, done)
            rest = max(done, (len(text) - len(_KEY) if last < 0 else last) - 1)
            kept += text[done:rest]
            text, start = text[rest:], start + rest
    return (kept + text).decode("utf-8-sig")


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
