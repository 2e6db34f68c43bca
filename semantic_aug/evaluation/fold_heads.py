"""Heads of all folds of a candidate at once, on features that are kept.

With a frozen backbone the views of all photos and variants pass it once; a head of a fold is then
some hundred steps on rows of a tensor. All folds take each step together, which is several times
quicker than one fold after the other.
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
    """Synthetic variants of photos, by their features.

    Attributes:
        features: [M * W, F], W views of each side by side.
        photo: [M], the number of the photo that each is a variant of.
        seen: [M, N] bool, which of the N photos had a part in it: its own, others that it shows
            something of, and all that the words were learned from that it was made by.
        turn: [M], which of a photo's variants it is; with several sets they are taken in turn.
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
        """Numbers of those in which trained photos alone had a part, photo by photo.

        Args:
            trained: [N] bool.
        """
        chosen = (~(self.seen & ~trained).any(dim=1)).nonzero().flatten()
        for key in (self.turn, self.photo):
            chosen = chosen[key[chosen].argsort(stable=True)]
        return chosen


def together(sets: Sequence[Variants]) -> Variants:
    """Several sets of variants as one: of a photo the first of each, the second of each, and so on.

    All have equally many views.
    """
    return Variants(*(torch.cat([getattr(each, name) for each in sets]) for name in _PARTS))


_PARTS = ("features", "photo", "seen", "turn")


@dataclass(frozen=True, eq=False)
class Material:
    """What a candidate learns from.

    Attributes:
        features: [N * V, F], V views of each photo side by side.
        labels: [N] int64, on the CPU.
        variants: of the photos; None without.
        num_classes: of the head.
    """

    features: torch.Tensor
    labels: torch.Tensor
    num_classes: int
    variants: Variants | None = None

    def learned_from(self, fold: Fold) -> "Learned":
        """The pictures of a fold and their rows."""
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
        """[R, F], all views of photos and then of variants."""
        if self.variants is None:
            return self.features
        return torch.cat([self.features, self.variants.features])


@dataclass(frozen=True, eq=False)
class Learned:
    """The pictures of a fold: photos, then variants; as `Examples` has them, with their rows.

    Attributes:
        first_row, num_rows: [N + M], where the views of a picture lie.
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
    """A head for each fold, by `options.iterations_per_epoch` steps of Adam.

    What a fold draws comes from its own stream, which candidates share: the photo that a draw
    stands for is the same in all of them. Epochs are one.
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
