"""Shared by readers of published layouts: roots, image names, label files, missing splits."""

import functools
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semantic_aug import UserError, stable_hash
from semantic_aug.few_shot_dataset import SPLITS, FewShotDataset, Record
from semantic_aug.images.reading import open_image, read_size

log = logging.getLogger(__name__)


# --- the root --------------------------------------------------------------------------------


def check_root(dataset: FewShotDataset, *needed: str) -> None:
    """Raise unless all `needed` files and folders lie in the dataset's root; see `find_layout`."""
    find_layout(dataset, needed)


def find_layout(dataset: FewShotDataset, *layouts: Sequence[str]) -> Sequence[str]:
    """The first of several layouts (lists of files and folders) that the dataset's root contains.

    Raises:
        UserError: no layout fits; the message has the expected and the present names, and the
            right folder if it lies one level above or below.
    """
    root = dataset.data_dir
    missing = {
        layout: [name for name in layout if not (root / name).exists()] for layout in layouts
    }
    for layout, names in missing.items():
        if not names:
            return layout
    nearest = min(missing.values(), key=len)
    raise UserError(
        f"{root} is no root of {type(dataset).__name__}: {nearest[0]} is missing, expected "
        f"{', or '.join(map(', '.join, layouts))} in it, found {what_is_in(root)}; "
        f"{right_root(dataset, *layouts)}"
    )


def right_root(dataset: FewShotDataset, *layouts: Sequence[str]) -> str:
    """The remedy for a wrong root: the folder one level above or below, if that is right.

    Args:
        layouts: lists of patterns of files and folders in a root.
    """

    def is_right(folder: Path) -> bool:
        return any(all(next(folder.glob(name), None) for name in layout) for layout in layouts)

    root = dataset.data_dir
    if is_right(above := root.resolve().parent):
        return f"this is one level too low: pass --data_dir {above}"
    below = [folder for folder in FewShotDataset.folders_in(root) if is_right(folder)]
    if below:
        choice = f"{below[0]}" if len(below) == 1 else f"one of {', '.join(map(str, below[:3]))}"
        return f"this is one level too high: pass --data_dir {choice}"
    variable = f" or set {dataset.env}" if dataset.env else ""
    return f"pass the root as --data_dir{variable}"


def what_is_in(folder: Path) -> str:
    """The first names in a folder, for messages."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    names = [name for name in names if not name.startswith(".")]
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "") if names else "nothing"


# --- images and lists of them ----------------------------------------------------------------


def images_by_stem(folder: Path) -> dict[str, Path]:
    """The images in a folder, with any suffix, by their names without the suffix.

    Raises:
        UserError: two images have the same name, so a label or a mask could belong to either.
    """
    images: dict[str, Path] = {}
    for path in FewShotDataset.images_in(folder):
        stem = path.stem
        if stem in images:
            raise UserError(
                f"{folder} holds {images[stem].name} and {path.name}, two images of the same "
                "name, but this name leads to labels and masks: remove or rename an image"
            )
        images[stem] = path
    return images


def listed_images(
    names: Iterable[str], images: Mapping[str, Path], source: Path, what: str = "images"
) -> list[str]:
    """The `names` that are on disk; a warning counts the others.

    Args:
        names: image names without suffix, from the list `source`.
        images: the result of `images_by_stem`.
        what: a word for the images, for the warning.
    """
    names = list(names)
    missing = [name for name in names if name not in images]
    if missing:
        log.warning(
            "%d of the %d %s that %s lists are not on disk, such as %s: left out",
            len(missing),
            len(names),
            what,
            source,
            missing[0],
            extra={"missing": [f"{name} ({what})" for name in missing]},  # for `datasets check`
        )
    return [name for name in names if name in images]


def check_labelled(images: Iterable[str], labelled: Iterable[str], source: Path) -> None:
    """Raise unless every image has a label in the file `source`."""
    images, labelled = set(images), set(labelled)
    unlabelled = sorted(images - labelled)
    if unlabelled:
        raise UserError(
            f"{source} has {len(labelled)} labels, and {len(unlabelled)} of the {len(images)} "
            f"images have no label ({unlabelled[0]} ...): is the file complete? Unpack it again"
        )


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped, without blank lines.

    Raises:
        UserError: the file is missing or no UTF-8 text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: unpack the dataset's archive again") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}): unpack it again") from error
    return [line.strip() for line in lines if line.strip()]


def read_table(path: Path, columns: int, separator: str | None = None) -> list[list[str]]:
    """The lines of a text file, cut at `separator` (blanks); the last column takes the rest.

    Raises:
        UserError: a line has fewer columns, or the file cannot be read.
    """
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        row = [cell.strip() for cell in line.split(separator, columns - 1)]
        if len(row) < columns:
            raise UserError(
                f"{path}: line {number} is {line!r}, expected {columns} columns; unpack it again"
            )
        rows.append(row)
    return rows


def read_integers(path: Path, variable: str) -> list[int]:
    """A list of whole numbers in a MATLAB file; see `read_mat`.

    Raises:
        UserError: it holds something else.
    """
    (values,) = read_mat(path, variable)
    return [as_integer(value, path, variable) for value in np.atleast_1d(values).ravel()]


def as_integer(value: Any, path: Path, name: str) -> int:
    """A number of a MATLAB file as an int; such files may hold whole numbers as floats.

    Raises:
        UserError: it is no whole number.
    """
    try:
        number = int(value)
        if number == value:
            return number
    except (TypeError, ValueError):
        pass
    raise UserError(f"{path}: {name} is {value!r}, expected a whole number; download it again")


def read_mat(path: Path, *variables: str) -> list:
    """Variables of a MATLAB file, without dimensions of size 1.

    Raises:
        UserError: the file is missing, damaged, or lacks a variable.
    """
    import scipy.io

    try:
        content = scipy.io.loadmat(path, squeeze_me=True, variable_names=variables)
        return [content[name] for name in variables]
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: download it, or unpack it again") from error
    except KeyError as error:
        raise UserError(f"{path} has no variable {error}: is it the right file?") from error
    except Exception as error:  # scipy raises errors of any kind on damaged files
        raise UserError(f"{path} is no readable .mat file ({error}): download it again") from error


# --- splits that were not published ----------------------------------------------------------


def split_by_hash(
    records: Iterable[Record], val: float = 0.2, test: float = 0.2
) -> dict[str, list[Record]]:
    """Fixed splits for a dataset that publishes none.

    Hashes of the sources order the records of each class, which are then cut into splits. So a
    photo's split depends on the sources of its class alone. A class with at least three photos has
    a photo in every wanted split; a smaller class has no validation photo, and its second photo is
    for test.

    Args:
        records: all records of the dataset, in any order.
        val: share of validation photos of a class; 0 for none.
        test: share of test photos; 0 for none. The sum of both is less than 1.

    Returns:
        `train`, `val` and `test`, each with its records.

    Raises:
        UserError: the shares leave nothing for training.
    """
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise UserError(
            f"split_by_hash: got val={val} and test={test}, expected shares from 0 to below 1"
        )
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for hashed in _by_class(records):
        group = [record for _, record in hashed]
        if len(group) < 3:
            kept = 1 if test else len(group)
            parts: tuple[list[Record], ...] = (group[:kept], [], group[kept:])
        else:
            of_val, of_test = (
                max(1, round(share * len(group))) * (share > 0) for share in (val, test)
            )
            too_many = max(0, of_val + of_test - (len(group) - 1))
            if of_val > of_test:
                of_val -= too_many
            else:
                of_test -= too_many
            held = of_val + of_test
            parts = group[held:], group[:of_val], group[of_val:held]
        for split, part in zip(SPLITS, parts):
            splits[split] += part
    return splits


def complete_splits(
    root: Path | str, published: Mapping[str, Iterable[Record]]
) -> dict[str, list[Record]]:
    """All three splits; missing splits are cut class by class, in an order from hashes of the ids.

    Without test, half of val becomes test; without val, a fifth of train becomes val; without
    both, train is cut into 60 % train, 20 % val and 20 % test. A photo's place depends on the ids
    of its class alone.

    Args:
        root: of the dataset, for the notice.
        published: split -> records; splits without records may be left out.
    """
    splits = {split: list(published.get(split, [])) for split in SPLITS}
    missing = tuple(split for split in SPLITS if not splits[split])
    if missing not in _NOTICES:
        return splits
    log.info("%s: %s", root, _NOTICES[missing])
    if "val" in missing:
        cut = split_by_hash(splits["train"], test=0.2 if "test" in missing else 0)
        return splits | {split: records for split, records in cut.items() if records}
    whole, splits["val"] = splits["val"], []
    for hashed in _by_class(whole):
        # A hash decides about the odd photo, so that single photos are not all on one side.
        middle = (len(hashed) + (hashed[0][0] & 1)) // 2
        splits["val"] += [record for _, record in hashed[:middle]]
        splits["test"] += [record for _, record in hashed[middle:]]
    return splits


def _by_class(records: Iterable[Record]) -> Iterable[list[tuple[int, Record]]]:
    """The records of each class with the hashes of their sources, sorted by hash."""
    by_class = defaultdict(list)
    for record in records:
        by_class[record.class_name].append((stable_hash(record.source), record))
    return [sorted(hashed, key=lambda each: each[0]) for hashed in by_class.values()]


# Splits without a photo -> the remedy.
_NOTICES = {
    ("val", "test"): "photos are cut into 60 % train, 20 % val and 20 % test",
    ("val",): "no photos for val, 20 % of train are taken",
    ("train", "test"): "no photos for test, half of val is taken",
    ("test",): "no photos for test, half of val is taken",
}


# --- masks -----------------------------------------------------------------------------------


def read_indices(path: Path) -> np.ndarray:
    """[H, W] uint8: the palette indices or grey values of an image file.

    Raises:
        UserError: the file cannot be read, or has colours in place of indices.
    """
    with open_image(path, "mask") as image:
        if image.mode not in ("P", "L"):
            raise ValueError(f"expected one index per pixel, got mode {image.mode}")
        return np.asarray(image)


def box_mask(photo: Path, box: list[str], table: Path) -> functools.partial:
    """A function that gives the mask of a box; left, top, right, bottom are pixels inside it.

    Raises:
        UserError: the box is not four numbers; `table` is its file.
    """
    try:
        left, top, right, bottom = map(int, box)
    except ValueError as error:
        raise UserError(f"{table}: {photo.name} has the box {box}, expected 4 numbers") from error
    return functools.partial(_box_mask, photo, (left, top, right, bottom))


def _box_mask(photo: Path, box: tuple[int, int, int, int]) -> np.ndarray:
    (width, height), (left, top, right, bottom) = read_size(photo), box
    mask = np.zeros((height, width), np.uint8)
    mask[max(top, 0) : bottom + 1, max(left, 0) : right + 1] = 1
    return mask
