"""The datasets, by name. Importing this module touches no disk and no dataset's code."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Sequence

from semantic_aug import UserError
from semantic_aug.registry import find_class, name_of

if typing.TYPE_CHECKING:  # the names of datasets must not load torch
    from semantic_aug.few_shot_dataset import FewShotDataset

DATASETS = {
    "coco": "semantic_aug.datasets.coco:COCODataset",
    "mvip": "semantic_aug.datasets.mvip:MVIPDataset",
    "folder": "semantic_aug.datasets.folder:FolderDataset",
    "pascal": "semantic_aug.datasets.pascal:PascalDataset",
    "imagenet": "semantic_aug.datasets.imagenet:ImageNetDataset",
    "caltech101": "semantic_aug.datasets.caltech101:Caltech101Dataset",
    "flowers102": "semantic_aug.datasets.flowers102:Flowers102Dataset",
    "aircraft": "semantic_aug.datasets.aircraft:AircraftDataset",
    "cars": "semantic_aug.datasets.cars:CarsDataset",
    "spurge": "semantic_aug.datasets.spurge:SpurgeDataset",
    "pets": "semantic_aug.datasets.pets:PetsDataset",
    "hf": "semantic_aug.datasets.hf:HuggingFaceDataset",
}

_HUB = "hf:"  # `hf:NAME` is the dataset `hf` with the option `name`, not a module

# Arguments that change the photos: a dataset that ignores them would give wrong photos.
_NEEDED = ("split", "seed", "examples_per_class", "data_dir", "crop_to_object", "mask_dir")


def _base() -> type[FewShotDataset]:
    from semantic_aug.few_shot_dataset import FewShotDataset

    return FewShotDataset


@functools.cache
def _common() -> frozenset[str]:
    """The arguments that commands set by themselves; all others of a constructor are options."""
    return frozenset(inspect.signature(_base().__init__).parameters) | {"use_randaugment"}


def dataset_class(name: str) -> type[FewShotDataset]:
    """The class of a registered name, of `hf:NAME` or of `package.module:ClassName`."""
    name = "hf" if name.startswith(_HUB) else name
    return find_class("--dataset", name, DATASETS, _base())


def named_dataset(dataset: str | type[FewShotDataset] | FewShotDataset) -> dict:
    """A dataset in the form of settings: its name, and the arguments of an object.

    Raises:
        UserError: it has no name by which another process could find it.
    """
    found: dict = {"dataset": name_of("--dataset", dataset, DATASETS, _base())}
    if isinstance(dataset, _base()):
        given = vars(dataset)["made_with"]
        found |= {
            key: given[key] for key in ("data_dir", "crop_to_object", "mask_dir") if key in given
        }
        own = {key: value for key, value in given.items() if key not in _common()}
        found["dataset_args"] = own | ({"bits": given["bits"]} if given.get("bits") else {})
    return found


def build_dataset(
    name: str, split: str, *, dataset_args: Sequence[str] = (), **common
) -> FewShotDataset:
    """One split of a dataset.

    Args:
        name: see `dataset_class`.
        split: `train`, `val` or `test`.
        dataset_args: the dataset's own options as `key=value`.
        common: keyword arguments of FewShotDataset. A subclass in the original repository's style
            gets only the arguments that its constructor takes; if it lacks an argument that
            changes the data, that is an error.

    Raises:
        UserError: bad options, a bad data root, or no data.
    """
    cls = dataset_class(name)
    signature = inspect.signature(cls)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    options = parse_dataset_args(cls, dataset_args)
    if name.startswith(_HUB):
        options["name"] = name.removeprefix(_HUB)
    common = {"split": split, **common}
    for key in () if takes_all else common.keys() - signature.parameters.keys():
        value = common.pop(key)
        if key in _NEEDED and value:
            raise UserError(f"--dataset: {cls.__name__} takes no {key}, needed for {key}={value}")
    try:
        signature.bind(**common, **options)
    except TypeError as error:
        raise UserError(f"--dataset_args: {cls.__name__}: {error}") from error
    dataset = cls(**common, **options)
    for key in ("split", "seed", "image_size"):
        # A subclass may take these, but not pass them to the base class.
        if key in common and key in signature.parameters:
            setattr(dataset, key, common[key])
    if not dataset.class_names:
        raise UserError(f"--dataset: {name} has no class_names")
    if dataset.num_classes is None:
        dataset.num_classes = len(dataset.class_names)
    if len(dataset) == 0:
        raise UserError(f"{cls.__name__} has no photo of split {split!r}")
    return dataset


def parse_dataset_args(cls: type[FewShotDataset], pairs: Sequence[str]) -> dict:
    """`key=value` texts as keyword arguments, in the types that the constructor declares."""
    known = known_options(cls) | _shared_options(cls)
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--dataset_args: got {pair!r}, expected key=value")
        if key not in known:
            listed = ", ".join(known) or "none"
            raise UserError(f"--dataset_args: unknown key {key!r}; {cls.__name__} has: {listed}")
        if key in options:
            raise UserError(f"--dataset_args: {key} is given twice")
        options[key] = _typed(key, value, known[key])
    return options


def known_options(cls: type[FewShotDataset]) -> dict[str, inspect.Parameter]:
    """A dataset's own options, from its constructor."""
    return {
        key: parameter
        for key, parameter in inspect.signature(cls.__init__).parameters.items()
        if key not in _common() and parameter.kind is not parameter.VAR_KEYWORD
        if parameter.kind is not parameter.VAR_POSITIONAL
    }


def _shared_options(cls: type[FewShotDataset]) -> dict[str, inspect.Parameter]:
    """Options of every dataset whose images the base class reads."""
    parameters = inspect.signature(cls.__init__).parameters
    takes = "bits" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if cls.list_records is _base().list_records or not takes:
        return {}
    return {"bits": inspect.signature(_base().__init__).parameters["bits"]}


def _typed(key: str, text: str, parameter: inspect.Parameter):
    """`text` in the type of the parameter's annotation, or of its default if that says more."""
    kind = parameter.annotation
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        kind = next(each for each in typing.get_args(kind) if each is not type(None))
    if not isinstance(kind, type) or kind is parameter.empty:
        kind = type(parameter.default)
    if kind is bool:
        values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in values:
            raise UserError(f"--dataset_args: {key}={text!r}, expected true or false")
        return values[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise UserError(f"--dataset_args: {key}={text!r}, expected {what}") from None
    return text
