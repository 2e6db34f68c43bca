"""Augmentations made of others: a choice per image, a sequence, or a choice per class."""

import math
from collections.abc import Callable, Sequence

import torch

from semantic_aug import UserError, counted
from semantic_aug.generative_augmentation import Edit, GenerativeAugmentation, augmented


def check_probs(probs: Sequence[float] | None, count: int, compose: str) -> list[float]:
    """Probabilities of `count` augmentations; None gives the default.

    Raises:
        UserError: their number is not `count`; a number is negative or the sum is not 1 in
            `parallel` (default: equal); a number is outside [0, 1] in `sequential` (default: 1).
    """
    if probs is None:
        return [1 / count] * count if compose == "parallel" else [1.0] * count
    if len(probs) != count:
        raise UserError(f"--probs: got {counted(len(probs), 'number')} for {count} augmentations")
    if any(not 0 <= p <= 1 for p in probs):
        raise UserError(f"--probs: got {_listed(probs)}, expected numbers in [0, 1]")
    if compose == "parallel" and not math.isclose(sum(probs), 1, abs_tol=1e-6):
        raise UserError(f"--probs: {_listed(probs)} sum to {sum(probs):g}; parallel needs sum 1")
    return list(probs)


def details_of(augs: Sequence[GenerativeAugmentation]) -> tuple[str, ...]:
    """The record keys of images that any of these augmentations may edit."""
    return tuple(dict.fromkeys(key for aug in augs for key in aug.details))


def parts_of(aug: GenerativeAugmentation) -> list[GenerativeAugmentation]:
    """The augmentations in a composition and in the compositions within it; or `aug` alone."""
    if not isinstance(aug, ComposeParallel | ComposeSequential):
        return [aug]
    return [part for each in aug.augs for part in parts_of(each)]


def _listed(probs: Sequence[float]) -> str:
    return " ".join(f"{p:g}" for p in probs)


class ComposeParallel(GenerativeAugmentation):
    """Applies one of several augmentations to each image.

    The published stacking draws a strength for each image (arXiv 2302.07944, section 5).

    Args:
        augs: the augmentations.
        probs: probability of each, of sum 1 (default: equal).
    """

    def __init__(self, augs: Sequence[GenerativeAugmentation], probs=None):
        self.augs = list(augs)
        self.probs = check_probs(probs, len(self.augs), "parallel")
        self.needs_mask = any(aug.needs_mask for aug in self.augs)
        self.needs_object = any(aug.needs_object for aug in self.augs)
        self.details = details_of(self.augs)

    def bind(self, dataset):
        for aug in self.augs:
            aug.bind(dataset)

    def augment(self, images, labels, metadata, generators):
        weights = torch.tensor(self.probs, dtype=torch.float64)
        choices = [int(torch.multinomial(weights, 1, generator=g)) for g in generators]
        results = list(images)
        edits: list[list[Edit]] = [[] for _ in images]
        for number, aug in enumerate(self.augs):
            chosen = [i for i, choice in enumerate(choices) if choice == number]
            _apply(aug, chosen, results, edits, labels, metadata, generators)
        return results, edits


class ComposeSequential(GenerativeAugmentation):
    """Applies several augmentations one after the other.

    Args:
        augs: the augmentations, in order.
        probs: probability that each is applied, in [0, 1] (default: 1).
    """

    def __init__(self, augs: Sequence[GenerativeAugmentation], probs=None):
        self.augs = list(augs)
        self.probs = check_probs(probs, len(self.augs), "sequential")
        self.needs_mask = any(aug.needs_mask for aug in self.augs)
        self.needs_object = any(aug.needs_object for aug in self.augs)
        self.details = details_of(self.augs)

    def bind(self, dataset):
        for aug in self.augs:
            aug.bind(dataset)

    def augment(self, images, labels, metadata, generators):
        results = list(images)
        edits: list[list[Edit]] = [[] for _ in images]
        for aug, prob in zip(self.augs, self.probs):
            draws = [float(torch.rand((), generator=g, dtype=torch.float64)) for g in generators]
            chosen = [i for i, draw in enumerate(draws) if draw < prob]
            _apply(aug, chosen, results, edits, labels, metadata, generators)
        return results, edits


class PerClass(GenerativeAugmentation):
    """Applies an augmentation to a batch, class by class.

    Args:
        aug: the augmentation.
        prepare: called with a class's name before its images, if the images before had another
            class; it may replace the weights of `aug`.
    """

    def __init__(self, aug: GenerativeAugmentation, prepare: Callable[[str], None]):
        self.aug, self.prepare, self.prepared = aug, prepare, None
        self.needs_mask, self.needs_object = aug.needs_mask, aug.needs_object
        self.details = aug.details

    def bind(self, dataset):
        self.aug.bind(dataset)

    def augment(self, images, labels, metadata, generators):
        results = list(images)
        edits: list[list[Edit]] = [[] for _ in images]
        names = [meta["name"] for meta in metadata]
        for name in sorted(set(names), key=lambda name: (name != self.prepared, name)):
            if name != self.prepared:
                self.prepare(name)
                self.prepared = name
            chosen = [i for i, each in enumerate(names) if each == name]
            _apply(self.aug, chosen, results, edits, labels, metadata, generators)
        return results, edits


def _apply(aug, chosen, results, edits, labels, metadata, generators) -> None:
    """Augment the chosen images of a batch in place, and note their edits."""
    if not chosen:
        return
    batch = ([items[i] for i in chosen] for items in (results, labels, metadata, generators))
    images, applied = augmented(aug, *batch)
    for i, image, steps in zip(chosen, images, applied):
        results[i] = image
        edits[i] = edits[i] + steps
