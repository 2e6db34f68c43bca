"""GenerativeAugmentation: the contract of augmentations, for callers and authors."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from semantic_aug import UserError


@dataclass(frozen=True)
class Edit:
    """An edit that was applied to an image, as its record describes it.

    Attributes:
        prompt, strength, guidance_scale: None for an edit that has none.
        attempts: number of attempts, if a safety checker flagged the image.
        flagged: the last attempt was flagged too, and the image is black.
        details: further JSON values of the record, for the keys in the augmentation's `details`.
    """

    aug: str
    prompt: str | None
    strength: float | None
    guidance_scale: float | None
    mask: bool
    inverted: bool
    attempts: int = 1
    flagged: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


class GenerativeAugmentation:
    """Maps labelled photos to synthetic photos of the same classes and sizes.

    A subclass implements `augment`. A subclass of the original repository, which has only
    `forward(image, label, metadata)`, also works: one image at a time, without a record of edits.

    Attributes:
        needs_mask: metadata must hold "mask", [H, W] uint8, 255 on the object.
        needs_object: a photo whose mask is missing, empty or the whole photo gets no variants.
        needs_model: `pipeline` is a loaded model. Otherwise `pipeline` is a function that loads
            the model; the augmentation may never call it.
        default_strength: the strength if none is given.
        fixed: settings of an edit that never change, such as `{"mask": True}`.
        takes: names of further settings that `__init__` takes.
        details: keys of `Edit.details`, which are in the record of every image.
    """

    needs_mask = False
    needs_object = False
    needs_model: ClassVar[bool] = True
    default_strength: ClassVar[float] = 0.5
    fixed: ClassVar[Mapping[str, Any]] = {}
    takes: ClassVar[tuple[str, ...]] = ()
    details: tuple[str, ...] = ()

    @classmethod
    def uses_model(cls, options: Mapping[str, Any]) -> bool:
        """Whether the augmentation needs a model with these values of `takes`."""
        return cls.needs_model

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Raise UserError if these values of `takes` cannot work."""

    @classmethod
    def check_masks(
        cls,
        options: Mapping[str, Any],
        masks: Iterable[tuple[str, np.ndarray]],
        edited: Collection[str],
    ) -> None:
        """Raise UserError if a trial's photos have too few objects.

        Args:
            options: as `check` takes them.
            masks: source and mask of every photo of the trial with a usable mask.
            edited: sources of the photos to be edited, which are of the chosen classes.
        """

    def bind(self, dataset) -> None:
        """Take the whole trial, a FewShotDataset, once before the first batch.

        The dataset has the photos, masks, labels and sources of all classes in their order, even
        if only some classes are edited.
        """

    def augment(
        self,
        images: Sequence[Image.Image],
        labels: Sequence[int],
        metadata: Sequence[Mapping],
        generators: Sequence[torch.Generator],
    ) -> tuple[list[Image.Image], list[list[Edit]]]:
        """Augment a batch.

        Args:
            images: PIL RGB, of any sizes.
            labels: class indices.
            metadata: a mapping per image: `name`; perhaps `words` (the name in prompts) and
                `description`; `mask` if `needs_mask`.
            generators: a CPU generator per image; all randomness of image i comes from generator i.

        Returns:
            Images of the same sizes, and the edits of each image in their order.

        Raises:
            UserError: a `forward` in the original repository's style returns a wrong result.
        """
        forward = getattr(self, "forward", None)
        if forward is None:
            raise NotImplementedError(f"{type(self).__name__} implements no augment")
        results = []
        for image, label, meta, generator in zip(images, labels, metadata, generators):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(generator.initial_seed())
                returned = forward(image, label, meta)
            if not isinstance(returned, tuple) or not returned:
                raise UserError(
                    f"--aug: {type(self).__qualname__}.forward returned "
                    f"{type(returned).__name__}, expected an image and its label"
                )
            results.append(returned[0])
        return results, [[] for _ in results]

    def __call__(
        self, image: Image.Image, label: int, metadata: Mapping, generator=None
    ) -> tuple[Image.Image, int]:
        """Augment an image. Without a generator, torch's random state gives the seed."""
        if generator is None:
            seed = int(torch.randint(2**62, ()))
            generator = torch.Generator().manual_seed(seed)
        images, _ = augmented(self, [image], [label], [metadata], [generator])
        return images[0], label


def augmented(
    aug: GenerativeAugmentation, images: Sequence[Image.Image], *rest: Sequence
) -> tuple[list[Image.Image], list[list[Edit]]]:
    """The result of `aug.augment`, after a check of the contract.

    Raises:
        UserError: the result is not a pair of lists, or has another number of images or edits, or
            images of other sizes; such images would go to the wrong photos.
    """
    name = f"--aug: {type(aug).__module__}:{type(aug).__qualname__}"
    returned = aug.augment(images, *rest)
    match returned:
        case (list() | tuple() as results, list() | tuple() as edits):
            what = None
        case _:
            raise UserError(
                f"{name} returned {type(returned).__name__}; expected a list of images and a list "
                "of each image's edits"
            )
    if len(results) != len(images) or len(edits) != len(images):
        what = f"{len(results)} images and {len(edits)} lists of edits for {len(images)} photos"
    for image, result in zip(images, results):
        if not isinstance(result, Image.Image):
            what = what or f"{type(result).__name__} for an image"
        elif result.size != image.size:
            what = what or f"an image of size {result.size} for a photo of size {image.size}"
    if what is not None:
        raise UserError(f"{name} returned {what}; expected an image of the same size per photo")
    return results, edits
