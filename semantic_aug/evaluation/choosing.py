"""Which of several candidates to choose, and its expected accuracy, from held-out photos.

Candidates are in the order of their simplicity. A candidate's score in a fold is a number in
[0, 1], or nan if the candidate was not evaluated in this fold.
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
        mean: over the folds in which both were evaluated; nan without such folds.
        error: standard error of the mean, corrected for overlapping folds; infinite for a single
            fold.
        folds: number of folds.
    """

    mean: float
    error: float
    folds: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, by Student's distribution with `folds - 1` degrees of freedom."""
        if not math.isfinite(self.error):
            return -math.inf, math.inf
        half = float(student.ppf(HIGH / 100, self.folds - 1)) * self.error
        return self.mean - half, self.mean + half

    @property
    def is_clear(self) -> bool:
        """Whether the mean exceeds its standard error."""
        return self.mean > self.error


def gain(scores: np.ndarray, other: np.ndarray, ratio: float) -> Gain:
    """The gain of a candidate over another, paired by fold and repeat.

    With J differences of mean m and variance s^2, the standard error is

        sqrt((1 / J + n_2 / n_1) s^2),

    where n_1 photos are trained on and n_2 are held out. s^2 / J alone would assume that training
    sets are independent, but they overlap (Nadeau and Bengio, Inference for the Generalization
    Error, Machine Learning 52, 2003, section 3).

    Args:
        scores, other: [J], nan if a candidate was not evaluated.
        ratio: n_2 / n_1.
    """
    differences = (scores - other)[np.isfinite(scores - other)]
    number = len(differences)
    mean = float(differences.mean()) if number else math.nan
    if number < 2:
        return Gain(mean, math.inf, number)
    return Gain(mean, math.sqrt((1 / number + ratio) * differences.var(ddof=1)), number)


def choose(scores: np.ndarray, ratio: float) -> int:
    """The number of the chosen candidate, by the one-standard-error rule.

    Of the candidates that beat the simplest candidate by more than a standard error, the rule takes
    the simplest candidate that the best of them does not beat by more than a standard error
    (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3). If no candidate
    beats the simplest candidate, the rule takes the simplest.

    Args:
        scores: [J, C], the simplest candidate first, which is evaluated in every fold.
        ratio: as `gain` takes it.
    """
    number = scores.shape[1]
    over = [gain(scores[:, n], scores[:, 0], ratio) for n in range(number)]
    better = [n for n in range(number) if over[n].is_clear]
    best = max(better, key=lambda n: (over[n].mean, -n), default=0)
    for candidate in better:
        if not gain(scores[:, best], scores[:, candidate], ratio).is_clear:
            return candidate
    return 0


@dataclass(frozen=True, eq=False)
class Judged:
    """Whether every candidate classified held-out photos correctly, in every repeat.

    Attributes:
        hits: [N, R, C] in {0, 1}; nan if the photo was not held out, or not evaluated.
        labels: [N] int.
        folds: [N, R] int, the fold that held a photo out in each repeat; -1 for none.
    """

    hits: np.ndarray
    labels: np.ndarray
    folds: np.ndarray

    def scores(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Mean accuracy over classes in each fold: [B, J, C] for B samples, or [J, C].

        Args:
            weights: [B, N], how often each sample contains a photo; default once.
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
        """Mean accuracy over classes of all held-out photos: [B, C], or [C]."""
        return class_mean(_mean_over_repeats(self.hits), self.labels, weights)

    def _accuracy(self, rows: np.ndarray, repeat: int, weights: np.ndarray | None) -> np.ndarray:
        chosen = None if weights is None else weights[:, rows]
        return class_mean(self.hits[rows, repeat], self.labels[rows], chosen)


def _mean_over_repeats(hits: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a photo that was never held out gives nan
        return np.nanmean(hits, axis=1)


def class_mean(
    hits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Mean over classes of the mean of `hits` [N, C] in a class: [B, C] for weights [B, N], or [C].

    Photos with nan are ignored, and so are classes that have only such photos.
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
    """The scores for choosing a candidate: accuracy in each fold, with shapes as `Judged.scores`.

    If a fold is also evaluated with objects elsewhere, its score is the mean of both accuracies.
    """
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
    """The expected accuracy of the chosen candidate on new photos from the same distribution.

    Attributes:
        accuracy: expected, mean over classes.
        low, high: 95 % interval.
        elsewhere: expected on photos with objects on other classes' backgrounds; nan if unknown.
        shares: the share of samples that choose each candidate, by its number.
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
    """The expected accuracy of the candidate that `choose` chooses.

    The score of the best of several candidates is biased upwards. So each bootstrap sample chooses
    a candidate on the drawn photos, and evaluates the candidate on the other photos. The mean over
    samples is the estimate, and percentiles give the interval (BBC-CV: Tsamardinos, Greasidou and
    Borboudakis, Bootstrapping the out-of-sample predictions for efficient and accurate
    cross-validation, Machine Learning 107, 2018, algorithm 5; section 3.3 for the interval). Each
    sample evaluates on about a third of the photos, so the interval tends to be too wide.

    Args:
        units: the unit of each of the N photos; photos of a unit are drawn together.
        elsewhere: for the same N photos.
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
    if not len(accuracy):  # no sample leaves photos to evaluate on
        accuracy = judged.accuracy()[[0]]
    far = math.nan
    if elsewhere is not None:
        there = elsewhere.accuracy(out)[every, chosen]
        far = float(there[np.isfinite(there)].mean()) if np.isfinite(there).any() else math.nan
    low, high = np.percentile(accuracy, [LOW, HIGH])
    shares = np.bincount(chosen, minlength=judged.hits.shape[2]) / samples
    return Promise(float(accuracy.mean()), float(low), float(high), far, tuple(shares.tolist()))
