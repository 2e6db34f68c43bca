"""Any photos in one folder per class: how most people come with their own data."""

import dataclasses
import functools
import logging
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from semantic_aug import UserError, counted
from semantic_aug.datasets.index import image_names
from semantic_aug.datasets.layout import complete_splits, what_is_in
from semantic_aug.few_shot_dataset import SPLITS, FewShotDataset, Record

# Names of folders, in any case.
SPLIT_FOLDERS = {
    "train": ["train", "training"],
    "val": ["val", "valid", "validation"],
    "test": ["test", "testing"],
}
_SPLIT_NAMES = {name for names in SPLIT_FOLDERS.values() for name in names}

log = logging.getLogger(__name__)


class FolderDataset(FewShotDataset):
    """One folder of photos per class, with or without folders for the splits.

        ROOT/{train,val,test}/CLASS/*.{jpg,png,webp,...}
        ROOT/CLASS/*.{jpg,png,webp,...}

    The second is cut into splits, class by class, in an order that comes from hashes of the paths:
    60 % train, 20 % val, 20 % test. The first is completed in the same way: without test, half of
    val becomes test; without val, a fifth of train becomes val; without both, train is cut like
    the second. Classes are sorted by name; an empty class folder is a class without photos.

    Args:
        masks: root of a parallel tree with a mask for every photo, at the same relative path, of
            any image suffix; relative to the working directory or, if it is not there, to ROOT.
    """

    env = "FOLDER_DIR"

    def __init__(self, *, masks: str = "", **kwargs):
        self.masks = masks
        super().__init__(**kwargs)
        vars(self).pop("_found", None)  # perhaps a million records, of which a trial has few

    def list_class_names(self) -> list[str]:
        return self._found[0]

    def list_records(self, split: str) -> Iterator[Record]:
        records = self._found[1][split]
        if not self.masks:
            return iter(records)
        folders = {parent(record) for record in records}
        masks = {folder: self._masks_of(folder) for folder in folders}
        if folders and not any(masks.values()):
            folder = self.masks_dir / min(folders)
            log.warning("masks=%s: none for split %s, such as in %s/", self.masks, split, folder)
        return (with_mask(record, masks[parent(record)]) for record in records)

    # --- photos ------------------------------------------------------------------------------

    @functools.cached_property
    def _found(self) -> tuple[list[str], dict[str, list[Record]]]:
        """The names of all classes, sorted; and the records of every split, without masks."""
        if self._has_splits():
            found = {split: self._by_class(self._split_folders(split)) for split in SPLIT_FOLDERS}
        else:
            found = {"train": self._by_class([self.data_dir]), "val": {}, "test": {}}
        if not any(paths for split in SPLITS for paths in found[split].values()):
            raise UserError(f"{self.data_dir} {self._what_is_there()}; expected {_EXPECTED}")
        records = {
            split: [self.record(path, name) for name, paths in classes.items() for path in paths]
            for split, classes in found.items()
        }
        splits = complete_splits(self.data_dir, records)
        loose = self.images_in(self.data_dir)
        if loose:
            log.warning(
                "%s without a class directly in %s", counted(len(loose), "photo"), self.data_dir
            )
        return sorted(set().union(*found.values())), splits

    def _split_folders(self, split: str) -> list[Path]:
        folders = self.folders_in(self.data_dir)
        return [folder for folder in folders if folder.name.lower() in SPLIT_FOLDERS[split]]

    def _has_splits(self) -> bool:
        """Whether train/ is a split, rather than a class of that name or nothing."""
        has_splits = False
        for train in self._split_folders("train"):
            classes, photos = self.folders_in(train), self.images_in(train)
            if classes and photos:
                raise UserError(
                    f"{train} holds both photos ({photos[0].name} ...) and folders "
                    f"({classes[0].name} ...): is it a class, or a split? Move one or the other out"
                )
            names = {folder.name.lower() for folder in self.folders_in(self.data_dir)}
            if photos and names <= _SPLIT_NAMES:
                log.warning(
                    "%s holds photos directly and is taken for a class: a split has a folder per "
                    "class",
                    train,
                )
            has_splits = has_splits or bool(classes)
        return has_splits

    def _by_class(self, roots: Iterable[Path]) -> dict[str, list[str]]:
        """Class -> its photos, relative to the data root."""
        folders = [folder for root in roots for folder in self.folders_in(root)]
        folders = [folder for folder in folders if not self._holds_masks(folder)]
        by_class = {}
        for folder, names in image_names(folders).items():
            # macOS decomposes accents in names of files; the class is the same.
            paths = by_class.setdefault(unicodedata.normalize("NFC", folder.name), [])
            place = folder.relative_to(self.data_dir).as_posix()
            paths += [f"{place}/{name}" for name in names]
            if not names and what_is_in(folder) != "nothing":
                log.warning("%s holds no photo itself, but %s", folder, what_is_in(folder))
        return by_class

    def _what_is_there(self) -> str:
        loose = self.images_in(self.data_dir)
        if loose:
            return f"holds photos itself ({loose[0].name} ...): give the folder above it"
        for folder in self.folders_in(self.data_dir):
            if any(self.images_in(inner) for inner in self.folders_in(folder)):
                if folder.name.lower() in _SPLIT_NAMES:
                    return f"has {folder.name}/ but no train/ with a folder per class"
                return f"is one level too high: give {folder}, whose folders hold photos"
        folders = [folder.name for folder in self.folders_in(self.data_dir)]
        if not folders:
            return "has no folders in it"
        listed = ", ".join(folders[:3]) + (" ..." if len(folders) > 3 else "")
        return f"has no photo in its {len(folders)} folders ({listed})"

    # --- masks -------------------------------------------------------------------------------

    @functools.cached_property
    def masks_dir(self) -> Path | None:
        """Root of the masks; None without masks."""
        if not self.masks:
            return None
        places = [Path(self.masks).expanduser(), self.data_dir / self.masks]
        found = next((place for place in places if place.is_dir()), None)
        if found is None:
            raise UserError(f"masks={self.masks}: expected a folder, {places[0]} or {places[1]}")
        if found.resolve() == self.data_dir.resolve():
            raise UserError(f"masks={self.masks} is the folder of the photos: give another tree")
        return found

    def _holds_masks(self, folder: Path) -> bool:
        """Whether a folder among the classes is the tree of masks, or on the way to it."""
        if self.masks_dir is None or self.images_in(folder):
            return False
        return self.masks_dir.resolve().is_relative_to(folder.resolve())

    def _masks_of(self, folder: str) -> dict[str, Path]:
        """The masks of a folder of photos, by file name and by file name without suffix."""
        if self.masks_dir is None:
            return {}
        files = self.images_in(self.masks_dir / folder)
        return {file.stem: file for file in reversed(files)} | {file.name: file for file in files}


def parent(record: Record) -> str:
    """The folder of a photo, relative to the data root."""
    return record.source.rpartition("/")[0]


def with_mask(record: Record, masks: dict[str, Path]) -> Record:
    """The record with its mask: photo.jpg may have photo.jpg, photo.png or photo.jpg.png."""
    photo = PurePosixPath(record.source)
    mask = masks.get(photo.name, masks.get(photo.stem))
    return dataclasses.replace(record, mask=mask)


_EXPECTED = "ROOT/CLASS/*.jpg or ROOT/{train,val,test}/CLASS/*.jpg (or .png, .webp ...)"
