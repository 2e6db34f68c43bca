"""Photos whose objects are pasted on places of other classes, to see what surroundings decide.

Where each class was photographed in surroundings of its own, a classifier may have learned these:
on new photos of the same kind it is right all the same. Here an object keeps its pixels, and what
is around it belongs to another class.
"""

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

# How photos come from objects and places; another word where they come out otherwise.
PASTING = "pasted with a shadow of 0.4"

log = logging.getLogger(__name__)


class Elsewhere(FewShotDataset):
    """The photos of a split with their objects on emptied places of other classes' photos.

    Which place a photo gets is drawn by a hash of its source among the photos of other classes:
    it is the same in every trial and for every method, so that their results can be paired.
    Photos whose mask is missing, empty or whole are left out, and counted.

    Args:
        photos: a whole split, not cropped.
        classes: those whose photos count, here and as places; default all.
        crop: cut photos and places to squares around their objects, as `crop_to_object` does. A
            place is emptied before that, so that all of its surroundings serve to paint it over.
        masks: of the photos that count, as the attribute has them, where they are known; default
            what `usable_masks` finds among those of `classes`.
        place_of: gives the place of a photo in `photos`, emptied, where they are kept; default
            each is emptied when it is asked for. Only without `crop`.

    Attributes:
        of: of each photo, its index in `photos`.
        places: of each photo, the index in `photos` of its place.
        digest: sixteen hex digits; others where masks or places are others.
        masks: of photos with a mask that serves, its digest, by their indices in `photos`.

    Raises:
        UserError: no photo has a mask that serves, or the photos with such masks are all of one
            class.
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
        """What each photo is made of, 64 hex digits each: making them all takes much longer."""
        indices, parts = list(indices), []
        for numbers in (self.of, self.places):
            chosen = [numbers[idx] for idx in indices]
            contents = zip(chosen, self.photos.content_digests(chosen))
            parts.append([f"{content} {self.masks[idx]}" for idx, content in contents])
        made_of = (f"{PASTING} {self.crop} {' '.join(each)}" for each in zip(*parts))
        return [hashlib.sha256(each.encode()).hexdigest() for each in made_of]

    def _read(self, idx: int) -> tuple[Image.Image, np.ndarray]:
        return self.photos.get_image_by_idx(idx), self.photos.get_mask_by_idx(idx)


def cropped(mask: np.ndarray) -> np.ndarray:
    """A mask [H, W] cut to the square around its object."""
    left, top, right, bottom = object_box(mask)
    return mask[top:bottom, left:right]


def usable_masks(photos: FewShotDataset, indices: Sequence[int], crop: bool) -> dict[int, str]:
    """Of the photos whose mask shows an object and something around it, the mask's digest.

    Raises:
        UserError: there is none.
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
            "Elsewhere: %d of %s left out, whose masks are missing, empty or whole",
            len(indices) - len(found),
            number,
        )
    return found


def places_of(sources: Sequence[str], labels: Sequence[int]) -> list[int]:
    """For each photo the number of a photo of another class, drawn by a hash of its source.

    Raises:
        UserError: all photos are of one class.
    """
    order = sorted(range(len(sources)), key=lambda number: sources[number])
    others = {own: [n for n in order if labels[n] != own] for own in set(labels)}
    if len(others) < 2:
        raise UserError(
            "--elsewhere: all photos with masks are of one class, expected two or more, whose "
            "objects change places; give masks of other classes, or leave --elsewhere out"
        )
    return [
        others[label][stable_hash("elsewhere", source) % len(others[label])]
        for source, label in zip(sources, labels)
    ]
