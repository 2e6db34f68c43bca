"""Evaluating candidates of `fit`: features once, heads in all folds, held-out predictions."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from semantic_aug.evaluation.backbone import Backbone
from semantic_aug.evaluation.choosing import Judged
from semantic_aug.evaluation.elsewhere import Elsewhere, joined
from semantic_aug.evaluation.features import cached_features
from semantic_aug.evaluation.fold_heads import Material, Variants, train_heads
from semantic_aug.evaluation.folds import Fold
from semantic_aug.evaluation.held_photos import HeldPhotos
from semantic_aug.evaluation.pictures import Images
from semantic_aug.evaluation.views import AS_IT_IS, Views
from semantic_aug.images.pasting import emptied
from semantic_aug.settings.classification import TrainingOptions
from semantic_aug.settings.fitting import Fitting
from semantic_aug.stages.fitting_methods import FLIP_ROTATE, SIDE, Made, Method
from semantic_aug.stages.fitting_photos import Photos

PHOTO_VIEWS, VARIANT_VIEWS = 16, 2  # random views for the backbone; variants already vary
BATCH = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Judgement:
    """The predictions of a candidate for held-out photos.

    Attributes:
        logits: [N, R, num_classes], nan where a photo is not held out.
        hits: [N, R] in {0, 1}, nan where a photo is not held out.
        far: [N, R], the same with the object on the place of another class; nan if unknown.
    """

    logits: np.ndarray
    hits: np.ndarray
    far: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Tried:
    """An evaluated candidate, with the sets of images that it is trained on, and the folds."""

    method: Method
    material: Material
    judgement: Judgement
    sets: Sequence[Made]
    folds: Sequence[Fold]


class Eyes:
    """The backbone's features of photos and images, computed once and kept."""

    def __init__(self, backbone: Backbone, photos: Photos, settings: Fitting, cache: Path):
        self.backbone, self.photos, self.cache = backbone, photos, cache
        self.seed, self.workers = settings.seed, settings.num_workers

    def features(self, dataset, items: Sequence, title: str, views: Views = AS_IT_IS):
        """Features [N * V, F] of N pictures in V views.

        Raises:
            UserError: a picture cannot be read.
        """
        images = Images(dataset, items, self.backbone.image_size, 0, self.workers)
        found, read = cached_features(self.backbone, images, title, self.cache, views)
        if not read.all():
            images.read(int((~read).nonzero()[0]))  # raises, and names the picture
        return found

    def plain(self) -> torch.Tensor:
        """Features [N, F] of all photos without augmentation."""
        return self.features(self.photos.dataset, range(len(self.photos.labels)), "photos")

    def views(self, augmentation: tuple[str, ...]) -> torch.Tensor:
        """Features [N * V, F] of random views of all photos."""
        views = Views(augmentation, PHOTO_VIEWS, self.seed)
        every = range(len(self.photos.labels))
        return self.features(self.photos.dataset, every, augmentation[0], views)

    def variants(self, made: Made, title: str) -> Variants:
        """Random views of all images of a set. The first images of all photos are cached apart
        from the second images and so on, so a larger set reuses their features."""
        place = {source: n for n, source in enumerate(self.photos.dataset.sources())}
        features: list[torch.Tensor] = []
        photo: list[int] = []
        seen: list[torch.Tensor] = []
        turn: list[int] = []
        learned_from = torch.zeros(len(place), dtype=torch.bool)
        learned_from[list(made.learned_from)] = True
        views = Views(FLIP_ROTATE, VARIANT_VIEWS, self.seed)
        for number in range(made.number):
            own = {idx: paths[number] for idx, paths in made.paths.items() if len(paths) > number}
            if not own:
                continue
            paths = list(own.values())
            features.append(self.features(self.photos.dataset, paths, title, views))
            photo += own.keys()
            turn += [number] * len(own)
            for idx, path in zip(own, paths):
                parts = learned_from.clone()
                parts[[idx, place.get(made.shows.get(path.name, ""), idx)]] = True
                seen.append(parts)
        return Variants(
            torch.cat(features), torch.tensor(photo), torch.stack(seen), torch.tensor(turn)
        )

    def elsewhere(self, masks: Mapping[int, str]) -> dict[tuple[int, int], tuple]:
        """By repeat and fold: the held-out photos with masks, and their features [M, F] on the
        places of other classes. These places are held out too."""
        held = HeldPhotos(self.photos.dataset, max(2 * max(self.backbone.image_size), SIDE))
        place_of = functools.cache(
            lambda idx: emptied(held.get_image_by_idx(idx), held.get_mask_by_idx(idx))
        )
        sets: dict[tuple[int, int], Elsewhere] = {}
        for fold in self.photos.folds:
            own = {idx: masks[idx] for idx in fold.held_out if idx in masks}
            if len({self.photos.labels[idx] for idx in own}) < 2:
                continue
            sets[fold.repeat, fold.number] = Elsewhere(held, masks=own, place_of=place_of)
        if not sets:
            return {}
        there = joined(list(sets.values()))
        features = self.features(there, range(len(there)), "elsewhere")
        parts = features.split([len(each) for each in sets.values()])
        return {fold: (each.of, part) for (fold, each), part in zip(sets.items(), parts)}


def options_of(settings: Fitting) -> TrainingOptions:
    """The options of training heads, equal for all candidates."""
    return TrainingOptions(
        num_epochs=1,
        iterations_per_epoch=settings.iterations,
        batch_size=BATCH,
        learning_rate=settings.learning_rate,
        class_balanced=True,
    )


@torch.no_grad()
def judge(
    material: Material, plain: torch.Tensor, far: Mapping[tuple[int, int], tuple], photos: Photos,
    options: TrainingOptions, seed: int, folds: Sequence[Fold] | None = None,
) -> Judgement:  # fmt: skip
    """Train a candidate in every fold, or in some folds, and predict the held-out photos there."""
    folds = photos.folds if folds is None else folds
    repeats = 1 + max(fold.repeat for fold in photos.folds)
    shape = (len(photos.labels), repeats)
    logits = np.full((*shape, material.num_classes), np.nan, np.float32)
    hits, away = np.full(shape, np.nan), np.full(shape, np.nan)
    labels = torch.tensor(photos.labels)
    with torch.enable_grad():
        heads = train_heads(material, folds, options, seed)
    for fold, head in zip(folds, heads):
        out = list(fold.held_out)
        told = head(plain[out]).cpu()
        logits[out, fold.repeat] = told.numpy()
        hits[out, fold.repeat] = (told.argmax(dim=1) == labels[out]).numpy()
        if (fold.repeat, fold.number) in far:
            of, features = far[fold.repeat, fold.number]
            right = head(features).argmax(dim=1).cpu() == labels[of]
            away[of, fold.repeat] = right.numpy()
    return Judgement(logits, hits, away)


def judged_of(judgements: Sequence[Judgement], photos: Photos) -> tuple[Judged, Judged | None]:
    """All candidates together: on the given photos, and with their objects elsewhere."""
    where = np.full(judgements[0].hits.shape, -1)
    for fold in photos.folds:
        where[list(fold.held_out), fold.repeat] = fold.number
    labels = np.array(photos.labels)
    near = Judged(np.stack([each.hits for each in judgements], axis=2), labels, where)
    far = np.stack([each.far for each in judgements], axis=2)
    if not np.isfinite(far).any():
        return near, None
    return near, Judged(far, labels, np.where(np.isfinite(far[:, :, 0]), where, -1))


def held_out_logits(judgement: Judgement, photos: Photos) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [M, num_classes] and labels [M] of held-out photos, once per repeat."""
    there = ~np.isnan(judgement.logits).any(axis=2)
    labels = np.broadcast_to(np.array(photos.labels)[:, None], there.shape)
    return torch.from_numpy(judgement.logits[there]), torch.from_numpy(labels[there].copy())


def whole_fold(photos: Photos) -> Fold:
    """A fold with all photos and no held-out photo."""
    return Fold(-1, 0, tuple(range(len(photos.labels))), ())
