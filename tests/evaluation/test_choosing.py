"""Choosing a candidate, and what is promised of it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from semantic_aug.evaluation.choosing import (
    Judged,
    choose,
    class_mean,
    gain,
    promise,
    scores_of,
)

SCORES = arrays(np.float64, st.tuples(st.integers(2, 12), st.integers(1, 5)),
                elements=st.integers(0, 20).map(lambda n: n / 20))  # fmt: skip


def judged_of(hits, folds=5, classes=4) -> Judged:
    """N photos, every one held out in every repeat."""
    number, repeats = hits.shape[:2]
    where = np.stack([(np.arange(number) + 3 * r) % folds for r in range(repeats)], axis=1)
    return Judged(hits.astype(float), np.arange(number) // folds % classes, where)


def test_the_error_of_a_gain_by_hand():
    found = gain(np.array([0.5, 0.7, 0.9, np.nan]), np.array([0.4, 0.5, 0.6, 0.1]), 0.25)
    assert found.mean == pytest.approx(0.2) and found.folds == 3
    assert found.error == pytest.approx(math.sqrt((1 / 3 + 0.25) * 0.01))
    half = 4.30265273 * found.error  # Student's, two degrees of freedom
    assert found.interval == pytest.approx((0.2 - half, 0.2 + half))
    assert found.is_clear
    alone = gain(np.array([1.0]), np.array([0.0]), 0.25)
    assert not alone.is_clear and alone.interval == (-math.inf, math.inf)
    assert not gain(np.array([np.nan]), np.array([0.0]), 0.25).is_clear


def test_folds_that_overlap_count_for_less_than_independent_ones():
    """Of folds alike, twice as many do not halve the variance as independent ones would."""
    differences = np.tile([0.1, -0.1, 0.2, 0.0], 5)
    few, many = (gain(d, np.zeros(len(d)), 0.25) for d in (differences[:4], differences))
    assert many.error > 0.25**0.5 * np.std(differences) > 0.75 * few.error * 0.5


@given(SCORES, st.sampled_from([0.1, 0.25, 1.0]))
def test_another_than_the_simplest_has_a_clear_gain_and_the_best_none_over_it(scores, ratio):
    chosen = choose(scores, ratio)
    over = [gain(scores[:, n], scores[:, 0], ratio) for n in range(scores.shape[1])]
    clear = [n for n, each in enumerate(over) if each.is_clear]
    assert chosen in clear or (chosen == 0 and not clear)
    if chosen:
        best = max(clear, key=lambda n: over[n].mean)
        assert not gain(scores[:, best], scores[:, chosen], ratio).is_clear
        for simpler in clear[: clear.index(chosen)]:
            assert gain(scores[:, best], scores[:, simpler], ratio).is_clear


def test_a_larger_unclear_gain_does_not_hide_a_clear_gain():
    photos = np.full(8, 0.5)
    unclear, clear = photos + np.tile([0.5, -0.3], 4), photos + np.tile([0.08, 0.06], 4)
    assert choose(np.column_stack([photos, unclear, clear]), 0.25) == 2


def test_a_clear_gain_over_photos_alone_suffices_beside_randaugment():
    """RandAugment brings as much on average, and no clear gain: it does not keep others back."""
    photos = np.full(8, 0.5)
    randaugment = photos + np.tile([0.3, -0.2], 4)
    paste = photos + np.tile([0.07, 0.05], 4)
    scores = np.column_stack([photos, randaugment, paste])
    assert not gain(randaugment, photos, 0.25).is_clear
    assert not gain(paste, randaugment, 0.25).is_clear
    assert choose(scores, 0.25) == 2
    scores[:, 1] = photos + np.tile([0.04, 0.06], 4)  # with a clear gain it comes first
    assert choose(scores, 0.25) == 1


@given(SCORES)
def test_a_copy_of_the_simplest_is_never_taken(scores):
    scores = np.column_stack([scores[:, 0], scores[:, 0], scores[:, 1:]])
    assert choose(scores, 0.25) != 1


def test_a_candidate_that_was_not_judged_is_not_taken():
    scores = np.column_stack([np.full(6, 0.5), np.full(6, np.nan), np.linspace(0.7, 0.8, 6)])
    assert choose(scores, 0.25) == 2
    assert choose(scores[:, :2], 0.25) == 0


@given(arrays(np.float64, (7, 3), elements=st.sampled_from([0.0, 1.0, np.nan])),
       arrays(np.int64, 7, elements=st.integers(0, 2)),
       arrays(np.int64, (2, 7), elements=st.integers(0, 3)))  # fmt: skip
@settings(max_examples=60)
def test_class_means_are_those_of_photos_drawn_so_often(hits, labels, weights):
    found = class_mean(hits, labels, weights)
    for sample, row in zip(found, weights):
        drawn = np.repeat(np.arange(7), row)
        for candidate in range(3):
            means = []
            for label in range(3):
                own = [hits[n, candidate] for n in drawn if labels[n] == label]
                own = [each for each in own if not math.isnan(each)]
                means += [np.mean(own)] if own else []
            expected = np.mean(means) if means else math.nan
            assert sample[candidate] == pytest.approx(expected, nan_ok=True)


def test_scores_are_means_of_both_numbers_where_both_are_known():
    hits = np.zeros((8, 1, 2))
    hits[:, 0, 1] = 1
    here = judged_of(hits, folds=2, classes=2)
    far = np.full_like(hits, np.nan)
    far[here.folds == 0] = [1, 0]
    found = scores_of(here, Judged(far, here.labels, np.where(here.folds == 0, 0, -1)))
    assert here.names() == [(0, 0), (0, 1)]
    assert found.tolist() == [[0.5, 0.5], [0, 1]]


def hits_of(chances, photos=60, repeats=3, seed=0):
    """Photos are hard or easy, alike in all repeats: [N, R, C]."""
    stream = np.random.default_rng(seed)
    return (stream.random((photos, 1, 1)) < np.array(chances)) * np.ones((1, repeats, 1))


def test_what_is_promised_of_equal_candidates_is_not_the_luck_of_the_best():
    """Of candidates that only guess, the best looks better than chance; the promise does not."""
    best, promised = [], []
    for seed in range(16):
        stream = np.random.default_rng(seed)
        judged = judged_of(stream.random((40, 2, 8)) < 0.25)
        promised.append(promise(judged, range(40), 0.25, samples=40).accuracy)
        best.append(judged.accuracy().max())
    assert np.mean(best) > 0.29
    assert abs(np.mean(promised) - 0.25) < 0.03


def test_a_clear_winner_is_promised_what_it_reaches():
    judged = judged_of(hits_of([0.4, 0.8]))
    found = promise(judged, range(60), 0.25, samples=200)
    assert found.shares[1] > 0.9
    assert abs(found.accuracy - judged.accuracy()[1]) < 0.05
    assert found.low < judged.accuracy()[1] < found.high
    assert math.isnan(found.elsewhere)
    assert found == promise(judged, range(60), 0.25, samples=200)


def test_photos_of_one_unit_are_drawn_together():
    """Of copies of few photos, less is known than of as many photos."""
    few = hits_of([0.5], photos=12)
    judged = judged_of(np.repeat(few, 10, axis=0), classes=1)
    alone = promise(judged, range(120), 0.25)
    together = promise(judged, [n // 10 for n in range(120)], 0.25)
    assert together.high - together.low > 2 * (alone.high - alone.low)


@given(st.integers(2, 6), st.integers(1, 3))
@settings(max_examples=20)
def test_very_few_photos_have_a_promise_too(photos, candidates):
    hits = np.ones((photos, 2, candidates))
    found = promise(judged_of(hits, folds=2, classes=2), range(photos), 1.0, samples=20)
    assert (found.accuracy, found.low, found.high) == (1, 1, 1) and found.shares[0] == 1
