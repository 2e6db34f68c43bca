"""What the settings of train_classifier.py mean together, and which of them conflict."""

import dataclasses
from pathlib import Path

from semantic_aug import UserError
from semantic_aug.evaluation.results import is_finished
from semantic_aug.experiment.names import RESULTS, Trial, check_component, experiment_dir
from semantic_aug.settings import fields_of
from semantic_aug.settings.classification import (
    ALL,
    CROSS_ENTROPY,
    FLOAT32,
    FROZEN,
    MIX,
    REAL,
    SUPCON,
    Classification,
    Contrastive,
    TrainingOptions,
)
from semantic_aug.settings.common import Run
from semantic_aug.stages.kept_views import check_views

MOST_IMAGES = 10_000_000  # per epoch: all are drawn at its start


def method_of(settings: Classification) -> str:
    """The name of the results: the given name, or the sets of images that they come from."""
    if settings.method is not None:
        return settings.method
    parts: list[str | None] = ["+".join(settings.aug_name) if wants_synthetic(settings) else REAL]
    if settings.negative_aug_name is not None:
        check_component("--negative_aug_name", settings.negative_aug_name)
    if settings.objective == SUPCON:
        parts += [SUPCON, settings.negative_aug_name]
    return "-".join(filter(None, parts))


def training_options(settings: Classification) -> TrainingOptions:
    """The options of training that the settings describe.

    Raises:
        UserError: settings conflict.
    """
    names, sets = settings.augmentation, settings.aug_name
    if len(set(sets)) < len(sets):
        raise UserError(f"--aug_name: got {' '.join(sets)}, expected each set once")
    if len(names) > 1 and ("none" in names or len(set(names)) < len(names)):
        raise UserError(
            f"--augmentation: got {' '.join(names)}, expected none alone, or each name once"
        )
    if settings.from_scratch and settings.finetune != ALL:
        raise UserError(
            "--from_scratch needs --finetune all: random weights that stay random recognise little"
        )
    if settings.backbone_learning_rate is not None and settings.finetune == FROZEN:
        raise UserError("--backbone_learning_rate needs --finetune all or last:N")
    if settings.finetune != FROZEN and settings.backbone_precision not in (None, FLOAT32):
        raise UserError(
            f"--backbone_precision: got {settings.backbone_precision}, and what --finetune trains "
            f"computes in {FLOAT32}"
        )
    if settings.synthetic_probability is not None and settings.utilization != MIX:
        raise UserError(
            f"--synthetic_probability belongs to --utilization mix, not {settings.utilization}"
        )
    images = settings.iterations_per_epoch * settings.batch_size
    if images > MOST_IMAGES:
        raise UserError(
            f"--iterations_per_epoch {settings.iterations_per_epoch} of --batch_size "
            f"{settings.batch_size} are an epoch of {images:,} images, expected {MOST_IMAGES:,} at "
            "most; give more --num_epochs"
        )
    check_views(settings)
    check_contrastive(settings)
    given = {f.name: getattr(settings, f.name) for f in dataclasses.fields(TrainingOptions)}
    given["augmentation"] = tuple(name for name in names if name != "none")
    return TrainingOptions(**{key: value for key, value in given.items() if value is not None})


def check_contrastive(settings: Classification) -> None:
    """Raise UserError where --objective or a setting of supcon cannot be used."""
    if settings.objective != SUPCON:
        names = ("negative_aug_name", *(n for n in fields_of(Contrastive) if n.startswith("contr")))
        given = [name for name in names if getattr(settings, name) is not None]
        if given:
            raise UserError(
                f"--{given[0]} belongs to --objective {SUPCON}: give that too, or leave it out"
            )
        return
    if settings.finetune == FROZEN:
        raise UserError(
            f"--objective {SUPCON} trains the backbone, and --finetune {FROZEN} keeps it as it is: "
            "give --finetune all, or last:2 and the like"
        )
    if settings.backbone_learning_rate is not None:
        raise UserError(
            f"--backbone_learning_rate belongs to --objective {CROSS_ENTROPY}; with {SUPCON} give "
            "--contrastive_learning_rate"
        )
    if settings.batch_size < 2:
        raise UserError(
            f"--batch_size {settings.batch_size}: --objective {SUPCON} needs images that differ "
            "in a batch, expected 2 at least"
        )
    if settings.negative_aug_name in settings.aug_name and wants_synthetic(settings):
        raise UserError(
            f"--negative_aug_name {settings.negative_aug_name}: these images are positives by "
            "--aug_name; no image can be both"
        )


def wants_synthetic(settings: Classification) -> bool:
    if settings.utilization != MIX and settings.num_synthetic == 0:
        raise UserError(
            f"--utilization {settings.utilization} needs synthetic images, and --num_synthetic 0 "
            "says to use none: leave one of them out"
        )
    return settings.num_synthetic != 0 and settings.synthetic_probability != 0


def compared_folders(
    run: Run, settings: Classification, folder: Path, trials: list[Trial]
) -> dict[str, Path]:
    """The folders of the results of --compare, by the names given there.

    Raises:
        UserError: results are missing, or lack a trial.
    """
    found = {}
    for name in settings.compare:
        experiment, colon, method = name.rpartition(":")
        if colon:
            other = experiment_dir(run.output_dir, experiment) / RESULTS / method
        else:
            other = folder.parent / name
        check_component("--compare", method)
        if other == folder:
            raise UserError(f"--compare: {name} is the method that is to be compared with others")
        if not any(other.glob("results_*.csv")):
            there = sorted({path.parent.name for path in other.parent.glob("*/results_*.csv")})
            raise UserError(
                f"--compare: no results in {other}; there are: {', '.join(there) or 'none'}"
            )
        if not any(is_finished(other, trial) for trial in trials):
            raise UserError(
                f"--compare: {other} has no result of {trials[0].name}"
                f"{' and the other trials' if len(trials) > 1 else ''}: differences are taken "
                "within a trial, so run it with the same --seed and --examples_per_class"
            )
        found[name] = other
    return found
