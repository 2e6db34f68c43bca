"""Which pictures of a trial a classifier trains on, and in what order."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from semantic_aug import UserError
from semantic_aug.evaluation.pictures import Images
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.settings.classification import APPEND, BALANCE, PRETRAIN


class Numbered(Protocol):
    """The part of `Examples` that sampling needs: labels, and where each photo's variants are."""

    @property
    def labels(self) -> torch.Tensor: ...
    @property
    def first_variant(self) -> torch.Tensor: ...
    @property
    def num_variants(self) -> torch.Tensor: ...
    @property
    def num_photos(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Examples:
    """The pictures of a trial: N photos, then their M synthetic variants, photo by photo.

    Attributes:
        images: N + M pictures.
        labels: [N + M] int64; a variant has the label of its record.
        first_variant: [N] int64, the position in `images` of each photo's first variant.
        num_variants: [N] int64, the number of variants of each photo.

    For hard negatives, `images` and `labels` lack the N photos: `first_variant` counts from 0.
    """

    images: Images
    labels: torch.Tensor
    first_variant: torch.Tensor
    num_variants: torch.Tensor

    @property
    def num_photos(self) -> int:
        return len(self.num_variants)

    @property
    def photo_of(self) -> torch.Tensor:
        """[N + M] int64, the number of the photo that each picture shows or was made from."""
        photos = torch.arange(self.num_photos)
        return torch.cat([photos, photos.repeat_interleave(self.num_variants)])


def load_examples(
    dataset: FewShotDataset,
    image_size: tuple[int, int],
    classes: Collection[str] | None = None,
    memory: float = 4096,
    workers: int | None = None,
) -> Examples:
    """The photos of a trial and their variants, from `dataset.synthetic_examples`, not yet decoded.

    Args:
        image_size: height and width in pixels.
        classes: the selected classes; default all.
        memory, workers: see `Images`.

    Raises:
        UserError: no photo belongs to these classes.
    """
    indices = dataset.indices(classes)
    if not indices:
        raise UserError("no training photo of the selected classes")
    photos = [(idx, dataset.get_label_by_idx(idx)) for idx in indices]
    variants = dataset.synthetic_examples or {}
    return _with_variants(dataset, photos, indices, variants, image_size, memory, workers)


def load_negatives(
    dataset: FewShotDataset,
    variants: Mapping[int, Sequence[tuple]],
    image_size: tuple[int, int],
    classes: Collection[str] | None = None,
    memory: float = 4096,
    workers: int | None = None,
) -> Examples:
    """Hard negatives: further variants of a trial's photos, as `Examples` without the photos.

    Args:
        variants: by the photo's index, pairs of an image, or its path, and a label.
        image_size, classes, memory, workers: see `load_examples`.
    """
    indices = dataset.indices(classes)
    return _with_variants(dataset, [], indices, variants, image_size, memory, workers)


def _with_variants(
    dataset, pictures: list[tuple], indices: Sequence[int], variants, image_size, memory, workers
) -> Examples:
    """`pictures`, pairs with labels, and then the variants of each photo of `indices`."""
    first, count = [], []
    for idx in indices:
        own = variants.get(idx, [])
        first.append(len(pictures))
        count.append(len(own))
        pictures += own
    items: list[Any] = [image for image, _ in pictures]
    labels = torch.tensor([label for _, label in pictures], dtype=torch.int64)
    images = Images(dataset, items, image_size, memory, workers)
    return Examples(images, labels, torch.tensor(first), torch.tensor(count))


def draw_epoch(
    examples: Numbered, options, generator: torch.Generator, epoch: int = 0
) -> torch.Tensor:
    """Draw the pictures of an epoch: indices into `examples.images`, [iterations, batch_size].

    Pictures are drawn with replacement; `class_balanced` makes all classes equally likely. The
    utilization says what a draw gives:

    - mix: a photo or, with `synthetic_probability`, one of its variants, drawn uniformly
      (DA-Fusion, section 4);
    - append: a photo or a variant, all equally likely;
    - pretrain: a variant of a photo in the first half of all steps, then a photo;
    - balance: the same as append, but only from the pictures of `balanced_images`.

    If a photo has no variants, the draw gives the photo itself. The generator advances by the same
    amount in all cases. With mix and pretrain, each draw has the same photo as without synthetic
    images.

    Args:
        options: a `TrainingOptions`.
        epoch: number of the epoch, from 0; pretrain depends on it.
    """
    shape = (options.iterations_per_epoch, options.batch_size)
    # In double precision, a fraction below 1 times a count never rounds up to the count.
    place, coin, fraction = torch.rand((3, *shape), generator=generator, dtype=torch.float64)
    if options.utilization == APPEND:
        return _pick(torch.arange(len(examples.labels)), place, examples.labels, options)
    if options.utilization == BALANCE:
        return _pick(balanced_images(examples), place, examples.labels, options)
    photo = _pick(torch.arange(examples.num_photos), place, examples.labels, options)
    probability = options.synthetic_probability
    if options.utilization == PRETRAIN:
        step = torch.arange(shape[0])[:, None] + epoch * shape[0]
        probability = (step < options.num_epochs * shape[0] / 2).double()
    count = examples.num_variants[photo]
    variant = examples.first_variant[photo] + (fraction * count).long()
    return torch.where((coin < probability) & (count > 0), variant, photo)


def draw_negatives(
    examples: Examples, negatives: Examples, draws: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Draw a hard negative for the photo of each drawn picture.

    The generator advances by the same amount whether or not photos have hard negatives.

    Args:
        draws: the result of `draw_epoch`.

    Returns:
        int64 indices into `negatives.images`, in the shape of `draws`; -1 for a photo without hard
        negatives.
    """
    fraction = torch.rand(draws.shape, generator=generator, dtype=torch.float64)
    photo = examples.photo_of[draws]
    count = negatives.num_variants[photo]
    return torch.where(count > 0, negatives.first_variant[photo] + (fraction * count).long(), -1)


def _pick(pool: torch.Tensor, place: torch.Tensor, labels: torch.Tensor, options) -> torch.Tensor:
    """The members of `pool` that uniform numbers `place` in [0, 1) choose, balanced if set."""
    if not options.class_balanced:
        return pool[(place * len(pool)).long()]
    pool = pool[labels[pool].argsort(stable=True)]
    sizes = torch.unique_consecutive(labels[pool], return_counts=True)[1]
    starts = sizes.cumsum(0) - sizes
    of_class, within = (place * len(sizes)).long(), (place * len(sizes)).frac()
    return pool[starts[of_class] + (within * sizes[of_class]).long()]


def balanced_images(examples: Numbered) -> torch.Tensor:
    """All photos, and variants that bring every class to the same number of pictures.

    This number is the largest that all classes reach, but at least the number of photos of the
    class with most photos. A class that cannot reach it gives all its pictures. The photos of a
    class give their variants in turn.

    Returns:
        int64 indices into `examples.images`, class by class.
    """
    photo = torch.arange(examples.num_photos)
    of_photo = {n: range(f, f + c) for n, (f, c) in enumerate(
        zip(examples.first_variant.tolist(), examples.num_variants.tolist())
    )}  # fmt: skip
    members = {}
    for label in examples.labels[photo].unique().tolist():
        own = photo[examples.labels[photo] == label].tolist()
        turns = [(turn, n, image) for n in own for turn, image in enumerate(of_photo[n])]
        members[label] = (own, [image for _, _, image in sorted(turns)])
    least = min(len(own) + len(more) for own, more in members.values())
    target = max(least, *(len(own) for own, _ in members.values()))
    chosen = [own + more[: max(0, target - len(own))] for own, more in members.values()]
    return torch.tensor([image for images in chosen for image in images])
