"""The photos to classify: files, folders and globs, or a folder of class folders."""

import functools
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.datasets.folder import FolderDataset
from semantic_aug.evaluation.classifiers import is_classifier
from semantic_aug.experiment.names import folder_names
from semantic_aug.few_shot_dataset import FewShotDataset, Record
from semantic_aug.images.masks import names_of_masks
from semantic_aug.images.reading import names_in, readable_suffixes

_MAKING = (
    "masks are made by: semantic-aug masks --dataset=folder --data_dir=PHOTOS --mask_dir=MASKS, "
    "where PHOTOS is the parent of the photos' folder"
)
_CLASS = "photo"  # of photos with an unknown class
_masks_in = functools.cache(names_of_masks)


class GivenPhotos(FewShotDataset):
    """Photos without classes.

    Args:
        photos: the photos in the given order.
    """

    class_names = (_CLASS,)  # type: ignore[assignment]

    def __init__(self, photos: Sequence[Record], **kwargs):
        self.listed = photos
        super().__init__(split="test", data_dir=".", **kwargs)

    def list_records(self, split):
        return self.listed


class LabelledFolder(FolderDataset):
    """All photos of a folder of class folders; with train/, val/ and test/, the photos of test/."""

    def completed(self, records):
        if self._has_splits():
            return super().completed(records)
        return {"train": [], "val": [], "test": records["train"]}


def photos_in(
    words: Sequence[str | Path],
    facts: Mapping,
    labelled: bool = False,
    mask_dir: str | None = None,
) -> GivenPhotos | LabelledFolder:
    """The photos that `words` name, for a classifier with these `facts`.

    Raises:
        UserError: there are no photos; or a word matches no file, folder or glob; or masks are
            missing or unusable.
    """
    options = {"crop_to_object": facts["crop_to_object"], "bits": facts["bits"]}
    if facts["crop_to_object"] and not mask_dir:
        raise UserError(
            "--mask_dir is missing: this classifier was trained on photos that were cropped to "
            f"their objects, and needs a folder with a mask of each photo; {_MAKING}"
        )
    if mask_dir and not facts["crop_to_object"]:
        raise UserError("--mask_dir: this classifier takes whole photos; leave the flag out")
    if mask_dir and not Path(mask_dir).is_dir():
        raise UserError(f"--mask_dir: {mask_dir} is no folder; {_MAKING}")
    if not words:
        raise UserError("no photo is given: name files, folders or globs after the classifier")
    if labelled:
        if len(words) != 1 or not Path(words[0]).is_dir():
            got = " ".join(map(str, words))
            raise UserError(f"--labelled: got {got}, expected one folder with a folder per class")
        return LabelledFolder(data_dir=words[0], split="test", masks=mask_dir or "", **options)
    found: dict[str, Record] = {}
    for word in words:
        if not str(word):
            raise UserError("a photo's name is empty: name files, folders or globs")
        if is_classifier(Path(word)):
            raise UserError(f"{word} is a classifier: all classifiers stand before the photos")
        files = [*_files(str(word))]
        if not files:
            raise UserError(f"no photo in {word}")
        for path, place in files:
            mask = None
            if mask_dir:
                top = Path(mask_dir)
                places = (top / place, top / path.absolute().parent.name, top)
                mask = next(filter(None, (_masks_in(each)(path.name) for each in places)), None)
            record = Record(path, _CLASS, str(path), mask=mask)
            found.setdefault(record.source, record)
    if mask_dir and all(record.mask is None for record in found.values()):
        first = Path(next(iter(found.values())).path)
        raise UserError(
            f"--mask_dir: {mask_dir} has no mask for any of {counted(len(found), 'photo')}; for "
            f"{first}, expected {Path(mask_dir, first.with_suffix('.png').name)}, or the same in a "
            f"folder with the name of the photo's folder; {_MAKING}"
        )
    return GivenPhotos(list(found.values()), **options)


def _files(word: str) -> Iterator[tuple[Path, str]]:
    """The files that a word names, each with its folder relative to the named folder."""
    path = Path(word).expanduser()
    if path.is_dir():
        yield from _below(path)
    elif os.path.lexists(path):
        yield path, ""
    elif glob.has_magic(word):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (of any root)
        if not matches:
            raise UserError(f"{word} finds no file")
        for match in map(Path, matches):
            yield from _below(match) if match.is_dir() else [(match, "")]
    else:
        raise UserError(f"{word}: no such file or folder")


def _below(folder: Path) -> Iterator[tuple[Path, str]]:
    """The photos in a folder and its subfolders, by name; links are not followed twice."""
    seen, waiting = set(), [""]
    while waiting:
        place = waiting.pop()
        here = folder / place
        if here.resolve() in seen:
            continue
        seen.add(here.resolve())
        images, folders = names_in(here, readable_suffixes())
        yield from ((here / name, place) for name in images)
        waiting += [f"{place}{name}/" for name in reversed(folders)]


def labels_of(dataset: FewShotDataset, class_names: Sequence[str]) -> list[int | None]:
    """The label of each photo among these classes; None for a photo of another class.

    A folder may have the name of its class, or the name that this project gives the class folder.

    Raises:
        UserError: no folder has the name of a class.
    """
    label_of = {name: label for label, name in enumerate(class_names)}
    folders = {folder: label_of[name] for name, folder in folder_names(class_names).items()}
    found = [folders.get(name) if name not in label_of else label_of[name]
             for name in dataset.class_names]  # fmt: skip
    if all(label is None for label in found):
        raise UserError(
            f"--labelled: no folder has the name of a class: got "
            f"{', '.join(dataset.class_names)}, expected some of {', '.join(class_names)}"
        )
    return [found[dataset.get_label_by_idx(idx)] for idx in range(len(dataset))]
