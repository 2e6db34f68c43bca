"""Features of pictures, or of fixed views of them: computed once, and kept for the next run.

output/EXP/cache/KEY.safetensors holds the features of a list of pictures. KEY depends on the
backbone, the size and the content of the files, so that a wrong file is never read.
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

# How pixels come from files; another word where they come out otherwise.
READING = "colour profiles converted to sRGB"

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabelledFeatures:
    """A split by the backbone as it is.

    Attributes:
        features: [N, F] on the backbone's device.
        labels: [N] on the CPU.
        indices: of these N photos in the dataset.
    """

    features: torch.Tensor
    labels: torch.Tensor
    indices: Sequence[int] = ()

    def without(self, left_out: Set[int]) -> "LabelledFeatures":
        """Those of all photos but some, given by their indices."""
        rows = [row for row, idx in enumerate(self.indices) if idx not in left_out]
        if len(rows) == len(self.labels):
            return self
        kept = [self.indices[row] for row in rows]
        return LabelledFeatures(self.features[rows], self.labels[rows], kept)


@dataclass(frozen=True, eq=False)
class Split:
    """The pictures of a split to evaluate on, in the dataset's order, and their labels."""

    name: str
    images: Images
    labels: torch.Tensor


def load_split(
    dataset: FewShotDataset,
    size: tuple[int, int],
    classes: Collection[str] | None = None,
    workers: int | None = None,
) -> Split:
    """All photos of a split, none decoded yet and none to be held."""
    indices = dataset.indices(classes)
    labels = torch.tensor([dataset.get_label_by_idx(idx) for idx in indices])
    return Split(dataset.split, Images(dataset, indices, size, 0, workers), labels)


def readable(split: Split, memory: float, workers: int | None = None) -> Split:
    """A split without the photos that cannot be read, held where it fits into `memory` megabytes.

    For many passes; those that cannot be read are named and counted once.
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
        raise UserError(f"no photo of split {split.name!r} to evaluate on")


def split_features(backbone: Backbone, split: Split, cache: Path | None = None) -> LabelledFeatures:
    """Every photo of a split through the backbone as it is now, in the dataset's order.

    Photos that cannot be read are named, counted and left out.

    Args:
        cache: the folder where features of a frozen backbone are kept.

    Raises:
        UserError: no photo is left.
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
    """Features of the pictures that can be read, and which of all N these are, [N] bool.

    Returns:
        [M * V, F] for M readable pictures of V views each; the views of a picture are adjacent.

    Raises:
        UserError: the backbone gives numbers that are not finite.
    """
    path = None
    if cache is not None and not backbone.trained:
        path = cache / f"{_key(backbone, images, views)}.safetensors"
    found = None if path is None else _read(path, len(images), backbone, views.number)
    if found is None:
        found = _compute(backbone, images, title, views)
        # Broken pictures are named in every run: what they lack is not kept.
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
    except Exception as error:  # whatever a damaged file brings about
        log.warning("%s cannot be read (%s): made again", path, error)
        return None
    if features.shape != (number * views, backbone.num_features):
        return None
    if features.dtype != torch.float32 or not features.isfinite().all():
        log.warning("%s holds what no backbone has given: made again", path)
        return None
    return features.to(backbone.device), torch.ones(number, dtype=torch.bool)


def _write(path: Path, features: torch.Tensor) -> None:
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({"features": features.cpu().contiguous()}, temporary)
