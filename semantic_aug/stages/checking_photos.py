"""Checks that the photos of a trial have what their edits need."""

import logging
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from semantic_aug import UserError, counted
from semantic_aug.augmentations import augmentation_name
from semantic_aug.augmentations.compose import parts_of
from semantic_aug.augmentations.sdedit import fill_prompt, words_of
from semantic_aug.images.framing import grow, mask_within, size_within
from semantic_aug.images.reading import read_size
from semantic_aug.settings.common import Run
from semantic_aug.settings.generation import Generation
from semantic_aug.stages.common import masks_command
from semantic_aug.stages.edits import classes_of, edits_of
from semantic_aug.synthesis.jobs import without_object
from semantic_aug.words.embeddings import (
    check_widths,
    class_tokens,
    read_header,
    read_words,
    token_for,
)

log = logging.getLogger(__name__)


def check_objects(
    run: Run, settings: Generation, edits: list[dict], dataset, objects=None
) -> dict[str, str] | None:
    """Why photos of a trial get no images, by source; None where no edit needs their objects.

    Raises:
        UserError: no photo shows where its object is, or an edit needs more photos.
    """
    classes = classes_of(settings, edits, objects)
    needing = [each for each in classes if each[0].needs_object]
    if not needing:
        return None
    sources, every = dataset.sources(), range(len(dataset))
    chosen = dataset.indices(settings.classes)
    without = without_object(dataset, every, settings.save_size)
    if chosen and without.keys() >= set(chosen):
        idx, reason = chosen[0], without[chosen[0]]
        raise UserError(
            f"--aug {augmentation_name(needing[0][0])} needs masks that show the objects, and none "
            f"of {counted(len(chosen), 'photo')} has a usable mask ({sources[idx]}: {reason}); "
            f"name their folder by --mask_dir, or make masks by: {masks_command(run)}"
        )
    for number, (each, taken) in enumerate(needing):
        if (each, taken) in needing[:number]:
            continue
        masks = ((sources[i], dataset.get_mask_by_idx(i)) for i in every if i not in without)
        each.check_masks(taken, masks, {sources[idx] for idx in chosen})
    return {sources[idx]: reason for idx, reason in without.items()}


def say_left_out(
    datasets: Iterable, left_out: Iterable[Mapping[str, str]], classes: Collection[str] | None
) -> None:
    """Log how many photos of the chosen classes get no images, in some trials."""
    class_of: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for dataset, reasons_there in zip(datasets, left_out):
        sources, names = dataset.sources(), dataset.class_names
        for idx in dataset.indices(classes):
            class_of[sources[idx]] = names[dataset.get_label_by_idx(idx)]
        reasons |= {source: why for source, why in reasons_there.items() if source in class_of}
    if reasons:
        concerned = {class_of[source] for source in reasons}
        log.warning(
            "%s of %d, in %s, get no variants, as %s: %s",
            counted(len(reasons), "photo"), len(class_of), counted(len(concerned), "class"),
            *next(iter(reasons.items())),
        )  # fmt: skip


def check_photos(dataset, indices, embed_path: Path | None, info) -> None:
    """Raise UserError where there are no photos, or a class of the photos has no learned word."""
    present = {dataset.get_label_by_idx(idx) for idx in indices}
    names = [dataset.class_names[label] for label in sorted(present)]
    if not names:
        raise UserError("no chosen class has a photo")
    if dataset.empty_classes():
        empty = ", ".join(dataset.empty_classes())
        log.warning("classes without a training photo, left out: %s", empty)
    if embed_path is not None:
        embeddings, *rest = read_words(embed_path, len(info.embedding_dims))
        check_widths(embed_path, [embeddings, *rest], info.embedding_dims)
        known = class_tokens(read_header(embed_path), embeddings)
        without = [name for name in names if token_for(name, known, embeddings) is None]
        if without:
            raise UserError(
                f"{embed_path} has no word for: {', '.join(without)}; run fine_tune.py and "
                "aggregate_embeddings.py for them (its --word CLASS=FILE takes a word from "
                "elsewhere), or leave them out with --classes"
            )


def check_masks(
    run: Run, dataset, indices, edits: list[dict], settings: Generation, objects=None
) -> None:
    """Raise UserError where a photo lacks a mask; warn where a mask leaves nothing to edit."""
    inverted = {bool(edit["inverted"]) for edit in edits if edit["mask"]}
    for aug in (objects or {}).values():
        of_parts = (edit for part in parts_of(aug) for edit in edits_of(part))
        inverted |= {bool(edit.inverted) for edit in of_parts if edit.mask}
    if not inverted:
        return
    sources, vanished = dataset.sources(), []
    without = [idx for idx, each in zip(indices, dataset.mask_digests(indices)) if not each]
    if without:
        raise UserError(
            f"--mask: {counted(len(without), 'photo')} of {len(indices)} without a mask, such as "
            f"{sources[without[0]]}; name their folder by --mask_dir, or make masks by: "
            f"{masks_command(run)}"
        )
    size, radius = settings.save_size, settings.mask_grow_radius
    shrinking = [f"--save_size {size}"] * (size is not None)
    shrinking += [f"--mask_grow_radius {radius:g}"] * (radius < 0)

    def vanishes(mask: np.ndarray) -> bool:
        small = mask_within(mask, size) > 0
        return not all(grow(small != each, radius).any() for each in inverted)

    for idx in indices:
        mask = dataset.get_mask_by_idx(idx)
        on_object = mask > 0
        if on_object.all() or not on_object.any():
            what = "the whole photo" if on_object.any() else "empty"
            log.warning("%s: its mask is %s", sources[idx], what)
        elif shrinking and vanishes(mask):
            vanished.append(sources[idx])
    if vanished:
        log.warning(
            "%s: nothing is left of the edited region of %s, such as %s: such an edit gives the "
            "photo itself",
            " and ".join(shrinking),
            counted(len(vanished), "photo"),
            vanished[0],
        )


def check_fields(prompts: Iterable[str], edits: list[dict], dataset, indices) -> None:
    """Raise UserError for a prompt with a field that no edit fills: a word or a description."""
    prompts = [each for each in prompts if "{token}" in each or "{description}" in each]
    known = {"real-guidance": {}, "textual-inversion": {"token": [""]}}  # others check their own
    for aug in known.keys() & {edit["aug"] for edit in edits} if prompts else ():
        for idx in indices:
            (fields,) = words_of([dataset.get_metadata_by_idx(idx)], **known[aug])
            for prompt in prompts:
                fill_prompt(prompt, fields)


LOOKED_AT = 200  # photos of a trial whose sizes are read


def suggest_save_size(fresh: Iterable[tuple], side: int, settings: Generation) -> None:
    """Log what `--save_size` would save, where photos are more than twice as large as an edit.

    Args:
        fresh: (dataset, indices of photos) of each trial that has no images yet.
        side: side of the model's square, in pixels.
    """
    largest, saved = (0, 0), 0.0
    for dataset, indices in fresh:
        if not dataset.is_whole_file:
            continue
        some = indices[:: math.ceil(len(indices) / LOOKED_AT)]
        for size in (read_size(dataset.records[idx].path) for idx in some):
            smaller = png_bytes(size, side) - png_bytes(size_within(size, 2 * side), side)
            saved += smaller * settings.num_synthetic * len(indices) / len(some)
            largest = max(largest, size, key=max)
    if max(largest) > 2 * side:
        log.info(
            "photos have up to %dx%d pixels, the model works at %d: --save_size %d would save "
            "about %.0f MB, by an estimate of %g bytes per pixel, less where an edit is enlarged",
            *largest,
            side,
            2 * side,
            saved / 1e6,
            PER_PIXEL,
        )


PER_PIXEL = 1.5  # bytes of a photo in PNG; photos of COCO take 1.1 to 2.3


def png_bytes(size: tuple[int, int], side: int) -> float:
    """About how many bytes an edit takes that was made in a square of `side` pixels.

    Enlarged images compress better: 1.05 bytes per pixel at twice the side, 0.68 at four times.
    """
    return PER_PIXEL * size[0] * size[1] / math.sqrt(max(1, max(size) / side))
