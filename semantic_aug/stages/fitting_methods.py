"""The candidates of `fit` from cheap to expensive, their needs, and their images in time."""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from semantic_aug import UserError
from semantic_aug.diffusion.inspecting import inspect_model
from semantic_aug.diffusion.loading import pick_device
from semantic_aug.experiment.config import OtherSettings
from semantic_aug.experiment.names import aug_dir
from semantic_aug.settings import build, fields_of
from semantic_aug.settings.classification import RANDAUGMENT, REAL
from semantic_aug.settings.fitting import (
    EDITS,
    RECOLOURED,
    SURROUNDINGS,
    WORDS,
    Fitting,
    Images,
    OfMethods,
)
from semantic_aug.settings.generation import (
    BACKGROUND,
    PASTE,
    REAL_GUIDANCE,
    TEXTUAL_INVERSION,
    Generation,
)
from semantic_aug.stages.common import experiment_of
from semantic_aug.stages.estimating import warm_up_blocks
from semantic_aug.stages.fitting_photos import Photos
from semantic_aug.stages.generate import generate
from semantic_aug.synthesis.records import read_left_out, read_records
from semantic_aug.synthesis.variants import read_variants

log = logging.getLogger(__name__)

FLIP_ROTATE = ("flip-rotate",)
COLOURS = 0.4  # --layout_colour: helps most with parts that no generator knows
SAMPLER = "dpm++"
SIDE = 512  # pixels; larger photos are reduced before images are made of them


@dataclasses.dataclass
class Time:
    """The time that is left.

    Attributes:
        clock: gives seconds.
        end: the deadline; infinite without a limit.
        reserved: seconds that the last steps need.
    """

    clock: Callable[[], float]
    end: float
    reserved: float

    def left(self) -> float:
        return self.end - self.reserved - self.clock()


class TooLong(Exception):
    """Some work takes longer than the time that is left.

    Attributes:
        each: seconds of a piece of the work.
        needed: seconds of the smallest useful amount of work.
    """

    def __init__(self, each: float, number: int):
        super().__init__(each, number)
        self.each, self.needed = each, each * number


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of making images of photos.

    Attributes:
        name: the name of the candidate, and of its set of images.
        kind: the entry of `CANDIDATES` that the method belongs to.
        what: a description in words.
        edit: settings of generation other than the model's; None without images.
        augmentation: the augmentation of the views that a classifier sees.
    """

    name: str
    kind: str
    what: str
    edit: Mapping[str, Any] | None = None
    augmentation: tuple[str, ...] = FLIP_ROTATE

    @property
    def needs_masks(self) -> bool:
        return self.kind in (PASTE, RECOLOURED, SURROUNDINGS)

    @property
    def needs_model(self) -> bool:
        return self.kind in (SURROUNDINGS, EDITS, WORDS)

    def lacks(self, no_masks: str, no_model: str) -> str:
        """Why the method cannot be tried; empty if it can.

        Args:
            no_masks: why no photo has a usable mask; empty where some photos have.
            no_model: why there is no model; empty where there is a model.
        """
        return (self.needs_masks and no_masks) or (self.needs_model and no_model) or ""


def methods_of(settings: Fitting) -> list[Method]:
    """All possible candidates except mixtures, the simplest and cheapest first."""
    edits = [
        Method(
            f"{EDITS}-{strength:g}",
            EDITS,
            f"edits by class name, strength {strength:g}",
            {"aug": REAL_GUIDANCE, "strength": strength, "prompt": settings.prompt},
        )
        for strength in settings.strength
    ]
    found = [
        Method(REAL, REAL, "photos alone"),
        Method(RANDAUGMENT, RANDAUGMENT, "photos alone with RandAugment", None, (RANDAUGMENT,)),
        Method(PASTE, PASTE, "objects on places of other photos", {"aug": PASTE}),
        Method(
            RECOLOURED,
            RECOLOURED,
            "recoloured objects on places of other photos",
            {"aug": PASTE, "layout_colour": COLOURS},
        ),
        Method(
            SURROUNDINGS,
            SURROUNDINGS,
            "new surroundings, drawn by the model",
            {"aug": BACKGROUND, "places": settings.places},
        ),
        *edits,
        Method(
            WORDS,
            WORDS,
            f"edits by learned words, strength {settings.strength[0]:g}",
            {
                "aug": TEXTUAL_INVERSION,
                "strength": settings.strength[0],
                "prompt": settings.prompt,
            },
        ),
    ]
    wanted = settings.candidates
    return [each for each in found if wanted is None or each.kind in (REAL, *wanted)]


def lacks_model(settings: Fitting) -> str:
    """Why there is no Stable Diffusion; empty where there is.

    Raises:
        UserError: the settings name a model that does not exist.
    """
    try:
        inspect_model(settings.model, settings.revision, settings.variant)
    except UserError as error:
        if settings.model != fields_of(Fitting)["model"].default:
            raise
        log.debug("%s", error)
        return (
            f"there is no Stable Diffusion: {settings.model} is neither on the disk nor within "
            "reach; give --model_path FOLDER, or a network"
        )
    return ""


@dataclasses.dataclass(frozen=True)
class Made:
    """A set of images.

    Attributes:
        folder: the folder of the images.
        number: images per photo, for photos with images.
        paths: the images of each photo, in order.
        shows: by an image's name, the source of another photo that the image shows a part of.
        learned_from: the photos that the words of all images were learned from.
    """

    folder: Path
    number: int
    paths: dict[int, list[Path]]
    shows: dict[str, str]
    learned_from: tuple[int, ...] = ()


def make_images(
    method: Method, photos: Photos, settings: Fitting, time: Time, share: float, seen: float,
    side: int,
) -> Made:  # fmt: skip
    """Make the wanted number of images per photo, or fewer if the time is too short.

    The time of the first images tells how many images fit.

    Args:
        share: seconds that this method may take after a first image of each photo.
        seen: seconds that a classifier needs to see an image.
        side: side of the classifier's input, in pixels.

    Raises:
        TooLong: even a single image of each photo takes too long.
        UserError: the method needs more photos or masks.
    """
    made_with = generation_of(method, settings, side)
    folder = aug_dir(experiment_of(photos.run), method.name, photos.trial)
    number, until = settings.num_synthetic, time.clock() + share
    while True:
        wanted = dataclasses.replace(made_with, num_synthetic=number)
        there = sum(record["repeat"] < number for record in read_records(folder))
        watch = Watch(
            time,
            len(photos.labels) * number - there,
            math.inf if number == 1 else until,  # first images may take all the time
            seen,
            warm_up_blocks(wanted, pick_device(wanted.device)),
        )
        told = None if math.isinf(time.end) else watch.of_images
        try:
            generate(photos.run, wanted, computed=told)
            return read_images(folder, photos, number)
        except TooLong as long:
            there = complete(folder, photos)
            left = min(time.left(), until - time.clock())
            fewer = there + int(max(0, left) / (long.each * len(photos.labels)))
            if max(fewer, there) < 1 and long.each * len(photos.labels) <= time.left():
                fewer = 1
            number = min(number - 1, fewer)
            if number < 1:
                raise TooLong(long.each, len(photos.labels)) from None
            if number <= there:
                return read_images(folder, photos, number)
        except OtherSettings as error:
            raise OtherSettings(str(error).replace("--aug_name", "--experiment_name")) from error


class Watch:
    """A callback for every piece of some work, which raises `TooLong` if the work takes too long.

    Args:
        missing: how many pieces are missing.
        until: the deadline of the work.
        seen: seconds that each piece costs later.
        unknown: how many first calls are ignored, since they take longer than later calls.
    """

    def __init__(
        self, time: Time, missing: int, until: float = math.inf, seen: float = 0.0, unknown: int = 0
    ):
        self.time, self.until, self.seen = time, until, seen
        self.missing, self.unknown, self.all = missing, unknown, missing
        self.seconds, self.done = 0.0, 0

    def __call__(self, seconds: float, number: int) -> None:
        self.missing -= number
        if self.unknown:
            self.unknown -= 1
            return
        self.seconds += seconds
        self.done += number
        each = self.seconds / self.done + self.seen
        if each * self.missing > min(self.time.left(), self.until - self.time.clock()):
            raise TooLong(each, self.all)

    def of_images(self, seconds: float, images: Sequence) -> None:
        """The same, as the callback of `generate`."""
        self(seconds, len(images))


def complete(folder: Path, photos: Photos) -> int:
    """The number of images that every photo has, among photos that get images."""
    sources, left_out = photos.dataset.sources(), read_left_out(folder)
    number = dict.fromkeys((each for each in sources if each not in left_out), 0)
    for record in sorted(read_records(folder), key=lambda record: record["repeat"]):
        if number.get(record["source"]) == record["repeat"]:
            number[record["source"]] += 1
    return min(number.values(), default=0)


def generation_of(method: Method, settings: Fitting, side: int) -> Generation:
    """The settings of generation for a method.

    Photos are reduced to twice the classifier's input, or to the size that models work at.
    """
    assert method.edit is not None
    given = {key: value for key, value in method.edit.items() if value is not None}
    if method.needs_model:
        known = fields_of(Images).keys() - fields_of(OfMethods).keys()
        given |= {name: getattr(settings, name) for name in sorted(known)}
        given["scheduler"] = SAMPLER
    given |= {"device": settings.device, "overwrite": settings.overwrite}
    return build(Generation, {**given, "aug_name": method.name, "save_size": max(2 * side, SIDE)})


def read_images(folder: Path, photos: Photos, number: int) -> Made:
    """The images of a set, `number` of each photo."""
    found = read_variants(folder, photos.dataset, number)
    shown = {
        record["file_name"]: other
        for record in read_records(folder)
        for other in record.get("other_photo") or ()
        if other
    }
    paths = {idx: [path for path, _ in each] for idx, each in found.items() if each}
    return Made(folder, number, paths, shown)
