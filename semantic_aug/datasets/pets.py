"""Oxford-IIIT Pets: 37 breeds of cats and dogs, about 200 photos each."""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from semantic_aug import UserError
from semantic_aug.datasets.layout import (
    check_labelled,
    check_root,
    complete_splits,
    images_by_stem,
    listed_images,
    read_indices,
    read_table,
)
from semantic_aug.few_shot_dataset import FewShotDataset, Record

# In the order of the class ids in the lists, from 1.
CLASS_NAMES = [
    "Abyssinian", "american bulldog", "american pit bull terrier", "basset hound", "beagle",
    "Bengal", "Birman", "Bombay", "boxer", "British Shorthair", "chihuahua", "Egyptian Mau",
    "english cocker spaniel", "english setter", "german shorthaired", "great pyrenees",
    "havanese", "japanese chin", "keeshond", "leonberger", "Maine Coon", "miniature pinscher",
    "newfoundland", "Persian", "pomeranian", "pug", "Ragdoll", "Russian Blue", "saint bernard",
    "samoyed", "scottish terrier", "shiba inu", "Siamese", "Sphynx",
    "staffordshire bull terrier", "wheaten terrier", "yorkshire terrier",
]  # fmt: skip
PET = 1  # in a trimap; 2 is the background, and 3 the border between both


class PetsDataset(FewShotDataset):
    """Oxford-IIIT Pets (https://www.robots.ox.ac.uk/~vgg/data/pets/).

        ROOT/images/Abyssinian_1.jpg
        ROOT/annotations/{trainval,test}.txt
        ROOT/annotations/trimaps/Abyssinian_1.png           the masks; may be absent

    Hashes of the paths choose a fifth of trainval of every breed as `val`. About forty photos that
    no list has are left out. The two lists together must contain list.txt.
    """

    class_names = CLASS_NAMES
    env = "PETS_DIR"
    default_dir = "data/oxford-iiit-pet"

    def list_records(self, split: str) -> Iterable[Record]:
        return self._splits[split]

    @functools.cached_property
    def _splits(self) -> dict[str, list[Record]]:
        check_root(self, "images", "annotations/trainval.txt", "annotations/test.txt")
        lists = {"train": "trainval.txt", "test": "test.txt"}
        images = images_by_stem(self.data_dir / "images")
        trimaps = images_by_stem(self.data_dir / "annotations" / "trimaps")
        published = {
            split: self._published(self.data_dir / "annotations" / name, images, trimaps)
            for split, name in lists.items()
        }
        splits = complete_splits(self.data_dir, published)
        self._check_lists(lists.values())
        return splits

    def _check_lists(self, names: Iterable[str]) -> None:
        """Raise unless both lists together contain `list.txt`, if this file exists."""
        folder = self.data_dir / "annotations"
        if (folder / "list.txt").exists():
            rows = read_table(folder / "list.txt", 4)
            everything = [row[0] for row in rows if not row[0].startswith("#")]
            listed = [row[0] for name in names for row in read_table(folder / name, 4)]
            check_labelled(everything, listed, folder / "{trainval,test}.txt")

    def _published(
        self, path: Path, images: dict[str, Path], trimaps: dict[str, Path]
    ) -> Iterator[Record]:
        class_ids = {row[0]: row[1] for row in read_table(path, 4)}  # then species and breed id
        known = {str(number): name for number, name in enumerate(CLASS_NAMES, start=1)}
        for stem in listed_images(class_ids, images, path):
            if class_ids[stem] not in known:
                raise UserError(f"{path}: {stem} has the class {class_ids[stem]}, expected 1 to 37")
            trimap = trimaps.get(stem)
            mask = functools.partial(pet_mask, trimap) if trimap else None
            yield self.record(images[stem], known[class_ids[stem]], mask)


def pet_mask(trimap: Path) -> np.ndarray:
    """[H, W] bool: the pixels of the pet in a trimap, without the border."""
    return read_indices(trimap) == PET
