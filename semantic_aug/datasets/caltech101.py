"""Caltech-101: objects of 101 categories, about 40 to 800 photos each."""

import functools
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from semantic_aug import UserError
from semantic_aug.datasets.layout import check_root, complete_splits, images_by_stem, read_mat
from semantic_aug.few_shot_dataset import FewShotDataset, Record
from semantic_aug.images.reading import read_size

# Folder names in lower case, with blanks; sorted.
CLASS_NAMES = [
    "accordion", "airplanes", "anchor", "ant", "barrel", "bass", "beaver", "binocular", "bonsai",
    "brain", "brontosaurus", "buddha", "butterfly", "camera", "cannon", "car side", "ceiling fan",
    "cellphone", "chair", "chandelier", "cougar body", "cougar face", "crab", "crayfish",
    "crocodile", "crocodile head", "cup", "dalmatian", "dollar bill", "dolphin", "dragonfly",
    "electric guitar", "elephant", "emu", "euphonium", "ewer", "faces", "faces easy", "ferry",
    "flamingo", "flamingo head", "garfield", "gerenuk", "gramophone", "grand piano", "hawksbill",
    "headphone", "hedgehog", "helicopter", "ibis", "inline skate", "joshua tree", "kangaroo",
    "ketch", "lamp", "laptop", "leopards", "llama", "lobster", "lotus", "mandolin", "mayfly",
    "menorah", "metronome", "minaret", "motorbikes", "nautilus", "octopus", "okapi", "pagoda",
    "panda", "pigeon", "pizza", "platypus", "pyramid", "revolver", "rhino", "rooster",
    "saxophone", "schooner", "scissors", "scorpion", "sea horse", "snoopy", "soccer ball",
    "stapler", "starfish", "stegosaurus", "stop sign", "strawberry", "sunflower", "tick",
    "trilobite", "umbrella", "watch", "water lilly", "wheelchair", "wild cat", "windsor chair",
    "wrench", "yin yang",
]  # fmt: skip
BACKGROUND = "background google"  # arbitrary photos, which are no class
# Folders of photos -> folders of their annotations, if these have another name.
ANNOTATIONS = {
    "airplanes": "Airplanes_Side_2",
    "Faces": "Faces_2",
    "Faces_easy": "Faces_3",
    "Motorbikes": "Motorbikes_16",
}

log = logging.getLogger(__name__)


class Caltech101Dataset(FewShotDataset):
    """Caltech-101 (https://data.caltech.edu/records/mzrjq-6wc02), without its background class.

        ROOT/101_ObjectCategories/CLASS/image_0001.jpg
        ROOT/Annotations/CLASS/annotation_0001.mat          outlines: the masks; may be absent

    No splits were published. Hashes of the paths order each class; then 60 % are train, 20 % val
    and 20 % test.
    """

    class_names = CLASS_NAMES
    env = "CALTECH101_DIR"
    default_dir = "data/caltech-101"

    def list_records(self, split: str) -> Iterable[Record]:
        return self._splits[split]

    @functools.cached_property
    def _splits(self) -> dict[str, list[Record]]:
        check_root(self, "101_ObjectCategories")
        records = []
        for folder in self.folders_in(self.data_dir / "101_ObjectCategories"):
            class_name = folder.name.replace("_", " ").lower()
            if class_name in CLASS_NAMES:
                records += self._records_of(folder, class_name)
            elif class_name != BACKGROUND:
                log.warning("%s is no class of Caltech-101: left out", folder)
        return complete_splits(self.data_dir, {"train": records})

    def _records_of(self, folder: Path, class_name: str) -> list[Record]:
        annotations = self.data_dir / "Annotations" / ANNOTATIONS.get(folder.name, folder.name)
        outlines = {path.stem.removeprefix("annotation_"): path for path in files_in(annotations)}
        records = []
        for stem, path in images_by_stem(folder).items():
            outline = outlines.get(stem.removeprefix("image_"))
            mask = functools.partial(outline_mask, outline, path) if outline else None
            records.append(self.record(path, class_name, mask))
        return records


def files_in(folder: Path) -> list[Path]:
    """The annotations in a folder; empty if the folder is absent."""
    return [path for path in folder.glob("*.mat") if not path.name.startswith(".")]


def outline_mask(annotation: Path, photo: Path) -> np.ndarray:
    """[H, W] uint8, 1 inside the outline in an annotation file.

    Points are x, y from the corner of a box. The box is top, bottom, left, right in pixels counted
    from 1.
    """
    box, outline = read_mat(annotation, "box_coord", "obj_contour")
    try:
        (top, _, left, _), (x, y) = box, outline
        points = np.stack([x + left - 1, y + top - 1], axis=1).ravel().tolist()
        mask = Image.new("L", read_size(photo), 0)
        ImageDraw.Draw(mask).polygon(points, fill=1)
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{annotation} holds no outline: {error}; unpack it again") from error
    return np.asarray(mask)
