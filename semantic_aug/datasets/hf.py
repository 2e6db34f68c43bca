"""Image-classification datasets of the Hugging Face hub, or read locally by its library."""

import functools
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semantic_aug import UserError, first_line
from semantic_aug.datasets.layout import complete_splits
from semantic_aug.few_shot_dataset import SPLITS, FewShotDataset, Record

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
FILE_KINDS = ("imagefolder", "parquet", "arrow", "webdataset")  # with --data_dir


class HuggingFaceDataset(FewShotDataset):
    """A dataset that `datasets.load_dataset` reads: `--dataset hf:NAME` (`pip install datasets`).

        --dataset hf:food101                               of the hub
        --dataset hf:data/food101                          a folder on disk
        --dataset hf:parquet --data_dir data/food101       files of one kind: imagefolder, parquet

    Labels keep the order of the dataset's class names; text labels are sorted. Missing splits are
    cut by hashes. Rows of label -1 are left out, because they have no label.

    Args:
        name: the text after `hf:`.
        image_column: the column of images (default: the only such column).
        label_column: the column of labels (default: the only column of class labels, or `label`).
        config: a configuration of the dataset.
        revision: git revision of a dataset of the hub.
    """

    data_dir: Any  # None for a dataset of the hub

    def __init__(
        self,
        *,
        name: str = "",
        image_column: str = "",
        label_column: str = "",
        config: str = "",
        revision: str = "",
        **kwargs,
    ):
        if not name:
            raise UserError("--dataset: got 'hf', expected hf:NAME, such as hf:food101")
        self.name = name
        self.image_column = image_column
        self.label_column = label_column
        self.config = config
        self.revision = revision
        super().__init__(**kwargs)
        del self._tables  # open files; the records hold the parts they need

    def _find_data_dir(  # type: ignore[override]
        self, data_dir: str | Path | None
    ) -> Path | None:
        """The folder of the data; None for a dataset of the hub."""
        if data_dir is None and self.name not in FILE_KINDS:
            folder = Path(self.name).expanduser()
            return folder.absolute() if folder.is_dir() else None
        return super()._find_data_dir(data_dir).absolute()

    def list_class_names(self) -> list[str]:
        tables = self._tables.values()
        features = next(iter(tables)).features
        label = features[self._label]
        if hasattr(label, "names"):
            return list(label.names)
        try:
            values = set().union(*(table.unique(self._label) for table in tables)) - {None}
        except Exception as error:  # a column of images, of lists of labels ...
            raise UserError(
                f"label_column: {self._label!r} of hf:{self.name} holds no labels ({error}); "
                f"expected a text or a number per row; choose one of {', '.join(features)}"
            ) from error
        return [str(value) for value in sorted(values)]

    def list_records(self, split: str) -> Iterable[Record]:
        published = {name: list(self._records(name)) for name in self._tables}
        return complete_splits(self.name, published)[split]

    def _records(self, split: str) -> Iterator[Record]:
        import pyarrow.compute as pc

        table = self._tables[split]
        names = getattr(table.features[self._label], "names", None)
        images = table.select_columns([self._image])
        column = images.data.column(self._image)
        paths = pc.struct_field(column, "path").to_pylist()
        on_disk = pc.is_null(pc.struct_field(column, "bytes")).to_pylist()
        for row, label in enumerate(table.data.column(self._label).to_pylist()):
            if label is None or (names and label < 0):
                continue
            image: Any = Cell(images, self._image, row, f"row {row} of {split} of {self.name}")
            if on_disk[row]:
                image = Path(paths[row] or "missing")
            source = f"{split}/{row:07d}"
            if on_disk[row] and self.data_dir and image.is_relative_to(self.data_dir):
                source = image.relative_to(self.data_dir).as_posix()
            yield Record(image, names[label] if names else str(label), source)

    # --- tables ------------------------------------------------------------------------------

    def _load(self) -> dict:
        """Split name -> table, as the library gives it."""
        name = self.name
        options = {"name": self.config or None, "revision": self.revision or None}
        if self.data_dir is not None and self.data_dir != Path(name).expanduser().absolute():
            options["data_dir"] = str(self.data_dir)
        elif self.data_dir is not None:
            name = str(self.data_dir)
        try:
            return datasets_library().load_dataset(name, **options)
        except UserError:
            raise
        except Exception as error:  # the library raises errors of any kind
            reason = first_line(error).rstrip(".")
            raise UserError(
                f"hf:{name} cannot be loaded: {reason}; expected a dataset of the hub, a folder, "
                f"or one of {', '.join(FILE_KINDS)} with --data_dir"
            ) from error

    @functools.cached_property
    def _tables(self) -> dict:
        """Split -> table, for published splits."""
        loaded = self._load()
        tables = {
            split: loaded[name]
            for split in SPLITS
            for name in SPLIT_NAMES[split]
            if name in loaded and loaded[name].num_rows
        }
        if len(loaded) == 1:
            tables = {"train": next(iter(loaded.values()))}
        if "train" not in tables:
            raise UserError(f"hf:{self.name} has the splits {', '.join(loaded)}, but none is train")
        image = datasets_library().Image(decode=False)
        features = tables["train"].features
        self._image = choose(
            "image_column", self.image_column, features, lambda f: type(f) is type(image)
        )
        self._label = choose(
            "label_column", self.label_column, features, lambda f: hasattr(f, "names"), "label"
        )
        try:
            return {split: table.cast_column(self._image, image) for split, table in tables.items()}
        except Exception as error:
            raise UserError(
                f"image_column: {self._image!r} of hf:{self.name} holds no images: {error}"
            ) from error


@dataclass(frozen=True)
class Cell:
    """An image file in a cell of a table, which opens like a path."""

    table: Any = field(repr=False)
    column: str
    row: int
    name: str

    def open(self, mode: str = "rb") -> io.BytesIO:
        return io.BytesIO(self.table.data.column(self.column)[self.row]["bytes"].as_py())

    def __str__(self) -> str:
        return self.name


def datasets_library():
    """The library `datasets`, which is not installed with this package."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"--dataset hf:NAME needs the library datasets ({error}): pip install datasets"
        ) from error
    return datasets


def choose(option: str, given: str, features: dict, fits, default: str = "") -> str:
    """The given column, or the only fitting column, or the default."""
    fitting = [name for name, feature in features.items() if fits(feature)]
    chosen = given or (fitting[0] if len(fitting) == 1 else default)
    if chosen not in features:
        raise UserError(
            f"{option}: got {given!r}, expected one of {', '.join(features)}"
            if given
            else f"{option}: {len(fitting)} columns would fit; choose one of {', '.join(features)}"
        )
    return chosen
