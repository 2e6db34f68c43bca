"""Oxford 102 Flowers: flowers that grow in Britain, 40 to 258 photos of each kind."""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from semantic_aug import UserError
from semantic_aug.datasets.layout import (
    check_labelled,
    check_root,
    images_by_stem,
    listed_images,
    read_integers,
)
from semantic_aug.few_shot_dataset import FewShotDataset, Record
from semantic_aug.images.reading import read_image

# In the order of the labels in imagelabels.mat, from 1.
CLASS_NAMES = [
    "pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea",
    "english marigold", "tiger lily", "moon orchid", "bird of paradise", "monkshood",
    "globe thistle", "snapdragon", "colt's foot", "king protea", "spear thistle", "yellow iris",
    "globe-flower", "purple coneflower", "peruvian lily", "balloon flower",
    "giant white arum lily", "fire lily", "pincushion flower", "fritillary", "red ginger",
    "grape hyacinth", "corn poppy", "prince of wales feathers", "stemless gentian", "artichoke",
    "sweet william", "carnation", "garden phlox", "love in the mist", "mexican aster",
    "alpine sea holly", "ruby-lipped cattleya", "cape flower", "great masterwort", "siam tulip",
    "lenten rose", "barbeton daisy", "daffodil", "sword lily", "poinsettia", "bolero deep blue",
    "wallflower", "marigold", "buttercup", "oxeye daisy", "common dandelion", "petunia",
    "wild pansy", "primula", "sunflower", "pelargonium", "bishop of llandaff", "gaura",
    "geranium", "orange dahlia", "pink-yellow dahlia", "cautleya spicata", "japanese anemone",
    "black-eyed susan", "silverbush", "californian poppy", "osteospermum", "spring crocus",
    "bearded iris", "windflower", "tree poppy", "gazania", "azalea", "water lily", "rose",
    "thorn apple", "morning glory", "passion flower", "lotus", "toad lily", "anthurium",
    "frangipani", "clematis", "hibiscus", "columbine", "desert-rose", "tree mallow", "magnolia",
    "cyclamen", "watercress", "canna lily", "hippeastrum", "bee balm", "ball moss", "foxglove",
    "bougainvillea", "camellia", "mallow", "mexican petunia", "bromelia", "blanket flower",
    "trumpet creeper", "blackberry lily",
]  # fmt: skip
SPLIT_VARIABLES = {"train": "trnid", "val": "valid", "test": "tstid"}
GROUND = (0, 0, 254)  # the blue background


class Flowers102Dataset(FewShotDataset):
    """Oxford 102 Flowers (https://www.robots.ox.ac.uk/~vgg/data/flowers/102/), its own splits.

        ROOT/jpg/image_00001.jpg
        ROOT/imagelabels.mat, ROOT/setid.mat
        ROOT/segmim/segmim_00001.jpg            the masks (102segmentations.tgz); may be absent

    A mask holds all pixels without the background's blue.
    """

    class_names = CLASS_NAMES
    env = "FLOWERS102_DIR"
    default_dir = "data/flowers102"

    def list_records(self, split: str) -> Iterator[Record]:
        check_root(self, "jpg", "imagelabels.mat", "setid.mat")
        images = images_by_stem(self.data_dir / "jpg")
        segmentations = images_by_stem(self.data_dir / "segmim")
        labels = self._labels(images)
        setid = self.data_dir / "setid.mat"
        stems = [f"image_{number:05d}" for number in read_integers(setid, SPLIT_VARIABLES[split])]
        for stem in listed_images(stems, images, setid):
            segmentation = segmentations.get(stem.replace("image", "segmim"))
            mask = functools.partial(flower_mask, segmentation) if segmentation else None
            yield self.record(images[stem], CLASS_NAMES[labels[stem] - 1], mask)

    def _labels(self, images: dict[str, Path]) -> dict[str, int]:
        path = self.data_dir / "imagelabels.mat"
        numbers = read_integers(path, "labels")
        labels = {f"image_{n:05d}": label for n, label in enumerate(numbers, start=1)}
        check_labelled(images, labels, path)
        wrong = [label for label in labels.values() if not 1 <= label <= len(CLASS_NAMES)]
        if wrong:
            raise UserError(f"{path} has the label {wrong[0]}, expected 1 to {len(CLASS_NAMES)}")
        return labels


def flower_mask(segmentation: Path) -> np.ndarray:
    """[H, W] bool: pixels of a segmentation that are not blue, with a tolerance for JPEG."""
    pixels = np.asarray(read_image(segmentation)).astype(np.int16)
    return np.abs(pixels - GROUND).max(axis=-1) > 60
