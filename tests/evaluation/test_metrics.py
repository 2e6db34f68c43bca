"""Scores of a split, by numbers worked out by hand."""

import math

import pytest
import torch

from semantic_aug.evaluation.metrics import calibration_error, class_scores, evaluation, macro_f1


def test_accuracy_is_the_mean_over_classes():
    labels = torch.tensor([0, 0, 0, 2])
    hits = torch.tensor([True, True, False, True])
    scores = class_scores(torch.tensor([1.0, 2.0, 3.0, 5.0]), hits, labels, 4)
    assert scores.accuracy[[0, 2]].tolist() == pytest.approx([2 / 3, 1])
    assert scores.accuracy.isnan().tolist() == [False, True, False, True]
    assert scores.mean_accuracy == pytest.approx(5 / 6)
    assert scores.mean_loss == pytest.approx((2 + 5) / 2)


def test_all_scores_of_a_split():
    # Six classes, the last never predicted; the rank of the true class is 1, 1, 2, 5, 1.
    logits = torch.tensor([
        [9.0, 1, 2, 3, 4, -math.inf],
        [9.0, 1, 2, 3, 4, -math.inf],
        [8.0, 9, 2, 3, 4, -math.inf],
        [9.0, 1, 2, 3, 4, -math.inf],
        [0.0, 1, 2, 3, 9, -math.inf],
    ])  # fmt: skip
    labels = torch.tensor([0, 0, 0, 1, 4])
    scores = evaluation(logits, labels)
    assert scores.top1 == pytest.approx(3 / 5)
    assert scores.top5 == 1
    assert scores.mean_accuracy == pytest.approx((2 / 3 + 0 + 1) / 3)
    expected = torch.zeros((6, 6), dtype=torch.int64)
    expected[0, 0], expected[0, 1], expected[1, 0], expected[4, 4] = 2, 1, 1, 1
    assert torch.equal(scores.confusion, expected)
    # F1: class 0 has precision 2/3 and recall 2/3, class 1 nothing right, class 4 all.
    assert scores.macro_f1 == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert scores.accuracy.isnan().tolist() == [False, False, True, True, False, True]


def test_a_class_of_rank_six_is_not_among_the_best_five():
    logits = torch.arange(7.0)[None]
    found = [evaluation(logits, torch.tensor([label])).top5 for label in range(7)]
    assert found == [0, 0, 1, 1, 1, 1, 1]


def test_equal_logits_are_broken_by_the_order_of_classes():
    scores = evaluation(torch.zeros(3, 7), torch.tensor([0, 4, 5]))
    assert scores.top1 == pytest.approx(1 / 3)
    assert scores.top5 == pytest.approx(2 / 3)


def test_calibration_error_is_the_weighted_gap_of_its_bins():
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.3, 1.0])
    hits = torch.tensor([True, True, True, False, False, True])
    # Bins: 0.9 four times at accuracy 0.75, 0.3 once at 0, and 1.0 once, in the last bin, at 1.
    assert calibration_error(confidence, hits) == pytest.approx((4 * 0.15 + 0.3 + 0) / 6)
    perfect = calibration_error(torch.tensor([0.5, 0.5]), torch.tensor([True, False]))
    assert perfect == pytest.approx(0)


def test_macro_f1_is_over_classes_shown_or_predicted():
    # As sklearn.metrics.f1_score([0, 0, 0, 0], [0, 0, 0, 1], average="macro") has it.
    assert macro_f1(torch.tensor([[3, 1], [0, 0]])) == pytest.approx(2 * 3 / (4 + 3) / 2)
    confusion = torch.tensor([[3, 0, 0], [0, 0, 0], [1, 0, 1]])  # class 1: neither
    assert macro_f1(confusion) == pytest.approx((2 * 3 / (3 + 4) + 2 * 1 / (2 + 1)) / 2)


def test_logits_that_are_no_numbers_do_not_crash():
    assert math.isnan(evaluation(torch.full((2, 3), math.nan), torch.tensor([0, 1])).mean_loss)
