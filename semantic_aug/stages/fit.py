"""From a folder of photos to a classifier: the photos themselves show which candidate helps."""

import dataclasses
import logging
import math
import time as clocks
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from semantic_aug import UserError, counted
from semantic_aug.cli.notices import RESULT
from semantic_aug.diffusion.loading import pick_device
from semantic_aug.evaluation.backbone import Backbone, load_backbone
from semantic_aug.evaluation.choosing import scores_of
from semantic_aug.evaluation.fold_heads import Material, Variants, together
from semantic_aug.evaluation.folds import Fold
from semantic_aug.experiment.config import OtherSettings
from semantic_aug.experiment.names import CACHE
from semantic_aug.settings.classification import FROZEN, TrainingOptions
from semantic_aug.settings.fitting import MIXTURE, WORDS, Fitting
from semantic_aug.stages.common import experiment_of, prepared, stage
from semantic_aug.stages.estimating import duration
from semantic_aug.stages.fitting_masks import with_masks
from semantic_aug.stages.fitting_methods import (
    FLIP_ROTATE,
    Made,
    Method,
    Time,
    TooLong,
    lacks_model,
    make_images,
    methods_of,
)
from semantic_aug.stages.fitting_photos import (
    Photos,
    changes,
    fewer_notices,
    read_photos,
    run_of,
)
from semantic_aug.stages.fitting_result import Fitted, write_result
from semantic_aug.stages.fitting_scores import (
    PHOTO_VIEWS,
    VARIANT_VIEWS,
    Eyes,
    Tried,
    judge,
    judged_of,
    options_of,
)
from semantic_aug.stages.fitting_words import folds_with_words, make_images_by_words
from semantic_aug.stages.kept_views import seconds_per_image

log = logging.getLogger(__name__)

RESERVED, MOST_RESERVED = 0.05, 120  # of the time, for the last steps: a share, and seconds


@stage(Fitting)
@fewer_notices()
def fit(
    photos: str | Path, settings: Fitting, *, clock: Callable[[], float] = clocks.monotonic
) -> Fitted:
    """Find the candidate that helps most to classify photos, and train a classifier with it.

    Args:
        photos: a folder with a folder of photos for each class.
        clock: gives seconds.

    Returns:
        The classifier, its expected accuracy, and the gains of all candidates.

    Raises:
        UserError: an error that the user can fix.
    """
    seconds = 60 * settings.minutes
    end = clock() + seconds if settings.candidates is None else math.inf
    time = Time(clock, end, min(RESERVED * seconds, MOST_RESERVED))
    run = prepared(run_of(photos, settings))
    experiment = experiment_of(run)
    methods = methods_of(settings)
    no_model = lacks_model(settings) if any(method.needs_model for method in methods) else ""
    found = read_photos(run, settings, experiment)
    device = pick_device(settings.device)
    backbone = load_backbone(settings.classifier_backbone, device, None, FROZEN)
    needed = any(method.needs_masks for method in methods)
    found, masks, no_masks = with_masks(found, settings, time, needed)
    reasons = {method.name: method.lacks(no_masks, no_model) for method in methods}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    trying = Trying(found, settings, time, backbone, experiment / CACHE, masks, left_out)
    for method in methods:
        if method.name not in left_out:
            trying.alone(method, rest=methods[methods.index(method) :])
    trying.mixture()
    result = write_result(experiment, found, settings, backbone, trying.tried, left_out)
    came, other = changes(run, settings, found.contents)
    if other:
        raise UserError(
            f"{counted(len(other), 'photo')} in {run.data_dir}, such as {other[0]}, changed or "
            "vanished during the run, so the classifier fits other photos; run this again"
        )
    if came:
        log.warning("%s came during the run, and the classifier was trained without them; run "
                    "this again with --overwrite", counted(len(came), "photo"))  # fmt: skip
    return result


class Trying:
    """Tries candidates in turn, as long as there is time."""

    def __init__(
        self, photos: Photos, settings: Fitting, time: Time, backbone: Backbone, cache: Path,
        masks: Mapping[int, str], left_out: dict[str, str],
    ):  # fmt: skip
        self.photos, self.settings, self.time = photos, settings, time
        self.backbone, self.left_out = backbone, left_out
        self.options: TrainingOptions = options_of(settings)
        self.eyes = Eyes(backbone, photos, settings, cache)
        self.plain = self.eyes.plain()
        self.far = self.eyes.elsewhere(masks)
        self.labels = torch.tensor(photos.labels)
        self.tried: list[Tried] = []
        self.seconds_of_heads = 0.0
        self.seen = 0.0
        if math.isfinite(time.end):
            of_views = dataclasses.replace(self.options, augmentation=FLIP_ROTATE)
            self.seen = seconds_per_image(backbone, of_views)

    def alone(self, method: Method, rest: list[Method]) -> None:
        """Try a method: make its images, if the method has any, and evaluate it.

        Args:
            rest: this method and the methods that follow.
        """
        variants: Variants | None = None
        sets: list[Made] = []
        if self.tried:  # the first method has no time limit
            needed = self.seconds_of_heads
            needed += 0 if method.edit else self.seen * PHOTO_VIEWS * len(self.labels)
            if needed > self.time.left():
                self.leave_out(method, needed)
                return
        try:
            if method.edit is not None:
                sets = self.images(method, rest)
                variants = together([self.eyes.variants(each, method.name) for each in sets])
        except TooLong as long:
            self.leave_out(method, long.needed)
            return
        except OtherSettings:
            raise
        except UserError as error:
            self.left_out[method.name] = str(error)
            log.log(RESULT, "%s is left out: %s", method.name, error)
            return
        has_words = method.kind == WORDS
        folds = folds_with_words(self.photos) if has_words else self.photos.folds
        self.judged(method, variants, sets, folds)

    def images(self, method: Method, rest: list[Method]) -> list[Made]:
        """The method's sets of images; words come last, and have all the time that is left."""
        waiting = [each for each in rest if each.edit and each.name not in self.left_out]
        waiting = [each for each in waiting if each.kind != WORDS] or waiting
        heads = self.seconds_of_heads * (len(waiting) + 1)  # and of the mixture
        share = max(0.0, self.time.left() - heads) / len(waiting)
        side = max(self.backbone.image_size)
        seen = self.seen * VARIANT_VIEWS
        given = (method, self.photos, self.settings, self.time, share, seen, side)
        return make_images_by_words(*given) if method.kind == WORDS else [make_images(*given)]

    def judged(
        self, method: Method, variants: Variants | None, sets: list[Made], folds: Sequence[Fold]
    ) -> None:
        """Train the method's heads in these folds, and keep their predictions."""
        began = self.time.clock()
        features = self.eyes.views(method.augmentation)
        number = len(self.photos.dataset.class_names)
        material = Material(features, self.labels, number, variants)
        found = judge(
            material, self.plain, self.far, self.photos, self.options, self.settings.seed, folds
        )
        self.tried.append(Tried(method, material, found, sets, folds))
        self.seconds_of_heads = max(self.seconds_of_heads, self.time.clock() - began)
        near, far = judged_of([found], self.photos)
        said = f"{method.what}: {float(near.accuracy()[0]):.1%} of held-out photos right"
        if far is not None:
            said += f", {float(far.accuracy()[0]):.1%} elsewhere"
        if sets:
            said += f" ({counted(len(variants or ()), 'image')})"
        log.log(RESULT, "%s", said)

    def mixture(self) -> None:
        """Try the images of the two best methods together."""
        wanted = self.settings.candidates
        if wanted is not None and MIXTURE not in wanted:
            return
        with_images = [each for each in self.tried if each.sets]
        if len(with_images) < 2:
            if wanted is not None:
                self.left_out[MIXTURE] = "needs two methods with images"
            return
        if self.seconds_of_heads > self.time.left():
            self.left_out[MIXTURE] = too_long(self.seconds_of_heads, self.time.left())
            return
        compared = [self.tried[0], *with_images]
        scores = scores_of(*judged_of([each.judgement for each in compared], self.photos))
        gains = np.nanmean(scores[:, 1:] - scores[:, :1], axis=0)  # in common folds
        order = sorted(range(len(gains)), key=lambda n: (-float(gains[n]), n))
        one, other = (with_images[n] for n in sorted(order[:2]))
        method = Method(
            f"{one.method.name}+{other.method.name}",
            MIXTURE,
            f"images of {one.method.name} and {other.method.name}",
        )
        mixed = together([each.material.variants for each in (one, other)])  # type: ignore[misc]
        folds = [fold for fold in one.folds if fold in other.folds]
        self.judged(method, mixed, [*one.sets, *other.sets], folds)

    def leave_out(self, method: Method, needed: float) -> None:
        self.left_out[method.name] = too_long(needed, self.time.left())
        log.log(RESULT, "%s is left out: it %s", method.name, self.left_out[method.name])


def too_long(needed: float, left: float) -> str:
    if left <= 0:
        return f"takes at least {duration(needed)}, and no time is left"
    missing = duration(max(1.0, needed - left))
    return f"takes at least {duration(needed)}, which is {missing} more than there is left"
