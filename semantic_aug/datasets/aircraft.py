"""FGVC-Aircraft: 100 variants of aircraft, in 70 families of 30 manufacturers."""

import functools
from collections.abc import Iterator
from pathlib import Path

from semantic_aug import UserError
from semantic_aug.datasets.layout import (
    check_labelled,
    check_root,
    images_by_stem,
    listed_images,
    read_lines,
    read_table,
)
from semantic_aug.few_shot_dataset import SPLITS, FewShotDataset, Record

# Level -> the file of its class names, in the order of the labels.
LEVELS = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}


class AircraftDataset(FewShotDataset):
    """FGVC-Aircraft (https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/), its own splits.

        ROOT/data/images/0034309.jpg                       ROOT is fgvc-aircraft-2013b
        ROOT/data/{variants,families,manufacturers}.txt
        ROOT/data/images_{variant,family,manufacturer}_{train,val,test}.txt

    Args:
        level: the meaning of a class: `variant`, `family` or `manufacturer`.
    """

    env = "AIRCRAFT_DIR"
    default_dir = "data/fgvc-aircraft-2013b"

    def __init__(self, *, level: str = "variant", **kwargs):
        if level not in LEVELS:
            raise UserError(f"level: got {level!r}, expected one of {', '.join(LEVELS)}")
        self.level = level
        super().__init__(**kwargs)

    def list_class_names(self) -> list[str]:
        check_root(self, "data/images", f"data/{LEVELS[self.level]}")
        return read_lines(self.data_dir / "data" / LEVELS[self.level])

    def list_records(self, split: str) -> Iterator[Record]:
        path = self._list(split)
        labels = dict(read_table(path, 2))
        for stem in listed_images(labels, self._images, path):
            yield self.record(self._images[stem], labels[stem])

    def _list(self, split: str) -> Path:
        return self.data_dir / "data" / f"images_{self.level}_{split}.txt"

    @functools.cached_property
    def _images(self) -> dict[str, Path]:
        images = images_by_stem(self.data_dir / "data" / "images")
        labelled = {name for split in SPLITS for name, _ in read_table(self._list(split), 2)}
        check_labelled(images, labelled, self._list("*"))
        return images
