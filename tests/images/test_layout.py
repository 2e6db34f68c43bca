"""Objects drawn anew: whole, free of their old place, and by the generator alone."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import rectangles
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from semantic_aug import UserError
from semantic_aug.images.layout import (
    Layout,
    Layouts,
    can_fit,
    check_layouts,
    cut_out,
    draw_layout,
)

EVERYTHING = Layouts((0.4, 2.5), 180, 0.5, True, 0.7)


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disc(size, middle, radius) -> np.ndarray:
    y, x = np.ogrid[: size[1], : size[0]]
    inside = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 <= radius**2
    return inside.astype(np.uint8) * 255


def noise(size, seed=0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3))
    return Image.fromarray(values.astype(np.uint8))


ranges = st.builds(
    lambda low, ratio, *rest: Layouts((low, low * ratio), *rest),
    st.floats(0.2, 2),
    st.floats(1, 3),
    st.sampled_from([0, 20, 180]),
    st.floats(0, 1),
    st.booleans(),
    st.floats(0, 1),
)
seeds = st.integers(0, 2**32)


@settings(max_examples=40)
@given(rectangles(), ranges, seeds)
def test_equal_generators_draw_equal_pixels_of_the_photos_size(mask, layouts, seed):
    photo = noise(mask.shape[::-1])
    first, second = (draw_layout(layouts, mask, generator(seed)) for _ in range(2))
    assert first == second
    (colours, alpha), again = cut_out(photo, mask, first), cut_out(photo, mask, second)
    assert (colours.mode, alpha.mode) == ("RGB", "L")
    assert colours.size == alpha.size == photo.size
    assert colours.tobytes() == again[0].tobytes() and alpha.tobytes() == again[1].tobytes()
    assert json.loads(json.dumps(first.details())) == first.details()


@settings(max_examples=40)
@given(rectangles())
def test_without_a_change_pixels_and_mask_stay(mask):
    photo = noise(mask.shape[::-1])
    assert draw_layout(Layouts(), mask, generator()) == Layout()
    colours, alpha = cut_out(photo, mask, Layout())
    assert np.array_equal(colours, photo) and np.array_equal(alpha, mask)


@settings(max_examples=60)
@given(rectangles(least=12), ranges, seeds)
def test_nothing_is_cut_off_that_was_whole(mask, layouts, seed):
    """In a frame with 40 pixels more at every side that does not cut it, no more of it is seen."""
    height, width = mask.shape
    layout = draw_layout(layouts, mask, generator(seed))
    sides = ((mask[0], mask[-1]), (mask[:, 0], mask[:, -1]))
    roomy = np.pad(mask, [[0 if side.any() else 40 for side in pair] for pair in sides])
    shift = (
        layout.shift[0] * width / roomy.shape[1],
        layout.shift[1] * height / roomy.shape[0],
    )
    drawn = Layout(layout.scale, layout.angle, shift, layout.mirror)
    seen = np.asarray(cut_out(noise((width, height)), mask, layout)[1], int)
    whole = np.asarray(cut_out(noise(roomy.shape[::-1]), roomy, drawn)[1], int)
    assert seen.sum() == whole.sum()
    if any(one.any() and other.any() for one, other in sides):  # from edge to opposite edge
        assert can_fit(layouts, mask) and layout.scale == 1
    elif can_fit(layouts, mask) and not layouts.rotate:
        low, high = layouts.scale
        assert low * (1 - 1e-9) <= layout.scale <= high * (1 + 1e-9)


@settings(max_examples=60)
@given(rectangles(least=4), ranges, seeds)
def test_a_cut_object_stays_at_its_edge(mask, layouts, seed):
    if not any(side.any() for side in (mask[:, 0], mask[:, -1], mask[0], mask[-1])):
        mask[1:3, 0] = 255
    cut = [side.any() for side in (mask[:, 0], mask[:, -1], mask[0], mask[-1])]
    layout = draw_layout(layouts, mask, generator(seed))
    alpha = np.asarray(cut_out(noise(mask.shape[::-1]), mask, layout)[1])
    if layout.mirror:
        cut[:2] = cut[1::-1]
    kept = [side.any() for side in (alpha[:, 0], alpha[:, -1], alpha[0], alpha[-1])]
    if layout.scale >= 0.9:  # of a pixel that is shrunk, nothing may be left
        assert [now for now, before in zip(kept, cut) if before] == [True] * sum(cut)
    assert layout.angle == 0
    assert layout.shift[0] == 0 or not any(cut[:2])
    assert layout.shift[1] == 0 or not any(cut[2:])
    if all(cut[:2]) or all(cut[2:]):
        assert layout.scale == 1


def test_a_cut_side_opens_no_gap_and_changes_sides_when_mirrored():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, :24] = 255
    for mirror, edge in ((False, 0), (True, -1)):
        layout = Layout(scale=0.5, mirror=mirror)
        alpha = np.asarray(cut_out(noise((60, 40)), mask, layout)[1])
        assert (alpha[16:24, edge] == 255).all() and alpha.any(axis=0).sum() in (12, 13, 14)
        assert not alpha[:, -1 - edge].any()


@settings(max_examples=40)
@given(seeds)
def test_no_rim_of_the_old_place_travels(seed):
    mask = disc((64, 48), (30, 20), 13)
    ground = np.full((48, 64, 3), (0, 255, 40), np.uint8)
    ground[mask > 0] = (255, 0, 0)
    layouts = Layouts((0.2, 2.5), 180, 0.5, True)
    layout = draw_layout(layouts, mask, generator(seed))
    colours, alpha = map(np.asarray, cut_out(Image.fromarray(ground), mask, layout))
    assert alpha.max() > 200
    assert (colours[alpha > 0][:, 1:] == 0).all()
    assert (colours[alpha > 20][:, 0] >= 250).all()


@pytest.mark.parametrize("angle", [0, 33])
def test_size_follows_the_scale_and_shrinking_is_antialiased(angle):
    mask = disc((200, 200), (100, 100), 70)
    stripes = np.zeros((200, 200, 3), np.uint8)
    stripes[::2] = 255
    for scale in (0.1, 0.25, 1.2):
        layout = Layout(scale, angle)
        colours, alpha = map(np.asarray, cut_out(Image.fromarray(stripes), mask, layout))
        size = alpha.sum() / 255 / (mask > 0).sum()
        assert math.sqrt(size) == pytest.approx(scale, rel=0.04)
        if scale < 1:
            assert np.abs(colours[alpha == 255].astype(int) - 127).max() < 12


def test_turn_and_shift_go_where_they_say():
    mask = np.zeros((100, 100), np.uint8)
    mask[48:52, 50:90] = 255  # points to the right
    mask[40:60, 30:50] = 255
    alpha = np.asarray(cut_out(noise((100, 100)), mask, Layout(angle=90))[1])
    box = np.full((100, 100), False)
    box[20:80, 50:70] = True  # 60 wide and 20 high, about (60, 50), has become 20 wide and 60 high
    assert (alpha[~box] == 0).all() and alpha[25, 59:61].min() == 255 and alpha[25, 51] == 0
    assert alpha[61:79, 51:69].min() == 255
    moved = np.asarray(cut_out(noise((100, 100)), mask, Layout(shift=(-0.2, 0.3)))[1])
    assert np.array_equal(moved, np.roll(mask, (30, -20), (0, 1)))
    outside = np.asarray(cut_out(noise((100, 100)), mask, Layout(shift=(0.9, 0)))[1])
    assert np.array_equal(outside, np.roll(mask, (0, 10), (0, 1)))


def test_a_mirrored_photo_is_mirrored_exactly():
    photo, mask = noise((31, 20)), disc((31, 20), (9, 11), 6)
    colours, alpha = cut_out(photo, mask, Layout(mirror=True))
    assert np.array_equal(colours, np.asarray(photo)[:, ::-1])
    assert np.array_equal(alpha, mask[:, ::-1])


def test_what_is_switched_on_leaves_the_others_as_they_are():
    """A small object in the middle, so that everything fits."""
    mask = disc((81, 81), (40, 40), 4)
    everything = Layouts((0.5, 2), 45, 0.2, True, 0.5)
    mirrored = 0
    for seed in range(20):
        stream = generator(seed)
        whole = draw_layout(everything, mask, stream)
        mirrored += whole.mirror
        after = torch.rand((), generator=stream)
        for name in ("scale", "rotate", "shift", "mirror", "colour"):
            stream = generator(seed)
            single = draw_layout(Layouts(**{name: getattr(everything, name)}), mask, stream)
            assert torch.rand((), generator=stream) == after
            part = "angle" if name == "rotate" else name
            assert getattr(single, part) == pytest.approx(getattr(whole, part))
            rest = {"scale", "angle", "shift", "mirror", "colour"} - {part}
            assert all(getattr(single, other) == getattr(Layout(), other) for other in rest)
    assert 3 < mirrored < 17


def test_draws_fill_their_ranges_scale_evenly_in_its_logarithm():
    mask = disc((81, 81), (40, 40), 4)
    layouts = Layouts((0.25, 4), 30, 0.1, colour=0.5)
    stream = generator()
    drawn = [draw_layout(layouts, mask, stream) for _ in range(400)]
    scales = np.log2([layout.scale for layout in drawn])
    assert np.abs(np.quantile(scales, [0, 0.25, 0.5, 0.75, 1]) - [-2, -1, 0, 1, 2]).max() < 0.35
    for values, most in (
        ([layout.angle for layout in drawn], 30),
        ([layout.shift[1] for layout in drawn], 0.1),
        ([layout.colour[0] for layout in drawn], 0.25),
    ):
        assert -most <= min(values) < -0.9 * most and 0.9 * most < max(values) <= most


def test_colour_acts_on_colours_alone_and_reaches_grey_metal():
    mask = disc((40, 40), (20, 20), 12)
    grey = Image.new("RGB", (40, 40), (120, 120, 120))
    plain = cut_out(grey, mask, Layout(0.8, 10))
    seen = []
    for seed in range(30):
        colour = draw_layout(Layouts(colour=0.4), mask, generator(seed)).colour
        colours, alpha = cut_out(grey, mask, Layout(0.8, 10, colour=colour))
        assert np.array_equal(alpha, plain[1])
        seen.append(np.asarray(colours)[20, 20].astype(int))
    spread = np.ptp(seen, axis=1)  # between the channels: 0 is grey
    assert np.median(spread) > 15 and spread.max() < 110
    assert np.min(seen) > 60 and np.max(seen) < 220
    assert {int(values.argmax()) for values in seen} == {0, 1, 2}


def test_colour_turns_hues_and_multiplies_saturation_and_brightness():
    photo, mask = Image.new("RGB", (8, 8), (150, 60, 60)), np.full((8, 8), 255, np.uint8)

    def of(*colour):
        return np.asarray(cut_out(photo, mask, Layout(colour=colour))[0])[4, 4].astype(float)

    assert np.allclose(of(0, 1, 1.5), (225, 90, 90), atol=1)
    assert np.ptp(of(0, 0, 1)) == 0
    assert np.ptp(of(0, 1.5, 1)) == pytest.approx(135, abs=1)
    assert {int(of(turn, 1, 1).argmax()) for turn in (0, 1 / 3, -1 / 3)} == {0, 1, 2}


@pytest.mark.parametrize(
    "mask, scale, fits",
    [
        (disc((50, 50), (25, 25), 5), (1, 2), True),
        (disc((50, 50), (25, 25), 20), (1.5, 2), False),
        (disc((50, 50), (25, 25), 20), (1, 2), True),
        (disc((50, 50), (0, 25), 5), (3, 4), True),
        (np.full((50, 50), 255, np.uint8), (0.5, 0.9), True),
        (np.full((50, 50), 255, np.uint8), (0.5, 1), True),
        (np.zeros((50, 50), np.uint8), (3, 3), True),
    ],
)
def test_can_fit(mask, scale, fits):
    assert can_fit(Layouts(scale), mask) is fits


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"scale": (0, 1)}, "--layout_scale: got 0 1"),
        ({"scale": (2, 1)}, "--layout_scale: got 2 1"),
        ({"scale": (1, math.inf)}, "--layout_scale"),
        ({"scale": (math.nan, 1)}, "--layout_scale"),
        ({"rotate": 181}, "--layout_rotate: got 181"),
        ({"shift": -0.1}, "--layout_shift: got -0.1"),
        ({"colour": 1.1}, "--layout_colour: got 1.1"),
        ({"colour": math.nan}, "--layout_colour: got nan"),
    ],
)
def test_impossible_values_are_named(wrong, named):
    with pytest.raises(UserError, match=named) as error:
        check_layouts(Layouts(**wrong))
    assert "expected" in str(error.value) and "\n" not in str(error.value)


def test_possible_values_pass():
    check_layouts(Layouts())
    check_layouts(EVERYTHING)
    check_layouts(Layouts((0.1, 10), 180, 1, True, 1))


def test_details_read_well():
    layout = Layout(1.23456, -7.654321, (0.123456, -0.2), True, (0.1, 1.00049, 0.87654))
    assert layout.details() == {
        "scale": 1.235,
        "angle": -7.7,
        "shift": [0.123, -0.2],
        "mirror": True,
        "colour": [0.1, 1.0, 0.877],
    }
