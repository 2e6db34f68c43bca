"""A preview of edits of a few photos, and the cost of making all images."""

import dataclasses
import functools
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from semantic_aug import UserError, counted, stable_hash
from semantic_aug.augmentations import augmentation_class
from semantic_aug.augmentations.compose import check_probs
from semantic_aug.cli.notices import RESULT
from semantic_aug.diffusion.inspecting import inspect_model
from semantic_aug.diffusion.loading import pick_device
from semantic_aug.diffusion.lora import no_lora_left
from semantic_aug.experiment.files import atomic_path, remove_leftovers
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.experiment.sharding import shard_of
from semantic_aug.experiment.timing import device_name
from semantic_aug.generative_augmentation import GenerativeAugmentation
from semantic_aug.images.sheet import contact_sheet
from semantic_aug.settings import fields_of
from semantic_aug.settings.common import Run
from semantic_aug.settings.generation import (
    BACKGROUND,
    GENERATED,
    PARALLEL,
    PASTE,
    REAL_GUIDANCE,
    SEQUENTIAL,
    TEXTUAL_INVERSION,
    Generation,
    Surroundings,
)
from semantic_aug.stages.choosing_words import choose_words, find_embeddings
from semantic_aug.stages.common import experiment_of, prepared, stage, trials_of
from semantic_aug.stages.editing import build_pipeline, load_extras, model_of_objects, named_model
from semantic_aug.stages.edits import (
    EDIT_FLAGS,
    REQUIRED,
    list_edits,
    objects_of,
    split_objects,
    uses_model,
)
from semantic_aug.stages.estimating import (
    Cost,
    duration,
    megabytes,
    png_size,
    say_quicker,
    warm_up_blocks,
)
from semantic_aug.stages.planning import Plan, plan_trials
from semantic_aug.synthesis.jobs import Job
from semantic_aug.synthesis.making import compute

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
WHOLE = (TEXTUAL_INVERSION, REAL_GUIDANCE)  # edits of whole photos
CLASSES, PHOTOS = 10, 3  # classes at most, and photos of each
OF_OBJECTS = (BACKGROUND, PASTE)
CELL, LETTERS = 192, 16  # pixels of a picture and of letters in the sheet

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Column:
    """A way to edit photos.

    Attributes:
        share: share of the images that the full command makes, in [0, 1].
    """

    title: str
    settings: Generation
    objects: Mapping[int, GenerativeAugmentation]
    share: float = 0.0


@dataclasses.dataclass(frozen=True)
class Made:
    """The images of a column.

    Attributes:
        images: the images, by the source of their photo.
        each: the cost of an image.
        once: the cost of a trial before its first image, such as generating places.
    """

    images: dict[str, Image.Image]
    each: Cost
    once: Cost


@dataclasses.dataclass(frozen=True)
class Preview:
    """A sheet, its images, and the cost of all images.

    Attributes:
        columns: the columns, by title.
        wanted: how many images the full command makes, in all trials and processes.
        cost: the cost of all these images, for a single process.
    """

    sheet: Path
    columns: dict[str, Made]
    wanted: int
    cost: Cost


@stage(Generation)
def preview(run: Run, settings: Generation, *, pipeline=None) -> Preview | None:
    """Show edits of a few photos by strength and method, and the cost of making all images.

    The photos are the first photos of each class in the first trial. With the settings of its
    column, `generate` makes the same image as variant 0 of the photo. In blocks of several images,
    pixels may differ by 2 of 255. The only file written is
    output/EXP/report/preview_seed=S_ex=N.png.

    Args:
        pipeline: the same as for `generate`.

    Returns:
        None in all processes but the first.

    Raises:
        UserError: an error that also stops `generate`, except for existing images with other
            settings.
    """
    run, experiment, trials = prepared(run), experiment_of(run), trials_of(run)
    index, processes = shard_of(settings.shard_index, settings.num_shards)
    if index > 0:
        log.log(RESULT, "nothing to do: the first process makes the preview")
        return None
    settings, objects = split_objects(named_model(settings, pipeline))
    settings = model_of_objects(settings, objects)
    settings = dataclasses.replace(settings, overwrite=True)  # ignores images of other settings
    settings, embed_paths = choose_words(settings, experiment, trials)
    edits = list_edits(settings, objects)
    info, plans = plan_trials(run, settings, embed_paths, edits, objects, pipeline)
    trial, dataset = plans[0].trial, plans[0].dataset
    shown, words = photos_shown(plans[0]), find_embeddings(settings, experiment, trial)
    unnamed = info is None and settings.model == fields_of(Generation)["model"].default

    inspected = functools.partial(
        inspect_model, settings.model, settings.revision, settings.variant
    )
    device = pick_device(settings.device)
    load = functools.cache(lambda: build_pipeline(settings, inspected(), device, pipeline))
    extras = functools.cache(lambda: load_extras(settings, inspected(), device))
    columns = columns_of(settings, edits, objects, words is not None, len(shown))
    warm_up, found = warm_up_blocks(settings, device), dict[str, Made]()
    left_out: dict[str, list[str]] = {}  # titles by reason
    with no_lora_left(pipeline):
        for column in progress_bar(iterable=columns, desc="preview", unit="column"):
            try:
                own = list_edits(column.settings, column.objects)
                if unnamed and uses_model(column.settings, own, column.objects):
                    raise UserError("no model is named, see --model_path")
                of_words = {trial: words if TEXTUAL_INVERSION in (e["aug"] for e in own) else None}
                model, (plan,) = plan_trials(
                    run, column.settings, of_words, own, column.objects, pipeline, {trial: dataset}
                )
                if model is not None:
                    load()  # outside the time of columns
                made = make(plan, shown, load, extras() if model else {}, warm_up if model else 0)
            except UserError as error:
                if column.share:
                    raise
                left_out.setdefault(str(error), []).append(column.title)
                continue
            warm_up = 0 if model else warm_up
            if column.settings.backgrounds == GENERATED:  # the command generates all places
                more = settings.num_places / column.settings.num_places
                made = dataclasses.replace(made, once=made.once * more)
            found[column.title] = made
    for reason, titles in left_out.items():
        log.warning("left out: %s: %s", ", ".join(titles), reason)

    sheet = experiment / "report" / f"preview_{trial.name}.png"
    write_sheet(sheet, dataset, shown, found)
    wanted, cost = sum(len(each.jobs) for each in plans), Cost()
    for column in columns:
        if column.share:
            made = found[column.title]
            cost += made.each * (column.share * wanted) + made.once * len(plans)
    shares = {column.title: column.share for column in columns}
    log.log(RESULT, "%s: variants of %s", sheet, counted(len(shown), "photo"))
    for title, made in found.items():
        log.log(RESULT, "%s", line_of(title, made, shares[title]))
    by = ""
    if processes > 1:
        by = f"; {duration(cost.seconds / processes)} for each of {processes} processes"
    log.log(RESULT, "the command makes %s: %s on %s%s",
            counted(wanted, "image"), cost, device_name(device), by)  # fmt: skip
    say_quicker(settings, edits, info, dataset, cost)
    return Preview(sheet, found, wanted, cost)


# --- what is shown ---------------------------------------------------------------------------


def photos_shown(plan: Plan) -> list[int]:
    """The first photos to edit of each class; the seed chooses among many classes."""
    dataset, of_class = plan.dataset, dict[str, list[int]]()
    for idx in plan.indices:
        of_class.setdefault(dataset.class_names[dataset.get_label_by_idx(idx)], []).append(idx)
    order = sorted(of_class, key=lambda name: stable_hash("preview", plan.trial.seed, name))
    if len(order) > CLASSES:
        log.info("the preview shows %d of %d classes, drawn by --seed", CLASSES, len(order))
    chosen = set(order[:CLASSES])
    return [idx for name, photos in of_class.items() if name in chosen for idx in photos[:PHOTOS]]


def columns_of(
    settings: Generation, edits: Sequence[dict], objects, has_words: bool, num_photos: int
) -> list[Column]:
    """Whole edits of several strengths, the edits of the settings, and the methods for objects.

    Args:
        edits: the edits that `list_edits` makes from the settings.
        has_words: whether the trial has learned words.
        num_photos: the number of generated places that suffices.
    """
    of_whole = [edit for edit in edits if edit["aug"] in WHOLE]
    whole = of_whole[0]["aug"] if of_whole else WHOLE[0] if has_words else WHOLE[1]
    plain = {"mask": 0, "inverted": 0, "guidance_scale": (of_whole or edits)[0]["guidance_scale"]}
    there = {edit["aug"] for edit in edits}
    columns = [
        Column(title_of(edit), alone(settings, edit, num_photos), {})
        for edit in (
            *(plain | {"aug": whole, "strength": strength} for strength in STRENGTHS),
            *(plain | {"aug": aug, "strength": None} for aug in OF_OBJECTS if aug not in there),
        )
    ]
    if settings.compose == SEQUENTIAL and (len(edits) > 1 or settings.probs):
        title = ", then ".join(title_of(edit) for edit in edits)
        asked = [Column(title, with_places(settings, num_photos), objects, 1.0)]
    else:
        shares = check_probs(settings.probs, len(edits), PARALLEL)
        asked = []
        for number, (edit, share) in enumerate(zip(edits, shares)):
            given = objects_of(number, objects, settings)
            mine = {} if given is None else {0: given}
            asked.append(Column(title_of(edit), alone(settings, edit, num_photos), mine, share))
    for column in asked:
        same = (n for n, each in enumerate(columns) if is_same(each, column))
        if (n := next(same, None)) is not None:
            columns[n] = dataclasses.replace(columns[n], share=columns[n].share + column.share)
            continue
        taken = sum(each.title.partition(" #")[0] == column.title for each in columns)
        title = f"{column.title} #{taken + 1}" if taken else column.title
        columns.append(dataclasses.replace(column, title=title))
    return columns


def is_same(one: Column, other: Column) -> bool:
    """Whether two columns would show the same images."""
    return one.settings == other.settings and one.objects == other.objects


def alone(settings: Generation, edit: Mapping, num_photos: int) -> Generation:
    """The settings of a single edit, without settings that have no meaning for this edit."""
    made = augmentation_class(edit["aug"])
    own: dict[str, Any] = {name: f.default for name, f in fields_of(Surroundings).items()}
    for name in own.keys() & set(made.takes):
        if made.needs_model or settings.backgrounds in REQUIRED.get(name, (settings.backgrounds,)):
            own[name] = getattr(settings, name)
    for key in EDIT_FLAGS:
        own[key] = None if edit[key] is None else (edit[key],)
    own |= {key: (int(edit[key]),) for key in ("mask", "inverted")}
    changed = dataclasses.replace(settings, compose=PARALLEL, probs=None, **own)
    return with_places(changed, num_photos)


def with_places(settings: Generation, num_photos: int) -> Generation:
    """The settings with at most as many generated places as photos."""
    if settings.backgrounds != GENERATED:
        return settings
    return dataclasses.replace(settings, num_places=min(settings.num_places, num_photos))


def title_of(edit: Mapping) -> str:
    """The title of an edit: its method and strength, and the part of a photo that it edits."""
    made = augmentation_class(edit["aug"])
    own = edit.get("options", edit)  # objects have their own options
    strength = own.get("edit", own).get("strength")
    if strength is None and "options" not in edit and "strength" not in made.fixed:
        strength = made.default_strength
    parts = [edit["aug"], *([] if strength is None else [f"{strength:g}"])]
    if edit["mask"] and "mask" not in made.fixed:
        parts.append("around object" if edit["inverted"] else "of object")
    return " ".join(parts)


# --- making it -------------------------------------------------------------------------------


def make(plan: Plan, shown: Sequence[int], pipeline: Callable, extras, warm_up: int) -> Made:
    """Make variant 0 of photos, and measure the cost of an image.

    Args:
        shown: photos of the trial; photos that get no images are skipped.
        pipeline, extras: the same as for `build_augmentation`.
        warm_up: how many blocks are made once before the measurement.

    Raises:
        UserError: no photo gets an image.
    """
    dataset, sources = plan.dataset, plan.dataset.sources()
    edited = set(plan.indices)
    jobs = [Job(idx, 0) for idx in shown if idx in edited]
    if not jobs:
        raise UserError("none of the photos of the sheet has a usable mask")
    blocks = [jobs[n : n + plan.batch_size] for n in range(0, len(jobs), plan.batch_size)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images" / plan.trial.name  # stays empty
        augmentation = plan.make_augmentation(folder, pipeline, extras)
        began = time.monotonic()
        augmentation.bind(dataset)
        files = [path for path in Path(temporary).rglob("*") if path.is_file()]
        once = Cost(time.monotonic() - began, sum(path.stat().st_size for path in files))
        compute_all = functools.partial(
            compute, dataset, augmentation, save_size=plan.save_size, words=plan.words
        )
        for block in blocks[:warm_up]:
            compute_all(block, sources, plan.trial.seed)
        began = time.monotonic()
        made = [each for block in blocks for each in compute_all(block, sources, plan.trial.seed)]
        seconds = time.monotonic() - began
    images = {sources[job.index]: image for job, image, _ in made}
    each = Cost(seconds, sum(map(png_size, images.values()))) * (1 / len(jobs))
    return Made(images, each, once)


def write_sheet(path: Path, dataset, shown: Sequence[int], found: Mapping[str, Made]) -> None:
    """Write the sheet: photos at the left, then a column for each way to edit them."""
    sources = dataset.sources()
    rows = []
    for idx in shown:
        images = (made.images.get(sources[idx]) for made in found.values())
        cells = [[dataset.get_image_by_idx(idx)], *([image] if image else [] for image in images)]
        rows.append((dataset.class_names[dataset.get_label_by_idx(idx)], cells))
    headings = ["photo", *(title.replace(" ", "\n", 1) for title in found)]
    remove_leftovers(path.parent)
    with atomic_path(path) as temporary:
        contact_sheet(rows, headings, CELL, LETTERS).save(temporary, format="PNG")


def line_of(title: str, made: Made, share: float) -> str:
    """The cost of a column, as a line."""
    each = f"  {title}: {made.each.seconds:.2f} s and {megabytes(made.each.size)} per image"
    if made.once.seconds >= 1:
        each += f", {duration(made.once.seconds)} before the first"
    return each + (" (asked for)" if share else "")
