"""Photos in the model's square and back, masks, seams."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from semantic_aug.images.framing import (
    blend,
    frame_of,
    from_square,
    grow,
    mask_to_square,
    mask_within,
    photo_within,
    share_of_photo,
    size_within,
    to_square,
)
from semantic_aug.settings.generation import FITS

sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))


def picture(size, seed=0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def values(image) -> np.ndarray:
    return np.asarray(image).astype(int)


@settings(deadline=None)
@given(sizes, st.integers(1, 64), st.sampled_from(FITS))
def test_every_shape_goes_in_and_comes_back(size, side, fit):
    photo, frame = picture(size), frame_of(size, side, fit)
    square = to_square(photo, frame)
    assert square.size == (side, side)
    assert from_square(square, photo, frame).size == size
    mask = mask_to_square(np.ones(size[::-1], bool), frame)
    left, top, right, bottom = frame.target
    assert np.asarray(mask).sum() == 255 * (right - left) * (bottom - top)


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (48, 48), (61, 47)])
@pytest.mark.parametrize("fit", FITS)
def test_unedited_square_gives_the_photo_back(size, fit):
    photo = picture(size)
    frame = frame_of(size, 64, fit)
    back = from_square(to_square(photo, frame), photo, frame)
    assert np.abs(values(back) - values(photo)).mean() < 4


def test_pad_keeps_the_shape_and_mirrors_the_edges():
    photo = picture((64, 32))
    square = values(to_square(photo, frame_of((64, 32), 64, "pad")))
    assert np.array_equal(square[16:48], values(photo))
    assert np.array_equal(square[15], square[16]) and np.array_equal(square[:16], square[31:15:-1])
    assert np.array_equal(square[48:], square[47:31:-1])


def test_share_of_a_cell_that_is_photo():
    """A strip of 10 of 16 pixels, from 3 on, in cells of 4: a quarter, all, all, a quarter."""
    share = share_of_photo(frame_of((32, 20), 16, "pad"), 4)
    assert share.dtype == np.float32
    assert np.array_equal(share, np.outer([0.25, 1, 1, 0.25], np.ones(4)))
    share = share_of_photo(frame_of((20, 32), 16, "pad"), 4)
    assert np.array_equal(share, np.outer(np.ones(4), [0.25, 1, 1, 0.25]))
    assert share_of_photo(frame_of((1, 900), 16, "pad"), 4).sum() > 0
    for fit in ("crop", "squash"):
        assert (share_of_photo(frame_of((20, 32), 16, fit), 4) == 1).all()


def test_crop_edits_the_middle_alone():
    photo = picture((50, 30))
    frame = frame_of((50, 30), 30, "crop")
    assert frame.source == (10, 0, 40, 30)
    edited = from_square(Image.new("RGB", (30, 30), (9, 8, 7)), photo, frame)
    assert set(map(tuple, values(edited)[:, 10:40].reshape(-1, 3))) == {(9, 8, 7)}
    assert np.array_equal(values(edited)[:, :10], values(photo)[:, :10])
    assert np.array_equal(values(edited)[:, 40:], values(photo)[:, 40:])


def test_squash_fills_the_square():
    assert frame_of((50, 30), 64, "squash").target == (0, 0, 64, 64)


@pytest.mark.parametrize("fit", FITS)
def test_mask_lies_where_its_object_does(fit):
    """A white object on black: inside the mask the square is white, outside black."""
    region = np.zeros((40, 70), bool)
    region[10:30, 25:45] = True
    photo = Image.fromarray(np.repeat(region[..., None] * np.uint8(255), 3, axis=2))
    frame = frame_of(photo.size, 64, fit)
    square, mask = values(to_square(photo, frame))[..., 0], values(mask_to_square(region, frame))
    left, top, right, bottom = frame.target
    inside = (slice(top, bottom), slice(left, right))
    assert ((square[inside] > 127) == (mask[inside] > 127)).mean() > 0.97
    assert mask.sum() > 0


@given(sizes, st.integers(1, 90))
def test_a_photo_and_its_mask_are_reduced_alike_and_never_enlarged(size, longest):
    photo, mask = picture(size), np.full(size[::-1], 255, np.uint8)
    small = photo_within(photo, longest)
    assert small.size == size_within(size, longest) == mask_within(mask, longest).shape[::-1]
    assert max(small.size) == min(longest, max(size))
    for short, long in zip(small.size, size):
        assert 1 <= short <= long and abs(short - long * max(small.size) / max(size)) < 1
    if max(size) <= longest:
        assert small is photo and mask_within(mask, longest) is mask
    assert photo_within(photo, None) is photo
    assert set(np.unique(mask_within(mask, longest))) == {255}


def test_a_radius_is_a_radius():
    region = np.zeros((41, 41), bool)
    region[20, 20] = True
    y, x = np.mgrid[:41, :41] - 20
    for radius in (0, 1, 5, 7.5):
        assert np.array_equal(grow(region, radius), x**2 + y**2 <= radius**2)
    assert not grow(np.zeros((5, 5), bool), 3).any()
    assert grow(np.ones((5, 5), bool), 3).all()
    square = np.pad(np.ones((9, 9), bool), 4)
    for radius, side in ((-1, 7), (-1.4, 7), (-2, 5), (-4, 1)):
        assert grow(square, radius).sum() == side**2
    assert not grow(square, -5).any() and square.sum() == 81
    assert grow(np.ones((5, 5), bool), -3).all()  # the edges of the photo are none of the object


@settings(deadline=None)
@given(
    arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)),
    st.floats(0.5, 8),
    st.floats(0, 4),
)
def test_to_shrink_a_region_is_to_grow_what_is_not_of_it(region, radius, more):
    smaller, larger = grow(region, -radius), grow(region, radius)
    assert np.array_equal(smaller, ~grow(~region, radius))
    assert np.array_equal(larger, ~grow(~region, -radius))
    assert (smaller <= region).all() and (region <= larger).all()
    assert (grow(region, -radius - more) <= smaller).all()
    assert (grow(smaller, radius) <= region).all()  # what has vanished does not come back
    assert (region <= grow(larger, -radius)).all()


@settings(deadline=None)
@given(st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_beyond_the_seam_the_photo_is_untouched(feather, seed):
    random = np.random.default_rng(seed)
    region = random.random((30, 40)) < 0.01
    photo, edited = picture((40, 30), 1), picture((40, 30), 2)
    result = values(blend(edited, photo, region, feather))
    assert np.array_equal(result[region], values(edited)[region])
    if not region.any():
        assert np.array_equal(result, values(photo))
        return
    far = ~grow(region, feather)
    assert np.array_equal(result[far], values(photo)[far])
    between = np.minimum(values(edited), values(photo)), np.maximum(values(edited), values(photo))
    assert (result >= between[0]).all() and (result <= between[1]).all()


def test_seam_falls_evenly():
    region = np.zeros((1, 20), bool)
    region[0, :10] = True
    white, black = (Image.new("RGB", (20, 1), colour) for colour in ("white", "black"))
    row = values(blend(white, black, region, 3))[0, :, 0]
    assert list(row[8:15]) == [255, 255, 191, 128, 64, 0, 0]
