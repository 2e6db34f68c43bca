"""Training the heads of all folds of a candidate together, on cached features.

A frozen backbone processes all views of photos and variants once. The head of a fold then needs
only some hundred steps on rows of a tensor. All folds take each step together, which is several
times faster than training fold after fold.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from semantic_aug import stable_hash
from semantic_aug.evaluation.folds import Fold
from semantic_aug.evaluation.heads import Head, make_head
from semantic_aug.evaluation.sampling import draw_epoch
from semantic_aug.evaluation.training import one_thread
from semantic_aug.settings.classification import TrainingOptions


@dataclass(frozen=True, eq=False)
class Variants:
    """The features of M synthetic variants of N photos.

    Attributes:
        features: [M * W, F] for W views of each variant; the views of a variant are adjacent.
        photo: [M] int64, the number of each variant's own photo.
        seen: [M, N] bool, which photos had a part in a variant: its own photo, other photos of
            which it shows a part, and all photos from which its words were learned.
        turn: [M] int64, the number of a variant among the variants of its photo in the same set.
    """

    features: torch.Tensor
    photo: torch.Tensor
    seen: torch.Tensor
    turn: torch.Tensor

    def __len__(self) -> int:
        return len(self.photo)

    @property
    def views(self) -> int:
        return len(self.features) // max(1, len(self))

    def allowed(self, trained: torch.Tensor) -> torch.Tensor:
        """The numbers of the variants in which only training photos had a part, photo by photo.

        The variants of a photo are in the order of their turns.

        Args:
            trained: [N] bool, the training photos of a fold.
        """
        chosen = (~(self.seen & ~trained).any(dim=1)).nonzero().flatten()
        for key in (self.turn, self.photo):
            chosen = chosen[key[chosen].argsort(stable=True)]
        return chosen


def together(sets: Sequence[Variants]) -> Variants:
    """Several sets of variants as a single set.

    `allowed` gives each photo's first variants of all sets, then its second variants, and so on.
    All sets must have the same number of views.
    """
    return Variants(*(torch.cat([getattr(each, name) for each in sets]) for name in _PARTS))


_PARTS = ("features", "photo", "seen", "turn")


@dataclass(frozen=True, eq=False)
class Material:
    """The photos and variants on which the heads of a candidate are trained.

    Attributes:
        features: [N * V, F] for V views of each photo; the views of a photo are adjacent.
        labels: [N] int64, on the CPU.
        num_classes: number of logits of a head.
        variants: of the photos; None for a candidate without synthetic images.
    """

    features: torch.Tensor
    labels: torch.Tensor
    num_classes: int
    variants: Variants | None = None

    def learned_from(self, fold: Fold) -> "Learned":
        """The pictures on which the head of a fold is trained, and their rows."""
        photos = torch.tensor(fold.trained)
        views = len(self.features) // len(self.labels)
        trained = torch.zeros(len(self.labels), dtype=torch.bool)
        trained[photos] = True
        first, number = photos * views, torch.full_like(photos, views)
        labels, count = self.labels[photos], torch.zeros_like(photos)
        if self.variants is not None:
            chosen = self.variants.allowed(trained)
            of = self.variants.photo[chosen]
            each = self.variants.views
            first = torch.cat([first, len(self.features) + chosen * each])
            number = torch.cat([number, torch.full_like(chosen, each)])
            labels = torch.cat([labels, self.labels[of]])
            count = torch.bincount(of, minlength=len(self.labels))[photos]
        start = len(photos) + count.cumsum(0) - count
        return Learned(labels, start, count, first, number)

    def rows(self) -> torch.Tensor:
        """The features of all views, [R, F]: first of the photos, then of the variants."""
        if self.variants is None:
            return self.features
        return torch.cat([self.features, self.variants.features])


@dataclass(frozen=True, eq=False)
class Learned:
    """The pictures on which the head of a fold is trained: N photos, then M variants.

    `labels`, `first_variant` and `num_variants` are as in `Examples`.

    Attributes:
        first_row, num_rows: [N + M] int64, the rows of a picture's views in `Material.rows`.
    """

    labels: torch.Tensor
    first_variant: torch.Tensor
    num_variants: torch.Tensor
    first_row: torch.Tensor
    num_rows: torch.Tensor

    @property
    def num_photos(self) -> int:
        return len(self.num_variants)


def train_heads(
    material: Material, folds: Sequence[Fold], options: TrainingOptions, seed: int
) -> list[Head]:
    """Train a head for each fold, by `options.iterations_per_epoch` steps of Adam: a single epoch.

    Each fold has its own random stream, which is the same for all candidates. So all candidates
    draw the same photos.
    """
    rows = material.rows()
    device, width = rows.device, rows.shape[1]
    heads, drawn, targets = [], [], []
    for fold in folds:
        stream = torch.Generator().manual_seed(
            stable_hash("heads", seed, fold.repeat, fold.number, len(fold.held_out))
        )
        learned = material.learned_from(fold)
        trained = torch.zeros(material.num_classes, dtype=torch.bool)
        trained[learned.labels] = True
        heads.append(make_head(width, trained, device, stream))
        draws = draw_epoch(learned, options, stream)
        fraction = torch.rand(draws.shape, generator=stream, dtype=torch.float64)
        view = (fraction * learned.num_rows[draws]).long()
        drawn.append(learned.first_row[draws] + view)
        targets.append(learned.labels[draws])
    weight = torch.stack([head.linear.weight.detach().T for head in heads]).requires_grad_()
    bias = torch.stack([head.linear.bias.detach()[None] for head in heads]).requires_grad_()
    unknown = ~torch.stack([head.trained for head in heads])[:, None]
    optimizer = torch.optim.Adam([weight, bias], lr=options.learning_rate)
    steps = zip(torch.stack(drawn, 1).to(device), torch.stack(targets, 1).to(device))
    with one_thread():
        for chosen, target in steps:
            logits = torch.baddbmm(bias, rows[chosen], weight).masked_fill(unknown, -math.inf)
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), target.flatten(), reduction="sum"
            )
            optimizer.zero_grad()
            (loss / options.batch_size).backward()
            optimizer.step()
    with torch.no_grad():
        for head, own, base in zip(heads, weight, bias):
            head.linear.weight.copy_(own.T)
            head.linear.bias.copy_(base[0])
    return heads
