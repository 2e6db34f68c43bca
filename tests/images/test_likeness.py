"""Pairs of pictures that are nearly equal."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from semantic_aug.images.likeness import change_of, reduced, similar_pairs


def test_a_copy_that_was_saved_again_is_near_and_a_patch_is_not(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    photo = Image.fromarray(noise).resize((320, 240))
    photo.save(tmp_path / "a.jpg", quality=80)
    patched = photo.copy()
    patched.paste("red", (0, 0, 80, 60))
    with Image.open(tmp_path / "a.jpg") as copy:
        small = [reduced(each) for each in (photo, patched, copy)]
    assert similar_pairs(small, 5.0) == [(0, 2)]
    assert similar_pairs([], 5.0) == similar_pairs(small[:1], 5.0) == []


@given(st.integers(0, 9), st.floats(1, 60))
@settings(max_examples=15)
def test_pairs_are_those_whose_change_is_below_the_limit(seed, limit):
    stream = np.random.default_rng(seed)
    pictures = [np.full((32, 32, 3), stream.integers(0, 90), np.float32) for _ in range(5)]
    pictures[2][:8, 8:16] += 40
    expected = [
        (a, b) for a in range(5) for b in range(a + 1, 5)
        if change_of(pictures[a], pictures[b]) < limit
    ]  # fmt: skip
    assert similar_pairs(pictures, limit) == expected
