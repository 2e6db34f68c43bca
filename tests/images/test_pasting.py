"""Places whose object is painted over, and objects set into places."""

import numpy as np
import pytest
from conftest import rectangles
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from semantic_aug.images.layout import Layout, cut_out
from semantic_aug.images.pasting import emptied, fill_frame, on_place


def noise(size, low=0, high=256, seed=0) -> Image.Image:
    values = np.random.default_rng(seed).integers(low, high, (size[1], size[0], 3))
    return Image.fromarray(values.astype(np.uint8))


def disc(size, middle, radius) -> np.ndarray:
    y, x = np.ogrid[: size[1], : size[0]]
    inside = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 <= radius**2
    return inside.astype(np.uint8) * 255


# --- painting an object over -----------------------------------------------------------------


@settings(max_examples=15)
@given(rectangles(most=130))
def test_any_object_is_painted_over_and_far_pixels_stay(mask):
    photo = noise(mask.shape[::-1])
    before = photo.tobytes()
    empty = emptied(photo, mask)
    assert photo.tobytes() == before and empty.tobytes() == emptied(photo, mask).tobytes()
    assert (empty.mode, empty.size) == ("RGB", photo.size)
    region = ndimage.binary_fill_holes(mask > 0)
    distance = ndimage.distance_transform_edt(~region) if region.any() else np.full(mask.shape, 1e9)
    far = distance > 6 + 0.25 * np.sqrt(region.sum())
    assert np.array_equal(np.asarray(empty)[far], np.asarray(photo)[far])


@pytest.mark.parametrize("size, radius", [((64, 64), 20), ((160, 120), 40), ((700, 500), 150)])
def test_nothing_of_an_object_and_its_shadow_is_left_and_its_place_has_the_grain_around(
    size, radius
):
    ground = np.array(noise(size, 90, 140))
    middle = (size[0] // 2 - 3, size[1] // 2)
    mask = disc(size, middle, radius)
    shadow = disc(size, (middle[0], middle[1] + radius // 8), radius) > 0
    ground[shadow] //= 3
    ground[mask > 0] = (255, 0, 0)
    empty = np.asarray(emptied(Image.fromarray(ground), mask)).astype(float)
    assert empty.min() >= 60 and empty.max() <= 170
    inside, outside = empty[mask > 0], empty[disc(size, middle, radius * 1.3) == 0]
    assert inside.mean(axis=0) == pytest.approx(outside.mean(axis=0), abs=8)
    assert inside.std(axis=0) == pytest.approx(outside.std(axis=0), rel=0.15)


def test_light_that_falls_off_goes_on_where_the_object_was():
    slope = np.broadcast_to(np.linspace(60, 200, 150)[None, :, None], (100, 150, 3))
    photo, mask = slope.astype(np.uint8).copy(), disc((150, 100), (75, 50), 20)
    photo[mask > 0] = (0, 0, 255)
    empty = np.asarray(emptied(Image.fromarray(photo), mask)).astype(float)
    assert np.abs(empty - slope)[mask > 0].max() < 14


def test_without_an_object_or_without_ground_a_photo_still_comes_out():
    photo = noise((50, 40))
    assert emptied(photo, np.zeros((40, 50), np.uint8)).tobytes() == photo.tobytes()
    nothing = np.asarray(emptied(photo, np.full((40, 50), 255, np.uint8)))
    assert np.ptp(nothing, axis=(0, 1)).max() == 0
    assert nothing[0, 0] == pytest.approx(np.asarray(photo).mean(axis=(0, 1)), abs=1)


# --- setting an object into a place ----------------------------------------------------------


@settings(max_examples=40)
@given(rectangles(most=130), st.floats(0, 1))
def test_an_object_stays_itself_and_far_of_it_the_place_does(mask, shadow):
    size = mask.shape[::-1]
    place = noise(size, seed=1)
    cutout = cut_out(noise(size), mask, Layout())
    image = np.asarray(on_place(cutout, place, shadow))
    inner = ndimage.distance_transform_edt(np.pad(mask, 3, mode="edge"))[3:-3, 3:-3] > 2
    assert np.array_equal(image[inner & (mask > 0)], np.asarray(cutout[0])[inner & (mask > 0)])
    if mask.any():
        far = ndimage.distance_transform_edt(mask == 0) > 4 + 0.4 * np.sqrt(mask.size)
        outside = far if shadow else mask == 0
    else:
        outside = mask == 0
    assert np.array_equal(image[outside], np.asarray(place)[outside])


def test_edges_are_soft_inside_the_object_alone():
    mask = np.zeros((20, 20), np.uint8)
    mask[:, 8:] = 255
    black, white = Image.new("RGB", (20, 20)), Image.new("RGB", (20, 20), "white")
    row = np.asarray(on_place((black, Image.fromarray(mask)), white, shadow=0))[10, :, 0]
    assert (row[:8] == 255).all() and 60 < row[8] < 200 and (row[9:] == 0).all()


@pytest.mark.parametrize("radius", [10, 40])
def test_a_shadow_lies_beneath_the_object_in_proportion_to_its_size(radius):
    size, middle = (200, 200), (100, 100)
    mask = disc(size, middle, radius)
    cutout = Image.new("RGB", size, "red"), Image.fromarray(mask)
    place = Image.new("RGB", size, (200, 200, 200))
    light = np.asarray(on_place(cutout, place, shadow=0))
    assert (light[mask == 0] == 200).all()
    darker = 200 - np.asarray(on_place(cutout, place, shadow=0.4)).astype(int)[..., 1]
    darker[mask > 0] = 0
    below, beside, above = (
        darker[100 + radius + 1, 100],
        darker[100, 101 + radius],
        darker[99 - radius, 100],
    )
    assert below > 30 > 2 * beside and above <= 1
    reach = np.flatnonzero(darker[:, 100])[-1] - (100 + radius)
    assert 0.1 < reach / radius < 0.6
    stronger = 200 - np.asarray(on_place(cutout, place, shadow=0.8)).astype(int)[..., 1]
    assert stronger[101 + radius, 100] > 1.6 * below


@given(*[st.integers(1, 90)] * 4)
def test_a_place_fills_any_frame(width, height, across, down):
    assert fill_frame(noise((width, height)), (across, down)).size == (across, down)


def test_a_place_is_cropped_about_its_middle_and_not_squeezed():
    place = noise((30, 20))
    assert fill_frame(place, (30, 20)).tobytes() == place.tobytes()
    assert fill_frame(place, (20, 20)).tobytes() == place.crop((5, 0, 25, 20)).tobytes()
    assert fill_frame(place, (30, 10)).tobytes() == place.crop((0, 5, 30, 15)).tobytes()
