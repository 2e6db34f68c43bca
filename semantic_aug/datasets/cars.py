"""Stanford Cars: 196 cars by make, model and year."""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from semantic_aug import UserError
from semantic_aug.datasets.layout import (
    as_integer,
    check_labelled,
    complete_splits,
    find_layout,
    images_by_stem,
    listed_images,
    read_mat,
)
from semantic_aug.few_shot_dataset import FewShotDataset, Record

# Files and folders in the root; the last file has the names of the classes.
TWO_FOLDERS = ("cars_train", "cars_test", "devkit/cars_meta.mat")
ONE_FOLDER = ("car_ims", "cars_annos.mat")
TEST_LABELS = "cars_test_annos_withlabels.mat"


class CarsDataset(FewShotDataset):
    """Stanford Cars in either of its two distributions.

        ROOT/cars_train/00001.jpg, ROOT/cars_test/00001.jpg
        ROOT/devkit/{cars_meta,cars_train_annos}.mat
        ROOT/cars_test_annos_withlabels.mat, there or in devkit/

        ROOT/car_ims/000001.jpg
        ROOT/cars_annos.mat

    No val was published: val is a fifth of train of every class, chosen by hashes of the paths.
    The two distributions name the same photos differently, so their val splits differ.
    """

    env = "CARS_DIR"
    default_dir = "data/stanford_cars"

    def list_class_names(self) -> list[str]:
        *_, path = find_layout(self, TWO_FOLDERS, ONE_FOLDER)
        return [str(name) for name in np.atleast_1d(*read_mat(self.data_dir / path, "class_names"))]

    def list_records(self, split: str) -> Iterable[Record]:
        return self._splits[split]

    @functools.cached_property
    def _splits(self) -> dict[str, list[Record]]:
        if find_layout(self, TWO_FOLDERS, ONE_FOLDER) is ONE_FOLDER:
            path, images = self.data_dir / "cars_annos.mat", self.data_dir / "car_ims"
            rows = read_rows(path, "relative_im_path", "class", "test")
            published = {
                split: self._records(path, images, [row[:2] for row in rows if row[2] == is_test])
                for split, is_test in (("train", 0), ("test", 1))
            }
            check_labelled(images_by_stem(images), (Path(row[0]).stem for row in rows), path)
        else:
            published = {}
            for split, path in (("train", self._devkit("cars_train_annos.mat")),
                                ("test", self._devkit(TEST_LABELS))):  # fmt: skip
                images, rows = self.data_dir / f"cars_{split}", read_rows(path, "fname", "class")
                check_labelled(images_by_stem(images), (Path(row[0]).stem for row in rows), path)
                published[split] = self._records(path, images, rows)
        return complete_splits(self.data_dir, published)

    def _records(self, path: Path, folder: Path, rows: list[tuple]) -> Iterator[Record]:
        images = images_by_stem(folder)
        labels = {Path(name).stem: as_integer(label, path, "class") for name, label in rows}
        for stem in listed_images(labels, images, path):
            if not 1 <= labels[stem] <= self.num_classes:
                raise UserError(f"{path} has the class {labels[stem]} of {self.num_classes}")
            yield self.record(images[stem], self.class_names[labels[stem] - 1])

    def _devkit(self, name: str) -> Path:
        """A file of annotations, from the root or from devkit/."""
        for folder in (self.data_dir, self.data_dir / "devkit"):
            if (folder / name).exists():
                return folder / name
        why = "; cars_test_annos.mat has no labels" if name == TEST_LABELS else ""
        raise UserError(f"{name} is neither in {self.data_dir} nor in devkit/: download it{why}")


def read_rows(path: Path, *fields: str) -> list[tuple]:
    """These fields of every annotation in a file, the file name first."""
    (annotations,) = read_mat(path, "annotations")
    lacking = set(fields) - set(annotations.dtype.names or ())
    if lacking:
        raise UserError(f"{path} has annotations without {', '.join(sorted(lacking))}")
    rows = [tuple(row[field] for field in fields) for row in np.atleast_1d(annotations)]
    odd = [row[0] for row in rows if not isinstance(row[0], str)]
    if odd:
        raise UserError(f"{path}: {fields[0]} is {odd[0]!r}, expected a file name")
    return rows
