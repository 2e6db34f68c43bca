"""Leafy Spurge: aerial photos of Montana's grassland, with and without an invasive weed."""

import functools
from collections.abc import Iterable
from pathlib import Path

from semantic_aug import UserError
from semantic_aug.datasets.layout import complete_splits, right_root, what_is_in
from semantic_aug.few_shot_dataset import FewShotDataset, Record

FOLDERS = {"absent": "grassland", "present": "leafy spurge"}  # -> class, in the order of labels
CLASS_NAMES = list(FOLDERS.values())
SPLIT_FOLDERS = {"train": ["train"], "val": ["val", "validation"], "test": ["test"]}
VERSIONS = ("crop", "context")


class SpurgeDataset(FewShotDataset):
    """Leafy Spurge (https://huggingface.co/datasets/mpg-ranch/leafy_spurge, arXiv 2405.03702).

        ROOT/data/{crop,context}/{train,test}/{absent,present}/*
        ROOT/data/{train,test}/{absent,present}/*           as its first version had it

    No val was published: val is a fifth of train of both classes, chosen by hashes of the paths.
    `--dataset hf:parquet` reads the same data from parquet files.

    Args:
        version: `crop`, tiles of 39 x 39 pixels about a surveyed point, or `context`, 1024 x 1024.
    """

    class_names = CLASS_NAMES
    env = "SPURGE_DIR"
    default_dir = "data/leafy_spurge"

    def __init__(self, *, version: str = "crop", **kwargs):
        if version not in VERSIONS:
            raise UserError(f"version: got {version!r}, expected one of {', '.join(VERSIONS)}")
        self.version = version
        super().__init__(**kwargs)

    def list_records(self, split: str) -> Iterable[Record]:
        return self._splits[split]

    @functools.cached_property
    def _splits(self) -> dict[str, list[Record]]:
        tiles = self._tiles()
        published = {
            split: [
                self.record(path, class_name)
                for name in names
                for folder, class_name in FOLDERS.items()
                for path in self.images_in(tiles / name / folder)
            ]
            for split, names in SPLIT_FOLDERS.items()
        }
        return complete_splits(self.data_dir, published)

    def _tiles(self) -> Path:
        data = self.data_dir / "data"
        needed = [f"train/{folder}" for folder in FOLDERS]
        for place in (data / self.version, data):
            if all((place / name).is_dir() for name in needed):
                return place
        raise UserError(
            f"{self.data_dir} is no root of {type(self).__name__}: expected data/{self.version}/"
            f"train/ with absent/ and present/ in it, found {what_is_in(self.data_dir)}; "
            f"{right_root(self, [f'data/{self.version}/{name}' for name in needed])}"
        )
