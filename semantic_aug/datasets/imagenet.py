"""ImageNet: ILSVRC 2012, lists of its classes such as ImageNet-100, and Tiny-ImageNet-200."""

import functools
import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from semantic_aug import UserError
from semantic_aug.datasets.index import image_names
from semantic_aug.datasets.layout import (
    box_mask,
    check_labelled,
    check_root,
    complete_splits,
    images_by_stem,
    listed_images,
    read_lines,
    read_mat,
    read_table,
)
from semantic_aug.few_shot_dataset import FewShotDataset, Record

DEVKIT = "ILSVRC2012_devkit_t12/data"
WNID = re.compile(r"n\d{8}")  # a WordNet id, which is also the name of a class's folder

log = logging.getLogger(__name__)


class ImageNetDataset(FewShotDataset):
    """ILSVRC 2012 as its archives unpack, or Tiny-ImageNet-200, whose `wnids.txt` tells them apart.

        ROOT/train/n01440764/*.JPEG
        ROOT/val/n01440764/*.JPEG, or all in ROOT/val/
        ROOT/ILSVRC2012_devkit_t12/data/{meta.mat,ILSVRC2012_validation_ground_truth.txt}

        ROOT/train/n01443537/images/*.JPEG, n01443537_boxes.txt         ROOT is tiny-imagenet-200
        ROOT/val/images/*.JPEG, ROOT/val/val_annotations.txt
        ROOT/wnids.txt, ROOT/words.txt

    Labels follow the sorted WordNet ids, as in published models. A name is the first synonym, or
    all synonyms if two classes share the first. The published test split has no labels, so half of
    val is `test`. Boxes of Tiny-ImageNet are its masks.

    Args:
        class_list: take only these classes, in this order: a text file with a WordNet id per line,
            perhaps followed by a name, or a JSON object of ids and names.
        published_val: all of val is `val`, as in published results; `test` is then absent.
    """

    env = "IMAGENET_DIR"
    default_dir = "data/imagenet"

    def __init__(self, *, class_list: str = "", published_val: bool = False, **kwargs):
        self.class_list = class_list
        self.published_val = published_val
        super().__init__(**kwargs)

    def list_class_names(self) -> list[str]:
        return list(self._classes.values())

    def list_records(self, split: str) -> Iterable[Record]:
        tiny = self._is_tiny()
        if split == "train":
            return self._tiny_train() if tiny else self._in_folders("train")
        if self.published_val and split == "test":
            raise UserError("published_val=true makes all of val the val split: no test is left")
        if tiny:
            val = self._tiny_val()
        elif any(WNID.fullmatch(folder.name) for folder in self.folders_in(self.data_dir / "val")):
            val = self._in_folders("val")
        else:
            val = self._numbered_val()
        return val if self.published_val else complete_splits(self.data_dir, {"val": val})[split]

    # --- classes -----------------------------------------------------------------------------

    @functools.cached_property
    def _classes(self) -> dict[str, str]:
        """WordNet id -> name of every class, in the order of the labels."""
        check_root(self, "train", "val")
        chosen = read_class_list(Path(self.class_list).expanduser()) if self.class_list else None
        if chosen is not None and all(chosen.values()):
            return unique_names(chosen)
        if self._is_tiny():
            words = dict(read_table(self.data_dir / "words.txt", 2, "\t"))
            ids: Collection[str] = read_lines(self.data_dir / "wnids.txt")
        else:
            ids = words = dict(self._synsets().values())
        ids = sorted(ids) if chosen is None else chosen
        unknown = [wnid for wnid in ids if wnid not in words]
        if unknown:
            raise UserError(
                f"{len(unknown)} WordNet ids of {self.class_list or 'wnids.txt'} are none of the "
                f"{len(words)} classes of {self.data_dir}, such as {unknown[0]!r}"
            )
        return unique_names({wnid: words[wnid] for wnid in ids} | _named(chosen))

    def _synsets(self) -> dict[str, tuple[str, str]]:
        path = self.data_dir / DEVKIT / "meta.mat"
        if not path.exists():
            raise UserError(
                f"{path}, which gives names and labels, is missing: unpack "
                "ILSVRC2012_devkit_t12.tar.gz there, or, if val has a folder per class, pass "
                "class_list=FILE with a WordNet id and a name per line"
            )
        return read_synsets(path)

    def _is_tiny(self) -> bool:
        return (self.data_dir / "wnids.txt").exists() or (self.data_dir / "words.txt").exists()

    def _say_missing(self, present: set[str], folder: Path) -> None:
        """A notice about classes without a folder: the dataset may be half unpacked."""
        missing = [wnid for wnid in self._classes if wnid not in present]
        if missing:
            log.warning(
                "%d of the %d classes have no folder in %s, such as %s; to take only some classes, "
                "pass class_list=FILE",
                len(missing),
                len(self._classes),
                folder,
                missing[0],
            )

    # --- ILSVRC ------------------------------------------------------------------------------

    def _in_folders(self, split: str) -> Iterator[Record]:
        """Photos in a folder per class."""
        folders = self.folders_in(self.data_dir / split)
        unknown = [folder.name for folder in folders if folder.name not in self._classes]
        if unknown and not self.class_list:
            log.warning("%d folders in %s are no classes: %s", len(unknown), split, unknown[0])
        self._say_missing({folder.name for folder in folders}, self.data_dir / split)
        known = [folder for folder in folders if folder.name in self._classes]
        for folder, names in image_names(known).items():
            class_name, place = self._classes[folder.name], f"{split}/{folder.name}"
            for name in names:
                yield self.record(f"{place}/{name}", class_name)

    def _numbered_val(self) -> Iterator[Record]:
        """Photos in one folder, `ILSVRC2012_val_00000001.JPEG`; line 1 of a list is its class."""
        images = images_by_stem(self.data_dir / "val")
        truth = self.data_dir / DEVKIT / "ILSVRC2012_validation_ground_truth.txt"
        synsets = self._synsets()
        numbers = [line for (line,) in read_table(truth, 1)]
        unknown = sorted(set(numbers) - set(synsets))
        if unknown:
            raise UserError(f"{truth} has the class {unknown[0]!r}, which meta.mat lacks")
        labels = {f"ILSVRC2012_val_{n:08d}": label for n, label in enumerate(numbers, start=1)}
        check_labelled(images, labels, truth)
        wnids = {stem: synsets[label][0] for stem, label in labels.items()}
        wanted = [stem for stem, wnid in wnids.items() if wnid in self._classes]
        for stem in listed_images(wanted, images, truth):
            yield self.record(images[stem], self._classes[wnids[stem]])

    # --- Tiny-ImageNet -----------------------------------------------------------------------

    def _tiny_train(self) -> Iterator[Record]:
        train = self.data_dir / "train"
        self._say_missing({folder.name for folder in self.folders_in(train)}, train)
        folders = [train / wnid / "images" for wnid in self._classes]
        for folder, names in image_names(each for each in folders if each.is_dir()).items():
            wnid = folder.parent.name
            table = folder.parent / f"{wnid}_boxes.txt"
            rows = read_table(table, 5) if table.exists() else []
            boxes = {Path(name).stem: box for name, *box in rows}
            for name in names:
                path = folder / name
                mask = box_mask(path, boxes[path.stem], table) if path.stem in boxes else None
                yield self.record(path, self._classes[wnid], mask)

    def _tiny_val(self) -> Iterator[Record]:
        table = self.data_dir / "val" / "val_annotations.txt"
        rows = {Path(name).stem: row for name, *row in read_table(table, 6)}
        images = images_by_stem(self.data_dir / "val" / "images")
        check_labelled(images, rows, table)
        wanted = [stem for stem, (wnid, *_) in rows.items() if wnid in self._classes]
        for stem in listed_images(wanted, images, table):
            wnid, *box = rows[stem]
            mask = box_mask(images[stem], box, table)
            yield self.record(images[stem], self._classes[wnid], mask)


# --- files of classes ------------------------------------------------------------------------


def read_synsets(path: Path) -> dict[str, tuple[str, str]]:
    """ILSVRC number (as text) -> WordNet id and synonyms of every class in a devkit's meta.mat.

    The file also lists the nodes above the classes, which have children.
    """
    try:
        (synsets,) = read_mat(path, "synsets")
        return {
            str(int(each["ILSVRC2012_ID"])): (str(each["WNID"]), str(each["words"]))
            for each in synsets.ravel()
            if int(each["num_children"]) == 0
        }
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} has no synsets as ILSVRC's devkit has: {error}") from error


def read_class_list(path: Path) -> dict[str, str]:
    """WordNet id -> name (or ""), in the order of the list."""
    if path.suffix.lower() == ".json":
        try:
            classes = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"class_list={path} is no readable JSON: {error}") from error
        if not isinstance(classes, dict) or not all(isinstance(v, str) for v in classes.values()):
            raise UserError(f"class_list={path}: expected an object of WordNet ids and names")
        return _with_ids(classes, path)
    if not path.is_file():
        raise UserError(f"class_list={path} is no file: expected a file with a WordNet id per line")
    rows = [re.split(r"[\s,]+", line, maxsplit=1) for line in read_lines(path)]
    repeated = [wnid for wnid, count in Counter(row[0] for row in rows).items() if count > 1]
    if repeated or not rows:
        what = f"has {repeated[0]} twice" if repeated else "is empty"
        raise UserError(f"class_list={path} {what}: expected a WordNet id per line, each once")
    return _with_ids({wnid: name[0] if name else "" for wnid, *name in rows}, path)


def _with_ids(classes: dict[str, str], path: Path) -> dict[str, str]:
    wrong = [wnid for wnid in classes if not WNID.fullmatch(wnid)]
    if wrong:
        raise UserError(
            f"class_list={path} has {wrong[0]!r} in place of a WordNet id, expected n and 8 "
            "digits, such as n01440764, and then perhaps a name"
        )
    return classes


def _named(chosen: dict[str, str] | None) -> dict[str, str]:
    return {wnid: name for wnid, name in (chosen or {}).items() if name}


def unique_names(words: dict[str, str]) -> dict[str, str]:
    """A name for every id: the first synonym; if taken, all synonyms; if taken, with the id."""
    names = {wnid: each.split(",")[0].strip() for wnid, each in words.items()}
    for longer in (lambda wnid: words[wnid], lambda wnid: f"{words[wnid]} ({wnid})"):
        counts = Counter(names.values())
        names = {w: longer(w) if counts[name] > 1 else name for w, name in names.items()}
    return names
