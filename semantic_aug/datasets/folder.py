"""Your own photos in a folder per class."""

import dataclasses
import functools
import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from semantic_aug import UserError, counted, stable_hash
from semantic_aug.datasets.index import cached
from semantic_aug.datasets.layout import complete_splits, what_is_in
from semantic_aug.datasets.split_table import split_by_table
from semantic_aug.few_shot_dataset import SPLITS, FewShotDataset, Record
from semantic_aug.images.masks import MADE_BY, masks_in
from semantic_aug.images.reading import IMAGE_SUFFIXES, names_in, readable_suffixes

# Names of folders, in any case.
SPLIT_FOLDERS = {
    "train": ["train", "training"],
    "val": ["val", "valid", "validation"],
    "test": ["test", "testing"],
}
_SPLIT_NAMES = {name for names in SPLIT_FOLDERS.values() for name in names}
MASKS = "masks"
NO_CLASSES = {"__macosx", "@eadir"}  # from a Mac's archives; thumbnails of network storage
HEIC_SUFFIXES = (".heic", ".heif", ".hif")

log = logging.getLogger(__name__)


class FolderDataset(FewShotDataset):
    """A folder of photos per class, with or without folders for the splits.

        ROOT/{train,val,test}/CLASS/*.{jpg,png,webp,...}
        ROOT/CLASS/*.{jpg,png,webp,...}

    Photos may also lie in folders below their class, such as CLASS/session2/*.jpg. Every image that
    Pillow reads is a photo, HEIC with pillow-heif. A folder `masks` below a class holds no photos;
    a folder `masks` beside the classes is no class if it contains their names.

    Without folders for the splits, each class is cut into 60 % train, 20 % val and 20 % test, in
    an order from hashes of the paths. Missing splits are made likewise: half of val becomes test,
    or a fifth of train becomes val; without both, train is cut into all three. Classes are
    sorted by name; an empty class folder is a class without photos.

    Args:
        masks: root of a parallel tree with a mask for every photo, at the same relative path, of
            any image suffix; relative to the working directory, or else to ROOT. A folder `masks`
            of ROOT that is such a tree is found without this option.
        splits: a CSV table with the columns `source` (a photo's path relative to ROOT), `split`
            and perhaps `group`. It replaces folders and hashes; photos that it does not name are
            left out. Its path is resolved like `masks`.
        older_list: take only photos that earlier versions took: .jpg, .jpeg, .png, .webp, .bmp,
            .tif, .tiff and .gif directly in the folder of a class. An experiment begun with such a
            version keeps its list without this option.
    """

    env = "FOLDER_DIR"

    def __init__(
        self, *, masks: str = "", splits: str = "", older_list: bool = False, **kwargs
    ):  # fmt: skip
        self.masks, self.splits = masks, splits
        self.older_list = older_list
        self._suffixes = frozenset(IMAGE_SUFFIXES) if older_list else readable_suffixes()
        super().__init__(**kwargs)
        self.__dict__.pop("_found", None)  # perhaps a million records; a trial has few

    def list_class_names(self) -> list[str]:
        return self._found[0]

    def list_records(self, split: str) -> Iterator[Record]:
        records = self._found[1][split]
        if self.masks_dir is None:
            return iter(records)
        masks = masks_in(self.masks_dir, (record.source for record in records))
        if self.masks and records and not masks:
            folder = self.masks_dir / min(map(parent, records))
            log.warning("masks=%s: none for split %s, such as in %s/", self.masks, split, folder)
        return (dataclasses.replace(r, mask=masks.get(r.source)) for r in records)

    # --- photos ------------------------------------------------------------------------------

    @functools.cached_property
    def _found(self) -> tuple[list[str], dict[str, list[Record]]]:
        """The sorted names of all classes, and the records of every split, without masks."""
        roots: dict[str, list[Path]] = {split: [] for split in SPLITS}
        roots["train"] = [self.data_dir]
        if self._has_splits():
            roots = {split: self._split_folders(split) for split in SPLITS}
        found = {split: self._by_class(roots[split]) for split in SPLITS}
        if not any(paths for split in SPLITS for paths in found[split].values()):
            raise UserError(f"{self.data_dir} {self._what_is_there()}; expected {_EXPECTED}")
        if not self.older_list:
            self._check_level(found, 1 if roots["train"] == [self.data_dir] else 2)
        records = {
            split: [self.record(path, name) for name, paths in classes.items() for path in paths]
            for split, classes in found.items()
        }
        if self.splits:
            every = (record for split in SPLITS for record in records[split])
            splits = split_by_table(self._sought(self.splits, Path.is_file, "splits"), every)
        else:
            splits = self.completed(records)
        for root in dict.fromkeys([self.data_dir, *(each for s in SPLITS for each in roots[s])]):
            loose = self.images_in(root, self._suffixes)
            if loose:
                log.warning("%s without a class directly in %s", counted(len(loose), "photo"), root)
        return sorted(set().union(*found.values())), splits

    def completed(self, records: dict[str, list[Record]]) -> dict[str, list[Record]]:
        """The splits that have folders; without folders, all photos are `train`."""
        return complete_splits(self.data_dir, records)

    def _split_folders(self, split: str) -> list[Path]:
        folders = self.folders_in(self.data_dir)
        return [folder for folder in folders if folder.name.lower() in SPLIT_FOLDERS[split]]

    def _has_splits(self) -> bool:
        """Whether train/ exists and is a split, not a class of this name."""
        has_splits = False
        for train in self._split_folders("train"):
            classes, photos = self._classes_in(train), self.images_in(train, self._suffixes)
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

    def _classes_in(self, root: Path) -> list[Path]:
        """The folders in `root` that are classes."""
        folders = self.folders_in(root)
        if self.older_list:
            return folders
        return [
            folder
            for folder in folders
            if folder.name.lower() not in NO_CLASSES
            and not self._is_masks_dir(folder)
            and not (folder.name.lower() == MASKS and self._holds_masks_of(folder, folders))
        ]

    def _holds_masks_of(self, folder: Path, folders: list[Path]) -> bool:
        """Whether the folder holds no photo, but folders with the names of the classes or splits.

        The folder `MADE_BY` marks a folder of `semantic-aug masks`.
        """
        if (folder / MADE_BY).is_dir() or self.older_list:
            return (folder / MADE_BY).is_dir()
        images, inner = names_in(folder, self._suffixes)
        others = [each for each in folders if each != folder]
        below = [each.name for other in others for each in self.folders_in(other)]
        return not images and not {*below, *(each.name for each in others)}.isdisjoint(inner)

    def _by_class(self, roots: Iterable[Path]) -> dict[str, list[str]]:
        """Class -> its photos, relative to the data root."""
        folders = [folder for root in roots for folder in self._classes_in(root)]
        by_class: dict[str, list[str]] = {}
        left_out: list[str] = []
        for folder, names in image_tree(folders, self._holds_no_photos).items():
            place = folder.relative_to(self.data_dir).as_posix()
            taken = self._taken(names)
            if not taken and self._holds_masks(folder):
                continue
            # macOS decomposes accents in file names; the class is the same.
            paths = by_class.setdefault(unicodedata.normalize("NFC", folder.name), [])
            paths += [f"{place}/{name}" for name in taken]
            if len(taken) < len(names):
                left_out += [f"{place}/{name}" for name in sorted(set(names) - set(taken))]
            if not taken and what_is_in(folder) != "nothing":
                log.warning("%s holds no photo itself, but %s", folder, what_is_in(folder))
        if self.older_list and left_out:
            log.warning(
                "older_list: %d photos are left out, such as %s; with a new --experiment_name they "
                "would be taken",
                len(left_out),
                left_out[0],
            )
        elif left_out:
            log.warning(
                "%s left out, such as %s: to read such photos, pip install pillow-heif",
                counted(len(left_out), "HEIC photo"),
                left_out[0],
            )
        return by_class

    def _taken(self, names: list[str]) -> list[str]:
        """The images that are photos, by their paths within their class."""
        suffixes = self._suffixes
        if self.older_list:
            names = [name for name in names if "/" not in name]
        return [name for name in names if name[name.rfind(".") :].lower() in suffixes]

    def _check_level(self, found: dict[str, dict[str, list[str]]], depth: int) -> None:
        """Raise if the data root is probably a level too high.

        Args:
            found: split -> class -> photos.
            depth: number of folders from the root to a class, inclusive.

        Raises:
            UserError: splits would be classes, or the only class holds no photo itself.
        """
        classes: dict[str, list[str]] = defaultdict(list)
        for by_class in found.values():
            for name, paths in by_class.items():
                classes[name] += paths
        # Folders with photos below classes that hold no photo directly.
        inner = {
            name: sorted({path.split("/")[depth] for path in paths})
            for name, paths in classes.items()
            if paths and all(path.count("/") > depth for path in paths)
        }
        split = next((name for name in inner if name.lower() in _SPLIT_NAMES), None)
        if depth == 1 and split:
            raise UserError(
                f"{self.data_dir} has {split}/ but no train/ with a folder per class; expected "
                f"{_EXPECTED}"
            )
        if not inner or sum(map(bool, classes.values())) > 1:
            return
        ((name, folders),) = inner.items()
        place = self.data_dir.joinpath(*classes[name][0].split("/")[:depth])
        what = f"is one level too high: give {place}, whose folders hold photos"
        if depth == 2:
            what = f"has one class, {name}, whose photos lie in folders: move {folders[0]}/ and "
            what += f"others from {place} to {place.parent}, likewise in the other splits"
        raise UserError(
            f"{self.data_dir} {what}; or, if {name} is one class, put its photos directly into "
            f"{place}; expected {_EXPECTED}"
        )

    def _what_is_there(self) -> str:
        loose = self.images_in(self.data_dir, self._suffixes)
        if loose:
            return f"holds photos itself ({loose[0].name} ...): give the folder above it"
        folders = self.folders_in(self.data_dir)
        if not folders:
            return "has no folders in it"
        listed = ", ".join(folder.name for folder in folders[:3])
        listed += " ..." if len(folders) > 3 else ""
        return f"has no photo in its {len(folders)} folders ({listed})"

    # --- masks -------------------------------------------------------------------------------

    @functools.cached_property
    def masks_dir(self) -> Path | None:
        """Root of the masks: the given root, else the folder `masks` beside the classes, else None.

        With older lists, the folder counts only if `semantic-aug masks` has made it; otherwise it
        may be a class.
        """
        if not self.masks:
            folders = self.folders_in(self.data_dir)
            beside = (folder for folder in folders if folder.name.lower() == MASKS)
            return next(
                (folder for folder in beside if self._holds_masks_of(folder, folders)), None
            )
        found = self._sought(self.masks, Path.is_dir, "masks")
        if found.resolve() == self.data_dir.resolve():
            raise UserError(f"masks={self.masks} is the folder of the photos: give another tree")
        return found

    def _sought(self, name: str, is_there: Callable[[Path], bool], option: str) -> Path:
        """The file or folder of an option, relative to the working directory or to the root."""
        places = [Path(name).expanduser(), self.data_dir / name]
        found = next((place for place in places if is_there(place)), None)
        if found is None:
            what = "folder" if option == "masks" else "file"
            raise UserError(f"{option}={name}: expected a {what}, {places[0]} or {places[1]}")
        return found

    def _holds_no_photos(self, folder: Path) -> bool:
        """Whether a folder below a class holds masks or leftovers of other programs."""
        if folder.name.lower() in (MASKS, *NO_CLASSES):
            return True
        return self._is_masks_dir(folder)

    def _is_masks_dir(self, folder: Path) -> bool:
        return self.masks_dir is not None and folder.resolve() == self.masks_dir.resolve()

    def _holds_masks(self, folder: Path) -> bool:
        """Whether a folder among the classes is the tree of masks, or contains it."""
        if self.masks_dir is None:
            return False
        return self.masks_dir.resolve().is_relative_to(folder.resolve())

    # --- what is not taken -------------------------------------------------------------------

    def left_out(self, taken: set[str]) -> list[str]:
        """The files below the root, without hidden files, masks and photos of a class.

        Links to folders are not followed.

        Args:
            taken: the sources of all photos, of all splits.

        Returns:
            Their paths relative to the root, sorted.
        """
        found = []
        for folder, folders, names in os.walk(self.data_dir):
            if self._is_masks_dir(Path(folder)):
                folders.clear()
                continue
            folders[:] = [name for name in folders if not name.startswith(".")]
            place = Path(folder).relative_to(self.data_dir)
            found += [(place / name).as_posix() for name in names if not name.startswith(".")]
        return sorted(set(found) - taken)


def image_tree(
    folders: Iterable[Path], holds_no_photos: Callable[[Path], bool]
) -> dict[Path, list[str]]:
    """The images in each folder and in all folders below, as relative paths; an index.

    HEIC is included, even if it cannot be read here. Links to folders are followed, but no folder
    is listed twice.

    Args:
        holds_no_photos: tells whether a folder below is left out.
    """
    suffixes = frozenset({*readable_suffixes(), *HEIC_SUFFIXES})
    kind = f"tree{stable_hash(*sorted(suffixes)):x}"
    found: dict[Path, list[str]] = {folder: [] for folder in folders}
    tops = [folder.resolve() for folder in found]
    seen = set(tops)
    level = [(folder, "") for folder in found]
    while level:
        places = [top / place for top, place in level]
        names = cached(kind, places, functools.partial(_names_in_each, places, suffixes))
        level_below = []
        for (top, place), folder, (images, inner) in zip(level, places, names):
            found[top] += [place + name for name in images]
            for name in inner:
                path = folder / name
                real = path.resolve()
                if real in seen or holds_no_photos(path):
                    continue
                if path.is_symlink() and any(
                    real.is_relative_to(each) or each.is_relative_to(real) for each in tops
                ):
                    continue  # listed without the link, or a folder above the classes
                seen.add(real)
                level_below.append((top, f"{place}{name}/"))
        level = level_below
    return found


def _names_in_each(folders: list[Path], suffixes: frozenset[str]) -> list[tuple]:
    return [names_in(folder, suffixes) for folder in folders]


def parent(record: Record) -> str:
    """The folder of a photo, relative to the data root."""
    return record.source.rpartition("/")[0]


_EXPECTED = "ROOT/CLASS/*.jpg or ROOT/{train,val,test}/CLASS/*.jpg (or .png, .webp ...)"
