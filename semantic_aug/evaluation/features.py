"""Features of pictures, or of their fixed views: computed once, and cached for the next run.

output/EXP/cache/KEY.safetensors holds the features of a list of pictures. KEY depends on all that
changes the features: the backbone, the size, the views, and the content of the pictures.
"""

import hashlib
import itertools
import logging
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from semantic_aug import UserError
from semantic_aug.evaluation.backbone import CHUNK, Backbone, default_precision
from semantic_aug.evaluation.pictures import Images
from semantic_aug.evaluation.views import AS_IT_IS, Views
from semantic_aug.experiment.files import atomic_path
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.few_shot_dataset import FewShotDataset

# How files become pixels; change this text whenever the pixels change.
READING = "colour profiles converted to sRGB"

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabelledFeatures:
    """The features and labels of the photos of a split.

    Attributes:
        features: [N, F] float32, on the backbone's device.
        labels: [N] int64, on the CPU.
        indices: of the N photos in the dataset.
    """

    features: torch.Tensor
    labels: torch.Tensor
    indices: Sequence[int] = ()

    def without(self, left_out: Set[int]) -> "LabelledFeatures":
        """The same without the photos that have these indices."""
        rows = [row for row, idx in enumerate(self.indices) if idx not in left_out]
        if len(rows) == len(self.labels):
            return self
        kept = [self.indices[row] for row in rows]
        return LabelledFeatures(self.features[rows], self.labels[rows], kept)


@dataclass(frozen=True, eq=False)
class Split:
    """The photos of an evaluation split, in the dataset's order, and their labels, [N] int64."""

    name: str
    images: Images
    labels: torch.Tensor


def load_split(
    dataset: FewShotDataset,
    size: tuple[int, int],
    classes: Collection[str] | None = None,
    workers: int | None = None,
) -> Split:
    """All photos of a split; each is decoded whenever it is used.

    Args:
        size: height and width in pixels.
        classes: the selected classes; default all.
        workers: see `Images`.
    """
    indices = dataset.indices(classes)
    labels = torch.tensor([dataset.get_label_by_idx(idx) for idx in indices])
    return Split(dataset.split, Images(dataset, indices, size, 0, workers), labels)


def readable(split: Split, memory: float, workers: int | None = None) -> Split:
    """A split without unreadable photos, held in memory if it fits into `memory` megabytes.

    So many evaluations of the split name and count its unreadable photos only once.

    Raises:
        UserError: no photo is left.
    """
    good = [n for n, pixels in enumerate(split.images.each()) if not _unreadable(pixels)]
    _count_unreadable(split, len(good))
    old = split.images
    images = Images(old.dataset, [old.items[n] for n in good], old.size, memory, workers)
    images.hold()
    return Split(split.name, images, split.labels[good])


def _unreadable(pixels: torch.Tensor | UserError) -> bool:
    if isinstance(pixels, UserError):
        log.warning("%s; skipped", pixels)
    return isinstance(pixels, UserError)


def _count_unreadable(split: Split, good: int) -> None:
    if good < len(split.labels):
        log.warning(
            "%d of %d photos of split %r cannot be read",
            len(split.labels) - good,
            len(split.labels),
            split.name,
        )
    if not good:
        raise UserError(f"split {split.name!r} has no photo to evaluate on")


def split_features(backbone: Backbone, split: Split, cache: Path | None = None) -> LabelledFeatures:
    """The features of a split's photos by the current backbone, in the dataset's order.

    Warnings name and count unreadable photos, which are left out.

    Args:
        cache: the folder of cached features; used only for a frozen backbone.

    Raises:
        UserError: no photo is left, or the features of a frozen backbone are not finite.
    """
    features, read = cached_features(backbone, split.images, f"{split.name} features", cache)
    _count_unreadable(split, int(read.sum()))
    indices: list[Any] = [idx for idx, good in zip(split.images.items, read.tolist()) if good]
    return LabelledFeatures(features, split.labels[read], indices)


def cached_features(
    backbone: Backbone,
    images: Images,
    title: str,
    cache: Path | None = None,
    views: Views = AS_IT_IS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The features of all readable pictures, from the cache or by the backbone.

    Args:
        title: of the progress bar.
        cache: the folder of cached features; used only for a frozen backbone.
        views: of each picture.

    Returns:
        Features [M * V, F] of M readable pictures with V views each; the views of a picture are
        adjacent. And [N] bool, which of all N pictures are readable.

    Raises:
        UserError: the features of a frozen backbone are not finite.
    """
    path = None
    if cache is not None and not backbone.trained:
        path = cache / f"{_key(backbone, images, views)}.safetensors"
    found = None if path is None else _read(path, len(images), backbone, views.number)
    if found is None:
        found = _compute(backbone, images, title, views)
        # With unreadable pictures nothing is cached, so that every run names them.
        if path is not None and found[1].all():
            _write(path, found[0])
    return found


def _compute(
    backbone: Backbone, images: Images, title: str, views: Views
) -> tuple[torch.Tensor, torch.Tensor]:
    read = torch.ones(len(images), dtype=torch.bool)
    hidden = {"disable": True} if backbone.trained else {}  # else TQDM_DISABLE decides
    pixels_of = progress_bar(
        iterable=images.each(), total=len(images), desc=title, unit="image", **hidden
    )

    def all_views() -> Iterator[tuple]:
        for position, pixels in enumerate(pixels_of):
            read[position] = not _unreadable(pixels)
            if read[position]:
                for stream in views.of(images, position):
                    yield pixels, stream

    features = torch.empty(
        len(images) * views.number, backbone.num_features, device=backbone.device
    )
    rest, done = all_views(), 0
    while chunk := list(itertools.islice(rest, CHUNK)):
        pixels, streams = zip(*chunk)
        batch = torch.stack(pixels).to(backbone.device)
        features[done : done + len(chunk)] = backbone.features(views.shown(batch, streams))
        done += len(chunk)
    if not backbone.trained and not features[:done].isfinite().all():
        raise UserError("--classifier_backbone: its features are not finite numbers")
    return features[:done], read


# --- on disk ---------------------------------------------------------------------------------


def _key(backbone: Backbone, images: Images, views: Views) -> str:
    computed = backbone.device.type
    if backbone.precision != default_precision(backbone.device):
        computed += f" {backbone.precision}"
    parts: Sequence = (
        backbone.identity,
        computed,
        backbone.mean.flatten().tolist(),
        backbone.std.flatten().tolist(),
        images.size,
        images.digest(),
        READING,
        getattr(images.dataset, "bits", None),
        *views.key(images),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _read(path: Path, number: int, backbone: Backbone, views: int = 1) -> tuple | None:
    from safetensors.torch import load_file

    if not path.is_file():
        return None
    try:
        features = load_file(path)["features"]
    except Exception as error:  # a damaged file raises any kind of exception
        log.warning("%s cannot be read (%s): made again", path, error)
        return None
    if features.shape != (number * views, backbone.num_features):
        return None
    if features.dtype != torch.float32 or not features.isfinite().all():
        log.warning("%s does not hold finite features: made again", path)
        return None
    return features.to(backbone.device), torch.ones(number, dtype=torch.bool)


def _write(path: Path, features: torch.Tensor) -> None:
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({"features": features.cpu().contiguous()}, temporary)
