"""Masks for photos without masks: made by a model, cleaned, judged, and shown for review."""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semantic_aug import UserError, counted
from semantic_aug.cli.notices import RESULT
from semantic_aug.datasets import named_dataset
from semantic_aug.datasets.folder import MASKS, FolderDataset
from semantic_aug.diffusion.loading import pick_device
from semantic_aug.experiment.config import config_id, write_config
from semantic_aug.experiment.files import check_writable, remove_leftovers
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.experiment.sharding import shard_blocks, shard_of
from semantic_aug.few_shot_dataset import SPLITS, FewShotDataset, NoPhotos
from semantic_aug.images.contents import photo_digests
from semantic_aug.images.masks import MADE_BY
from semantic_aug.masking import make_masker
from semantic_aug.masking.cleaning import cleaned
from semantic_aug.masking.judging import doubts_of, unusual_sizes
from semantic_aug.masking.made import (
    DOUBTFUL,
    KEPT,
    MADE,
    MISSING,
    REPORT,
    State,
    doubts_in,
    names_for,
    png_of,
    put,
    set_aside,
    states_of,
    without_photo,
)
from semantic_aug.masking.masker import Masker
from semantic_aug.report.masks import Shown, write_page, write_sheets
from semantic_aug.settings import compared
from semantic_aug.settings.common import Run
from semantic_aug.settings.masking import NAMED, SALIENT, Masking
from semantic_aug.stages.common import arguments_of, dataset_of, nothing_to_do, stage
from semantic_aug.synthesis.records import RecordWriter
from semantic_aug.words.class_names import as_words

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo of the dataset, from any split.

    Attributes:
        name: the name of its mask, relative to the folder of masks.
        digest: the digest of its content.
    """

    dataset: FewShotDataset
    index: int
    name: str
    digest: str

    @property
    def class_name(self) -> str:
        return self.dataset.records[self.index].class_name

    @property
    def image(self) -> Image.Image:
        return self.dataset.get_image_by_idx(self.index)


@dataclasses.dataclass(frozen=True)
class Masks:
    """The masks of a dataset.

    Attributes:
        folder: the folder for `--mask_dir`.
        made: how many masks this process has made now, including doubtful masks.
        used: by photo, the mask that commands will use, made by a model or by a person.
        doubtful: by photo, why its mask is not used.
        page: the page for review.
    """

    folder: Path
    made: int
    used: dict[str, Path]
    doubtful: dict[str, list[str]]
    page: Path


@stage(Masking)
def masks(
    run: Run, settings: Masking, *, computed: Callable[[float, int, int], None] | None = None
) -> Masks | None:
    """Make a mask for every photo in all splits of a dataset.

    Only the run's dataset and `mask_dir` are used. Masks go to `mask_dir`; for the dataset
    `folder`, its default is the folder `masks` beside the classes.

    Args:
        computed: called after each block with the seconds, the number of masks that were made, and
            the number of masks that are left. Its exceptions end the work, and no mask is lost.

    Returns:
        None in a process without a share.

    Raises:
        UserError: an error that the user can fix, raised before a model is loaded.
    """
    run = dataclasses.replace(run, **named_dataset(run.dataset), crop_to_object=False)
    shard = shard_of(settings.shard_index, settings.num_shards)
    datasets = whole_splits(dataclasses.replace(run, mask_dir=None))
    root = folder_of_masks(run, datasets)
    photos = photos_of(datasets, settings)
    masker = make_masker(settings)
    masker.check(sorted({as_words(photo.class_name) for photo in photos.values()}))
    device = pick_device(settings.device)
    common = compared_of(settings, masker)
    identity = config_id(common)

    def look() -> dict[str, State]:
        names = {source: photo.name for source, photo in photos.items()}
        digests = {source: photo.digest for source, photo in photos.items()}
        return states_of(root, names, digests, identity)

    states = look()
    todo = {
        source for source, state in states.items() if state.what == MISSING or settings.overwrite
    }
    sources = list(photos)
    size = settings.batch_size
    blocks = [sources[start : start + size] for start in range(0, len(sources), size)]
    mine = [blocks[number] for number in sorted(shard_blocks(len(blocks), *shard))]
    if not mine:
        log.log(RESULT, "%s", nothing_to_do(shard, counted(len(blocks), "block")))
        return None
    mine = [block for block in mine if todo.intersection(block)]
    if mine:
        paint = masker.load(device)
        write_config(root / MADE_BY, common, arguments_of(run, settings))
    made, left = 0, sum(len(todo.intersection(block)) for block in mine)
    with RecordWriter(root / MADE_BY, identity, shard) as writer:
        bar = progress_bar(total=sum(map(len, mine)), desc="masks", unit="photo")
        with bar:
            for block in mine:
                began = time.perf_counter()
                number = make(block, todo, photos, states, root, paint, settings, writer.write)
                made, left = made + number, left - len(todo.intersection(block))
                bar.update(len(block))
                if computed and number:
                    computed(time.perf_counter() - began, number, left)
        states = look()
        judge_classes(root, photos, states, writer.write)
    states = look()
    found = summary(root, photos, states, made)
    show(found, photos, states)
    return found


def whole_splits(run: Run) -> list[FewShotDataset]:
    """All photos of every split with photos.

    Raises:
        UserError: there are no photos, or the dataset makes its images itself.
    """
    found = []
    for split in SPLITS:
        try:
            found.append(dataset_of(run, split))
        except NoPhotos:
            if split == "train":
                raise
    if not found[0].is_whole_file:
        raise UserError(
            f"--dataset: {run.dataset} makes its images itself, expected photos that are files"
        )
    return found


def folder_of_masks(run: Run, datasets: Sequence[FewShotDataset]) -> Path:
    """The folder of masks, which is writable but need not exist.

    Raises:
        UserError: the folder is not writable, or no folder is given and the dataset has none.
    """
    first = datasets[0]
    if run.mask_dir is not None:
        root = Path(run.mask_dir).expanduser()
    elif isinstance(first, FolderDataset):
        root = first.masks_dir or first.data_dir / MASKS
    else:
        raise UserError(
            f"--mask_dir is missing: {run.dataset} has no folder of masks, as --dataset folder has"
        )
    try:
        return check_writable(root)
    except UserError as error:
        reason = str(error).removesuffix(": choose another place for the output")
        raise UserError(
            f"masks go to {root}: {reason}; give another folder by --mask_dir"
        ) from error


def photos_of(datasets: Sequence[FewShotDataset], settings: Masking) -> dict[str, Photo]:
    """The photos of the classes chosen, by source, in the order of their sources.

    Raises:
        UserError: a class is unknown, or the chosen classes have no photo.
    """
    every = [(each, idx) for each in datasets for idx in each.indices(settings.classes)]
    if not every:
        raise UserError("no chosen class has a photo")
    names = names_for(sorted({record.source for each in datasets for record in each.records}))
    records = [each.records[idx] for each, idx in every]
    found = {
        record.source: Photo(dataset, idx, names[record.source], digest)
        for (dataset, idx), record, digest in zip(
            every, records, photo_digests([record.path for record in records])
        )
    }
    return dict(sorted(found.items()))


def compared_of(settings: Masking, masker: Masker) -> dict:
    """Everything that changes a mask, for config.json."""
    way = settings.masker if settings.masker in (NAMED, SALIENT) else "model"
    facts: dict[str, Any] = {"masker": way, "masker_models": masker.identity}
    if way != NAMED:
        facts["prompt"] = None
    return compared(facts, settings)


# --- doing it --------------------------------------------------------------------------------


def make(
    block: Sequence[str],
    todo: set[str],
    photos: Mapping[str, Photo],
    states: Mapping[str, State],
    root: Path,
    paint: Callable,
    settings: Masking,
    write: Callable[[dict], None],
) -> int:
    """Make the missing masks of a block; return how many were made.

    The model sees the whole block, so a mask does not depend on which masks are missing.
    """
    images = {}
    for source in block:
        try:
            images[source] = photos[source].image
        except UserError as error:
            log.warning("%s; it gets no mask", error)
    if not todo.intersection(images):
        return 0
    words = [as_words(photos[source].class_name) for source in images]
    for (source, image), found in zip(images.items(), paint(list(images.values()), words)):
        if source not in todo:
            continue
        mask, held = cleaned(
            found.shares,
            np.asarray(image),
            keep_pieces=settings.keep_pieces,
            fill_holes=settings.fill_holes,
            raw_edges=settings.raw_edges,
            grid=found.grid,
        )
        doubts = [*found.doubts, *doubts_of(mask, 1.0 if settings.keep_pieces else held)]
        content, photo = png_of(mask), photos[source]
        write(
            {
                "source": source,
                "sha256": hashlib.sha256(content).hexdigest(),
                "photo": photo.digest,
                "share": float(mask.mean()),
                "doubts": doubts,
            }
        )
        path = root / DOUBTFUL / photo.name if doubts else root / photo.name
        put(path, content, states[source].path)
    return len(todo.intersection(images))


def judge_classes(
    root: Path,
    photos: Mapping[str, Photo],
    states: Mapping[str, State],
    write: Callable[[dict], None],
) -> None:
    """Set masks aside that are far from the usual size of their class, if it is complete."""
    of_class: dict[str, list[str]] = {}
    for source, photo in photos.items():
        of_class.setdefault(photo.class_name, []).append(source)
    for sources in of_class.values():
        if any(states[source].what == MISSING for source in sources):
            continue  # other processes still work, or photos cannot be read
        lines = {s: states[s].line for s in sources if states[s].what == MADE}
        shares = {s: line["share"] for s, line in lines.items() if not line["doubts"]}
        for source, unusual in unusual_sizes(shares).items():
            path = states[source].path
            if "unusual" in lines[source] or path is None:
                continue
            set_aside(root, photos[source].name, path)
            keys = ("source", "sha256", "photo", "share", "doubts")
            write({key: lines[source][key] for key in keys} | {"unusual": unusual})


def summary(
    root: Path, photos: Mapping[str, Photo], states: Mapping[str, State], made: int
) -> Masks:
    """The masks of the dataset; log what the user should know about them."""
    remove_leftovers(root)
    aside = root / DOUBTFUL
    used, doubtful = {}, {}
    for source, state in states.items():
        if state.path is None:
            continue
        if state.path.is_relative_to(aside):
            doubtful[source] = doubts_in(state.line) or ["a person put it here"]
        else:
            used[source] = state.path
    kept = sum(state.what == KEPT for state in states.values())
    log.log(
        RESULT, "%s: %s made now; %d of %s have a usable mask%s", root, counted(made, "mask"),
        len(used), counted(len(photos), "photo"), f", {kept} of them made by a person" * (kept > 0),
    )  # fmt: skip
    unfit = without_photo(root, used.values())
    if unfit:
        log.warning(
            "%s: %s without a photo, such as %s", root, counted(len(unfit), "file"), unfit[0]
        )
    page = root / f"{REPORT}.html"
    if doubtful:
        first = min(doubtful)
        log.log(
            RESULT, "%s in %s/ (%s: %s ...): look at %s, and move good masks to %s",
            counted(len(doubtful), "doubtful mask"), aside, first, doubtful[first][0], page, root,
        )  # fmt: skip
    return Masks(root, made, used, doubtful, page)


def show(found: Masks, photos: Mapping[str, Photo], states: Mapping[str, State]) -> None:
    """Write the page and the sheets, doubtful masks first."""
    order = sorted(photos, key=lambda source: (source not in found.doubtful, source))
    shown = [
        Shown(source, photos[source].class_name, path, tuple(found.doubtful.get(source, ())), kept)
        for source, path, kept in (
            (source, states[source].path, states[source].what == KEPT) for source in order
        )
        if path is not None
    ]
    if not shown:
        return
    read = lambda each: photos[each.source].image  # noqa: E731
    write_sheets(found.page.with_suffix(""), shown, read)
    write_page(found.page, shown, read)
