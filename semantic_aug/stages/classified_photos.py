"""The photos that a classifier is trained on, and the photos that it is evaluated on."""

import dataclasses
import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.evaluation.elsewhere import Elsewhere
from semantic_aug.evaluation.results import ELSEWHERE, TEST, TRAINING, VALIDATION
from semantic_aug.experiment.config import read_config
from semantic_aug.experiment.names import Trial
from semantic_aug.few_shot_dataset import FewShotDataset, NoPhotos
from semantic_aug.settings.classification import (
    BEST_VAL,
    MIX,
    SUPCON,
    Classification,
    TrainingOptions,
)
from semantic_aug.settings.common import Run
from semantic_aug.settings.generation import Generation
from semantic_aug.stages.common import command_line, dataset_of
from semantic_aug.synthesis.records import read_left_out
from semantic_aug.synthesis.variants import MissingImages, read_variants

log = logging.getLogger(__name__)


def evaluation_splits(
    run: Run, settings: Classification, options: TrainingOptions
) -> dict[str, FewShotDataset]:
    """The whole splits `val` and `test` by their names in the results, where they have photos.

    Raises:
        UserError: there is no `val` to choose an epoch by.
    """
    found, reasons = {}, {}
    for name, split in ((VALIDATION, "val"), (TEST, "test")):
        try:
            dataset = dataset_of(run, split)
            if not dataset.indices(settings.classes):
                raise NoPhotos(f"no photo of the selected classes in split {split!r}")
            found[name] = dataset
        except (KeyError, ValueError, OSError) as error:  # subclasses, for an unknown split
            if split == "val" and not isinstance(error, NoPhotos):
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"--dataset: {run.dataset} has no split 'val': {error!r}"
                ) from error
            reasons[split] = str(error) if isinstance(error, UserError) else repr(error)
    if VALIDATION not in found and options.select == BEST_VAL:
        raise UserError(f"--select {BEST_VAL} needs photos in split 'val': {reasons['val']}")
    for split, reason in reasons.items():
        reported = " and ".join((TRAINING, *found))
        log.warning("no %s split, reported: %s alone: %s", split, reported, reason)
    return found


def pasted_elsewhere(
    run: Run, settings: Classification, splits: Mapping[str, FewShotDataset]
) -> dict[str, Elsewhere]:
    """The split Elsewhere by its name in the results; empty where the settings do not ask for it.

    Raises:
        UserError: the split needs more photos or masks.
    """
    if not settings.elsewhere:
        return {}
    if VALIDATION not in splits:
        raise UserError("--elsewhere needs photos in split 'val', and there are none")
    whole = splits[VALIDATION]
    if run.crop_to_object:  # places are emptied before they are cropped
        whole = dataset_of(dataclasses.replace(run, crop_to_object=False), "val")
    return {ELSEWHERE: Elsewhere(whole, settings.classes, run.crop_to_object)}


def check_command(run: Run) -> str:
    """The command that lists the photos that lie in several splits, to be pasted."""
    words = ["python", "-m", "semantic_aug.datasets", "check", run.dataset]
    words += ["--data_dir", run.data_dir] if run.data_dir else []
    words += ["--dataset_args", *run.dataset_args] if run.dataset_args else []
    words += ["--mask_dir", run.mask_dir] if run.mask_dir else []
    return shlex.join(words)


def training_photos(
    run: Run,
    settings: Classification,
    trial: Trial,
    dataset: FewShotDataset,
    folders: Iterable[Path] = (),
) -> FewShotDataset:
    """The photos of a trial, with their synthetic variants from all these folders.

    The variants of a photo alternate between the sets, so the first few variants of a photo
    include equally many of each set.
    """
    indices = dataset.indices(settings.classes)
    if not indices:
        raise UserError("no training photo of the selected classes")
    sets: list[Mapping[int, Sequence[tuple]]] = []
    instead = " (or pass --num_synthetic=0 for real photos only)"
    instead = instead if settings.utilization == MIX else ""
    for folder in folders:
        number = settings.num_synthetic
        sets.append(variants_of(run, settings, trial, dataset, folder, number, instead))
        say_without(dataset, folder, [idx for idx in indices if not sets[-1].get(idx)])
    dataset.synthetic_examples = {
        idx: in_turn([variants.get(idx, ()) for variants in sets]) for idx in indices
    }
    return dataset


def variants_of(
    run: Run, settings: Classification, trial: Trial, dataset: FewShotDataset, folder: Path,
    number: int | None, instead: str,
) -> dict[int, list[tuple]]:  # fmt: skip
    """The synthetic images in a folder, at most `number` for each of a trial's photos.

    Raises:
        UserError: images are missing or do not fit. The message has the command that makes them,
            and what can be done `instead`.
    """
    try:
        return read_variants(folder, dataset, number, settings.classes, settings.ignore_filter)
    except UserError as error:
        command = generation_command(run, settings, trial, folder)
        enough = isinstance(error, MissingImages) or " --overwrite" in command
        again = "" if enough else " --overwrite"
        raise UserError(f"{error}; make them with: {command}{again}{instead}") from error


def hard_negatives(
    run: Run, settings: Classification, trial: Trial, dataset: FewShotDataset, folder: Path
) -> dict[int, list[tuple]]:
    """All images of --negative_aug_name, by photo."""
    instead = " (or leave out --negative_aug_name)"
    found = variants_of(run, settings, trial, dataset, folder, None, instead)
    say_without(dataset, folder, [i for i in dataset.indices(settings.classes) if not found.get(i)])
    return found


def check_several_classes(trial: Trial, dataset: FewShotDataset, classes) -> None:
    """Raise UserError where a trial has a single class: a classifier needs several."""
    labels = {dataset.get_label_by_idx(idx) for idx in dataset.indices(classes)}
    if len(labels) < 2:
        name = dataset.class_names[min(labels)]
        raise UserError(
            f"{trial.name}: got photos of {name!r} alone, and --objective {SUPCON} learns what "
            "tells classes apart: expected 2 classes at least"
        )


def say_without(dataset: FewShotDataset, folder: Path, bare: list[int]) -> None:
    """Log how many of the photos without variants were left out when images were made."""
    left_out = read_left_out(folder) if bare else {}
    sources = dataset.sources() if left_out else []
    without = [idx for idx in bare if sources and sources[idx] in left_out]
    if without:
        first = sources[without[0]]
        log.warning(
            "%s: %s without variants, as %s: %s",
            folder, counted(len(without), "photo"), first, left_out[first],
        )  # fmt: skip


def in_turn(sets: Sequence[Sequence[tuple]]) -> list[tuple]:
    """The first of each set, the second of each, and so on."""
    return [each for turn in zip_longest(*sets) for each in turn if each is not None]


def generation_command(run: Run, settings: Classification, trial: Trial, folder: Path) -> str:
    """The command line that makes the synthetic images of a trial, to be pasted.

    This is the command that made some of these images, or else the command of another trial with
    this trial's flags appended.
    """
    others = sorted(folder.parent.glob("seed=*_ex=*"))
    for each in [folder, *others]:
        made = (read_config(each) or {}).get("arguments", {})
        if not isinstance(made.get("command"), str):
            continue
        flags = {}
        if each != folder:
            flags = {"seed": trial.seed, "num_trials": 1}
            flags["examples_per_class"] = trial.examples_per_class
        number, wanted = made.get("num_synthetic"), settings.num_synthetic or 0
        if isinstance(number, int) and wanted > number:
            flags["num_synthetic"] = wanted
        return " ".join([made["command"], *(f"--{flag}={n}" for flag, n in flags.items())])
    of_trial = dataclasses.replace(
        run, seed=trial.seed, num_trials=1, examples_per_class=(trial.examples_per_class,)
    )
    images = Generation(
        aug_name=folder.parent.name,
        classes=settings.classes,
        num_synthetic=settings.num_synthetic or 10,
    )
    return command_line("generate", of_trial, images)


def check_class_names(datasets: Iterable[FewShotDataset]) -> None:
    first, *others = datasets
    for other in others:
        if list(other.class_names) != list(first.class_names):
            raise UserError(
                f"{type(first).__name__}: split {other.split!r} has other class_names than split "
                f"{first.split!r}, so that labels do not mean the same"
            )
