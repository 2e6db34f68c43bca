"""New surroundings: the object keeps its pixels, the model draws the rest (arXiv 2305.16289)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from semantic_aug.augmentations.layouts import (
    LAYOUT_DETAILS,
    LAYOUT_SETTINGS,
    check_fit,
    layouts_of,
)
from semantic_aug.augmentations.places import read_places
from semantic_aug.augmentations.sdedit import SDEditor, check_strength, masks_of, pipeline_or_load
from semantic_aug.generative_augmentation import GenerativeAugmentation
from semantic_aug.images.framing import grow
from semantic_aug.images.layout import cut_out, draw_layout

# The background that the model encodes: the middle of its range, without hue or edges, so that
# nothing of the old place reaches the autoencoder or a ControlNet.
NEUTRAL = (128, 128, 128)


class Background(GenerativeAugmentation):
    """Draws new surroundings for the object of a photo.

    First, a layout may change the object's size, turn, place and colour. Everything around the
    object then becomes grey, and there the model draws the place that a line of text names.

    Args:
        pipeline: a loaded diffusers pipeline (default: loaded from `model_path`).
        model_path: hub id or folder.
        places: text file with a place per line (default: the package's list).
        harmonize: strength of a last edit of the whole image, in [0, 1); 0 for none. Without this
            edit and without `mask_feather`, the object keeps the photo's pixels.
        options: of `SDEditor`, except its prompt; and `layout_scale` and so on, see `layouts_of`.
            `mask_grow_radius` takes so many pixels from the object's edge.
    """

    needs_mask = needs_object = True
    default_strength = 1.0
    fixed: ClassVar = {"mask": True, "inverted": True}
    takes = ("places", *LAYOUT_SETTINGS, "harmonize", "num_inference_steps")
    details = (*LAYOUT_DETAILS, "place")

    def __init__(
        self, pipeline=None, *, model_path: str | None = None, places: str | None = None,
        harmonize: float = 0.0, mask_grow_radius: float = 0.0, mask_feather: float = 0.0, **options,
    ):  # fmt: skip
        pipeline = pipeline_or_load(pipeline, model_path)
        self.layouts, self.mask_grow_radius = layouts_of(options), mask_grow_radius
        self.mask_feather = mask_feather
        options = {
            key: value
            for key, value in options.items()
            if key not in ("prompt", "mask", "inverted", *LAYOUT_SETTINGS)
        }
        options.setdefault("strength", self.default_strength)
        self.edit = SDEditor(
            pipeline, aug="background", prompt=read_places(places), mask=True, inverted=True,
            mask_feather=mask_feather, **options,
        )  # fmt: skip
        self.finish = None
        if harmonize:
            options |= {"strength": harmonize, "prompt": "{description}"}
            self.finish = SDEditor(pipeline, aug="background", **options)

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        layouts_of(options)
        read_places(options["places"])
        if options["harmonize"]:
            check_strength(options["harmonize"], options["num_inference_steps"], "--harmonize")

    @classmethod
    def check_masks(cls, options, masks, edited) -> None:
        check_fit(options, (each for each in masks if each[0] in edited))

    def augment(self, images, labels, metadata, generators):
        masks = [~grow(mask == 0, self.mask_grow_radius) for mask in masks_of(metadata)]
        masks = [mask.astype(np.uint8) * 255 for mask in masks]
        layouts = [draw_layout(self.layouts, m, g) for m, g in zip(masks, generators)]
        cutouts = [cut_out(*each) for each in zip(images, masks, layouts)]
        grounds = [Image.new("RGB", image.size, NEUTRAL) for image in images]
        canvases = [Image.composite(*cut[:1], g, cut[1]) for cut, g in zip(cutouts, grounds)]
        kept = [np.asarray(alpha) == 255 for _, alpha in cutouts]
        words: list[Mapping[str, str]] = [{} for _ in images]
        results, edits = self.edit(canvases, words, kept, generators)
        if not self.mask_feather:  # pixels on the object's edge get the new surroundings
            results = [
                image if edit.flagged else Image.composite(thing, image, alpha)
                for image, (edit,), (thing, alpha) in zip(results, edits, cutouts)
            ]
        if self.finish:
            chosen = [n for n, (edit,) in enumerate(edits) if not edit.flagged]
            finished, _ = self.finish(
                [results[n] for n in chosen],
                [{"description": str(edits[n][0].prompt)} for n in chosen],
                None,
                [generators[n] for n in chosen],
            )
            for n, image in zip(chosen, finished):
                results[n] = image
        return results, [
            [dataclasses.replace(edit, details=layout.details() | {"place": edit.prompt})]
            for (edit,), layout in zip(edits, layouts)
        ]
