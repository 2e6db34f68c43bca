"""Heads of all folds at once: what each learns from, and that it is what it would be alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semantic_aug.evaluation.fold_heads import Material, Variants, together, train_heads
from semantic_aug.evaluation.folds import Fold, make_folds
from semantic_aug.settings.classification import TrainingOptions

OPTIONS = TrainingOptions(num_epochs=1, iterations_per_epoch=40, batch_size=8, learning_rate=1e-2)
CLASSES, VIEWS = 3, 2


def photos(number=12, width=4, seed=0):
    """Features around a mean of each class, V views of each photo."""
    stream = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % CLASSES
    means = torch.randn(CLASSES, width, generator=stream)
    own = means[labels].repeat_interleave(VIEWS, dim=0)
    return own + 0.3 * torch.randn(own.shape, generator=stream), labels


def seen_of(photo, shows, number):
    """Each variant's own photo and, from 0 on, another one that it shows."""
    every = torch.arange(number)
    return (photo[:, None] == every) | (shows[:, None] == every)


def variants(number=12, width=4, each=2, shows=None, turn=None):
    """Variants whose features say which they are: photo + turn / 10 in the first column."""
    photo = torch.arange(number).repeat_interleave(each)
    turn = torch.arange(each).repeat(number) if turn is None else turn
    features = torch.zeros(len(photo), width)
    features[:, 0] = photo + turn / 10
    shows = torch.full_like(photo, -1) if shows is None else shows
    return Variants(features, photo, seen_of(photo, shows, number), turn)


def test_heads_are_those_of_each_fold_alone_and_learn():
    features, labels = photos()
    material = Material(features, labels, CLASSES)
    folds = make_folds(labels.tolist(), range(12), list(map(str, range(12))), repeats=2)
    heads = train_heads(material, folds, OPTIONS, seed=0)
    right = total = 0
    for fold, head in zip(folds, heads):
        (alone,) = train_heads(material, [fold], OPTIONS, seed=0)
        assert torch.allclose(alone.linear.weight, head.linear.weight, atol=1e-5)
        out = torch.tensor(fold.held_out)
        with torch.no_grad():
            right += int((head(features[out * VIEWS]).argmax(dim=1) == labels[out]).sum())
        total += len(out)
    assert right > 0.6 * total
    again = train_heads(material, folds, OPTIONS, seed=0)
    assert all(torch.equal(a.linear.weight, b.linear.weight) for a, b in zip(heads, again))
    other = train_heads(material, folds, OPTIONS, seed=1)
    assert not torch.equal(heads[0].linear.weight, other[0].linear.weight)


def test_held_out_photos_and_their_variants_teach_nothing():
    features, labels = photos()
    fold = Fold(0, 0, tuple(range(9)), (9, 10, 11))
    shows = torch.arange(12).repeat_interleave(2).roll(5)
    made = variants(shows=shows)
    (before,) = train_heads(Material(features, labels, CLASSES, made), [fold], OPTIONS, 0)
    spoiled = features.clone()
    spoiled[18:] = 1e6
    bad = made.features.clone()
    bad[(made.photo >= 9) | (shows >= 9)] = 1e6
    made = Variants(bad, made.photo, made.seen, made.turn)
    (after,) = train_heads(Material(spoiled, labels, CLASSES, made), [fold], OPTIONS, 0)
    assert torch.equal(before.linear.weight, after.linear.weight)


def test_a_class_without_trained_photos_is_never_told():
    features, labels = photos()
    fold = Fold(0, 0, tuple(n for n in range(12) if labels[n] != 1), (1,))
    (head,) = train_heads(Material(features, labels, CLASSES), [fold], OPTIONS, 0)
    assert head.trained.tolist() == [True, False, True]
    assert head(features)[:, 1].isinf().all()


@given(
    st.sets(st.integers(0, 5), min_size=1), st.lists(st.integers(-1, 5), min_size=18, max_size=18)
)
@settings(max_examples=40)
def test_what_a_fold_learns_from(trained, shows):
    labels = torch.arange(6) % CLASSES
    first = variants(6, each=2, shows=torch.tensor(shows[:12]))
    second = variants(6, each=1, shows=torch.tensor(shows[12:]))
    second.features[:, 1] = 1
    material = Material(torch.arange(12.0)[:, None].expand(12, 4), labels, CLASSES,
                        together([first, second]))  # fmt: skip
    fold = Fold(0, 0, tuple(sorted(trained)), ())
    learned, rows = material.learned_from(fold), material.rows()
    assert learned.num_photos == len(trained)
    for place, photo in enumerate(fold.trained):
        assert learned.first_row[place] == photo * VIEWS and learned.num_rows[place] == VIEWS
        expected = [
            (photo + turn / 10, kind)
            for turn, kind, shown in [(0, 0, shows[2 * photo]), (0, 1, shows[12 + photo]),
                                      (1, 0, shows[2 * photo + 1])]
            if shown < 0 or shown in trained
        ]  # fmt: skip
        start, count = int(learned.first_variant[place]), int(learned.num_variants[place])
        own = [rows[learned.first_row[n]] for n in range(start, start + count)]
        assert [(pytest.approx(float(r[0])), int(r[1])) for r in own] == expected
        assert learned.labels[[place, *range(start, start + count)]].unique().tolist() == [
            int(labels[photo])
        ]


def test_candidates_share_their_draws():
    """Variants that are what the photo is change nothing but the views that are drawn."""
    features, labels = photos()
    features = features[::VIEWS]  # a single view
    same = Variants(features.clone(), torch.arange(12), torch.eye(12) > 0, torch.zeros(12).long())
    fold = Fold(0, 0, tuple(range(9)), (9, 10, 11))
    (alone,) = train_heads(Material(features, labels, CLASSES), [fold], OPTIONS, 0)
    (with_copies,) = train_heads(Material(features, labels, CLASSES, same), [fold], OPTIONS, 0)
    assert torch.allclose(alone.linear.weight, with_copies.linear.weight, atol=1e-6)
