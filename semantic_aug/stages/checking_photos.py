"""Whether the photos of a trial have what their edits need."""

import logging
from collections.abc import Iterable
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.augmentations.sdedit import fill_prompt, words_of
from semantic_aug.images.framing import grow
from semantic_aug.words.embeddings import (
    check_widths,
    class_tokens,
    read_header,
    read_words,
    token_for,
)

log = logging.getLogger(__name__)


def check_photos(dataset, indices, embed_path: Path | None, info) -> None:
    """Raise UserError where there are no photos, or a class of theirs has no learned word."""
    present = {dataset.get_label_by_idx(idx) for idx in indices}
    names = [dataset.class_names[label] for label in sorted(present)]
    if not names:
        raise UserError("none of the classes chosen has a photo")
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


def check_masks(dataset, indices, edits: list[dict], radius: float) -> None:
    """Raise UserError where a photo lacks a mask; say where a mask leaves nothing to be edited.

    Args:
        radius: `--mask_grow_radius`.
    """
    inverted = {bool(edit["inverted"]) for edit in edits if edit["mask"]}
    if not inverted:
        return
    sources, vanished = dataset.sources(), []
    for idx in indices:
        on_object = dataset.get_mask_by_idx(idx) > 0
        if on_object.all() or not on_object.any():
            what = "the whole photo" if on_object.any() else "empty"
            log.warning("%s: its mask is %s", sources[idx], what)
        elif radius < 0 and not all(grow(on_object != each, radius).any() for each in inverted):
            vanished.append(sources[idx])
    if vanished:
        log.warning(
            "--mask_grow_radius %g leaves nothing of the edited region of %s, such as %s: such "
            "an edit gives the photo itself",
            radius,
            counted(len(vanished), "photo"),
            vanished[0],
        )


def check_fields(prompts: Iterable[str], edits: list[dict], dataset, indices) -> None:
    """Raise UserError for a prompt that asks what no edit knows: a learned word, a description."""
    prompts = [each for each in prompts if "{token}" in each or "{description}" in each]
    known = {"real-guidance": {}, "textual-inversion": {"token": [""]}}  # others' own is theirs
    for aug in known.keys() & {edit["aug"] for edit in edits} if prompts else ():
        for idx in indices:
            (fields,) = words_of([dataset.get_metadata_by_idx(idx)], **known[aug])
            for prompt in prompts:
                fill_prompt(prompt, fields)
