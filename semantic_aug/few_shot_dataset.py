"""FewShotDataset: turns records into a few-shot trial with images, labels and masks.

A dataset is a subclass with one method, `list_records(split)`. This class does everything else.
"""

import contextlib
import gc
import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from semantic_aug import UserError, counted, stable_hash
from semantic_aug.experiment.digests import file_digests
from semantic_aug.generative_augmentation import GenerativeAugmentation
from semantic_aug.images.contents import mask_digest, photo_digests, pixel_digest

# Subclasses import from this module the functions that read images and masks.
from semantic_aug.images.masks import (  # noqa: F401
    CROP_MARGIN,
    binary_mask,
    masks_of,
    object_box,
    read_mask,
)
from semantic_aug.images.reading import (  # noqa: F401
    BITS_HELP,
    IMAGE_SUFFIXES,
    brightness_doubt,
    check_image,
    entries_in,
    image_names_in,
    image_to_tensor,
    is_folder,
    names_in,
    open_bytes,
    open_image,
    pixels_to_tensor,
    read_image,
    read_size,
    readable_suffixes,
    resized_pixels,
    to_rgb,
)  # fmt: skip
from semantic_aug.synthesis.making import augment_dataset
from semantic_aug.synthesis.variants import read_variants

SPLITS = ("train", "val", "test")

log = logging.getLogger(__name__)
FEWER = "%s fewer readable photos than %d, such as %r with %d: all are used"


@dataclass(frozen=True, slots=True)
class Record:
    """One labelled photo.

    Attributes:
        path: the image file, or an object that opens like a file with `open("rb")`. While a split
            is listed, it may be text relative to the data root, because a million paths are slow.
        class_name: one of the dataset's `class_names`.
        source: stable identity of the photo, its path relative to the data root.
        mask: an image file, or a function that returns an H x W array; nonzero means object.
            It is read only when the mask is asked for.
        description: text for prompts, if the dataset has any.
        group: name of photos that were taken together, of one thing or at one place, and so are
            not independent; empty for a single photo.
    """

    path: Path | str
    class_name: str
    source: str
    mask: Path | Callable[[], np.ndarray] | None = None
    description: str = ""
    group: str = ""


class NoPhotos(UserError):
    """A split holds no photo, or no photo of the selected classes."""


class FewShotDataset(Dataset):
    """Labelled photos of one split; the `train` split is reduced to a few photos per class.

    A subclass implements `list_records(split)`. It sets `class_names` or implements
    `list_class_names()`; otherwise the classes are the sorted names of all records. Its own options
    are keyword arguments of its constructor, set as attributes before `super().__init__(**kwargs)`:

        class Signs(FewShotDataset):
            env, default_dir = "SIGNS_DIR", "data/signs"

            def list_records(self, split):
                for path in self.images_in(self.data_dir / split):
                    yield self.record(path, class_name=path.stem.split("_")[0])

    Or the subclass overrides `__len__`, `get_image_by_idx`, `get_label_by_idx` and
    `get_metadata_by_idx`.

    Args:
        split: `train`, `val` or `test`.
        seed: chooses the few-shot subset; for the same seed, subsets are nested.
        examples_per_class: photos per class of the `train` split; None for all. The other
            splits are always whole.
        data_dir: root of the data (default: the environment variable `env`, else `default_dir`).
        image_size: side in pixels (or height and width) of the tensors that `ds[i]` returns.
        crop_to_object: first crop to a square around the mask.
        mask_dir: folder of masks at the relative paths of the photos' sources; they replace the
            dataset's own masks.
        bits: number of bits that values use in files with more than 8 bits, if the files do not
            say it: 12 for a camera that stores 12 bits in 16. White is 2**bits - 1, so 1 is for
            float images whose white is 1.0. Images of 8 bits do not change.
        generative_aug: the augmentation of `generate_augmentations`.
        synthetic_probability: probability in [0, 1] that `ds[i]` is a variant of photo i.
        synthetic_dir: the folder of images of `generate_augmentations`.

    Raises:
        NoPhotos: the split has no photos.
        UserError: the data root is missing or empty, no photo of a class can be read, or two
            records claim one source for different classes.
    """

    class_names: list[str] = None  # type: ignore[assignment]  # known after __init__
    num_classes: int = None  # type: ignore[assignment]
    env: str | None = None
    default_dir: str | None = None

    def __new__(cls, *_, **kwargs):
        made = super().__new__(cls)
        vars(made)["made_with"] = kwargs  # for another object like this one
        return made

    def __init__(
        self,
        *,
        split: str = "train",
        seed: int = 0,
        examples_per_class: int | None = None,
        data_dir: str | Path | None = None,
        image_size: int | tuple[int, int] = 256,
        crop_to_object: bool = False,
        mask_dir: str | Path | None = None,
        bits: int | None = None,
        generative_aug: GenerativeAugmentation | None = None,
        synthetic_probability: float = 0.5,
        synthetic_dir: str | Path | None = None,
    ):
        for name, value in (("split", split), ("seed", seed), ("image_size", image_size)):
            # A subclass may have set these itself, without passing them to this constructor.
            self.__dict__.setdefault(name, value)
        self.examples_per_class = examples_per_class
        self.crop_to_object = crop_to_object
        self.generative_aug = generative_aug
        self.synthetic_probability = synthetic_probability
        self.synthetic_dir = None if synthetic_dir is None else Path(synthetic_dir)
        self.synthetic_examples: Mapping[int, Sequence[tuple]] | None = None
        self.unreadable: list[str] = []
        self.doubtful: list[str] = []  # photos of the trial with doubtful brightness, and why
        self.uncut: set[int] = set()  # photos that an empty mask leaves whole
        self.bits = bits
        if bits is not None and not 1 <= bits <= 32:
            raise UserError(
                f"bits: got {bits}, expected the number of bits that values use, 1 to 32"
            )
        if not self._has_records:  # the subclass has its own __len__ and get_*_by_idx
            given = {"crop_to_object": crop_to_object, "mask_dir": mask_dir, "bits": bits}
            for option in (key for key, value in given.items() if value not in (None, False)):
                raise UserError(f"{option}: {type(self).__name__}, which makes its images itself, "
                                "does not take it")  # fmt: skip
            return
        split = self.split
        if split not in SPLITS:
            raise UserError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
        if examples_per_class is not None and examples_per_class < 1:
            raise UserError(f"examples_per_class: got {examples_per_class}, expected 1 or more")
        self.data_dir = self._find_data_dir(data_dir)
        if self.class_names is None:
            self.class_names = self.list_class_names()
        for name in self.class_names:
            try:
                name.encode()
            except UnicodeEncodeError:  # a folder's name of another encoding
                raise UserError(f"the class name {name!r} is not valid UTF-8: rename it") from None
        if len(set(self.class_names)) < len(self.class_names):
            name = next(n for n in self.class_names if self.class_names.count(n) > 1)
            raise UserError(f"two classes are called {name!r}: give each class its own name")
        self.num_classes = len(self.class_names)
        self._label_of = {name: label for label, name in enumerate(self.class_names)}
        with collection_paused():
            self.records = self._select(list(self.list_records(split)))
        if mask_dir is not None:
            masks = masks_of(mask_dir, [record.source for record in self.records], split)
            self.records = [replace(r, mask=masks.get(r.source, r.mask)) for r in self.records]
        if crop_to_object and all(record.mask is None for record in self.records):
            raise UserError(
                f"crop_to_object: no photo of split {split!r} has a mask; make masks by "
                "semantic-aug masks, or name their folder by --mask_dir"
            )

    # --- what a subclass implements, and helpers for it --------------------------------------

    def list_records(self, split: str) -> Iterable[Record]:
        """All labelled photos of a split, in any order."""
        raise NotImplementedError(f"{type(self).__name__} has no list_records")

    def list_class_names(self) -> list[str]:
        """The names of all classes in the order of their labels, equal for all splits.

        It is called when `data_dir` is known, unless `class_names` is set already.
        """
        return sorted({r.class_name for split in SPLITS for r in self.list_records(split)})

    def record(
        self, path: Path | str, class_name: str, mask=None, description: str = "", group: str = ""
    ) -> Record:
        """A `Record` whose source is the path relative to the data root.

        Args:
            path: the file, or text relative to the data root and with slashes. Text becomes a path
                when the photo is selected, which is faster for a million photos.
        """
        if isinstance(path, str):
            return Record(path, class_name, path, mask, description, group)
        source = path.relative_to(self.data_dir).as_posix()
        return Record(path, class_name, source, mask, description, group)

    @staticmethod
    def images_in(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
        """The image files directly in `folder`, sorted by name, without hidden files."""
        return [folder / name for name in image_names_in(folder, suffixes)]

    @staticmethod
    def folders_in(folder: Path) -> list[Path]:
        """The folders directly in `folder`, sorted by name, without hidden folders."""
        return sorted(folder / entry.name for entry in entries_in(folder) if is_folder(entry))

    @property
    def _has_records(self) -> bool:
        return type(self).list_records is not FewShotDataset.list_records

    @property
    def is_whole_file(self) -> bool:
        """Whether photo i is the file `records[i].path`, not cropped or made by a subclass."""
        as_it_is = type(self).get_image_by_idx is FewShotDataset.get_image_by_idx
        return self._has_records and as_it_is and not self.crop_to_object

    # --- records -> trial --------------------------------------------------------------------

    def _find_data_dir(self, data_dir: str | Path | None) -> Path:
        return self.root_of(data_dir)

    @classmethod
    def root_of(cls, data_dir: str | Path | None) -> Path:
        """The root of the data.

        Raises:
            UserError: no folder is named, or it does not exist.
        """
        from_env = os.environ.get(cls.env) if cls.env else None
        found = data_dir or from_env or cls.default_dir
        how = f"pass --data_dir{f' or set {cls.env}' if cls.env else ''}"
        if not found:
            raise UserError(f"no data root for {cls.__name__}: {how}")
        root = Path(found).expanduser()  # a shell does not expand --data_dir=~/photos
        if not root.is_dir():
            raise UserError(f"data root {root} is not a folder: {how}")
        return root

    def _select(self, records: list[Record]) -> list[Record]:
        """Sort by class and, in `train`, keep the first photos of a seeded order per class.

        The order within a class comes from a hash of (seed, class, source). So it does not depend
        on the file system or on other photos, and subsets are nested.
        """
        label_of = self._label_of
        by_class: dict[str, list[Record]] = defaultdict(list)
        class_of: dict[str, str] = {}
        for record in records:
            if record.class_name not in label_of:
                raise UserError(
                    f"{record.source}: class {record.class_name!r} is not among the "
                    f"{counted(self.num_classes, 'class')} of {type(self).__name__}"
                )
            if record.source not in class_of:
                class_of[record.source] = record.class_name
                by_class[record.class_name].append(record)
            elif class_of[record.source] != record.class_name:
                raise UserError(
                    f"{record.source} is listed as {class_of[record.source]!r} and as "
                    f"{record.class_name!r}: a source names one photo of one class"
                )
        if not by_class:
            hint = f": is this the root that {type(self).__name__} expects, and do its options fit?"
            hint = hint if self.split == "train" else ""  # with few photos, all are in train
            raise NoPhotos(f"no photo of split {self.split!r} in {self.data_dir}{hint}")
        wanted = self.examples_per_class if self.split == "train" else None
        selected: list[Record] = []
        short: dict[str, int] = {}  # number of photos of each class with too few
        for class_name in self.class_names:
            group = sorted(by_class[class_name], key=attrgetter("source"))
            if wanted is not None and group:
                group.sort(key=lambda r: stable_hash("subset", self.seed, class_name, r.source))
                group = self._first_readable(class_name, group, wanted)
                if len(group) < wanted:
                    short[class_name] = len(group)
            selected += map(self._with_path, group)
        if short:
            name, count = next(iter(short.items()))
            log.warning(
                FEWER,
                "1 class has" if len(short) == 1 else f"{len(short)} classes have",
                wanted, name, count,
            )  # fmt: skip
        if self.unreadable:
            unreadable = counted(len(self.unreadable), "photo")
            log.warning("%s of split %r cannot be read", unreadable, self.split)
        if self.doubtful:
            log.warning(
                "%s of split %r may have a wrong brightness, such as %s; %s",
                counted(len(self.doubtful), "photo"),
                self.split,
                self.doubtful[0],
                BITS_HELP,
            )
        return selected

    def _with_path(self, record: Record) -> Record:
        if isinstance(record.path, str):
            return replace(record, path=self.data_dir / record.path)
        return record

    def _first_readable(self, class_name: str, group: list[Record], wanted: int) -> list[Record]:
        readable: list[Record] = []
        for record in group:
            if len(readable) == wanted:
                break
            try:
                doubt = check_image(self._with_path(record).path, self.bits)
            except UserError as error:
                self.unreadable.append(record.source)
                log.warning("%s; skipped", error)
            else:
                readable.append(record)
                if doubt:
                    self.doubtful.append(f"{record.source}: {doubt}")
        if not readable:
            raise UserError(
                f"class {class_name!r} has {counted(len(group), 'photo')}, none of them readable"
            )
        return readable

    # --- photos ------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.records)

    def get_image_by_idx(self, idx: int) -> Image.Image:
        """Photo `idx`, upright, RGB, cropped with `crop_to_object`."""
        image = read_image(self.records[idx].path, self.bits)
        if self.crop_to_object:
            mask = self._whole_mask(idx, image.size)
            if not mask.any():
                self.uncut.add(idx)
            image = image.crop(object_box(mask))
        return image

    def get_label_by_idx(self, idx: int) -> int:
        """Index into `class_names`."""
        return self._label_of[self.records[idx].class_name]

    def get_metadata_by_idx(self, idx: int) -> dict:
        """`name` (the class) and `source` of photo `idx`, and perhaps its `description`."""
        record = self.records[idx]
        metadata = {"name": record.class_name, "source": record.source}
        if record.description:
            metadata["description"] = record.description
        return metadata

    def get_mask_by_idx(self, idx: int) -> np.ndarray:
        """Mask of photo `idx`: [H, W] uint8, 255 on the object and 0 elsewhere.

        Raises:
            UserError: the photo has no mask, or the mask has another size.
        """
        if not self._has_records:
            mask = self.get_metadata_by_idx(idx).get("mask")
            if mask is None:
                raise UserError(f"photo {idx} of {type(self).__name__} has no mask")
            return read_mask(mask) if isinstance(mask, str | Path) else binary_mask(mask)
        size = read_size(self.records[idx].path)
        mask = self._whole_mask(idx, size)
        if self.crop_to_object:
            left, top, right, bottom = object_box(mask)
            mask = mask[top:bottom, left:right]
        return mask

    def _whole_mask(self, idx: int, size: tuple[int, int]) -> np.ndarray:
        record = self.records[idx]
        if record.mask is None:
            raise UserError(f"photo {record.source} has no mask")
        if callable(record.mask):
            mask = binary_mask(record.mask())
        else:
            mask = read_mask(record.mask)
        if mask.shape != (size[1], size[0]):
            raise UserError(
                f"mask of {record.source} is {mask.shape[1]}x{mask.shape[0]} pixels, "
                f"the photo is {size[0]}x{size[1]}: make the mask again in the photo's size, or "
                "remove it; python -m semantic_aug.datasets check lists all such masks"
            )
        return mask

    def mask_digests(self, indices: Iterable[int]) -> list[str]:
        """sha256 of the mask of each photo, in hex; empty for a photo without a mask."""
        if self._has_records:
            masks = [self.records[idx].mask for idx in indices]
        else:
            masks = [self.get_metadata_by_idx(idx).get("mask") for idx in indices]
        files = {n: each for n, each in enumerate(masks) if isinstance(each, str | os.PathLike)}
        found = dict(zip(files, file_digests(files.values())))
        return [found.get(n) or mask_digest(each) for n, each in enumerate(masks)]

    def indices(self, classes: Collection[str] | None = None) -> list[int]:
        """Indices of the photos of these classes (default all), which keep their labels.

        Raises:
            UserError: a class that this dataset does not have.
        """
        if classes is None:
            return list(range(len(self)))
        unknown = [name for name in classes if name not in self.class_names]
        if unknown:
            known = ", ".join(self.class_names)
            raise UserError(f"--classes: unknown {', '.join(map(repr, unknown))}; known: {known}")
        wanted = {self.class_names.index(name) for name in classes}
        return [idx for idx in range(len(self)) if self.get_label_by_idx(idx) in wanted]

    def sources(self) -> list[str]:
        """The stable id of every photo; its index if a subclass gives no id."""
        sources: list[Any] = [self.get_metadata_by_idx(i).get("source") for i in range(len(self))]
        if None in sources:
            log.warning(
                "%s gives no `source` in its metadata: each photo is identified by its index, "
                "which changes when photos are added or removed",
                type(self).__name__,
            )
            return [str(idx) for idx in range(len(self))]
        return sources

    def photo_digest(self, indices: Iterable[int] | None = None) -> str:
        """Sixteen hex digits of the ids and the content of photos (default all), in order.

        The digits show whether results belong to the present photos. If a subclass makes its images
        itself, only their ids count.
        """
        digest, sources = hashlib.sha256(), self.sources()
        indices = list(range(len(self)) if indices is None else indices)
        contents = [""] * len(indices)
        if self._has_records:
            contents = photo_digests([self.records[idx].path for idx in indices])
        for idx, content in zip(indices, contents):
            digest.update(f"{sources[idx]}\n".encode())
            is_hex = not content.startswith("unreadable")
            digest.update(bytes.fromhex(content) if is_hex else content.encode())
        return digest.hexdigest()[:16]

    def content_digests(self, indices: Iterable[int]) -> list[str]:
        """A digest of each photo, 64 hex digits: equal digests mean equal photos.

        It is the sha256 of a file's bytes, from `file_digests`; with `crop_to_object`, the mask
        counts too. If a subclass makes a photo itself, the pixels count.
        """
        indices = list(indices)
        if not self._has_records:
            return [pixel_digest(self.get_image_by_idx(idx)) for idx in indices]
        contents = photo_digests([self.records[idx].path for idx in indices])
        if self.crop_to_object:
            pairs = zip(contents, self.mask_digests(indices))
            contents = [hashlib.sha256(" ".join(pair).encode()).hexdigest() for pair in pairs]
        return contents

    def empty_classes(self) -> list[str]:
        """Classes without a photo in this split."""
        present = {self.get_label_by_idx(idx) for idx in range(len(self))}
        return [name for label, name in enumerate(self.class_names) if label not in present]

    # --- training examples -------------------------------------------------------------------

    def __getitem__(self, idx: int) -> tuple[torch.Tensor, int]:
        """A float tensor [3, H, W] in [-1, 1] and its label.

        With `synthetic_probability` the tensor may show a variant of photo `idx`. It is drawn from
        torch's random state, which a DataLoader seeds for every worker.
        """
        if self.synthetic_examples is None:
            if self.synthetic_dir is not None and (self.synthetic_dir / "records").is_dir():
                self.load_synthetic(self.synthetic_dir)
            else:
                self.synthetic_examples = {}
        variants = (self.synthetic_examples or {}).get(idx, [])
        if variants and float(torch.rand(())) < self.synthetic_probability:
            image, label = variants[int(torch.randint(len(variants), ()))]
            if not isinstance(image, Image.Image):
                image = read_image(image)
        else:
            image, label = self.get_image_by_idx(idx), self.get_label_by_idx(idx)
        transform = getattr(self, "transform", None)
        if transform is not None:  # a subclass's own
            return transform(image), label
        return image_to_tensor(image, self.image_size), label

    def load_synthetic(
        self,
        folder: str | Path,
        num_synthetic: int | None = None,
        classes: Collection[str] | None = None,
        ignore_filter: bool = False,
    ) -> None:
        """Use the synthetic images in `folder`, at most `num_synthetic` per photo of `classes`.

        Images that a filter has rejected are left out, unless `ignore_filter`.

        Raises:
            UserError: the folder has no images, some are missing, or they belong to other photos.
        """
        self.synthetic_examples = read_variants(
            Path(folder), self, num_synthetic, classes, ignore_filter
        )

    def generate_augmentations(self, num_repeats: int) -> None:
        """Make `num_repeats` variants of every photo with `generative_aug`.

        Without `synthetic_dir`, the variants stay in memory. Else they are written there with their
        records, as by `generate_augmentations.py`; existing images are not made again.
        """
        if self.generative_aug is None:
            raise UserError("generate_augmentations needs a generative_aug")
        self.synthetic_examples = augment_dataset(
            self, self.generative_aug, num_repeats, self.synthetic_dir
        )


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Stop garbage collection in the block: it would visit a million records again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
