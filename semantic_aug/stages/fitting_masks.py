"""The masks of `fit`: existing masks, or masks that a masker makes while there is time."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.diffusion.identity import commit_of
from semantic_aug.diffusion.loading import pick_device
from semantic_aug.evaluation.elsewhere import usable_masks
from semantic_aug.experiment.config import config_id, read_config
from semantic_aug.images.masks import MADE_BY, masks_in
from semantic_aug.masking import make_masker
from semantic_aug.masking.made import DOUBTFUL
from semantic_aug.settings import build
from semantic_aug.settings.fitting import Fitting
from semantic_aug.settings.masking import MASKER_MODELS, NAMED, Masking
from semantic_aug.stages.common import dataset_of, masks_command
from semantic_aug.stages.estimating import duration
from semantic_aug.stages.fitting_methods import Time, TooLong, Watch
from semantic_aug.stages.fitting_photos import MASKS, Photos
from semantic_aug.stages.masks import compared_of, masks

SHARE = 0.5  # of the remaining time, for masks


def with_masks(
    photos: Photos, settings: Fitting, time: Time, needed: bool
) -> tuple[Photos, dict[int, str], str]:
    """The photos with all their masks, the photos with usable masks, and why no mask is usable.

    The masker of the settings makes all missing masks. Without this setting, `named` makes the
    masks if no photo has a mask and its models are on the disk. Nothing uses doubtful masks.

    Args:
        needed: whether a candidate needs masks enough to spend time on them.

    Raises:
        UserError: the masker of the settings cannot work.
    """
    there = masks_of(photos)
    given = {"masker": settings.masker or NAMED, "device": settings.device}
    masking = build(Masking, given | {"shard_index": 0, "num_shards": 1})
    run = dataclasses.replace(photos.run, mask_dir=settings.mask_dir)
    makes_them = masks_command(dataclasses.replace(run, dataset_args=()))
    try:
        if settings.masker is None and not (needed and is_to_be_made(photos, there, masking)):
            why = "there are no masks; give --mask_dir FOLDER or --masker MODEL, or make them first"
            return photos, there, "" if there else f"{why}: {makes_them}"
        return made_now(dataclasses.replace(photos, run=run), masking, time, makes_them)
    except UserError as error:
        if settings.masker is not None:
            message = str(error).replace("--masker_models", f"--masker {settings.masker}")
            raise UserError(message) from error
        return photos, {}, f"masks cannot be made: {error}"


def masks_of(photos: Photos) -> dict[int, str]:
    """The photos whose mask shows an object and its surroundings; see `usable_masks`."""
    try:
        return usable_masks(photos.dataset, range(len(photos.labels)), crop=False)
    except UserError:
        return {}


def is_to_be_made(photos: Photos, there: Mapping[int, str], masking: Masking) -> bool:
    """Whether the models exist, and no photo has a mask or making the masks was interrupted.

    Raises:
        UserError: only some of the models exist.
    """
    if not all(map(commit_of, MASKER_MODELS[NAMED])):
        return False
    beside = Path(photos.run.data_dir or "") / MASKS
    root = Path(photos.run.mask_dir or getattr(photos.dataset, "masks_dir", None) or beside)
    begun = read_config(root / MADE_BY)
    if begun is None:
        return not there
    if begun.get("id") != config_id(compared_of(masking, make_masker(masking))):
        return False
    sources = photos.dataset.sources()
    known = masks_in(root, sources).keys() | masks_in(root / DOUBTFUL, sources).keys()
    return len(known) < len(sources)


def made_now(
    photos: Photos, masking: Masking, time: Time, makes_them: str
) -> tuple[Photos, dict[int, str], str]:
    """See `with_masks`; masks are left for later where their share of the time is too short."""
    warm_up = int(pick_device(masking.device).type != "cpu")
    watch = Watch(time, 0, time.clock() + SHARE * time.left(), unknown=warm_up)

    def told(seconds: float, number: int, left: int) -> None:
        watch.missing = number + left
        watch(seconds, number)

    try:
        found = masks(photos.run, masking, computed=None if math.isinf(time.end) else told)
    except TooLong as long:
        rest, needed = counted(watch.missing, "photo"), duration(long.each * watch.missing)
        return photos, {}, (
            f"masks of {rest} are missing; making them takes {needed}, more than half of the time; "
            f"make them first: {makes_them}"
        )  # fmt: skip
    assert found is not None  # this is the only process
    if not found.used:
        return photos, {}, f"all masks that were made are doubtful: look at {found.page}"
    dataset = dataset_of(photos.run, "train", photos.trial)
    note = f"{len(found.used)} of {counted(len(photos.labels), 'photo')} have a mask"
    if found.doubtful:
        note += f"; {len(found.doubtful)} more masks are doubtful, and nothing uses them"
    note += f": look at {found.page}."
    photos = dataclasses.replace(photos, dataset=dataset, notes=[*photos.notes, note])
    there = masks_of(photos)
    return photos, there, "" if there else f"no mask is usable: look at {found.page}"
