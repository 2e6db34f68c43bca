"""Photos with objects pasted on backgrounds of other classes: a test for background bias.

If each class was photographed in its own surroundings, a classifier may rely on the background.
New photos from the same distribution do not show this. In these photos an object keeps its pixels,
and the background belongs to another class.
"""

import copy
import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from semantic_aug import UserError, counted, stable_hash
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.images.layout import Layout, cut_out
from semantic_aug.images.masks import object_box
from semantic_aug.images.pasting import emptied, fill_frame, on_place

# The way of pasting; change this text whenever the images change.
PASTING = "pasted with a shadow of 0.4"

log = logging.getLogger(__name__)


class Elsewhere(FewShotDataset):
    """The photos of a split with their objects on emptied photos of other classes.

    A hash of the photo's source draws its place among the photos of other classes. The place is
    the same in every trial and for every method, so results can be paired. Photos whose mask is
    missing, empty or full are left out, and counted.

    Args:
        photos: a whole split, not cropped.
        classes: classes for objects and places; default all.
        crop: cut photos and places to squares around their objects, as `crop_to_object` does. A
            place is emptied before that, so that all of its surroundings serve to paint it over.
        masks: as the attribute `masks`, if known; default from `usable_masks`.
        place_of: gives the emptied place of a photo in `photos`, from a cache; default: each place
            is emptied on demand. Only without `crop`.

    Attributes:
        of: the index of each photo in `photos`.
        places: the index in `photos` of each photo's place.
        digest: 16 hex digits that depend on masks and places.
        masks: digests of usable masks, by the photos' indices in `photos`.

    Raises:
        UserError: no photo has a usable mask, or all such photos belong to the same class.
    """

    def __init__(
        self,
        photos: FewShotDataset,
        classes: Collection[str] | None = None,
        crop: bool = False,
        masks: Mapping[int, str] | None = None,
        place_of: Callable[[int], Image.Image] | None = None,
    ):
        super().__init__(split="elsewhere")
        self.photos, self.crop, self.bits = photos, crop, photos.bits
        self.place_of = place_of or (lambda idx: emptied(*self._read(idx)))
        self.class_names, self.num_classes = photos.class_names, len(photos.class_names)
        if masks is None:
            masks = usable_masks(photos, photos.indices(classes), crop)
        self.masks = dict(masks)
        self.of, sources = list(self.masks), photos.sources()
        own = [sources[idx] for idx in self.of]
        drawn = places_of(own, [photos.get_label_by_idx(idx) for idx in self.of])
        self.places = [self.of[number] for number in drawn]
        places = [sources[idx] for idx in self.places]
        self.digest = f"{stable_hash(*own, *places, *self.masks.values()):016x}"

    def __len__(self) -> int:
        return len(self.of)

    def get_label_by_idx(self, idx: int) -> int:
        return self.photos.get_label_by_idx(self.of[idx])

    def get_metadata_by_idx(self, idx: int) -> dict:
        return self.photos.get_metadata_by_idx(self.of[idx])

    def get_image_by_idx(self, idx: int) -> Image.Image:
        """The object of photo `idx` on its place, of the photo's size."""
        photo, mask = self._read(self.of[idx])
        place = self.place_of(self.places[idx])
        if self.crop:
            photo, mask = photo.crop(object_box(mask)), cropped(mask)
            place = place.crop(object_box(self.photos.get_mask_by_idx(self.places[idx])))
        return on_place(cut_out(photo, mask, Layout()), fill_frame(place, photo.size))

    def content_digests(self, indices: Iterable[int]) -> list[str]:
        """Digests of each photo's sources, 64 hex digits: faster than digests of the images."""
        indices, parts = list(indices), []
        for numbers in (self.of, self.places):
            chosen = [numbers[idx] for idx in indices]
            contents = zip(chosen, self.photos.content_digests(chosen))
            parts.append([f"{content} {self.masks[idx]}" for idx, content in contents])
        made_of = (f"{PASTING} {self.crop} {' '.join(each)}" for each in zip(*parts))
        return [hashlib.sha256(each.encode()).hexdigest() for each in made_of]

    def _read(self, idx: int) -> tuple[Image.Image, np.ndarray]:
        return self.photos.get_image_by_idx(idx), self.photos.get_mask_by_idx(idx)


def joined(sets: Sequence[Elsewhere]) -> Elsewhere:
    """One or more sets over the same photos as one set: the photos of the first set come first."""
    found = copy.copy(sets[0])
    found.of = [idx for each in sets for idx in each.of]
    found.places = [idx for each in sets for idx in each.places]
    found.masks = {idx: mask for each in sets for idx, mask in each.masks.items()}
    found.digest = f"{stable_hash(*(each.digest for each in sets)):016x}"
    return found


def cropped(mask: np.ndarray) -> np.ndarray:
    """A mask [H, W] cut to the square around its object."""
    left, top, right, bottom = object_box(mask)
    return mask[top:bottom, left:right]


def usable_masks(photos: FewShotDataset, indices: Sequence[int], crop: bool) -> dict[int, str]:
    """Digests of the masks that show an object and some background.

    Raises:
        UserError: no photo has such a mask.
    """
    found = {}
    digests = zip(indices, photos.mask_digests(indices))
    for idx, digest in progress_bar(iterable=digests, total=len(indices), desc="masks"):
        if digest:
            try:
                mask = photos.get_mask_by_idx(idx)
            except (UserError, OSError) as error:
                log.warning("%s; left out of Elsewhere", error)
                continue
            mask = cropped(mask) if crop else mask
            if mask.any() and not mask.all():
                found[idx] = digest
    number = f"{counted(len(indices), 'photo')} of split {photos.split!r}"
    if not found:
        raise UserError(
            f"--elsewhere: of {number}, none has a mask that shows an object and something around "
            "it; make masks (semantic-aug masks), name their folder by --mask_dir, or leave "
            "--elsewhere out"
        )
    if len(found) < len(indices):
        log.warning(
            "Elsewhere: %d of %s left out, because their masks are missing, empty or full",
            len(indices) - len(found),
            number,
        )
    return found


def places_of(sources: Sequence[str], labels: Sequence[int]) -> list[int]:
    """For each photo the number of a photo of another class, drawn by a hash of its source.

    Raises:
        UserError: all photos belong to the same class.
    """
    order = sorted(range(len(sources)), key=lambda number: sources[number])
    others = {own: [n for n in order if labels[n] != own] for own in set(labels)}
    if len(others) < 2:
        raise UserError(
            "--elsewhere: all photos with masks are of one class, expected two classes or more; "
            "give masks of other classes, or leave --elsewhere out"
        )
    return [
        others[label][stable_hash("elsewhere", source) % len(others[label])]
        for source, label in zip(sources, labels)
    ]
