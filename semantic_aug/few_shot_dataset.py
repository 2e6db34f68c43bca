"""FewShotDataset: records in, a few-shot trial with images, labels and masks out.

A dataset is a subclass with one method, `list_records(split)`. Everything else is here.
"""

import contextlib
import errno
import functools
import gc
import hashlib
import io
import logging
import os
import re
import stat
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from semantic_aug import UserError, counted, stable_hash
from semantic_aug.experiment.digests import file_digests
from semantic_aug.generative_augmentation import GenerativeAugmentation

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
CROP_MARGIN = 16  # pixels around the object, for crop_to_object

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """One labelled photo.

    Attributes:
        path: the image file, or what opens as one with `open("rb")`. While a split is listed, it
            may be text relative to the data root, because a million paths take long to make.
        class_name: one of the dataset's `class_names`.
        source: stable identity of the photo, its path relative to the data root.
        mask: an image file, or a function that returns an H x W array; nonzero means object.
            It is read only when somebody asks for the mask.
        description: text for prompts, where the dataset has one.
    """

    path: Path | str
    class_name: str
    source: str
    mask: Path | Callable[[], np.ndarray] | None = None
    description: str = ""


class NoPhotos(UserError):
    """A split holds no photo, or none of the classes that were selected."""


class FewShotDataset(Dataset):
    """Labelled photos of one split, for `train` reduced to a few per class.

    A subclass implements `list_records(split)` and sets `class_names`, or implements
    `list_class_names()`, or lets them be the sorted names of all records. Options of its own are
    keyword arguments of its constructor, set as attributes before `super().__init__(**kwargs)`:

        class Signs(FewShotDataset):
            env, default_dir = "SIGNS_DIR", "data/signs"

            def list_records(self, split):
                for path in self.images_in(self.data_dir / split):
                    yield self.record(path, class_name=path.stem.split("_")[0])

    A subclass may instead override `__len__`, `get_image_by_idx`, `get_label_by_idx` and
    `get_metadata_by_idx`, and do everything itself.

    Args:
        split: `train`, `val` or `test`.
        seed: which few-shot subset; with one seed, smaller subsets lie within larger ones.
        examples_per_class: photos per class of the `train` split; None for all. The other
            splits are always whole.
        data_dir: root of the data; default the environment variable `env`, then `default_dir`.
        image_size: side in pixels (or height and width) of the tensors that `ds[i]` returns.
        crop_to_object: cut a square around the mask before anything else.
        bits: how many bits the values of files with more than 8 bits have, where the files do not
            say it: 12 for a camera whose 12 bits lie in 16. 2**bits - 1 is white, so that 1 is for
            float images whose white is 1.0. Images of 8 bits are not touched.
        generative_aug: what `generate_augmentations` uses.
        synthetic_probability: how often `ds[i]` is a synthetic variant of photo i, in [0, 1].
        synthetic_dir: folder of synthetic images that `generate_augmentations` wrote, or where
            it shall write them.

    Raises:
        NoPhotos: the split has none.
        UserError: the data root is missing or empty, no photo of a class can be read, or two
            records claim one source for different classes.
    """

    class_names: list[str] | None = None
    num_classes: int | None = None
    env: str | None = None
    default_dir: str | None = None

    def __init__(
        self,
        *,
        split: str = "train",
        seed: int = 0,
        examples_per_class: int | None = None,
        data_dir: str | Path | None = None,
        image_size: int | tuple[int, int] = 256,
        crop_to_object: bool = False,
        bits: int | None = None,
        generative_aug: GenerativeAugmentation | None = None,
        synthetic_probability: float = 0.5,
        synthetic_dir: str | Path | None = None,
    ):
        for name, value in (("split", split), ("seed", seed), ("image_size", image_size)):
            # A subclass may have set these itself, before it came here without passing them up.
            vars(self).setdefault(name, value)
        self.examples_per_class = examples_per_class
        self.crop_to_object = crop_to_object
        self.generative_aug = generative_aug
        self.synthetic_probability = synthetic_probability
        self.synthetic_dir = None if synthetic_dir is None else Path(synthetic_dir)
        self.synthetic_examples: dict[int, list[tuple[Path | Image.Image, int]]] | None = None
        self.unreadable: list[str] = []
        self.doubtful: list[str] = []  # photos of the trial whose brightness may be wrong, and why
        self.bits = bits
        if bits is not None and not 1 <= bits <= 32:
            raise UserError(f"bits: got {bits}, expected how many bits the values have, 1 to 32")
        if not self._has_records:  # the subclass brings its own __len__ and get_*_by_idx
            if crop_to_object:
                raise UserError(f"crop_to_object: {type(self).__name__} makes its images itself")
            if bits is not None:
                raise UserError(f"bits: {type(self).__name__} makes its images itself")
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
            raise UserError(f"two classes are called {name!r}: every class needs a name of its own")
        self.num_classes = len(self.class_names)
        self._label_of = {name: label for label, name in enumerate(self.class_names)}
        with collection_paused():
            self.records = self._select(list(self.list_records(split)))
        if crop_to_object and all(record.mask is None for record in self.records):
            raise UserError(f"crop_to_object: no photo of split {split!r} has a mask")

    # --- what a subclass implements, and helpers for it --------------------------------------

    def list_records(self, split: str) -> Iterable[Record]:
        """All labelled photos of a split, in any order."""
        raise NotImplementedError(f"{type(self).__name__} has no list_records")

    def list_class_names(self) -> list[str]:
        """The names of all classes, in the order of their labels, the same for every split.

        It is asked once `data_dir` is known, unless `class_names` is set already.
        """
        return sorted({r.class_name for split in SPLITS for r in self.list_records(split)})

    def record(self, path: Path | str, class_name: str, mask=None, description: str = "") -> Record:
        """A `Record` whose source is the path relative to the data root.

        Args:
            path: the file; as text, relative to the data root and with slashes, which becomes a
                path once the photo is selected: quicker, which counts where there are a million.
        """
        if isinstance(path, str):
            return Record(path, class_name, path, mask, description)
        source = path.relative_to(self.data_dir).as_posix()
        return Record(path, class_name, source, mask, description)

    @staticmethod
    def images_in(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
        """The image files directly in `folder`, sorted by name, hidden ones left out."""
        return [folder / name for name in image_names_in(folder, suffixes)]

    @staticmethod
    def folders_in(folder: Path) -> list[Path]:
        """The folders directly in `folder`, sorted by name, hidden ones left out."""
        return sorted(folder / entry.name for entry in _entries(folder) if _is_folder(entry))

    @property
    def _has_records(self) -> bool:
        return type(self).list_records is not FewShotDataset.list_records

    @property
    def is_whole_file(self) -> bool:
        """Whether photo i is the file `records[i].path`, neither cut nor made by a subclass."""
        as_it_is = type(self).get_image_by_idx is FewShotDataset.get_image_by_idx
        return self._has_records and as_it_is and not self.crop_to_object

    # --- records -> trial --------------------------------------------------------------------

    def _find_data_dir(self, data_dir: str | Path | None) -> Path:
        from_env = os.environ.get(self.env) if self.env else None
        found = data_dir or from_env or self.default_dir
        how = f"pass --data_dir{f' or set {self.env}' if self.env else ''}"
        if not found:
            raise UserError(f"no data root for {type(self).__name__}: {how}")
        root = Path(found).expanduser()  # a shell leaves the ~ of --data_dir=~/photos alone
        if not root.is_dir():
            raise UserError(f"data root {root} is not a folder: {how}")
        return root

    def _select(self, records: list[Record]) -> list[Record]:
        """Sort by class and, in `train`, keep the first few of a seeded order per class.

        The order within a class comes from a hash of (seed, class, source), so that it depends
        neither on the file system nor on the other photos, and subsets are nested.
        """
        label_of = self._label_of
        by_class = defaultdict(list)
        class_of = {}
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
            hint = hint if self.split == "train" else ""  # few photos are all in train
            raise NoPhotos(f"no photo of split {self.split!r} in {self.data_dir}{hint}")
        few_shot = self.split == "train" and self.examples_per_class is not None
        selected = []
        for class_name in self.class_names:
            group = sorted(by_class[class_name], key=attrgetter("source"))
            if few_shot and group:
                group.sort(key=lambda r: stable_hash("subset", self.seed, class_name, r.source))
                group = self._first_readable(class_name, group)
            selected += map(self._with_path, group)
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

    def _first_readable(self, class_name: str, group: list[Record]) -> list[Record]:
        readable = []
        for record in group:
            if len(readable) == self.examples_per_class:
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
        if len(readable) < self.examples_per_class:
            log.warning(
                "class %r has %s of the %d asked for: all are used",
                class_name,
                counted(len(readable), "readable photo"),
                self.examples_per_class,
            )
        return readable

    # --- photos ------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.records)

    def get_image_by_idx(self, idx: int) -> Image.Image:
        """Photo `idx`, upright, RGB, cut to the object where that was asked for."""
        image = read_image(self.records[idx].path, self.bits)
        if self.crop_to_object:
            image = image.crop(object_box(self._whole_mask(idx, image.size)))
        return image

    def get_label_by_idx(self, idx: int) -> int:
        """Index into `class_names`."""
        return self._label_of[self.records[idx].class_name]

    def get_metadata_by_idx(self, idx: int) -> dict:
        """`name` (the class) and `source` of photo `idx`, and its `description` if it has one."""
        record = self.records[idx]
        metadata = {"name": record.class_name, "source": record.source}
        if record.description:
            metadata["description"] = record.description
        return metadata

    def get_mask_by_idx(self, idx: int) -> np.ndarray:
        """Mask of photo `idx`: [H, W] uint8, 255 on the object and 0 elsewhere.

        Raises:
            UserError: the photo has no mask, or it does not fit the photo.
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
                f"the photo is {size[0]}x{size[1]}"
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
        return [found.get(n) or _mask_digest(each) for n, each in enumerate(masks)]

    def indices(self, classes: Iterable[str] | None = None) -> list[int]:
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
        """The stable id of every photo; the index serves where a subclass has none."""
        sources = [self.get_metadata_by_idx(idx).get("source") for idx in range(len(self))]
        if None in sources:
            log.warning(
                "%s gives no `source` in its metadata: photos are identified by their index, "
                "which changes when photos are added or removed",
                type(self).__name__,
            )
            return [str(idx) for idx in range(len(self))]
        return sources

    def photo_digest(self, indices: Iterable[int] | None = None) -> str:
        """Sixteen hex digits of the ids and the content of photos (default all), in order.

        It tells whether results belong to the photos that are there now. Where a subclass makes
        its images itself, only their ids count.
        """
        digest, sources = hashlib.sha256(), self.sources()
        indices = list(range(len(self)) if indices is None else indices)
        contents = [""] * len(indices)
        if self._has_records:
            contents = _digests([self.records[idx].path for idx in indices])
        for idx, content in zip(indices, contents):
            digest.update(f"{sources[idx]}\n".encode())
            is_hex = not content.startswith("unreadable")
            digest.update(bytes.fromhex(content) if is_hex else content.encode())
        return digest.hexdigest()[:16]

    def content_digests(self, indices: Iterable[int]) -> list[str]:
        """What each photo shows, 64 hex digits each: equal where the photos are equal.

        Of a photo that is a file, sha256 of its bytes, as `file_digests` gives it; with
        `crop_to_object`, its mask counts too. Of a photo that a subclass makes itself, its pixels.
        """
        indices = list(indices)
        if not self._has_records:
            return [_pixel_digest(self.get_image_by_idx(idx)) for idx in indices]
        contents = _digests([self.records[idx].path for idx in indices])
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

        With `synthetic_probability` it is one of the synthetic variants of photo `idx`, drawn
        from torch's random state, which a DataLoader seeds for every worker.
        """
        if self.synthetic_examples is None:
            if self.synthetic_dir is not None and (self.synthetic_dir / "records").is_dir():
                self.load_synthetic(self.synthetic_dir)
            else:
                self.synthetic_examples = {}
        variants = self.synthetic_examples.get(idx, [])
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
        classes: Iterable[str] | None = None,
        ignore_filter: bool = False,
    ) -> None:
        """Use the synthetic images in `folder`, at most `num_synthetic` per photo of `classes`.

        Those that a filter has rejected are left out, unless `ignore_filter`.

        Raises:
            UserError: the folder has none, some are missing, or they belong to other photos.
        """
        from semantic_aug.generation import read_variants

        self.synthetic_examples = read_variants(
            Path(folder), self, num_synthetic, classes, ignore_filter
        )

    def generate_augmentations(self, num_repeats: int) -> None:
        """Make `num_repeats` synthetic variants of every photo with `generative_aug`.

        They are kept in memory or, where `synthetic_dir` is set, written there with their
        records, as `generate_augmentations.py` does; what is there already is not made again.
        """
        from semantic_aug.generation import augment_dataset

        if self.generative_aug is None:
            raise UserError("generate_augmentations needs a generative_aug")
        self.synthetic_examples = augment_dataset(
            self, self.generative_aug, num_repeats, self.synthetic_dir
        )


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """No garbage collection meanwhile: it would look at a million records again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _digests(paths: Sequence) -> list[str]:
    """sha256 of files, and of what opens as one: a part of an archive, a row of a table."""
    files = [path for path in paths if isinstance(path, os.PathLike)]
    of_files, found = iter(file_digests(files)), []
    for path in paths:
        if isinstance(path, os.PathLike):
            found.append(next(of_files))
        else:
            with open_bytes(path) as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found


def _pixel_digest(image: Image.Image) -> str:
    """sha256 of an image's size and RGB pixels."""
    rgb = to_rgb(image)
    return hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest()


# --- listing folders -------------------------------------------------------------------------


def image_names_in(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[str]:
    """The names of the image files directly in `folder`, sorted, hidden ones left out.

    Raises:
        UserError: the folder cannot be read, or has a name that no record could hold.
    """
    return names_in(folder, suffixes)[0]


def names_in(folder: Path, suffixes: Collection[str]) -> tuple[list[str], list[str]]:
    """The names of image files and of folders directly in `folder`; see `image_names_in`."""
    images, folders = [], []
    for entry in _entries(folder):
        name = entry.name
        if _is_folder(entry):
            folders.append(name)
        elif name[name.rfind(".") :].lower() in suffixes:
            images.append(name)
    try:
        "".join(images).encode()
    except UnicodeEncodeError as error:  # a name of another encoding
        name = next(name for name in sorted(images) if re.search("[\ud800-\udfff]", name))
        raise UserError(f"{folder}: the name {name!r} is not valid UTF-8: rename it") from error
    return sorted(images), sorted(folders)


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """Every suffix of photos that Pillow reads here, in lower case, with its dot."""
    _load_plugins()
    formats = Image.registered_extensions().items()
    found = {suffix for suffix, name in formats if name in Image.OPEN and name not in _NO_PHOTOS}
    return frozenset({*IMAGE_SUFFIXES, *found, ".mpo"})  # read as JPEG, for which it is


# What Pillow only identifies, or reads with other programs; and icons, brushes, and what is mostly
# something else under its suffix, such as point clouds (.pcd).
_NO_PHOTOS = {
    "BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF", "CUR", "GBR", "ICNS", "ICO", "PCD",
}  # fmt: skip


@functools.cache
def _load_plugins() -> None:
    """HEIC, where the plug-in of Pillow that reads it is installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()


def _entries(folder: Path) -> list[os.DirEntry]:
    """What lies in a folder, hidden names left out; nothing where it is no folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be read: {error.strerror}; you need the right to list it"
        ) from error


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


# --- reading images --------------------------------------------------------------------------


BITS_HELP = (
    "where files hold more than 8 bits, --dataset_args bits=12 says how many of them are used"
)


def read_image(path: str | Path, bits: int | None = None) -> Image.Image:
    """An image file of any mode, upright and in sRGB; transparent parts become white.

    Args:
        bits: how many bits the values of an image of more than 8 have, where its file does not
            say it; see `FewShotDataset`.

    Raises:
        UserError: the file is missing, empty, truncated, or no image.
    """
    with open_image(path) as image:
        values, white = _load(path, image, bits)
        rgb = _upright(_in_srgb(values, white, image.info.get("icc_profile")), _orientation(image))
    rgb.info = {}  # its EXIF would have others turn the image once more
    return rgb


def check_image(path: str | Path, bits: int | None = None) -> str:
    """Raise UserError unless `read_image` would succeed; cheaper for large JPEG files.

    Returns:
        What `brightness_doubt` says.
    """
    with open_image(path) as image:
        # An eighth is the most that the JPEG decoder can leave out.
        image.draft("RGB", (max(image.width // 8, 1), max(image.height // 8, 1)))
        return brightness_doubt(path, image, bits)


def brightness_doubt(path: str | Path, image: Image.Image, bits: int | None = None) -> str:
    """Why the brightness of an image may not be what was photographed; "" where all is well.

    Args:
        image: `path`, opened and not loaded yet; it is loaded here.
        bits: as `read_image` takes it.
    """
    is_deep = image.mode in ("I", "F") or ";16" in image.mode or _raw_mode(image) in _SWAPPED
    values, white = _load(path, image, bits)
    extrema = to_rgb(values, white).getextrema()
    darkest, brightest = min(low for low, _ in extrema), max(high for _, high in extrema)
    found = f"({darkest} to {brightest} of 255)"
    if brightest <= (64 if is_deep else 16):  # 14 or 12 bits in 16, taken for 16
        return f"almost black {found}"
    if darkest >= 239:
        return f"almost white {found}"
    if image.mode == "F" and white is None:
        largest = np.nanmax(values)
        if 1 < largest <= OVERSHOOT:
            return f"float values up to {largest:.4g}, where 1.0 is taken for white"
    return ""


def read_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image file, upright, without decoding it."""
    with open_image(path) as image:
        # Pillow gives the upright size of a TIFF, and the stored size of all others.
        turned = image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def open_bytes(path: str | Path) -> BinaryIO:
    """A file, or what opens as one, for reading.

    Raises:
        OSError: also for what is no regular file: opening a FIFO could wait for ever.
    """
    if not isinstance(path, str | os.PathLike):
        return path.open("rb")
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        kind = next((what for is_kind, what in _KINDS if is_kind(mode)), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, expected a regular file", str(path))
    return open(path, "rb")


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@contextlib.contextmanager
def open_image(path: str | Path, what: str = "image") -> Iterator[Image.Image]:
    """An image file; whatever goes wrong with it inside the block becomes a UserError."""
    _load_plugins()
    try:
        with open_bytes(path) as file, Image.open(file) as image:
            yield image
    except Exception as error:  # on broken files, decoders raise all that Python has
        raise UserError(f"cannot read {what} {path}: {_reason(path, error)}") from error


# EXIF orientation -> what makes the stored pixels upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    # Not ImageOps.exif_transpose, which fails where it cannot write the rest of the EXIF again.
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _reason(path: str | Path, error: Exception) -> str:
    if isinstance(path, str | os.PathLike):
        if not Path(path).exists():
            return "no such file"
        if Path(path).is_file() and Path(path).stat().st_size == 0:
            return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "no image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def to_rgb(image: Image.Image, white: float | None = None) -> Image.Image:
    """RGB of an image of any mode. Grey of more than 8 bits is scaled to 8 bits, not clipped.

    Args:
        white: what white is in grey of more than 8 bits; default what is usual for its values.
    """
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        white = white or _usual_white(image.mode, values.max(initial=0))
        return Image.fromarray(_in_8_bits(values, white)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def _in_8_bits(values: np.ndarray, white: float) -> np.ndarray:
    return (values * 255 / white).round().clip(0, 255).astype(np.uint8)


# --- images of more than 8 bits --------------------------------------------------------------

OVERSHOOT = 2  # how far a float image whose white is 1.0 may go, as resizing or sharpening leave it


def _usual_white(mode: str, brightest: float) -> float:
    if mode.startswith("I;16"):
        return 65535
    if mode == "F" and brightest <= OVERSHOOT:
        return 1
    return 65535 if brightest > 255 else 255


def _load(
    path: str | Path, image: Image.Image, bits: int | None
) -> tuple[Image.Image, float | None]:
    """Load an image that was opened from `path`; also what white is in it, None if unknown.

    Of colours of 16 bits Pillow keeps the upper bytes, which are all but black where fewer bits
    are used. Where white is known, the lower ones are read too: it takes them for the upper ones
    when it decodes in the other order of bytes.
    """
    white = _declared_white(image) or (2**bits - 1 if bits else None)
    swapped = _SWAPPED.get(_raw_mode(image)) if white else None
    image.load()
    if swapped is None:
        return image, white
    with open_image(path) as again:
        again.tile = [tile._replace(args=_with_raw_mode(tile.args, swapped)) for tile in again.tile]
        again.load()
        lower = np.asarray(again, dtype=np.uint16)
    pixels = np.array(image)
    values = pixels[..., :3].astype(np.uint16) << 8 | lower[..., :3]
    pixels[..., :3] = _in_8_bits(values.astype(np.float64), white)
    return Image.fromarray(pixels), white


def _declared_white(image: Image.Image) -> float | None:
    """What white is in an image of more than 8 bits, if its file says so; not loaded yet."""
    if image.format == "PPM" and image.tile[0].codec_name != "raw":
        return 65535  # the file has a maximum of its own, from which Pillow scales
    tags = getattr(image, "tag_v2", {})
    if tags.get(BITS_PER_SAMPLE) == (12,):
        return 4095
    for tag in (MAX_SAMPLE_VALUE, S_MAX_SAMPLE_VALUE):
        try:
            white = float(np.max(tags.get(tag, 0)))
        except (TypeError, ValueError):  # a broken tag says nothing
            continue
        # Some programs write the brightest value of each image there, which is no white.
        is_limit = white in (2.0**bits - 1 for bits in range(1, 33))
        if is_limit and (image.mode == "F" or 255 < white < 65535):
            return white
    return None


BITS_PER_SAMPLE, MAX_SAMPLE_VALUE, S_MAX_SAMPLE_VALUE = 258, 281, 341  # TIFF 6.0, sections 8, 19

# How Pillow decodes colours of 16 bits -> what gives the other byte of each.
_SWAPPED = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, other in (("L", "B"), ("B", "L"), ("N", "B" if sys.byteorder == "little" else "L"))
}


def _raw_mode(image: Image.Image) -> str | None:
    """How the pixels of an image that is not loaded yet are stored, in Pillow's words."""
    args = [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in image.tile]
    modes = {next(iter(each), None) for each in args}
    return modes.pop() if len(modes) == 1 else None


def _with_raw_mode(args: str | tuple, mode: str) -> str | tuple:
    return mode if isinstance(args, str) else (mode, *args[1:])


# --- colour profiles -------------------------------------------------------------------------


class Conversion(NamedTuple):
    """From the colours of an ICC profile to sRGB: a transform of images of `mode`."""

    mode: str
    transform: object


def _in_srgb(image: Image.Image, white: float | None, profile: bytes | None) -> Image.Image:
    """`to_rgb`, with the colours that an ICC profile of the file means, in sRGB."""
    conversion = _conversion(profile) if profile else None
    mode = None if conversion is None else conversion.mode
    if mode == "CMYK" == image.mode:
        return conversion.transform.apply(image)
    rgb = to_rgb(image, white)
    if mode == "RGB" and image.mode != "CMYK":
        return conversion.transform.apply(rgb)
    if mode == "L" and (image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")):
        return conversion.transform.apply(rgb.getchannel("R"))
    return rgb


@functools.lru_cache(maxsize=64)
def _conversion(profile: bytes) -> Conversion | None:
    """How to convert to sRGB; None for sRGB itself, and for profiles that cannot be used.

    What a profile does counts, not its name: one that moves no colour by more than 2 of 255 is
    sRGB, of which there are many versions.
    """
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()]
        srgb = ImageCms.createProfile("sRGB")
        # LittleCMS would replace grey curves by coarse tables, up to 10 of 255 apart.
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", flags=flags)
        if mode == "CMYK":
            return Conversion(mode, transform)
        steps = np.arange(0, 256, 15, dtype=np.uint8)  # of both ends too
        grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(len(steps), -1, 3)
        colours = Image.fromarray(grid)
        probe = colours if mode == "RGB" else colours.getchannel("R")
        moved = np.abs(np.asarray(transform.apply(probe), int) - np.asarray(probe.convert("RGB")))
    except Exception:  # a broken profile says nothing about the pixels
        return None
    return Conversion(mode, transform) if moved.max() > 2 else None


# --- masks -----------------------------------------------------------------------------------


def read_mask(path: str | Path) -> np.ndarray:
    """A mask file as [H, W] uint8: 255 where any colour channel (or palette index) is nonzero."""
    with open_image(path, "mask") as image:
        image.load()
        return binary_mask(_upright(image, _orientation(image)))


def binary_mask(mask: np.ndarray | Image.Image) -> np.ndarray:
    """[H, W] uint8, 255 where `mask` ([H, W] or [H, W, C]) is nonzero. The one threshold.

    Of a PIL image, colours and palette indices count, transparency does not.
    """
    if isinstance(mask, Image.Image) and mask.mode in ("LA", "RGBA", "CMYK", "YCbCr", "PA"):
        mask = mask.convert("RGB")
    mask = np.asarray(mask) != 0
    if mask.ndim == 3:
        mask = mask.any(axis=-1)
    return mask.astype(np.uint8) * 255


def _mask_digest(mask) -> str:
    """sha256 of a mask in memory, or of what a function gives; see `mask_digests`."""
    if mask is None:
        return ""
    try:
        mask = binary_mask(mask() if callable(mask) else mask)
    except (UserError, OSError, ValueError) as error:
        return f"unreadable: {error}"  # whoever needs the mask says so
    return hashlib.sha256(f"{mask.shape}".encode() + mask.tobytes()).hexdigest()


def object_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The square around an object, as left, top, right, bottom in pixels.

    The mask's bounding box is grown by 16 px on each side, made a square about its middle and
    shifted to lie inside the photo; its side is at most the photo's shorter one. An empty mask
    gives the largest square in the middle.

    Args:
        mask: [H, W], nonzero on the object.
    """
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        top, bottom, left, right = 0, height, 0, width
    else:
        top, bottom = int(rows[0]) - CROP_MARGIN, int(rows[-1]) + 1 + CROP_MARGIN
        left, right = int(columns[0]) - CROP_MARGIN, int(columns[-1]) + 1 + CROP_MARGIN
    side = min(max(bottom - top, right - left), height, width)
    x = min(max((left + right - side) // 2, 0), width - side)
    y = min(max((top + bottom - side) // 2, 0), height - side)
    return x, y, x + side, y + side


def image_to_tensor(image: Image.Image, size: int | tuple[int, int]) -> torch.Tensor:
    """A PIL RGB image, resized to `size` (side, or height and width), [3, H, W] in [-1, 1]."""
    return pixels_to_tensor(resized_pixels(image, size))


def resized_pixels(image: Image.Image, size: int | tuple[int, int]) -> np.ndarray:
    """A PIL RGB image resized to `size` (side, or height and width): uint8 [H, W, 3]."""
    height, width = (size, size) if isinstance(size, int) else size
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))


def pixels_to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] in [-1, 1]."""
    return torch.from_numpy(pixels).movedim(-1, -3).float() / 127.5 - 1
