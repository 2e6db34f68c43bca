"""GenerativeAugmentation: what an augmentation is, for those who call one and who write one."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from semantic_aug import UserError


@dataclass(frozen=True)
class Edit:
    """One edit that was applied to an image; what its record says about it.

    Attributes:
        prompt, strength, guidance_scale: None for an edit that has none.
        attempts: how often it was made, where a safety checker flagged the result.
        flagged: the last one was flagged too, and the image is black.
        details: what else the record says: JSON values for the keys in the augmentation's
            `details`.
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

    A subclass implements `augment`. One that has only `forward(image, label, metadata)`, as the
    predecessors' have, works too, one image at a time and without a record of its edits.

    Attributes:
        needs_mask: whether metadata must hold "mask", [H, W] uint8, 255 on the object.
        needs_object: a photo whose mask is missing, empty or the whole photo gets no variants.
        needs_model: whether `pipeline` is a loaded model. Otherwise it is a function that loads
            it, which an augmentation may never call.
        default_strength: where no strength is given.
        fixed: settings of an edit that are always so, such as `{"mask": True}`.
        takes: names of further settings that `__init__` is given.
        details: keys of `Edit.details`, which stand in the record of every image.
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
        """Whether a model is needed with these settings, those of `takes`."""
        return cls.needs_model

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Raise UserError for settings, those of `takes`, that nothing can be made with."""

    @classmethod
    def check_masks(
        cls,
        options: Mapping[str, Any],
        masks: Iterable[tuple[str, np.ndarray]],
        edited: Collection[str],
    ) -> None:
        """Raise UserError where the objects of a trial's photos do not suffice.

        Args:
            options: as `check` takes them.
            masks: source and mask of every photo of the trial whose mask is of use.
            edited: sources of the photos that are to be edited, those of the classes chosen.
        """

    def bind(self, dataset) -> None:
        """Called once, before the first batch, with the whole trial, a FewShotDataset.

        It gives an augmentation the trial's photos, masks, labels and sources in their order,
        whichever classes are to be edited.
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
            metadata: one mapping per image with `name`, perhaps `words`, how prompts write that
                name, and `description`; and `mask` where `needs_mask`.
            generators: one CPU generator per image; whatever is random about image i is drawn
                from generator i and from nothing else.

        Returns:
            Images of the same sizes, and for each the edits applied, in their order.

        Raises:
            UserError: a `forward`, as the predecessors' augmentations have, returns something else.
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
        """Augment one image. Without a generator, torch's random state gives the seed."""
        if generator is None:
            seed = int(torch.randint(2**62, ()))
            generator = torch.Generator().manual_seed(seed)
        images, _ = augmented(self, [image], [label], [metadata], [generator])
        return images[0], label


def augmented(
    aug: GenerativeAugmentation, images: Sequence[Image.Image], *rest: Sequence
) -> tuple[list[Image.Image], list[list[Edit]]]:
    """What `aug.augment` returns, if it is what the contract says.

    Raises:
        UserError: it returns something else than both lists, another number of images or of
            edits, or images of other sizes. They would be taken for those of other photos.
    """
    name = f"--aug: {type(aug).__module__}:{type(aug).__qualname__}"
    returned = aug.augment(images, *rest)
    match returned:
        case (list() | tuple() as results, list() | tuple() as edits):
            what = None
        case _:
            raise UserError(
                f"{name} returned {type(returned).__name__}; expected a list of images and a list "
                "of the edits of each"
            )
    if len(results) != len(images) or len(edits) != len(images):
        what = f"{len(results)} images and {len(edits)} lists of edits for {len(images)} photos"
    for image, result in zip(images, results):
        if not isinstance(result, Image.Image):
            what = what or f"{type(result).__name__} for an image"
        elif result.size != image.size:
            what = what or f"an image of size {result.size} for a photo of size {image.size}"
    if what is not None:
        raise UserError(f"{name} returned {what}; expected one of the same size for each")
    return results, edits
