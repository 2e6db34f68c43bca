"""COCO 2017: everyday photos; the largest object of a photo gives its class."""

import contextlib
import functools
import json
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pycocotools.mask

from semantic_aug import UserError, stable_hash
from semantic_aug.datasets.coco_outlines import decode_segmentation, outline_in, without_outlines
from semantic_aug.datasets.index import cached
from semantic_aug.datasets.layout import images_by_stem, right_root, what_is_in
from semantic_aug.few_shot_dataset import FewShotDataset, Record, collection_paused
from semantic_aug.images.reading import read_size

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

    Photos without annotations have no class and are left out. `train` is train2017. A hash of the
    image ids halves val2017 into `val` and `test`, so that no choice is made on reported photos.
    Files exported by other tools are read too, if their categories are COCO's; a `file_name` may
    contain folders, with slashes or backslashes.

    Args:
        published_val: all of val2017 is `val`, as in published results; `test` is then absent.
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
        files = find_files(folder, dict.fromkeys(photo.file_name for photo in photos))
        absent = [photo.file_name for photo in photos if photo.file_name not in files]
        if len(absent) == len(photos):
            raise UserError(
                f"none of the {len(photos)} photos that {annotations} lists is in {folder}, such "
                f"as {absent[0]!r}: found {what_is_in(folder)}"
            )
        if absent:
            log.warning(
                "%d of the %d annotated photos in %s are not in %s, such as %s: left out",
                len(absent),
                len(photos),
                annotations,
                folder,
                absent[0],
                extra={"missing": [f"{folder.name}/{name}" for name in absent]},
            )
        for photo in photos:
            if photo.file_name not in files:
                continue
            if split != "train" and not self.published_val and val_or_test(photo.id) != split:
                continue
            source, mask = f"{folder.name}/{files[photo.file_name]}", None
            if photo.segmentation:
                mask = photo.mask
                if not (photo.height and photo.width):
                    mask = functools.partial(mask, self.data_dir / source)
            yield self.record(source, photo.class_name, mask)


def val_or_test(image_id: int | str) -> str:
    """The split of an image of val2017."""
    return "test" if stable_hash(image_id) & 1 else "val"


def find_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The photos below `folder` for the `file_name`s of an annotation file.

    The search tries the name itself, then slashes for backslashes, then fewer and fewer leading
    folders, because tools write the folders of another machine. Each try also takes other
    suffixes, because .jpg may have become .JPEG. If several names lead to the same photo, only the
    name equal to its path counts: `a/1.jpg` and `b/1.jpg` are not both `1.jpg`.

    Returns:
        Name -> path relative to `folder`, with slashes; names without a photo are left out.
    """

    @functools.cache
    def names_in(place: str) -> set[str]:  # looking at every single file is slow
        try:
            with os.scandir(folder / place) as entries:
                return {entry.name for entry in entries}
        except PermissionError as error:
            raise UserError(f"the folder {folder / place} cannot be read: {error}") from error
        except (OSError, ValueError):  # the folder is absent, or its name is impossible
            return set()

    @functools.cache
    def by_stem(place: str) -> dict[str, str]:
        return {stem: path.name for stem, path in images_by_stem(folder / place).items()}

    def path_of(parts: tuple[str, ...]) -> str | None:
        *folders, name = parts
        for start in range(len(parts)):
            place = "/".join(folders[start:])
            there = names_in(place)
            last = name if name in there else there and by_stem(place).get(Path(name).stem)
            if last:
                return f"{place}/{last}" if place else last
        return None

    found: dict[str, tuple[tuple[str, ...], str]] = {}
    meaning: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for name in names:
        parts: tuple[str, ...] = (name,)
        if name not in names_in(""):
            split = name.replace("\\", "/").split("/")
            parts = tuple(part for part in split if part not in ("", ".", "..")) or parts
        path = path_of(parts)
        if path:
            found[name] = parts, path
            meaning[path].add(parts)
    return {
        name: path
        for name, (parts, path) in found.items()
        if len(meaning[path]) == 1 or "/".join(parts) == path
    }


# --- the annotation file ---------------------------------------------------------------------


class Photo(NamedTuple):
    """An image of an annotation file, reduced to its largest annotation.

    `height` and `width` are None if the file lacks them. `segmentation` is `[offset, length]` in
    bytes of its key and value in the file; or the value itself, if it is no outline; or None.
    """

    annotations: Path
    id: int | str
    file_name: str
    height: int | None
    width: int | None
    class_name: str
    segmentation: list | dict | str | None

    def mask(self, photo: Path | None = None) -> np.ndarray:
        """The [height, width] uint8 mask, 0 or 1, of the annotation.

        Args:
            photo: the image file, whose size counts where the annotation file says none.

        Raises:
            UserError: the outline is malformed, or the file has changed.
        """
        with open(self.annotations, "rb") as file:
            try:
                value = outline_in(file, self.segmentation)
            except ValueError as error:
                raise UserError(
                    f"malformed segmentation of {self.file_name} in {self.annotations}: {error}"
                ) from error
        if value is None:
            raise UserError(f"{self.annotations} has changed since it was read: start again")
        size: Any = (self.width, self.height) if photo is None else read_size(photo)
        return decode_segmentation(value, size[1], size[0], self.file_name)


@functools.lru_cache(maxsize=2)
@collection_paused()
def read_photos(path: Path, mtime_ns: int) -> list[Photo]:
    """The annotated images of a COCO annotation file, by image id.

    The largest annotation has the largest `area`, crowds included; of equal areas, the lowest id
    wins. Without an `area` above 0, the size of the outline counts; without an outline, the size of
    the box. Outlines, three quarters of the file, are not kept, and are parsed only if their size
    counts. The result is kept as an index (see `datasets.index`).

    Args:
        path: an `instances_*.json`.
        mtime_ns: when the file was written; a changed file is read again.

    Raises:
        UserError: the file is no readable COCO annotation file, has other categories, or has a
            damaged entry, which is named.
    """
    try:
        found = cached("coco-by-size", [path], lambda: _largest_objects(path))
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is no readable JSON ({error}): is it complete? Unpack or download it again"
        ) from error
    if found["strays"]:
        log.warning("%d annotations in %s belong to no image", found["strays"], path)
    return [Photo(path, *row) for row in found["photos"]]


def _largest_objects(path: Path) -> dict:
    """The needed parts of an annotation file, checked.

    Returns:
        `photos`: the fields of a `Photo`, from the second, of every annotated image, by image id.
        `strays`: number of annotations that belong to no image.

    Raises:
        UserError: an entry is damaged.
        OSError, ValueError, RecursionError: the file is no readable JSON.
    """
    largest: dict[Any, tuple] = {}  # image -> (-size, order of id, category, segmentation, id)
    counts: Counter[Any] = Counter()  # of annotations by image id
    used: set[Any] = set()  # the ids of their categories

    def take_annotation(found: dict) -> dict | None:
        # Every annotation is dropped after it is read; a missing key is found below.
        if not ("image_id" in found and "category_id" in found and "id" in found):
            return found
        ids: Iterable[Any] = (found["id"], found["image_id"], found["category_id"])
        if {*map(type, ids)} != {int}:  # faster than a check of each
            ids = (_field("annotations", found, key, path) for key in _KEYS)
        number, image, category = ids
        counts[image] += 1
        used.add(category)
        rank = -_size(found, file, path), _order(number)
        if image not in largest or rank < largest[image][:2]:
            largest[image] = *rank, category, found.get("segmentation"), number
        return None

    text = without_outlines(path)
    with open(path, "rb") as file:
        content = json.loads(text, object_hook=take_annotation)
    for kind in ("images", "annotations", "categories"):
        if not (isinstance(content, dict) and isinstance(content.get(kind), list)):
            raise UserError(
                f"{path} is no COCO annotation file: it has no list of {kind}, expected the keys "
                "images, annotations and categories of an instances_*2017.json"
            )
    for left in content["annotations"]:
        for key in _KEYS if left is not None else ():
            _field("annotations", left, key, path)  # raises at the missing key
    names = {
        number: _field("categories", category, "name", path)
        for number, category in _by_id(content, "categories", "name", path).items()
    }
    unknown = sorted({names[number] for number in used & names.keys()} - set(CLASS_NAMES))
    if unknown:
        listed = ", ".join(map(repr, unknown[:3])) + " ..." * (len(unknown) > 3)
        raise UserError(
            f"{path} uses categories that COCO 2017 lacks ({listed}): for classes of your own "
            "use --dataset=folder"
        )
    images, photos = _by_id(content, "images", "file_name", path), []
    for number in sorted(images.keys() & largest.keys(), key=_order):
        image, (*_, category, segmentation, annotation) = images[number], largest[number]
        if category not in names:
            listed = ", ".join(map(repr, list(names)[:5])) + " ..." * (len(names) > 5)
            raise UserError(
                f"{path}: annotation {annotation!r} has the category_id {category!r}, but the ids "
                f"of categories are {listed}"
            )
        name, *size = (_field("images", image, key, path) for key in ("file_name", *_SIZE))
        photos.append((number, name, *size, names[category], segmentation))
    if not photos:
        some = [", ".join(map(repr, list(ids)[:3])) or "none" for ids in (counts, images)]
        raise UserError(
            f"{path}: no annotation belongs to an image; image_id of annotations: {some[0]}; "
            f"id of images: {some[1]}"
        )
    strays = sum(counts[number] for number in counts.keys() - images.keys())
    return {"photos": photos, "strays": strays}


_KEYS = ("id", "image_id", "category_id")
_SIZE = ("height", "width")


# --- its entries -----------------------------------------------------------------------------


def _by_id(content: dict, kind: str, key: str, path: Path) -> dict[int | str, dict]:
    """The entries of a kind by id; entries of the same id must agree in `key`."""
    found: dict[int | str, dict] = {}
    for entry in content[kind]:
        number = _field(kind, entry, "id", path)
        values = found.setdefault(number, entry).get(key), entry.get(key)
        if values[0] != values[1]:
            raise UserError(
                f"{path}: two {kind} have the id {number!r}, {values[0]} and {values[1]}"
            )
    return found


def _field(kind: str, entry: dict, key: str, path: Path):
    """A field of an entry of `images`, `annotations` or `categories`, checked; see `_FIELDS`."""
    expected, convert = _FIELDS[key]
    try:
        return convert(entry.get(key))
    except (TypeError, ValueError, OverflowError, AttributeError):
        if not isinstance(entry, dict):
            got, whose = entry, f"an entry of {kind}"
            expected = "an object"
        else:
            got, whose = entry.get(key), f"{key} in {kind} (id {json.dumps(entry.get('id'))[:40]})"
        raise UserError(f"{path}: {whose} is {json.dumps(got)[:80]}, expected {expected}") from None


def _id(value) -> int | str:
    """An id as a number even if it is text: some tools write the ids of some lists as text."""
    if isinstance(value, str) and value:
        is_number = value.isascii() and value.isdecimal() and str(int(value)) == value
        return int(value) if is_number else value
    return _whole(value)


def _whole(value) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise ValueError
    return int(value)


def _text(value) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _side(value) -> int | None:
    """Pixels; None if missing or 0, which tools write for unknown sizes."""
    if value is None or _whole(value) == 0:
        return None
    if value < 0:
        raise ValueError
    return int(value)


def _area(value) -> float:
    """Pixels; 0 if missing, NaN, or no area."""
    if value is None:
        return 0
    if type(value) not in (int, float):
        raise TypeError
    return value if 0 < value < math.inf else 0


def _box_area(value) -> float:
    """Pixels in a box of left, top, width, height; 0 without a box."""
    _, _, width, height = value or (0, 0, 0, 0)
    return _area(width * height) if width > 0 else 0


# Key -> the expected value, and a function that gives the value or raises.
_FIELDS = {
    **dict.fromkeys(_KEYS, ("a number or a text", _id)),
    **dict.fromkeys(("name", "file_name"), ("a text", _text)),
    **dict.fromkeys(_SIZE, ("a whole number of pixels", _side)),
    "area": ("a number", _area),
    "bbox": ("left, top, width and height", _box_area),
}


def _order(number: int | str) -> tuple[bool, int | str]:
    return isinstance(number, str), number


def _size(annotation: dict, file: BinaryIO, path: Path) -> float:
    """Pixels of an annotation: its `area`, else of its outline, else of its box, else 0."""
    area = _field("annotations", annotation, "area", path)
    if not area:
        # A malformed outline is reported when its mask is read.
        with contextlib.suppress(Exception):
            area = _area(_outline_size(outline_in(file, annotation.get("segmentation"))))
    return area or _field("annotations", annotation, "bbox", path)


def _outline_size(outline: Any) -> float:
    """Pixels within an outline: polygons, a run-length encoding, or several of these."""
    if isinstance(outline, dict):
        counts = outline["counts"]
        is_plain = isinstance(counts, list)
        return sum(counts[1::2]) if is_plain else int(pycocotools.mask.area(outline))
    if outline and isinstance(outline[0], dict):
        return sum(map(_outline_size, outline))
    return sum(_polygon_size(polygon) for polygon in outline or () if len(polygon) >= 6)


def _polygon_size(polygon: list[float]) -> float:
    """The shoelace formula."""
    xs, ys = polygon[::2], polygon[1::2]
    crossed = zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1])
    return abs(sum(x * next_y - next_x * y for x, y, next_x, next_y in crossed)) / 2
