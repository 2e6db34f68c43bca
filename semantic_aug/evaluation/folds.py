"""Folds of labelled photos: which ones a classifier learns from, and which ones judge it.

Photos that are nearly equal, or that share a group, never lie on both sides of a fold.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median_low

from semantic_aug import stable_hash

FOLDS = 5  # at most
FEWEST_GROUPS = 3  # in a class; with fewer, nothing is left of it to learn from or to judge by
JUDGED = 400  # held-out photos, over all repeats
REPEATS = 2, 10  # fewest and most


@dataclass(frozen=True)
class Fold:
    """One fold of one repeat.

    Attributes:
        trained: indices of the photos that are learned from, rising.
        held_out: indices of the photos that judge, rising; each is of a class that is trained.
    """

    repeat: int
    number: int
    trained: tuple[int, ...]
    held_out: tuple[int, ...]


def joined(number: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """For each of some things the smallest one that a chain of pairs leads to."""
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
    """What stays together in every fold, and the classes whose groups are too few for that.

    Args:
        labels: of the N photos.
        groups: their groups; empty for a photo that is a group of its own.
        pairs: of photos that are nearly equal.

    Returns:
        For each photo its unit, the smallest index in it; and the labels of classes with groups,
        but fewer than three: only what is nearly equal stays together in these.
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
    """Stratified folds, repeated: each repeat cuts the units of all photos into folds.

    The units come in an order by hashes of their photos, the larger ones first, and each goes where
    the fewest photos of its classes are. A unit is never held out if a class has no other one. The
    photos decide, not their order.

    Args:
        labels: of the N photos.
        units: of each photo, what it stays together with.
        sources: of each photo, a name of its own.
        folds: of a repeat; default as many as most classes have units, 2 to 5.
        repeats: default as many as `JUDGED` held-out photos need, 2 to 10.

    Returns:
        The folds that hold out at least one photo; none where no class has two units.
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
    """The photos of a split `val` in parts, each of which judges what all others have taught.

    What hangs together with a photo that is learned from judges nothing.
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
    """A fold, if it holds out a photo of a class that is trained."""
    known = {labels[idx] for idx in trained}
    judging = tuple(sorted(idx for idx in out if labels[idx] in known))
    return [Fold(repeat, number, tuple(sorted(trained)), judging)] if judging else []


def _dealt(members: dict[str, list[int]], labels: Sequence[int], folds: int, key) -> dict[str, int]:
    """To which fold each of some units goes."""
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
