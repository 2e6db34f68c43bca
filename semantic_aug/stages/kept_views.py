"""Checks of --views: allowed settings, memory for the features, and when it saves minutes."""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping

import torch

from semantic_aug import UserError, counted
from semantic_aug.evaluation.backbone import CHUNK, Backbone
from semantic_aug.evaluation.pictures import MEGABYTE
from semantic_aug.evaluation.standard_augmentation import MIXES, augment
from semantic_aug.experiment.names import Trial
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.settings.classification import (
    FROZEN,
    SUPCON,
    Classification,
    TrainingOptions,
)

LONG = 300  # seconds of training from which advice is useful
FEW = 1000  # fewer images take less than LONG on any device
STEP = 0.001  # seconds of the head alone
SUGGESTED = 16

log = logging.getLogger(__name__)


def check_views(settings: Classification) -> None:
    """Raise UserError where --views has no meaning, or cannot be used."""
    if settings.views is None:
        return
    given = f"--views {settings.views}"
    mixes = [name for name in settings.augmentation if name in MIXES]
    if settings.finetune != FROZEN and settings.objective != SUPCON:
        raise UserError(
            f"{given} needs a frozen backbone, and --finetune {settings.finetune} trains it, so "
            "that features change in every step: leave one of them out"
        )
    if settings.augmentation == ("none",):
        raise UserError(
            f"{given} means nothing with --augmentation none, where every image has a single view: "
            "leave it out, or choose an augmentation such as flip-rotate"
        )
    if mixes:
        raise UserError(
            f"{given}: {mixes[0]} mixes the images of a batch anew in every step, so that no view "
            "can be kept: leave one of them out"
        )


def images_of(
    trials: Iterable[Trial],
    train_set: Callable[[Trial], FewShotDataset],
    classes: Collection[str] | None,
) -> dict[Trial, int]:
    """How many images each trial has, photos and synthetic images."""

    def count(dataset: FewShotDataset) -> int:
        variants = dataset.synthetic_examples or {}
        return sum(1 + len(variants.get(idx, ())) for idx in dataset.indices(classes))

    return {trial: count(train_set(trial)) for trial in trials}


def check_memory(
    images: Mapping[Trial, int], backbone: Backbone, options: TrainingOptions, memory: float
) -> None:
    """Refuse features that do not fit into memory.

    Args:
        images: the images of each trial to train, as `images_of` counts them.
        memory: megabytes for the float32 features of a trial.

    Raises:
        UserError: the features do not fit; the message has the memory and views that would.
    """
    if options.views is None or not images:
        return
    trial = max(images, key=images.__getitem__)
    of_a_view = images[trial] * backbone.num_features * 4 / MEGABYTE
    needed = math.ceil(options.views * of_a_view)
    if needed > memory:
        fit = int(memory / of_a_view)
        lower = f"lower --views to {fit}, or " if fit else ""
        raise UserError(
            f"--views {options.views} of {counted(images[trial], 'image')} in {trial.name} are "
            f"{needed / 1024:.1f} GB of features, and --image_memory allows {memory / 1024:.1f} "
            f"GB: {lower}raise --image_memory to {needed}"
        )


def advise(
    images: Mapping[Trial, int], backbone: Backbone, options: TrainingOptions, memory: float
) -> None:
    """Log how long training takes, if that is minutes and --views would take less than half.

    Two batches pass the backbone for this estimate; the random streams of trials do not change.
    """
    fixed = options.views is not None or not options.augmentation
    if backbone.trained or fixed or set(options.augmentation) & set(MIXES):
        return
    steps = len(images) * options.num_epochs * options.iterations_per_epoch
    draws = steps * options.batch_size
    kept = SUGGESTED * sum(images.values())
    fits = SUGGESTED * max(images.values()) * backbone.num_features * 4 <= memory * MEGABYTE
    if not fits or draws < max(2 * kept, FEW):
        return
    each = seconds_per_image(backbone, options)
    if draws * each > LONG:
        log.info(
            "training takes %s for %s; with --views %d each image passes the backbone %d times, "
            "in place of once per draw: %s",
            _roughly(draws * each),
            counted(len(images), "trial"),
            SUGGESTED,
            SUGGESTED,
            _roughly(kept * each + steps * STEP),
        )


def seconds_per_image(backbone: Backbone, options: TrainingOptions) -> float:
    """Seconds per image for augmentation and backbone, in a training batch."""
    number = min(options.batch_size, CHUNK)
    images = torch.full((number, 3, *backbone.image_size), 0.5, device=backbone.device)
    seconds = math.inf
    for _ in range(2):  # the first batch warms up
        started = time.perf_counter()
        changed = augment(options.augmentation, images, torch.Generator().manual_seed(0)).images
        float(backbone(changed).sum())  # waits for the device
        seconds = min(seconds, time.perf_counter() - started)
    return seconds / number


def _roughly(seconds: float) -> str:
    if seconds < 60:
        return "less than a minute"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.0f} h"
