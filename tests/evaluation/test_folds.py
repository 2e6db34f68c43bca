"""Folds: nothing that hangs together is on both sides, and what judges was taught."""

from collections import Counter, defaultdict

from hypothesis import example, given, settings
from hypothesis import strategies as st

from semantic_aug.evaluation.folds import folds_of_val, joined, make_folds, units_of

PHOTOS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["", "a", "b", "c", "d"])),
                  min_size=1, max_size=24)  # fmt: skip
PAIRS = st.lists(st.tuples(st.integers(0, 23), st.integers(0, 23)), max_size=6)


def names(number: int) -> list[str]:
    return [f"class/{(idx * 7) % 31:02}.jpg" for idx in range(number)]


def setting_of(photos, pairs):
    labels, groups = [each[0] for each in photos], [f"{g}" for _, g in photos]
    near = [(a % len(photos), b % len(photos)) for a, b in pairs]
    units, few = units_of(labels, groups, near)
    return labels, groups, near, units, few


@given(PHOTOS, PAIRS)
def test_what_hangs_together_is_one_unit_and_nothing_else_is(photos, pairs):
    labels, groups, near, units, few = setting_of(photos, pairs)
    for one, other in near:
        assert units[one] == units[other]
    kinds = defaultdict(set)
    for idx, (label, group) in enumerate(zip(labels, groups)):
        kinds[label].add(group or idx)
    for label in set(labels):
        has_groups = any(groups[i] for i in range(len(labels)) if labels[i] == label)
        assert (label in few) == (len(kinds[label]) < 3 and has_groups)
    by_group = defaultdict(set)
    for idx, (label, group) in enumerate(zip(labels, groups)):
        if group and label not in few:
            by_group[group].add(units[idx])
    assert all(len(each) == 1 for each in by_group.values())
    if not near:  # a unit is a group, or a photo alone
        members = Counter(units)
        for idx, (label, group) in enumerate(zip(labels, groups)):
            same = [i for i in range(len(labels))
                    if group and groups[i] == group and labels[i] not in few]  # fmt: skip
            assert members[units[idx]] == (len(same) if group and label not in few else 1)


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(
    st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))))  # fmt: skip
def test_joined_is_the_smallest_of_what_can_be_reached(case):
    number, pairs = case
    reached = [{idx} for idx in range(number)]
    for _ in range(number):
        for one, other in pairs:
            reached[one] |= reached[other]
            reached[other] |= reached[one]
    assert joined(number, pairs) == [min(each) for each in reached]


@given(PHOTOS, PAIRS, st.integers(0, 3), st.none() | st.integers(2, 6), st.integers(1, 3))
@example([(0, ""), (1, "")], [], 0, None, 2)
def test_folds_hold_out_each_photo_once_and_leak_nothing(photos, pairs, seed, number, repeats):
    labels, _, _, units, _ = setting_of(photos, pairs)
    sources = names(len(photos))
    folds = make_folds(labels, units, sources, seed, number, repeats)
    of_class = defaultdict(set)
    for label, unit in zip(labels, units):
        of_class[label].add(unit)
    for fold in folds:
        trained, out = set(fold.trained), set(fold.held_out)
        assert out and not trained & out
        assert not {units[i] for i in trained} & {units[i] for i in out}
        assert {labels[i] for i in out} <= {labels[i] for i in trained}
    for repeat in range(repeats):
        times = Counter(idx for f in folds if f.repeat == repeat for idx in f.held_out)
        assert set(times.values()) <= {1}
        alone = {idx for idx, label in enumerate(labels) if len(of_class[label]) == 1}
        assert not alone & times.keys()
        if all(count == 1 for count in Counter(units).values()):  # photos by themselves
            assert set(times) == set(range(len(labels))) - alone
            sizes = defaultdict(Counter)
            for fold in (f for f in folds if f.repeat == repeat):
                sizes[fold.number] = Counter(labels[i] for i in fold.held_out)
            for label in set(labels) - {labels[i] for i in alone}:
                found = [sizes[n][label] for n in range(max(sizes) + 1)]
                assert max(found) - min(found) <= 1


@given(PHOTOS, PAIRS, st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_the_order_of_photos_does_not_matter(photos, pairs, random):
    labels, _, _, units, _ = setting_of(photos, pairs)
    sources = names(len(photos))
    order = list(range(len(photos)))
    random.shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    smallest = {u: min(place[i] for i in order if units[i] == u) for u in set(units)}
    moved = make_folds(
        [labels[i] for i in order], [smallest[units[i]] for i in order], [sources[i] for i in order]
    )
    first = make_folds(labels, units, sources)
    assert [{sources[i] for i in f.held_out} for f in first] == [
        {sources[order[i]] for i in f.held_out} for f in moved
    ]


def test_repeats_differ_and_follow_the_number_of_photos():
    labels = [n % 3 for n in range(24)]
    few = make_folds(labels, range(24), names(24))
    assert {f.repeat for f in few} == set(range(10)) and {f.number for f in few} == set(range(5))
    assert len({f.held_out for f in few}) > 45
    many = make_folds([n % 10 for n in range(300)], range(300), [f"{n:03}" for n in range(300)])
    assert len(many) == 2 * 5
    pairs = make_folds([0, 0, 1, 1], range(4), names(4))
    assert {len(f.trained) for f in pairs} == {2} and len(pairs) == 2 * 10


@given(PHOTOS, PAIRS, st.sets(st.integers(0, 23)))
def test_parts_of_val_judge_what_all_others_taught(photos, pairs, val):
    labels, _, _, units, _ = setting_of(photos, pairs)
    val = {idx for idx in val if idx < len(photos)}
    trained = set(range(len(photos))) - val
    folds = folds_of_val(labels, units, names(len(photos)), val)
    seen = [idx for fold in folds for idx in fold.held_out]
    assert len(seen) == len(set(seen))
    known, near = {labels[i] for i in trained}, {units[i] for i in trained}
    assert set(seen) == {i for i in val if labels[i] in known and units[i] not in near}
    assert all(set(fold.trained) == trained for fold in folds)
    for unit in {units[i] for i in seen}:
        assert sum(any(units[i] == unit for i in f.held_out) for f in folds) == 1
