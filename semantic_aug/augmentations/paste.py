"""The object of a photo on another place (cut, paste and learn: arXiv 1708.01642)."""

import functools
import hashlib
import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from semantic_aug import UserError
from semantic_aug.augmentations.background import Background
from semantic_aug.augmentations.layouts import (
    LAYOUT_DETAILS,
    LAYOUT_SETTINGS,
    check_fit,
    layouts_of,
)
from semantic_aug.augmentations.places import (
    LastUsed,
    Place,
    drawn_places,
    from_photos,
    from_prompts,
    read_places,
    text_to_image,
)
from semantic_aug.augmentations.sdedit import masks_of, pipeline_or_load
from semantic_aug.diffusion.loading import offload
from semantic_aug.generative_augmentation import Edit, GenerativeAugmentation
from semantic_aug.images.layout import cut_out, draw_layout
from semantic_aug.images.pasting import emptied, fill_frame, on_place
from semantic_aug.images.reading import image_names_in, read_image
from semantic_aug.settings.generation import GENERATED, PHOTOS, PROMPTS
from semantic_aug.synthesis.jobs import without_object


class Paste(GenerativeAugmentation):
    """Cuts out the object of a photo and puts it on another place.

    Args:
        pipeline: a loaded diffusers pipeline, or a function that loads it; only generated places
            need it.
        model_path: hub id or folder of the model, without a pipeline.
        backgrounds: `photos`, other photos of the trial with their objects painted over;
            `generated`, places that the model draws; or a folder of images.
        num_places: number of generated places.
        places: text file with a place per line (default: the package's list).
        places_from: `prompts` or `photos`, see `places.from_prompts` and `places.from_photos`.
        places_dir: folder of generated places.
        made_with: the weights and the sampler; places made with other weights or samplers do not
            count.
        offload_to: the device that draws places while the model waits in the CPU's memory.
        shadow: darkness of a soft contact shadow, in [0, 1].
        options: `layout_scale` and so on, see `layouts_of`; and the options of an edit, for
            generated places.
    """

    needs_mask = needs_object = True
    needs_model = False
    fixed: ClassVar = {"strength": None, "mask": True, "inverted": True}
    takes = (
        "backgrounds", "num_places", "places", "places_from", "places_dir", *LAYOUT_SETTINGS,
        "shadow",
    )  # fmt: skip
    details = (*LAYOUT_DETAILS, "place", "place_sha256", "other_photo")
    _choose: Callable[[str, torch.Generator], tuple[Image.Image, dict]] | None = None

    def __init__(
        self, pipeline=None, *, model_path: str | None = None, backgrounds: str = PHOTOS,
        num_places: int = 64, places: str | None = None, places_from: str = PROMPTS,
        places_dir: str | Path | None = None, made_with: Mapping | None = None,
        offload_to=None, shadow: float = 0.4, **options,
    ):  # fmt: skip
        self.layouts, self.shadow = layouts_of(options), shadow
        self.pipeline, self.backgrounds, self.num_places = pipeline, backgrounds, num_places
        self.places, self.places_from = places, places_from
        self.places_dir, self.made_with = places_dir, made_with
        self.offload_to = offload_to
        self.options = {k: v for k, v in options.items() if k not in LAYOUT_SETTINGS}
        if model_path is not None:
            self.model_path = model_path
            self.pipeline = pipeline or functools.partial(pipeline_or_load, None, model_path)
        elif backgrounds == GENERATED and pipeline is None:
            pipeline_or_load(None, None)  # raises if no model is named

    @classmethod
    def uses_model(cls, options: Mapping[str, Any]) -> bool:
        return options["backgrounds"] == GENERATED

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        layouts_of(options)
        if options["backgrounds"] == GENERATED:
            read_places(options["places"])
        elif options["backgrounds"] != PHOTOS:
            images_in(options["backgrounds"])

    @classmethod
    def check_masks(cls, options, masks, edited) -> None:
        masks = iter(masks)
        first = list(itertools.islice(masks, 2))
        if options["backgrounds"] == PHOTOS and len(first) < 2:
            raise UserError(
                f"--backgrounds photos: of the trial's photos, only {first[0][0]} has a mask, and "
                "no object is pasted on its own photo; give --backgrounds generated or a folder"
            )
        every = itertools.chain(first, masks)
        check_fit(options, (each for each in every if each[0] in edited))

    def bind(self, dataset):
        if self.backgrounds == PHOTOS:
            every, sources = range(len(dataset)), dataset.sources()
            without = without_object(dataset, every)
            usable = [(sources[idx], idx) for idx in every if idx not in without]
            empty = LastUsed(lambda idx: emptied(dataset.get_image_by_idx(idx),
                                                 dataset.get_mask_by_idx(idx)))  # fmt: skip
            self._choose = functools.partial(_of_photos, usable, empty)
        elif self.backgrounds == GENERATED:
            self._choose = functools.partial(_of_files, self._drawn(dataset), LastUsed(read_image))
        else:
            paths = images_in(self.backgrounds)
            digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
            places = [Place(path, path.name, digest) for path, digest in zip(paths, digests)]
            self._choose = functools.partial(_of_files, places, LastUsed(read_image))

    def augment(self, images, labels, metadata, generators):
        if self._choose is None:
            raise UserError("an augmentation that pastes needs its trial first: bind(dataset)")
        results, edits = [], []
        for image, mask, meta, generator in zip(images, masks_of(metadata), metadata, generators):
            layout = draw_layout(self.layouts, mask, generator)
            place, details = self._choose(str(meta.get("source")), generator)
            cutout = cut_out(image, mask, layout)
            results.append(on_place(cutout, fill_frame(place, image.size), self.shadow))
            details = layout.details() | details
            edits.append([Edit("paste", None, None, None, True, True, details=details)])
        return results, edits

    def _drawn(self, dataset) -> list[Place]:
        """The generated places; the model is loaded if some are missing."""
        batch_size = self.options.get("batch_size") or 4
        own = ("num_inference_steps", "guidance_scale", "resolution", "negative_prompt")
        options = {key: self.options.get(key) for key in own}
        options["num_inference_steps"] = options["num_inference_steps"] or 50
        if options["guidance_scale"] is None:
            options["guidance_scale"] = 7.5
        lines = read_places(self.places)
        identity = options | {
            "lines": lines,
            "from": self.places_from,
            "made_with": self.made_with,
        }
        usable: list[int] = []
        if self.places_from == PHOTOS:
            every = range(len(dataset))
            usable = sorted(set(every) - without_object(dataset, every).keys())
            shape = ("fit", "mask_grow_radius", "mask_feather", "controlnet_scale")
            identity |= {key: self.options.get(key) for key in shape}
            identity |= {"photos": dataset.photo_digest(), "masks": dataset.mask_digests(every)}

        @functools.cache
        def drawing():
            pipeline = self.pipeline
            if not hasattr(pipeline, "unet"):  # a pipeline is callable too
                pipeline = pipeline()
            taken = {k: v for k, v in self.options.items() if k != "strength"}
            if self.places_from == PROMPTS:
                drawing = text_to_image(pipeline)
                draw = functools.partial(from_prompts, drawing, lines, options=options)
            else:
                background = Background(pipeline, places=self.places, **taken)
                drawing = background.edit.pipeline
                draw = functools.partial(from_photos, background, dataset, usable)
            if self.offload_to is not None:
                offload([drawing], self.offload_to)
            return draw

        folder = self.places_dir
        if folder is None:
            self._kept = tempfile.TemporaryDirectory()  # as long as this augmentation lives
            folder = self._kept.name
        return drawn_places(
            Path(folder), self.num_places, dataset.seed, identity, batch_size,
            lambda generators: drawing()(generators),
        )  # fmt: skip


def images_in(folder: str | Path) -> list[Path]:
    """The images in a folder, by name.

    Raises:
        UserError: the folder has no images.
    """
    path = Path(folder)
    names = sorted(image_names_in(path)) if path.is_dir() else []
    if not names:
        raise UserError(
            f"--backgrounds: got {folder}, expected {PHOTOS}, {GENERATED} or a folder with images"
        )
    return [path / name for name in names]


def _of_photos(usable, empty, own: str, generator: torch.Generator) -> tuple[Image.Image, dict]:
    others = [(source, idx) for source, idx in usable if source != own]
    source, idx = others[int(torch.randint(len(others), (), generator=generator))]
    return empty(idx), {"other_photo": source}


def _of_files(places, read, own: str, generator: torch.Generator) -> tuple[Image.Image, dict]:
    place = places[int(torch.randint(len(places), (), generator=generator))]
    return read(place.path), {"place": place.path.name, "place_sha256": place.sha256}
