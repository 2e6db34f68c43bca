"""Which images of a trial a classifier is shown, and in what order."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from semantic_aug import UserError
from semantic_aug.evaluation.pictures import Images
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.settings.classification import APPEND, BALANCE, PRETRAIN


class Numbered(Protocol):
    """Photos and variants by their numbers, as `Examples` has them; whatever else there is."""

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
    """The images of one trial: N photos, then all their synthetic variants, M in all.

    Attributes:
        images: N + M pictures.
        labels: [N + M] int64; a variant's label is its own, as its record says.
        first_variant: [N] int64, where in `images` the variants of photo n start.
        num_variants: [N] int64, how many there are.

    Of hard negatives, there are no photos in `images`: `first_variant` counts from 0.
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
        """[N + M] int64, the photo that each picture is, or is a variant of."""
        photos = torch.arange(self.num_photos)
        return torch.cat([photos, photos.repeat_interleave(self.num_variants)])


def load_examples(
    dataset: FewShotDataset,
    image_size: tuple[int, int],
    classes: Collection[str] | None = None,
    memory: float = 4096,
    workers: int | None = None,
) -> Examples:
    """The photos of a trial, and the variants in `dataset.synthetic_examples`; none decoded yet.

    Args:
        memory: megabytes, and `workers`: threads, as `Images` takes them.

    Raises:
        UserError: there is no photo of these classes.
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
    """Variants of the photos of a trial that stand beside its examples, without the photos.

    Args:
        variants: by the index of their photo, images or paths with their labels.
    """
    indices = dataset.indices(classes)
    return _with_variants(dataset, [], indices, variants, image_size, memory, workers)


def _with_variants(
    dataset, pictures: list[tuple], indices: Sequence[int], variants, image_size, memory, workers
) -> Examples:
    """`pictures` with their labels, then the variants of all photos in their order."""
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
    """Which images an epoch shows: indices into `examples.images`, [iterations, batch_size].

    Images are drawn with replacement, with `class_balanced` every class equally often:

    - mix: a photo; with `synthetic_probability` one of its own variants, drawn uniformly, takes
      its place (DA-Fusion, section 4);
    - append: a photo or a variant, all equally likely;
    - pretrain: in the first half of all steps a variant of a photo, then only photos;
    - balance: as append, from as many images of each class as `balanced_images` gives.

    A photo without variants stays. The stream advances by the same amount in all cases, and the
    photo that a draw of mix or pretrain stands for is the same as without synthetic images.

    Args:
        options: a `TrainingOptions`.
    """
    shape = (options.iterations_per_epoch, options.batch_size)
    # In double precision a fraction below 1, times a count, never rounds up to that count.
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
    """For each image drawn, a hard negative of its photo: indices into `negatives.images`.

    -1 stands where the photo has none; the stream advances by the same amount.

    Args:
        draws: as `draw_epoch` gives them.
    """
    fraction = torch.rand(draws.shape, generator=generator, dtype=torch.float64)
    photo = examples.photo_of[draws]
    count = negatives.num_variants[photo]
    return torch.where(count > 0, negatives.first_variant[photo] + (fraction * count).long(), -1)


def _pick(pool: torch.Tensor, place: torch.Tensor, labels: torch.Tensor, options) -> torch.Tensor:
    """Members of `pool` for places in [0, 1): equally many of each, or of each class."""
    if not options.class_balanced:
        return pool[(place * len(pool)).long()]
    pool = pool[labels[pool].argsort(stable=True)]
    sizes = torch.unique_consecutive(labels[pool], return_counts=True)[1]
    starts = sizes.cumsum(0) - sizes
    of_class, within = (place * len(sizes)).long(), (place * len(sizes)).frac()
    return pool[starts[of_class] + (within * sizes[of_class]).long()]


def balanced_images(examples: Numbered) -> torch.Tensor:
    """All photos, and variants that bring every class to the same number of images.

    That number is the largest that all classes reach, and at least that of the photos of the
    largest class; a class that cannot reach it has all it has. A class's variants are taken from
    its photos in turn.
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
