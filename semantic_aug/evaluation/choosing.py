"""Which of several candidates to take, and how good it will be, from photos that were held out.

Candidates stand in the order of their simplicity. A score of a candidate in a fold is a number in
[0, 1], nan where it was not judged there.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from semantic_aug import stable_hash

SAMPLES = 1000  # of the bootstrap
LOW, HIGH = 2.5, 97.5  # percentiles of a 95 % interval


@dataclass(frozen=True)
class Gain:
    """Difference between the scores of two candidates, fold by fold.

    Attributes:
        mean: over the folds in which both were judged; nan where there is none.
        error: its standard error, corrected for folds that overlap; infinite in a single fold.
        folds: how many there are.
    """

    mean: float
    error: float
    folds: int

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95 %, by Student's distribution with a degree of freedom less than folds."""
        if not math.isfinite(self.error):
            return -math.inf, math.inf
        half = float(student.ppf(HIGH / 100, self.folds - 1)) * self.error
        return self.mean - half, self.mean + half

    @property
    def is_clear(self) -> bool:
        """Whether it exceeds one standard error."""
        return self.mean > self.error


def gain(scores: np.ndarray, other: np.ndarray, ratio: float) -> Gain:
    """The gain of a candidate over another, paired by fold and repeat.

    With J differences of mean m and variance s^2, the standard error is

        sqrt((1 / J + n_2 / n_1) s^2),

    where n_1 photos are learned from and n_2 are held out: s^2 / J alone would take training sets
    that overlap for independent ones (Nadeau and Bengio, Inference for the Generalization Error,
    Machine Learning 52, 2003, section 3).

    Args:
        scores, other: [J], nan where a candidate was not judged.
        ratio: n_2 / n_1.
    """
    differences = (scores - other)[np.isfinite(scores - other)]
    number = len(differences)
    mean = float(differences.mean()) if number else math.nan
    if number < 2:
        return Gain(mean, math.inf, number)
    return Gain(mean, math.sqrt((1 / number + ratio) * differences.var(ddof=1)), number)


def choose(scores: np.ndarray, ratio: float) -> int:
    """The number of the candidate to take: the one-standard-error rule, towards the simplest.

    It is the first one that the best does not beat by more than one standard error (Breiman et al.,
    Classification and Regression Trees, 1984, section 3.4.3), and that itself beats the simplest
    by more than that, or is the simplest.

    Args:
        scores: [J, C], the simplest candidate first; that one is judged in every fold.
        ratio: as `gain` takes it.
    """
    number = scores.shape[1]
    over = [gain(scores[:, n], scores[:, 0], ratio) for n in range(number)]
    means = [each.mean if each.folds else -math.inf for each in over]
    best = max(range(number), key=lambda n: (means[n], -n))
    for candidate in range(number):
        behind = gain(scores[:, best], scores[:, candidate], ratio)
        is_behind = candidate != best and behind.is_clear
        if not is_behind and (candidate == 0 or over[candidate].is_clear):
            return candidate
    return 0


@dataclass(frozen=True, eq=False)
class Judged:
    """Whether every candidate classified held-out photos correctly, in every repeat.

    Attributes:
        hits: [N, R, C] in {0, 1}; nan where the photo was not held out, or not judged.
        labels: [N] int.
        folds: [N, R] int, in which fold of a repeat a photo was held out; -1 where it was not.
    """

    hits: np.ndarray
    labels: np.ndarray
    folds: np.ndarray

    def scores(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Mean accuracy over classes in each fold: [B, J, C] for B samples, or [J, C].

        Args:
            weights: [B, N], how often a photo is in each sample; default once each.
        """
        found = [
            self._accuracy(self.folds[:, repeat] == fold, repeat, weights)
            for repeat, fold in self.names()
        ]
        return np.stack(found, axis=-2)

    def names(self) -> list[tuple[int, int]]:
        """(repeat, fold) of each fold, in order."""
        repeats = range(self.folds.shape[1])
        return [(r, int(f)) for r in repeats for f in np.unique(self.folds[:, r]) if f >= 0]

    def accuracy(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Mean accuracy over classes of all photos that were held out: [B, C], or [C]."""
        return class_mean(_mean_over_repeats(self.hits), self.labels, weights)

    def _accuracy(self, rows: np.ndarray, repeat: int, weights: np.ndarray | None) -> np.ndarray:
        chosen = None if weights is None else weights[:, rows]
        return class_mean(self.hits[rows, repeat], self.labels[rows], chosen)


def _mean_over_repeats(hits: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a photo that was never held out: nan
        return np.nanmean(hits, axis=1)


def class_mean(
    hits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Mean over classes of the mean of `hits` [N, C] in a class: [B, C] for weights [B, N], or [C].

    Photos that are nan count for nothing, nor does a class without another one.
    """
    known = np.isfinite(hits)
    values = np.where(known, hits, 0.0)
    rows = np.ones((1, len(labels))) if weights is None else weights
    means = []
    with np.errstate(invalid="ignore"):
        for label in np.unique(labels):
            own = labels == label
            means.append((rows[:, own] @ values[own]) / (rows[:, own] @ known[own]))
        if not means:
            found = np.full((len(rows), hits.shape[1]), np.nan)
        else:
            stacked = np.stack(means)
            there = np.isfinite(stacked)
            found = np.where(there, stacked, 0).sum(axis=0) / there.sum(axis=0)
    return found[0] if weights is None else found


def scores_of(
    judged: Judged, elsewhere: Judged | None = None, weights: np.ndarray | None = None
) -> np.ndarray:
    """What candidates are chosen by: accuracy in each fold or, where photos of the fold are judged
    with their objects elsewhere too, the mean of both numbers. Shapes as `Judged.scores`."""
    found = judged.scores(weights)
    if elsewhere is None:
        return found
    number = {name: n for n, name in enumerate(judged.names())}
    both = elsewhere.scores(weights)
    for n, name in enumerate(elsewhere.names()):
        here, there = found[..., number[name], :], both[..., n, :]
        found[..., number[name], :] = np.where(np.isfinite(there), (here + there) / 2, here)
    return found


@dataclass(frozen=True)
class Promise:
    """How good what was chosen will be on new photos like those that are there.

    Attributes:
        accuracy: expected, mean over classes.
        low, high: 95 % interval.
        elsewhere: the same on photos whose objects stand on places of other classes; nan without.
        shares: how often each candidate is chosen in a sample, by its number.
    """

    accuracy: float
    low: float
    high: float
    elsewhere: float
    shares: tuple[float, ...]


def promise(
    judged: Judged,
    units: Sequence[int],
    ratio: float,
    elsewhere: Judged | None = None,
    seed: int = 0,
    samples: int = SAMPLES,
) -> Promise:
    """The accuracy to expect of what `choose` chooses, with the choice repeated in every sample.

    The best of several candidates looks better than it is. So photos are drawn with replacement,
    a candidate is chosen by the photos drawn, and judged by those that were not; the mean over the
    samples is the estimate, its percentiles are the interval (BBC-CV: Tsamardinos, Greasidou and
    Borboudakis, Bootstrapping the out-of-sample predictions for efficient and accurate
    cross-validation, Machine Learning 107, 2018, algorithm 5; section 3.3 for the interval). About
    a third of the photos judge in a sample, so that the interval is rather too wide.

    Args:
        units: of each of the N photos, what it is drawn together with.
        elsewhere: the same N photos.
    """
    held = np.flatnonzero((judged.folds >= 0).any(axis=1))
    names, of = np.unique(np.asarray(units)[held], return_inverse=True)
    stream = np.random.default_rng(stable_hash("bootstrap", seed))
    drawn = stream.multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    weights = np.zeros((samples, len(judged.labels)))
    weights[:, held] = drawn[:, of]
    scores = scores_of(judged, elsewhere, weights)
    whole = [n for n in range(samples) if np.isfinite(scores[n, :, 0]).any()]
    chosen = np.zeros(samples, dtype=int)
    for n in whole:
        chosen[n] = choose(scores[n], ratio)
    out = np.zeros_like(weights)
    out[:, held] = drawn[:, of] == 0
    every = np.arange(samples)
    accuracy = judged.accuracy(out)[every, chosen]
    accuracy = accuracy[np.isfinite(accuracy)]
    if not len(accuracy):  # two photos: whatever is drawn, none is left
        accuracy = judged.accuracy()[[0]]
    far = math.nan
    if elsewhere is not None:
        there = elsewhere.accuracy(out)[every, chosen]
        far = float(there[np.isfinite(there)].mean()) if np.isfinite(there).any() else math.nan
    low, high = np.percentile(accuracy, [LOW, HIGH])
    shares = np.bincount(chosen, minlength=judged.hits.shape[2]) / samples
    return Promise(float(accuracy.mean()), float(low), float(high), far, tuple(shares.tolist()))
