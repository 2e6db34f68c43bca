"""Places by name, and places that a model draws once for a trial, for pasted objects."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from semantic_aug import UserError, stable_hash
from semantic_aug.diffusion.inspecting import side_of
from semantic_aug.experiment.config import config_id
from semantic_aug.experiment.files import atomic_path
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.images.pasting import emptied
from semantic_aug.synthesis.records import RecordWriter, read_lines, whole_images

VOCABULARY = Path(__file__).with_suffix(".txt")


def read_places(path: str | Path | None) -> list[str]:
    """The lines of a text file of places, by default of the package's list.

    Lines that begin with # are comments.

    Raises:
        UserError: the file cannot be read or has no line, or a line has braces.
    """
    path = path or VOCABULARY
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"--places: cannot read {path}: {reason}") from None
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise UserError(f"--places: {path} names no place, expected a place per line, without #")
    for line in lines:
        if "{" in line or "}" in line:
            raise UserError(
                f"--places: {path} has {line!r}: a place has no braces, because a class name in it "
                "would draw a second object; only --prompt has fields"
            )
    return lines


class Place(NamedTuple):
    """A place without an object: its file, its prompt, and the file's sha256."""

    path: Path
    prompt: str
    sha256: str


def drawn_places(
    folder: Path,
    count: int,
    seed: int,
    identity: Mapping[str, Any],
    batch_size: int,
    draw: Callable[[Sequence[torch.Generator]], list[tuple[Image.Image, str]]],
) -> list[Place]:
    """The places of a trial; this process draws all missing places.

    Args:
        folder: of the places, with `records/`.
        count: number of places.
        seed: of the trial. The random stream of a place is a hash of seed and place number.
        identity: everything that changes a place; places of another identity are drawn again.
        batch_size: places per block. A block that lacks a place is drawn whole.
        draw: gives an image and its prompt for each generator.
    """
    name = config_id(dict(identity))
    there = _recorded(folder, name)
    blocks = [range(n, min(n + batch_size, count)) for n in range(0, count, batch_size)]
    todo = [block for block in blocks if any(file_name(n) not in there for n in block)]
    if todo:
        with RecordWriter(folder, name, (0, 1)) as writer:
            for block in progress_bar(iterable=todo, desc="places", unit="block"):
                streams = [stable_hash("place", seed, number) for number in block]
                drawn = draw([torch.Generator().manual_seed(stream) for stream in streams])
                for number, (image, prompt) in zip(block, drawn):
                    path = folder / file_name(number)
                    with atomic_path(path) as temporary:
                        image.save(temporary, format="PNG")
                    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
                    writer.write({"file_name": path.name, "prompt": prompt, "sha256": sha256})
        there = _recorded(folder, name)
    return [there[file_name(number)] for number in range(count)]


def file_name(number: int) -> str:
    return f"{number:06d}.png"


def _recorded(folder: Path, identity: str) -> dict[str, Place]:
    """The places whose file is complete and equals its record."""
    lines = {line["file_name"]: line for line in read_lines(folder, identity) if "sha256" in line}
    return {
        name: Place(folder / name, lines[name]["prompt"], lines[name]["sha256"])
        for name in whole_images(folder, lines)
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() == lines[name]["sha256"]
    }


def text_to_image(pipeline):
    """A text-to-image pipeline with the parts of another pipeline."""
    from diffusers import AutoPipelineForText2Image

    drawing = AutoPipelineForText2Image.from_pipe(pipeline)
    drawing.set_progress_bar_config(disable=True)
    return drawing


def from_prompts(drawing, lines: Sequence[str], generators, *, options: Mapping[str, Any]) -> list:
    """Places drawn from text alone.

    Args:
        drawing: a pipeline of `text_to_image`.
    """
    side = options.get("resolution")
    side = side or side_of(drawing.unet.config.sample_size) * drawing.vae_scale_factor
    unwanted = options.get("negative_prompt")
    prompts = [lines[int(torch.randint(len(lines), (), generator=g))] for g in generators]
    images = drawing(
        prompt=prompts,
        negative_prompt=[unwanted] * len(prompts) if unwanted else None,
        generator=list(generators),
        num_inference_steps=options["num_inference_steps"],
        guidance_scale=options["guidance_scale"],
        height=side,
        width=side,
        output_type="np",
    ).images
    if not np.isfinite(images).all():
        raise UserError("a place has values that are no numbers: use --mixed_precision bf16 or no")
    return list(zip(drawing.image_processor.numpy_to_pil(images), prompts))


def from_photos(background, dataset, usable: Sequence[int], generators) -> list:
    """Places as new surroundings of photos, whose objects are then painted over.

    Args:
        background: a `Background`.
        dataset: the trial.
        usable: photos with a mask that shows their object.
    """
    chosen = [usable[int(torch.randint(len(usable), (), generator=g))] for g in generators]
    masks = [dataset.get_mask_by_idx(idx) for idx in chosen]
    metadata = [{"name": "", "mask": mask} for mask in masks]
    photos = [dataset.get_image_by_idx(idx) for idx in chosen]
    labels = [dataset.get_label_by_idx(idx) for idx in chosen]
    images, edits = background.augment(photos, labels, metadata, generators)
    emptied_images = map(emptied, images, masks)
    return [(image, str(edit.prompt)) for image, (edit,) in zip(emptied_images, edits)]


class LastUsed:
    """A cache of a function's images; the least recently used images are dropped first.

    Args:
        make: gives an image for a key.
        size: megapixels kept.
    """

    def __init__(self, make: Callable[[Any], Image.Image], size: float = 200.0):
        self.make, self.size, self.images = make, size * 1e6, dict[Any, Image.Image]()

    def __call__(self, key: Any) -> Image.Image:
        image = self.images.pop(key, None)
        self.images[key] = image = image or self.make(key)
        while sum(i.width * i.height for i in self.images.values()) > self.size:
            if len(self.images) == 1:
                break
            self.images.pop(next(iter(self.images)))
        return image
