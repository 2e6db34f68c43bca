"""Which classifiers of a command are kept, and the facts in their config.json."""

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch

from semantic_aug import counted
from semantic_aug.cli.notices import RESULT
from semantic_aug.evaluation.backbone import Backbone
from semantic_aug.evaluation.calibration import (
    calibrated_error,
    fit_temperature,
    say_at_end,
    write_calibration,
)
from semantic_aug.evaluation.classifiers import (
    classifier_folder,
    keep_selected,
    kept_classifiers,
    write_classifier,
)
from semantic_aug.evaluation.leaks import photos_of
from semantic_aug.evaluation.metrics import Evaluation
from semantic_aug.evaluation.results import VALIDATION, accuracies, read_results
from semantic_aug.evaluation.sampling import Examples
from semantic_aug.evaluation.training import TrainedTrial
from semantic_aug.experiment.config import git_revision, versions
from semantic_aug.experiment.files import remove_folder
from semantic_aug.experiment.names import Trial
from semantic_aug.settings.classification import (
    EVERY,
    FROZEN,
    NOT_KEPT,
    SELECTED,
    SHORT_NAMES,
    Classification,
)

log = logging.getLogger(__name__)


def which_stay(settings: Classification) -> str:
    """`none`, `selected` or `all`; with a frozen backbone, classifiers are small."""
    return settings.save_classifier or (EVERY if settings.finetune == FROZEN else SELECTED)


def keep_classifier(
    folder: Path,
    trial: Trial,
    settings: Classification,
    backbone: Backbone,
    examples: Examples,
    result: TrainedTrial,
    scores: Mapping[str, Evaluation],
    logits: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
) -> None:
    """Fit the temperature of a trial, write its calibration, and the classifier if it is kept.

    The results are written later, so every finished trial has its classifier.

    Args:
        scores: by split, of the selected epoch.
        logits: by split, with their labels.
    """
    fitted = VALIDATION in logits
    temperature = fit_temperature(*logits[VALIDATION]) if fitted else 1.0
    calibrated = {
        split: (scores[split].calibration_error, calibrated_error(*each, temperature))
        for split, each in logits.items()
    }
    write_calibration(folder, trial, temperature, calibrated, fitted)
    say_at_end(trial.name, temperature)
    path = classifier_folder(folder, trial)
    if which_stay(settings) == NOT_KEPT:
        remove_folder(path)  # from an earlier run
        return
    facts = classifier_facts(folder.name, trial, settings, backbone, examples, result)
    facts |= {
        "temperature": temperature,
        "scores": {
            split: {
                "photos": len(logits[split][1]),
                "accuracy": each.mean_accuracy,
                "top1": each.top1,
                "macro_f1": each.macro_f1,
                "ece": calibrated[split][0],
                "ece_calibrated": calibrated[split][1],
            }
            for split, each in scores.items()
        },
    }
    write_classifier(path, backbone, result.head, facts)


def classifier_facts(
    method: str,
    trial: Trial,
    settings: Classification,
    backbone: Backbone,
    examples: Examples,
    result: TrainedTrial,
) -> dict:
    """The content of a classifier's config.json except for its scores, in JSON types.

    `photos` has the content digest of each training photo by its source.
    """
    dataset = examples.images.dataset
    names = list(dataset.class_names)
    photos = photos_of(dataset, settings.classes)
    sources = [each or f"photo {idx}" for idx, each in zip(photos.indices, photos.sources)]
    name = settings.classifier_backbone
    training = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name in _OF_TRAINING
    }
    if len(examples.labels) == examples.num_photos:
        training["aug_name"] = None
    return {
        "backbone": SHORT_NAMES.get(name, name),
        "backbone_identity": backbone.identity,
        "from_scratch": settings.from_scratch,
        "precision": backbone.precision,
        "device": backbone.device.type,
        "image_size": list(backbone.image_size),
        "image_mean": backbone.mean.flatten().tolist(),
        "image_std": backbone.std.flatten().tolist(),
        "crop_to_object": bool(dataset.crop_to_object),
        "bits": dataset.bits,
        "class_names": names,
        "trained_classes": [names[n] for n in result.head.trained.nonzero().flatten().tolist()],
        "method": method,
        "seed": trial.seed,
        "examples_per_class": trial.examples_per_class,
        "epoch": result.selected,
        "training": training,
        "photos": dict(zip(sources, photos.contents)),
        "synthetic_images": len(examples.labels) - examples.num_photos,
        "versions": versions(),
        "git_revision": git_revision(),
    }


_OF_TRAINING = (
    "aug_name", "num_synthetic", "utilization", "synthetic_probability", "finetune", "num_epochs",
    "iterations_per_epoch", "batch_size", "learning_rate", "backbone_learning_rate",
    "class_balanced", "augmentation", "views", "select", "objective", "negative_aug_name",
    "contrastive_temperature", "contrastive_epochs", "contrastive_learning_rate",
)  # fmt: skip


def tidy(folder: Path, settings: Classification) -> None:
    """Remove classifiers that are not selected, if only selected classifiers are kept."""
    if which_stay(settings) == SELECTED:
        keep_selected(folder)


def lacking(folder: Path, settings: Classification, finished: Collection[Trial]) -> list[Trial]:
    """The finished trials whose classifiers are missing, in the order of seeds.

    If only selected classifiers are kept, this is the best trial on val for each number of
    examples without a classifier.
    """
    stay, kept = which_stay(settings), kept_classifiers(folder)
    if stay == NOT_KEPT:
        return []
    wanted = set(finished)
    if stay == SELECTED:
        numbers = {trial.examples_per_class for trial in kept}
        found = accuracies(read_results(folder), VALIDATION).items()
        wanted &= {
            Trial(max(by_seed, key=lambda seed: (by_seed[seed], -seed)), number)
            for number, by_seed in found
            if number not in numbers
        }
    return sorted(wanted - kept.keys())


def to_do(
    folder: Path, settings: Classification, trials: Sequence[Trial], finished: Collection[Trial]
) -> list[Trial]:
    """The unfinished trials; with --overwrite, also the trials whose classifiers are missing.

    Without --overwrite, a message counts the missing classifiers.
    """
    missing = lacking(folder, settings, finished)
    if missing and not settings.overwrite:
        log.log(RESULT, "the classifiers of %s were not kept: to have them, run it again with "
                "--overwrite", counted(len(missing), "finished trial"))  # fmt: skip
        missing = []
    return [trial for trial in trials if trial not in finished or trial in missing]
