"""Folds of labelled photos: photos to train a classifier on, and photos to evaluate it on.

Near-duplicates and photos of the same group never lie on both sides of a fold.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median_low

from semantic_aug import stable_hash

FOLDS = 5  # at most
FEWEST_GROUPS = 3  # in a class; with fewer, a class may lack photos to train or to evaluate on
JUDGED = 400  # held-out photos, over all repeats
REPEATS = 2, 10  # minimum and maximum


@dataclass(frozen=True)
class Fold:
    """A fold of a repeat.

    Attributes:
        trained: ascending indices of the photos to train on.
        held_out: ascending indices of the photos to evaluate on; their classes are all trained.
    """

    repeat: int
    number: int
    trained: tuple[int, ...]
    held_out: tuple[int, ...]


def joined(number: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """For each number below `number`, the smallest number that a chain of pairs connects to it."""
    of = list(range(number))

    def root(thing: int) -> int:
        while of[thing] != thing:
            of[thing] = of[of[thing]]
            thing = of[thing]
        return thing

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        of[high] = low
    return [root(thing) for thing in range(number)]


def units_of(
    labels: Sequence[int], groups: Sequence[str], pairs: Iterable[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """The units that stay together in every fold, and the classes with too few groups.

    Args:
        labels: of the N photos.
        groups: of the photos; empty for a photo without a group.
        pairs: of near-duplicates.

    Returns:
        The unit of each photo, named by its smallest index; and the labels of classes that have
        groups, but fewer than three. In such classes, only near-duplicates stay together.
    """
    own: dict[int, set] = defaultdict(set)
    for idx, (label, group) in enumerate(zip(labels, groups)):
        own[label].add(group or idx)
    few = {label for label, found in own.items() if len(found) < FEWEST_GROUPS}
    first: dict[str, int] = {}
    together = list(pairs)
    for idx, (label, group) in enumerate(zip(labels, groups)):
        if group and label not in few:
            together.append((first.setdefault(group, idx), idx))
    said = {label for label, group in zip(labels, groups) if group and label in few}
    return joined(len(labels), together), sorted(said)


def make_folds(
    labels: Sequence[int],
    units: Sequence[int],
    sources: Sequence[str],
    seed: int = 0,
    folds: int | None = None,
    repeats: int | None = None,
) -> list[Fold]:
    """Repeated stratified folds: each repeat splits the units of all photos into folds.

    The units are in an order by hashes of their photos, larger units first. Each unit goes to the
    fold with the fewest photos of its classes. The only unit of a class is never held out. The
    folds do not depend on the order of the photos.

    Args:
        labels: of the N photos.
        units: of the photos; a unit stays together.
        sources: unique names of the photos.
        folds: per repeat; default as many as most classes have units, 2 to 5.
        repeats: default as many as `JUDGED` held-out photos need, 2 to 10.

    Returns:
        The folds that hold out a photo; none if no class has two units.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for idx, unit in enumerate(units):
        members[unit].append(idx)
    number = Counter(label for own in members.values() for label in {labels[i] for i in own})
    movable = {
        min(sources[idx] for idx in own): own
        for own in members.values()
        if all(number[labels[idx]] > 1 for idx in own)
    }
    if not movable:
        return []
    several = [count for count in number.values() if count > 1]
    folds = folds or min(FOLDS, max(2, median_low(several)))
    held = sum(map(len, movable.values()))
    repeats = repeats or min(REPEATS[1], max(REPEATS[0], -(-JUDGED // held)))
    found = []
    for repeat in range(repeats):
        where = _dealt(movable, labels, folds, functools.partial(stable_hash, "fold", seed, repeat))
        for fold in range(folds):
            out = {idx for name, own in movable.items() if where[name] == fold for idx in own}
            found += _fold(repeat, fold, labels, set(range(len(labels))) - out, out)
    return found


def folds_of_val(
    labels: Sequence[int],
    units: Sequence[int],
    sources: Sequence[str],
    val: Iterable[int],
    seed: int = 0,
    folds: int = FOLDS,
) -> list[Fold]:
    """Folds that hold out parts of the split `val` and train on all photos outside of `val`.

    Photos that share a unit with a training photo are not evaluated.

    Args:
        labels, units, sources: see `make_folds`.
        val: the indices of the photos of `val`.
        folds: the number of parts.
    """
    out = set(val)
    trained = set(range(len(labels))) - out
    known = {units[idx] for idx in trained}
    members: dict[str, list[int]] = defaultdict(list)
    for idx in sorted(out, key=lambda idx: sources[idx]):
        if units[idx] not in known:
            members[min(sources[n] for n in out if units[n] == units[idx])].append(idx)
    where = _dealt(members, labels, folds, functools.partial(stable_hash, "part of val", seed))
    found = []
    for fold in range(folds):
        judging = {idx for name, own in members.items() if where[name] == fold for idx in own}
        found += _fold(0, fold, labels, trained, judging)
    return found


def _fold(repeat: int, number: int, labels, trained: set[int], out: set[int]) -> list[Fold]:
    """A fold, if it holds out a photo of a trained class."""
    known = {labels[idx] for idx in trained}
    judging = tuple(sorted(idx for idx in out if labels[idx] in known))
    return [Fold(repeat, number, tuple(sorted(trained)), judging)] if judging else []


def _dealt(members: dict[str, list[int]], labels: Sequence[int], folds: int, key) -> dict[str, int]:
    """The fold of each unit."""
    load = [Counter[int]() for _ in range(folds)]
    where = {}
    for name in sorted(members, key=lambda name: (-len(members[name]), key(name), name)):
        own = Counter(labels[idx] for idx in members[name])
        where[name] = min(
            range(folds),
            key=lambda n: (
                sum(load[n][label] * count for label, count in own.items()),
                load[n].total(),
                key(name, n),
            ),
        )
        load[where[name]] += own
    return where
