"""The settings that a result depends on, and keeping results of other settings apart."""

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from semantic_aug import counted, stable_hash
from semantic_aug.cli.notices import RESULT
from semantic_aug.evaluation.backbone import Backbone
from semantic_aug.evaluation.leaks import Photos
from semantic_aug.evaluation.results import COMPARISON_FILE, SUMMARY_FILE, VALIDATION, is_finished
from semantic_aug.evaluation.summary import EVALUATION_PHOTOS, IMAGES_OF
from semantic_aug.experiment.config import check_config, read_config, write_config
from semantic_aug.experiment.files import remove_folder, remove_leftovers
from semantic_aug.experiment.names import Trial
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.settings import compared, fields_of, written
from semantic_aug.settings.classification import (
    MIX,
    SUPCON,
    Classification,
    Contrastive,
    TrainingOptions,
)
from semantic_aug.settings.common import Run
from semantic_aug.synthesis.records import read_records, read_scores

# Keys of config.json with an entry per trial, and the key of the evaluated photos.
PHOTOS_OF = "photos of "
NEGATIVES_OF = "hard negatives of "
OF_TRIAL = (IMAGES_OF, PHOTOS_OF, NEGATIVES_OF)

log = logging.getLogger(__name__)


def result_settings(
    run: Run,
    settings: Classification,
    options: TrainingOptions,
    backbone: Backbone,
    train: FewShotDataset,
    splits,
    aug_dirs: Mapping[Trial, Mapping[str, Path]],
    near_dirs: Mapping[Trial, Path],
) -> dict:
    """Everything that changes a result, including the synthetic images of every trial.

    Args:
        aug_dirs: by trial, the folder of each set of synthetic images by the set's name; empty
            without synthetic images.
        near_dirs: by trial, the folder of its hard negatives.
    """
    facts = {
        "dataset": run.dataset,
        "dataset_args": sorted(run.dataset_args),
        "crop_to_object": run.crop_to_object,
        "classes": None if settings.classes is None else sorted(set(settings.classes)),
        "photos": _photos(train, splits),
        "backbone": backbone.identity,
        "image_size": list(backbone.image_size),
        "image_mean": backbone.mean.flatten().tolist(),
        "image_std": backbone.std.flatten().tolist(),
        **dataclasses.asdict(options),
        "augmentation": list(options.augmentation),
        "aug_name": written(settings, "aug_name") if aug_dirs else None,
        "num_synthetic": settings.num_synthetic if aug_dirs else 0,
    }
    del facts["views"]  # older folders lack the key: it is added below if given
    if options.objective != SUPCON:  # the same for keys of supcon
        facts = {key: facts[key] for key in facts if key not in fields_of(Contrastive)}
    if not aug_dirs or options.utilization != MIX:
        facts["synthetic_probability"] = 0.0 if not aug_dirs else None
    for trial, folders in aug_dirs.items():
        found = {name: images_identity(folder, settings) for name, folder in folders.items()}
        if all(found.values()):
            several = (f"{name}: {each}" for name, each in found.items())
            one = len(found) == 1
            facts[IMAGES_OF + trial.name] = "; ".join(found.values() if one else several)
    every = dataclasses.replace(settings, num_synthetic=None)  # all hard negatives are used
    for trial, folder in near_dirs.items():
        if found_there := images_identity(folder, every):
            facts[NEGATIVES_OF + trial.name] = found_there
    return compared(facts, run, settings)


def images_identity(folder: Path, settings: Classification) -> str:
    """The identity of the images used from a set; empty without images."""
    records = read_records(folder)
    if not records:
        return ""
    used = (r for r in records if r["repeat"] < (settings.num_synthetic or math.inf))
    words = sorted(set(map(made_with, used)))
    identity = (read_config(folder) or {}).get("id", "unknown")
    identity += f", words {stable_hash(*words):x}"
    if settings.num_synthetic is None:  # then their number changes the result
        identity += f", {1 + max(record['repeat'] for record in records)} per photo"
    scores = {} if settings.ignore_filter else read_scores(folder)
    rejected = sorted(name for name, each in scores.items() if each.get("kept") is False)
    if rejected:
        identity += f", {len(rejected)} rejected {stable_hash(*rejected):x}"
    return identity


def made_with(record: dict) -> str:
    """Facts that may change for images of a class while the settings of its folder stay."""
    # Older results identify images by their words only; older records lack the precision.
    keys = ("unet", "masks") if "precision" in record else ()
    others = [f"{key} {record[key]}" for key in keys if key in record]
    return " ".join([record["class_name"], str(record.get("embeddings")), *others])


def _photos(train: FewShotDataset, splits: dict[str, FewShotDataset]) -> str:
    """Sixteen hex digits of the classes, all photo ids, and the content of a photo per class.

    The digits are the same for every trial.
    """
    parts = []
    for split in (train, *splits.values()):
        parts += [*split.class_names, *split.sources()]
    if (validation := splits.get(VALIDATION)) is not None:
        first = {validation.get_label_by_idx(idx): idx for idx in reversed(range(len(validation)))}
        with contextlib.suppress(OSError):  # missing photos raise an error later
            parts.append(validation.photo_digest(sorted(first.values())))
    return f"{stable_hash(*parts):016x}"


def content_digest(*splits: Photos) -> str:
    """Sixteen hex digits of the content of all these photos."""
    return f"{stable_hash(*(each for photos in splits for each in photos.contents)):016x}"


def training_identity(trained: Photos, left_out: dict[str, set[int]]) -> str:
    """The identity of a trial's training photos and of the photos left out of its evaluation."""
    found = content_digest(trained)
    for split, photos in left_out.items():
        found += f", {len(photos)} of {split} left out" if photos else ""
    return found


def identity_of(folder: Path, trial: Trial) -> str:
    """The identity of all settings in a claimed folder that a trial's training depends on."""
    settings = (read_config(folder) or {}).get("settings", {})
    others = {key for key in settings if key.startswith(OF_TRIAL) and not key.endswith(trial.name)}
    own = {key: settings[key] for key in sorted(settings.keys() - others)}
    return f"{stable_hash(json.dumps(own)):016x}"


def claim(folder: Path, settings: dict, trials: list[Trial], arguments: dict) -> None:
    """Write config.json, unless `folder` holds results of other settings.

    Such results are refused or, with --overwrite, removed. Other runs may have finished other
    trials of the same method: their entries about images and photos stay. The images and photos
    of unfinished trials may change.

    Results without recorded photos are continued, if they are evaluated only on new photos.
    """
    results = sorted(folder.glob("results_*.csv"))
    before = (read_config(folder) or {}).get("settings", {}) if results else {}
    noted = {key: value for key, value in before.items() if key.startswith(OF_TRIAL)}
    common = {key: value for key, value in settings.items() if not key.startswith(OF_TRIAL)}
    if EVALUATION_PHOTOS not in before:
        common.pop(EVALUATION_PHOTOS)
    finished = [trial.name for trial in trials if is_finished(folder, trial)]
    now = {
        key: settings[key]
        for key in (prefix + name for prefix in OF_TRIAL for name in finished)
        if key in settings and (key in noted or "left out" in settings[key])
    }
    if results and before != common | noted | now:
        check_config(folder, common | noted | now, True, arguments["overwrite"], other="--method")
        derived = [folder / SUMMARY_FILE, folder / COMPARISON_FILE, *folder.glob("*.png")]
        for path in folder.glob("classifier_*"):  # before their results
            remove_folder(path)
        patterns = ("confusion_*.csv", "calibration_*.csv", "contrastive_*.pt")
        of_trials = [path for pattern in patterns for path in folder.glob(pattern)]
        for path in [*results, *of_trials, *derived]:
            path.unlink(missing_ok=True)
        log.log(RESULT, "%s of other settings removed", counted(len(results), "result"))
        noted = {}
    remove_leftovers(folder)
    write_config(folder, noted | settings, arguments)
