"""MVIP: industrial parts in front of many cameras, with a mask for every photo."""

import functools
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from semantic_aug import UserError
from semantic_aug.datasets.layout import right_root, what_is_in
from semantic_aug.few_shot_dataset import FewShotDataset, Record

PHOTOS = {
    "train": "train_data/*/*/*/*rgb.png",  # SET/ORIENTATION/CAM
    "val": "valid_data/*/*/*rgb.png",  # SET/CAM
    "test": "test_data/*/*/*rgb.png",
}


class MVIPDataset(FewShotDataset):
    """MVIP as it is published.

        ROOT/CLASS/meta.json                                    super_class: list, description
        ROOT/CLASS/train_data/SET/ORIENTATION/CAM/X_rgb.png     mask: X_rgb_mask_gen.png beside it
        ROOT/CLASS/{valid,test}_data/SET/CAM/X_rgb.png          likewise

    Classes are the folders of one super class, sorted by name.

    Args:
        super_class: classes whose `super_class` in meta.json contains it; `all` takes every class.
        num_classes: take only so many classes, the first.
    """

    env = "MVIP_DIR"
    default_dir = "data/mvip"

    def __init__(self, *, super_class: str = "CarComponent", num_classes: int = 20, **kwargs):
        if num_classes < 1:
            raise UserError(f"num_classes: got {num_classes}, expected 1 or more")
        self.super_class = super_class
        self.max_classes = num_classes  # self.num_classes will be the actual number
        super().__init__(**kwargs)

    def list_class_names(self) -> list[str]:
        return list(self._classes)

    def list_records(self, split: str) -> Iterator[Record]:
        for class_name, (folder, description) in self._classes.items():
            for path in folder.glob(PHOTOS[split]):
                if path.name.startswith("."):
                    continue
                mask = path.with_name(f"{path.stem}_mask_gen.png")
                place = path.relative_to(self.data_dir).parts
                yield self.record(
                    path,
                    class_name,
                    mask if mask.exists() else None,
                    description,
                    group="/".join(place[:3]),  # CLASS/train_data/SET, the photos of one part
                )

    @functools.cached_property
    def _classes(self) -> dict[str, tuple[Path, str]]:
        """Class name -> its folder and description."""
        folders = self.folders_in(self.data_dir)
        if not any((folder / "meta.json").exists() for folder in folders):
            raise UserError(
                f"{self.data_dir} is no MVIP root: expected CLASS/meta.json and CLASS/train_data/ "
                f"in it, found {what_is_in(self.data_dir)}; {right_root(self, ['*/meta.json'])}"
            )
        found, super_classes = {}, set()
        for folder in folders:
            belongs_to, description = read_meta(folder / "meta.json")
            super_classes.update(belongs_to)
            if self.super_class in ("all", *belongs_to):
                found[unicodedata.normalize("NFC", folder.name)] = folder, description
        if not found:
            raise UserError(
                f"super_class: no class of {self.data_dir} belongs to {self.super_class!r}; "
                f"there are: {', '.join(sorted(super_classes))}, and all, which takes every class"
            )
        return {name: found[name] for name in sorted(found)[: self.max_classes]}


def read_meta(path: Path) -> tuple[list[str], str]:
    """The super classes and the description in a meta.json.

    Raises:
        UserError: the file is missing, truncated, or holds something else.
    """
    try:
        meta = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: every class of MVIP has a meta.json") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no readable JSON ({error}): copy it again") from error
    if not isinstance(meta, dict):
        raise UserError(f"{path}: expected an object with super_class and description")
    super_class, description = meta.get("super_class"), meta.get("description") or ""
    if not isinstance(super_class, list) or not all(isinstance(s, str) for s in super_class):
        raise UserError(f"{path}: super_class is {super_class!r}, expected a list of names")
    if not isinstance(description, str):
        raise UserError(f"{path}: description is {description!r}, expected text")
    return super_class, description
