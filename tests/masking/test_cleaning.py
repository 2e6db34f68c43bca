"""Masks are cleaned and judged by rules that hold for whatever a model says."""

import math

import numpy as np
import pytest
from conftest import rectangles
from hypothesis import given, settings, strategies
from scipy import ndimage

from semantic_aug.masking.cleaning import (
    cleaned,
    enlarged,
    largest_piece,
    pieces_of,
    refined,
    without_holes,
)
from semantic_aug.masking.judging import borders_touched, doubts_of, unusual_sizes

masks = rectangles(most=24).map(lambda mask: mask > 0)
shares = strategies.floats(0, 1)


def holes(mask: np.ndarray) -> np.ndarray:
    return ndimage.binary_fill_holes(mask) & ~mask


@given(masks)
def test_the_largest_piece_is_one_piece_and_none_is_larger(mask):
    found = largest_piece(mask)
    assert not (found & ~mask).any() and found.any() == mask.any()
    assert len(pieces_of(found)[1]) == int(mask.any())
    assert found.sum() == max(pieces_of(mask)[1], default=0)
    assert np.array_equal(largest_piece(found), found)


@given(masks, shares, shares)
def test_holes_are_filled_up_to_their_share_and_nothing_else_changes(mask, share, more):
    found = without_holes(mask, share)
    assert not (mask & ~found).any() and not (found & ~mask & ~holes(mask)).any()
    labels, _ = ndimage.label(holes(found))
    assert all(area > share * mask.sum() for area in np.bincount(labels.ravel())[1:])
    larger = without_holes(mask, max(share, more))
    assert not (found & ~larger).any() or share > more
    assert np.array_equal(without_holes(mask, 0), mask)


def test_a_ring_keeps_its_large_hole_and_loses_its_small_one():
    mask = np.zeros((40, 40), bool)
    mask[2:38, 2:38] = True
    mask[10:20, 10:20] = mask[30, 30] = False
    found = without_holes(mask, 0.05)
    assert found[30, 30] and not found[10:20, 10:20].any()
    assert without_holes(mask, 0.1)[2:38, 2:38].all()


@settings(max_examples=40)
@given(masks, strategies.integers(1, 50), strategies.integers(1, 50), strategies.booleans())
def test_a_clean_mask_has_the_size_of_its_photo(mask, width, height, raw):
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    found, held = cleaned(mask.astype(np.float32), photo, raw_edges=raw)
    assert found.shape == (height, width) and found.dtype == bool
    assert len(pieces_of(found)[1]) == int(held > 0) and 0 <= held <= 1
    every, _ = cleaned(mask.astype(np.float32), photo, raw_edges=raw, keep_pieces=True)
    assert not (found & ~every).any()
    if mask.all():
        assert found.all() and held == 1
    if not mask.any():
        assert not found.any() and held == 0


@settings(max_examples=40)
@given(masks)
def test_what_has_the_size_of_its_photo_is_cleaned_alone(mask):
    photo = np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), np.uint8)
    found, _ = cleaned(mask.astype(np.float32), photo, keep_pieces=True, fill_holes=0)
    assert np.array_equal(found, mask)


def test_edges_follow_the_photo():
    photo = np.full((96, 96, 3), 60, np.uint8)
    photo[:, 38:] = 200
    coarse = np.zeros((12, 12), np.float32)
    coarse[:, 5:] = 1  # a cell of 8 pixels: the edge is said to be at 40
    off = np.argmax(cleaned(coarse, photo, raw_edges=True)[0], axis=1)
    near = np.argmax(cleaned(coarse, photo)[0], axis=1)
    assert (np.abs(off - 38) == 2).all() and (np.abs(near - 38) <= 1).all()
    assert refined(coarse, photo[:12, :12], 0) is coarse


def test_a_large_photo_is_refined_on_fewer_pixels_at_the_same_place():
    photo = np.full((60, 2600, 3), 60, np.uint8)
    photo[:, 1302:] = 200
    coarse = np.zeros((6, 260), np.float32)
    coarse[:, 130:] = 1  # at 1300
    edge = np.argmax(cleaned(coarse, photo)[0][30])
    assert 1301 <= edge <= 1303


@given(strategies.integers(1, 40), strategies.integers(1, 40), shares)
def test_a_grid_of_one_value_keeps_it(width, height, value):
    found = enlarged(np.full((7, 3), value, np.float32), (width, height))
    assert found.shape == (height, width) and np.allclose(found, value, atol=1e-6)


def box(left, top, right, bottom, size=100) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "held", "expected"),
    [
        (box(20, 20, 70, 70), 1.0, []),
        (box(0, 0, 0, 0), 0.0, ["nothing was found"]),
        (box(20, 20, 25, 30), 1.0, ["it covers 0.5% of the photo"]),
        (box(1, 1, 99, 99), 1.0, ["it covers 96% of the photo"]),
        (box(20, 20, 70, 70), 0.4, ["torn: the largest piece has 40% of what was found"]),
        (box(0, 0, 70, 100), 1.0, ["it touches 3 borders of the photo"]),
        (box(0, 0, 70, 99), 1.0, []),
    ],
)
def test_doubts(mask, held, expected):
    assert doubts_of(mask, held) == expected


@given(masks)
def test_a_doubtful_mask_stays_doubtful_when_it_is_turned(mask):
    if min(mask.shape) > 1:  # of a photo of one row, both borders are the same
        assert borders_touched(mask) == borders_touched(np.rot90(mask))
    assert len(doubts_of(mask)) == len(doubts_of(mask[::-1]))


def test_sizes_far_from_the_usual_one():
    usual = {f"{number}.jpg": 0.2 + 0.01 * number for number in range(8)}
    assert unusual_sizes(usual) == {}
    found = unusual_sizes(usual | {"small.jpg": 0.02, "large.jpg": 0.8, "half.jpg": 0.12})
    assert list(found) == ["small.jpg"]  # 0.8 is less than four times 0.23
    assert found["small.jpg"] == ("it covers 2.0% of the photo, usual in its class is 23.0%")
    varied = {f"{n}.jpg": 0.9 / 2**n for n in range(7)}
    assert unusual_sizes(varied) == {}


@given(strategies.lists(strategies.floats(0.001, 1), max_size=12), strategies.floats(0.1, 1))
def test_usual_sizes_know_no_unit_and_no_order(sizes, factor):
    of = dict(zip(map(str, range(len(sizes))), sizes))
    found = unusual_sizes(of).keys()
    assert unusual_sizes(dict(reversed(of.items()))).keys() == found
    assert 2 * len(found) <= len(of)
    logs = [math.log(size) for size in sizes]
    if found:
        assert max(logs) - min(logs) > math.log(4)
