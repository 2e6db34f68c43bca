"""Any photos in one folder per class: how most people come with their own data."""

import functools
import logging
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from semantic_aug import UserError, stable_hash
from semantic_aug.few_shot_dataset import SPLITS, FewShotDataset, Record

SPLIT_FOLDERS = {"train": ["train"], "val": ["val", "valid", "validation"], "test": ["test"]}
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

    def list_class_names(self) -> list[str]:
        return list(self._photos["train"])

    def list_records(self, split: str) -> Iterator[Record]:
        photos = self._photos[split]
        folders = {path.parent for paths in photos.values() for path in paths}
        masks = {folder: self._masks_of(folder) for folder in folders}
        if self.masks and folders and not any(masks.values()):
            folder = self.masks_dir / min(folders).relative_to(self.data_dir)
            log.warning("masks=%s: none for split %s, such as in %s/", self.masks, split, folder)
        for class_name, paths in photos.items():
            for path in paths:
                found = masks[path.parent]
                # photo.jpg may have a mask photo.jpg, photo.png or photo.jpg.png.
                mask = found.get(path.name, found.get(path.stem))
                yield self.record(path, class_name, mask)

    # --- photos ------------------------------------------------------------------------------

    @functools.cached_property
    def _photos(self) -> dict[str, dict[str, list[Path]]]:
        """Split -> class -> photos. Every split has every class, sorted by name."""
        if self._has_splits():
            found = {
                split: self._by_class(self.data_dir / name for name in names)
                for split, names in SPLIT_FOLDERS.items()
            }
        else:
            found = {"train": self._by_class([self.data_dir]), "val": {}, "test": {}}
        missing = tuple(split for split in SPLITS if not any(found[split].values()))
        if missing == SPLITS:
            raise UserError(f"{self.data_dir} {self._what_is_there()}; expected {_EXPECTED}")
        cut, how = _CUTS.get(missing, (None, None))
        if cut:
            log.info("%s: %s", self.data_dir, how)
        loose = self.images_in(self.data_dir)
        if loose:
            log.warning("%d photos directly in %s have no class", len(loose), self.data_dir)

        photos = {split: {} for split in SPLITS}
        for name in sorted(set().union(*found.values())):
            lists = [sorted(self._hashed(found[split].get(name, []))) for split in SPLITS]
            for split, hashed in zip(SPLITS, cut(*lists) if cut else lists):
                photos[split][name] = [path for _, path in hashed]
        return photos

    def _hashed(self, paths: list[Path]) -> Iterator[tuple[int, Path]]:
        for path in paths:
            yield stable_hash(path.relative_to(self.data_dir).as_posix()), path

    def _has_splits(self) -> bool:
        """Whether train/ is a split, rather than a class of that name or nothing."""
        train = self.data_dir / "train"
        classes, photos = self.folders_in(train), self.images_in(train)
        if classes and photos:
            raise UserError(
                f"{train} holds both photos ({photos[0].name} ...) and folders "
                f"({classes[0].name} ...): is it a class, or a split? Move one or the other out"
            )
        if photos and {folder.name for folder in self.folders_in(self.data_dir)} <= _SPLIT_NAMES:
            log.warning(
                "%s holds photos directly and is taken for a class: a split has a folder per class",
                train,
            )
        return bool(classes)

    def _by_class(self, roots: Iterable[Path]) -> dict[str, list[Path]]:
        by_class = {}
        for root in roots:
            for folder in self.folders_in(root):
                if not self._holds_masks(folder):
                    # macOS decomposes accents in names of files; the class is the same.
                    name = unicodedata.normalize("NFC", folder.name)
                    by_class.setdefault(name, []).extend(self.images_in(folder))
        return by_class

    def _what_is_there(self) -> str:
        loose = self.images_in(self.data_dir)
        if loose:
            return f"holds photos itself ({loose[0].name} ...): give the folder above it"
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

    def _masks_of(self, folder: Path) -> dict[str, Path]:
        """The masks of a folder of photos, by file name and by file name without suffix."""
        if self.masks_dir is None:
            return {}
        files = self.images_in(self.masks_dir / folder.relative_to(self.data_dir))
        return {file.stem: file for file in reversed(files)} | {file.name: file for file in files}


# --- completing the splits: photos of a class with their hashes, in the order of these -----------


def _cut_all(train, val, test):
    if len(train) < 3:
        return train[:1], [], train[1:]
    part = _fifth(train)
    return train[2 * part :], train[:part], train[part : 2 * part]


def _cut_val(train, val, test):
    part = _fifth(train) if len(train) >= 3 else 0
    return train[part:], train[:part], test


def _halve_val(train, val, test):
    # The odd one goes where its hash says, so that single photos are not all on one side.
    odd = val[0][0] & 1 if val else 0
    middle = (len(val) + odd) // 2
    return train, val[:middle], val[middle:]


def _fifth(photos: list) -> int:
    return max(1, round(len(photos) / 5))


# Splits without a photo -> what is done, and how it is said.
_CUTS = {
    ("val", "test"): (_cut_all, "photos are cut into 60 % train, 20 % val and 20 % test"),
    ("val",): (_cut_val, "no photos for val, 20 % of train are taken"),
    ("test",): (_halve_val, "no photos for test, half of val is taken"),
}
_EXPECTED = "ROOT/CLASS/*.jpg or ROOT/{train,val,test}/CLASS/*.jpg (or .png, .webp ...)"
