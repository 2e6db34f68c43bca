"""Photos whose labels are random: nothing that is judged by held-out photos is above chance."""

from types import SimpleNamespace

import numpy as np
import torch

from semantic_aug.evaluation.choosing import promise, scores_of
from semantic_aug.evaluation.fold_heads import Material, Variants
from semantic_aug.evaluation.folds import make_folds, units_of
from semantic_aug.settings.fitting import Fitting
from semantic_aug.stages.fitting_scores import judge, judged_of, options_of

CLASSES, PAIRS, WIDTH = 4, 24, 12
OPTIONS = options_of(Fitting(iterations=30, learning_rate=0.05))


def photos_of(seed: int, know_copies: bool) -> tuple[SimpleNamespace, torch.Tensor]:
    """Photos of which each has a copy, with features and labels that have nothing to do with one
    another, and their folds."""
    stream = torch.Generator().manual_seed(seed)
    features = torch.randn(PAIRS, WIDTH, generator=stream).repeat_interleave(2, dim=0)
    features = features + 0.05 * torch.randn(features.shape, generator=stream)
    own = torch.arange(PAIRS)[torch.randperm(PAIRS, generator=stream)] % CLASSES
    labels = own.repeat_interleave(2).tolist()
    pairs = [(2 * n, 2 * n + 1) for n in range(PAIRS)] if know_copies else []
    units, _ = units_of(labels, [""] * len(labels), pairs)
    folds = make_folds(labels, units, [f"{n:02}" for n in range(len(labels))], seed, repeats=2)
    return SimpleNamespace(labels=labels, units=units, folds=folds), features


def found(seed: int, know_copies: bool = True):
    """Scores in each fold of four candidates that learn from such photos, and the promise."""
    photos, features = photos_of(seed, know_copies)
    labels, number = torch.tensor(photos.labels), len(photos.labels)
    photo = torch.arange(number)
    judgements = []
    for candidate in range(4):
        shows = photo.roll(7 * candidate) if candidate % 2 else photo
        mixed = features + features[shows] * (shows != photo)[:, None]  # a part of another photo
        seen = (photo[:, None] == photo) | (shows[:, None] == photo)
        variants = Variants(mixed, photo, seen, torch.zeros(number, dtype=torch.int64))
        material = Material(features, labels, CLASSES, variants if candidate else None)
        judgements.append(judge(material, features, {}, photos, OPTIONS, seed))
    near, far = judged_of(judgements, photos)
    ratio = np.mean([len(fold.held_out) / len(fold.trained) for fold in photos.folds])
    return scores_of(near, far), ratio, promise(near, photos.units, ratio, samples=100, seed=seed)


def test_no_candidate_and_no_promise_is_above_chance():
    for seed in range(2):
        scores, ratio, promised = found(seed)
        errors = np.sqrt((1 / len(scores) + ratio) * scores.var(axis=0, ddof=1))
        assert (scores.mean(axis=0) < 1 / CLASSES + 3 * errors).all()
        assert promised.accuracy < 1 / CLASSES + 3 * errors.max()
        assert promised.low < 1 / CLASSES < promised.high


def test_copies_on_both_sides_would_show():
    """What the test above would see, if copies were not kept together."""
    scores, ratio, promised = found(0, know_copies=False)
    error = np.sqrt((1 / len(scores) + ratio) * scores[:, 0].var(ddof=1))
    assert scores[:, 0].mean() > 1 / CLASSES + 3 * error
    assert promised.low > 1 / CLASSES
