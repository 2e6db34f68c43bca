"""Which images an epoch shows."""

from collections import Counter

import pytest
import torch

from semantic_aug.evaluation.sampling import Examples, balanced_images, draw_epoch
from semantic_aug.evaluation.training import TrainingOptions


def examples_of(photo_labels, num_variants) -> Examples:
    """Photos with these labels, each with so many variants of its label."""
    labels, first = list(photo_labels), []
    for label, count in zip(photo_labels, num_variants):
        first.append(len(labels))
        labels += [label] * count
    return Examples(None, torch.tensor(labels), torch.tensor(first), torch.tensor(num_variants))


def draw(examples, iterations=100, batch=50, epoch=0, **options):
    options = TrainingOptions(iterations_per_epoch=iterations, batch_size=batch, **options)
    return draw_epoch(examples, options, torch.Generator().manual_seed(1), epoch)


def shares(drawn) -> dict[int, float]:
    counts = Counter(drawn.flatten().tolist())
    return {number: count / drawn.numel() for number, count in counts.items()}


def test_probability_one_shows_every_synthetic_image_and_no_photo():
    examples = examples_of([0, 1], [2, 3])
    shown = shares(draw(examples, synthetic_probability=1.0))
    expected = {2: 1 / 4, 3: 1 / 4, 4: 1 / 6, 5: 1 / 6, 6: 1 / 6}
    assert shown == pytest.approx(expected, abs=0.03)
    assert set(shares(draw(examples, synthetic_probability=0.0))) == {0, 1}
    half = draw(examples)
    assert 0.45 < (half >= 2).double().mean() < 0.55
    # The photo that a draw stands for does not depend on the probability: methods are paired.
    photo = examples.labels[half]
    assert torch.equal(photo, examples.labels[draw(examples, synthetic_probability=0.0)])


def test_a_photo_without_variants_stands_for_itself():
    examples = examples_of([0, 1], [0, 1])
    for options in ({"synthetic_probability": 1.0}, {"utilization": "pretrain"}):
        assert set(shares(draw(examples, **options))) == {0, 2}


def test_append_shows_photos_and_variants_alike():
    shown = shares(draw(examples_of([0, 1], [1, 3]), utilization="append"))
    assert shown == pytest.approx(dict.fromkeys(range(6), 1 / 6), abs=0.03)


@pytest.mark.parametrize("num_epochs", [1, 2, 3])
def test_pretrain_shows_synthetic_images_first_and_then_photos(num_epochs):
    examples = examples_of([0, 1], [2, 2])
    options = {"utilization": "pretrain", "num_epochs": num_epochs, "iterations": 10}
    steps = torch.cat([draw(examples, epoch=e, **options) for e in range(num_epochs)])
    is_photo = (steps < 2).all(dim=1)
    assert (steps >= 2).any(dim=1).logical_xor(is_photo).all()
    assert is_photo.tolist() == [step >= 5 * num_epochs for step in range(10 * num_epochs)]


def test_balance_brings_all_classes_to_one_size():
    # Class 0: 4 photos; class 1: 1 photo with 5 variants, so that 6 images are the least.
    examples = examples_of([0, 0, 0, 0, 1], [5, 5, 5, 5, 5])
    chosen = balanced_images(examples)
    assert Counter(examples.labels[chosen].tolist()) == {0: 6, 1: 6}
    assert set(range(5)) <= set(chosen.tolist())
    # The two variants that class 0 lacks are of two photos.
    assert sorted(set(chosen.tolist()) & set(range(5, 25))) == [5, 10]
    shown = shares(examples.labels[draw(examples, utilization="balance")])
    assert shown == pytest.approx({0: 0.5, 1: 0.5}, abs=0.03)
    # No photo is given up where a class has too few images of any kind.
    few = balanced_images(examples_of([0, 0, 0, 1], [0, 0, 0, 1]))
    assert sorted(few.tolist()) == [0, 1, 2, 3, 4]
    equal = balanced_images(examples_of([0, 1], [2, 2]))
    assert sorted(equal.tolist()) == list(range(6))


@pytest.mark.parametrize("utilization", ["mix", "append", "pretrain", "balance"])
def test_class_balanced_draws_show_every_class_equally_often(utilization):
    examples = examples_of([0, 0, 0, 2, 2, 5], [2, 2, 2, 0, 3, 1])
    plain = draw(examples, utilization=utilization)
    balanced = draw(examples, utilization=utilization, class_balanced=True)
    expected = {0: 1 / 3, 2: 1 / 3, 5: 1 / 3}
    assert shares(examples.labels[balanced]) == pytest.approx(expected, abs=0.03)
    assert shares(examples.labels[plain])[5] < 0.28
    within = shares(balanced[(balanced < 3) & (examples.labels[balanced] == 0)])
    if within:
        assert within == pytest.approx(dict.fromkeys(range(3), 1 / 3), abs=0.07)


@pytest.mark.parametrize("utilization", ["mix", "append", "pretrain", "balance"])
def test_without_synthetic_images_all_ways_show_the_same(utilization):
    examples = examples_of([0, 1, 2], [0, 0, 0])
    assert torch.equal(draw(examples, utilization=utilization), draw(examples))
