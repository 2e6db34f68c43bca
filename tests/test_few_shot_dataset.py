"""The base class: trial subsets, reading of images and masks, the cut around the object, and
subclasses in the predecessors' style."""

import collections
import logging
import os
import pickle
import random
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from semantic_aug import UserError, few_shot_dataset
from semantic_aug.datasets import build_dataset
from semantic_aug.few_shot_dataset import (
    CROP_MARGIN,
    FewShotDataset,
    Record,
    binary_mask,
    check_image,
    image_to_tensor,
    object_box,
    read_image,
    read_mask,
    read_size,
)

ORIENTATION = 0x0112  # the EXIF tag


def pixels(height=8, width=12, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save_photo(path, colour=(10, 20, 30), size=(12, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


class Signs(FewShotDataset):
    """ROOT/SPLIT/CLASS_NUMBER.png, masks in ROOT/masks under the same name."""

    env = "SIGNS_DIR"

    def list_records(self, split):
        for path in self.images_in(self.data_dir / split):
            mask = self.data_dir / "masks" / path.name
            yield self.record(path, path.stem.split("_")[0], mask if mask.exists() else None)


@pytest.fixture(scope="module")
def signs(tmp_path_factory):
    """Eight photos of each of three classes in train, two in val and in test."""
    root = tmp_path_factory.mktemp("signs")
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        for label, name in enumerate(("give", "left", "stop")):
            for number in range(count):
                save_photo(root / split / f"{name}_{number}.png", (label * 80, number * 20, 7))
    return root


def sources(dataset):
    return [record.source for record in dataset.records]


# --- trials ----------------------------------------------------------------------------------


def test_labels_images_metadata_and_whole_splits(signs):
    dataset = Signs(data_dir=signs, split="val")
    assert dataset.class_names == ["give", "left", "stop"] and dataset.num_classes == 3
    assert sources(dataset) == [f"val/{c}_{n}.png" for c in dataset.class_names for n in (0, 1)]
    assert [dataset.get_label_by_idx(i) for i in range(len(dataset))] == [0, 0, 1, 1, 2, 2]
    assert dataset.get_image_by_idx(5).getpixel((3, 3)) == (160, 20, 7)
    assert dataset.get_metadata_by_idx(5) == {"name": "stop", "source": "val/stop_1.png"}
    assert dataset.sources() == sources(dataset)
    assert len(Signs(data_dir=signs, split="val", examples_per_class=1)) == 6
    assert len(Signs(data_dir=signs)) == 24


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(1, 8), min_size=2, max_size=2))
def test_subsets_of_one_seed_are_nested(signs, seed, sizes):
    small, large = (
        Signs(data_dir=signs, seed=seed, examples_per_class=size) for size in sorted(sizes)
    )
    assert set(sources(small)) <= set(sources(large))
    for dataset, size in ((small, min(sizes)), (large, max(sizes))):
        counts = collections.Counter(dataset.get_label_by_idx(i) for i in range(len(dataset)))
        assert counts == {0: size, 1: size, 2: size}
        assert len(set(sources(dataset))) == 3 * size
        again = Signs(data_dir=signs, seed=seed, examples_per_class=size)
        assert sources(again) == sources(dataset)


def test_seeds_choose_different_photos(signs):
    chosen = {tuple(sources(Signs(data_dir=signs, seed=s, examples_per_class=1))) for s in range(9)}
    assert len(chosen) > 5
    firsts = {each[0] for each in chosen}
    assert len(firsts) > 2  # every class has a choice of its own


def test_selection_does_not_depend_on_other_photos(tmp_path):
    for number in range(6):
        save_photo(tmp_path / "train" / f"cat_{number}.png")
    before = sources(Signs(data_dir=tmp_path, seed=3, examples_per_class=4))
    for number in range(6):
        save_photo(tmp_path / "train" / f"ant_{number}.png")
    after = Signs(data_dir=tmp_path, seed=3, examples_per_class=4)
    assert sources(after)[4:] == before
    for number in range(6, 30):  # of the same class: the old ones keep their order
        save_photo(tmp_path / "train" / f"cat_{number}.png")
    more = sources(Signs(data_dir=tmp_path, seed=3, examples_per_class=30))[6:]
    assert len(more) == 30
    assert [source for source in more if source in before] == before


def test_selection_is_fixed_for_ever(signs):
    """A changed choice would make published trials unrepeatable."""
    assert sources(Signs(data_dir=signs, seed=0, examples_per_class=2)) == [
        "train/give_2.png", "train/give_1.png",
        "train/left_2.png", "train/left_3.png",
        "train/stop_4.png", "train/stop_3.png",
    ]  # fmt: skip


def test_fewer_photos_than_asked_for_are_all_used(tmp_path, caplog):
    for name, count in (("cat", 2), ("dog", 5)):
        for number in range(count):
            save_photo(tmp_path / "train" / f"{name}_{number}.png")
    dataset = Signs(data_dir=tmp_path, examples_per_class=4)
    assert [dataset.get_label_by_idx(i) for i in range(len(dataset))] == [0, 0, 1, 1, 1, 1]
    assert "class 'cat' has 2 readable photos of the 4 asked for" in caplog.text
    assert "'dog'" not in caplog.text


def test_classes_without_photos_keep_their_label(tmp_path):
    class Fixed(Signs):
        class_names = ["zebra", "cat", "ant", "dog"]  # noqa: RUF012

    for name in ("dog", "cat"):
        save_photo(tmp_path / "train" / f"{name}_0.png")
    dataset = Fixed(data_dir=tmp_path, examples_per_class=1)
    assert dataset.class_names == ["zebra", "cat", "ant", "dog"] and dataset.num_classes == 4
    assert [dataset.get_label_by_idx(i) for i in range(2)] == [1, 3]
    assert dataset.empty_classes() == ["zebra", "ant"]
    assert dataset.indices(["dog", "zebra"]) == [1]
    assert dataset.indices() == [0, 1]
    with pytest.raises(UserError, match=r"--classes: unknown 'wolf'; known: zebra, cat, ant, dog"):
        dataset.indices(["dog", "wolf"])


def test_a_photo_listed_twice_counts_once_and_of_two_classes_is_an_error(tmp_path):
    class Listed(FewShotDataset):
        rows = ()

        def list_records(self, split):
            yield from self.rows

    paths = [save_photo(tmp_path / f"{number}.png") for number in range(2)]
    rows = [Record(path, "cat", path.name) for path in paths]
    Listed.rows = [rows[0], rows[0], rows[1]]
    assert len(Listed(data_dir=tmp_path, examples_per_class=2)) == 2
    Listed.rows = [rows[0], Record(paths[0], "dog", paths[0].name)]
    with pytest.raises(UserError, match=r"0.png is listed as 'cat' and as 'dog'"):
        Listed(data_dir=tmp_path)


def test_a_record_of_an_unknown_class_is_named(tmp_path):
    class Fixed(Signs):
        class_names = ["cat"]  # noqa: RUF012

    save_photo(tmp_path / "train" / "dog_0.png")
    with pytest.raises(
        UserError, match=r"train/dog_0.png: class 'dog' is not among the 1 class of"
    ):
        Fixed(data_dir=tmp_path)


# --- where the data lies ---------------------------------------------------------------------


def test_data_root_from_argument_environment_and_default(signs, workdir, monkeypatch):
    class WithDefault(Signs):
        default_dir = "data/signs"

    with pytest.raises(UserError, match=r"data root data/signs is not a folder: .* SIGNS_DIR"):
        WithDefault()
    with pytest.raises(
        UserError, match=r"no data root for Signs: pass --data_dir or set SIGNS_DIR"
    ):
        Signs()
    (workdir / "data").mkdir()
    (workdir / "data" / "signs").symlink_to(signs)
    assert len(WithDefault()) == 24
    save_photo(workdir / "other" / "train" / "cat_0.png")
    monkeypatch.setenv("SIGNS_DIR", str(workdir / "other"))
    assert WithDefault().class_names == ["cat"]
    assert len(WithDefault(data_dir=signs)) == 24
    monkeypatch.setenv("HOME", str(workdir))
    assert len(WithDefault(data_dir="~/other")) == 1


def test_wrong_arguments(signs, tmp_path):
    with pytest.raises(
        UserError, match="split: got 'validation', expected one of train, val, test"
    ):
        Signs(data_dir=signs, split="validation")
    with pytest.raises(UserError, match="examples_per_class: got 0, expected 1 or more"):
        Signs(data_dir=signs, examples_per_class=0)
    with pytest.raises(UserError, match=r"no photo of split 'train' in .*root that Signs expects"):
        Signs(data_dir=tmp_path)
    with pytest.raises(UserError, match="crop_to_object: no photo of split 'train' has a mask"):
        Signs(data_dir=signs, crop_to_object=True)


def test_hidden_files_folders_and_other_files_are_no_photos(tmp_path):
    save_photo(tmp_path / "B.JPG")
    save_photo(tmp_path / "a.png")
    save_photo(tmp_path / "._a.png")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "linked.webp").symlink_to(tmp_path / "a.png")
    names = [path.name for path in FewShotDataset.images_in(tmp_path)]
    assert names == ["B.JPG", "a.png", "linked.webp"]
    assert [path.name for path in FewShotDataset.folders_in(tmp_path)] == ["folder.png"]
    assert FewShotDataset.images_in(tmp_path / "absent") == []
    assert FewShotDataset.folders_in(tmp_path / "absent") == []


def test_links_in_circles_are_no_folders_and_no_photos(tmp_path):
    save_photo(tmp_path / "train" / "cat_0.png")
    for name in ("round", "cat_1.png"):
        (tmp_path / "train" / name).symlink_to(tmp_path / "train" / name)
    assert FewShotDataset.folders_in(tmp_path / "train") == []
    dataset = Signs(data_dir=tmp_path, examples_per_class=2)
    assert sources(dataset) == ["train/cat_0.png"]
    assert dataset.unreadable == ["train/cat_1.png"]


def test_a_file_name_of_another_encoding_is_named(tmp_path):
    save_photo(tmp_path / "train" / "cat_0.png")
    name = os.fsdecode(b"cat_caf\xe9.png")  # no record could hold it
    (tmp_path / "train" / "cat_0.png").rename(tmp_path / "train" / name)
    with pytest.raises(UserError, match=r"train: the name 'cat_caf\\udce9.png' is not valid UTF-8"):
        Signs(data_dir=tmp_path)


def test_a_folder_that_may_not_be_listed_is_named(signs, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(few_shot_dataset.os, "scandir", refuse)
    with pytest.raises(UserError, match=r"the folder .*train cannot be read: Permission denied"):
        Signs(data_dir=signs)


def test_class_names_that_are_not_unique_are_named(signs):
    class Twice(Signs):
        def list_class_names(self):
            return ["cat", "dog", "dog"]

    with pytest.raises(UserError, match="two classes are called 'dog'"):
        Twice(data_dir=signs)


# --- unreadable photos -----------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-80])


def empty(path):
    path.write_bytes(b"")


def write_text(path):
    path.write_text("this is no photo")


def break_link(path):
    path.unlink()
    path.symlink_to(path.with_name("gone"))


BREAKAGES = {
    truncate: r"",
    empty: "the file is empty",
    write_text: "no image of a known format",
    break_link: "no such file",
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("damage", BREAKAGES, ids=lambda f: f.__name__)
def test_an_unreadable_photo_is_named_and_replaced_by_the_next(tmp_path, caplog, damage, suffix):
    for number in range(4):
        path = tmp_path / "train" / f"cat_{number}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels(32, 40, number)).save(path)
    whole = sources(Signs(data_dir=tmp_path, examples_per_class=4))
    damage(tmp_path / whole[1])
    dataset = Signs(data_dir=tmp_path, examples_per_class=2)
    assert sources(dataset) == [whole[0], whole[2]]
    assert dataset.unreadable == [whole[1]]
    assert whole[1] in caplog.text and "skipped" in caplog.text
    assert BREAKAGES[damage] in caplog.text
    with pytest.raises(UserError, match="cannot read image"):
        read_image(tmp_path / whole[1])


def test_a_class_without_a_readable_photo_is_an_error(tmp_path):
    for number in range(3):
        save_photo(tmp_path / "train" / f"cat_{number}.png")
        empty(save_photo(tmp_path / "train" / f"dog_{number}.png"))
    with pytest.raises(UserError, match="class 'dog' has 3 photos, none of them readable"):
        Signs(data_dir=tmp_path, examples_per_class=1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Tag data")
def test_any_damage_is_a_user_error_and_checking_agrees_with_reading(tmp_path):
    """Decoders raise all sorts of exceptions; none may come through."""
    chance = random.Random(0)
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010E] = 6, "a description"
    outcomes = collections.Counter()
    for suffix in ("jpg", "png", "webp", "gif"):
        path = tmp_path / f"photo.{suffix}"
        options = {} if suffix == "gif" else {"exif": exif}
        Image.fromarray(pixels(20, 30)).save(path, **options)
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for _ in range(chance.choice([1, 3, 20])):
                damaged[chance.randrange(min(len(damaged), 400))] = chance.randrange(256)
            path.write_bytes(damaged[: chance.choice([None, chance.randrange(len(damaged))])])
            try:
                image = read_image(path)
            except UserError as error:
                assert str(path) in str(error)
                with pytest.raises(UserError):
                    check_image(path)
            else:
                check_image(path)
                assert image.mode == "RGB" and image.size == read_size(path)
                outcomes[suffix] += 1
    assert 0 < sum(outcomes.values()) < 240


# --- images of all kinds ---------------------------------------------------------------------


def stored(path, image, **options):
    image.save(path, **options)
    with Image.open(path) as again:
        mode = again.mode
    return mode, np.asarray(read_image(path))


def test_grey(tmp_path):
    grey = pixels()[..., 0]
    mode, rgb = stored(tmp_path / "a.png", Image.fromarray(grey))
    assert mode == "L"
    assert (rgb == grey[..., None]).all() and rgb.shape == (8, 12, 3)


def test_one_bit(tmp_path):
    bits = pixels()[..., 0] > 127
    mode, rgb = stored(tmp_path / "a.png", Image.fromarray(bits))
    assert mode == "1"
    assert (rgb == np.where(bits, 255, 0)[..., None]).all()


def palette_image():
    image = Image.new("P", (4, 2))
    image.putpalette([200, 10, 20, 30, 220, 40, 50, 60, 240])
    image.putdata([0, 1, 2, 0, 1, 1, 2, 2])
    return image


def test_palette(tmp_path):
    mode, rgb = stored(tmp_path / "a.png", palette_image())
    assert mode == "P"
    assert rgb[0].tolist() == [[200, 10, 20], [30, 220, 40], [50, 60, 240], [200, 10, 20]]


def test_transparent_parts_become_white(tmp_path):
    mode, rgb = stored(tmp_path / "palette.png", palette_image(), transparency=1)
    assert mode == "P"
    assert rgb[0].tolist() == [[200, 10, 20], [255, 255, 255], [50, 60, 240], [200, 10, 20]]
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(9, 8, 7, 255), (9, 8, 7, 0), (0, 0, 0, 51)])
    mode, rgb = stored(tmp_path / "rgba.png", rgba)
    assert mode == "RGBA"
    assert rgb[0].tolist() == [[9, 8, 7], [255, 255, 255], [204, 204, 204]]
    la = Image.new("LA", (2, 1))
    la.putdata([(60, 255), (60, 0)])
    mode, rgb = stored(tmp_path / "la.png", la)
    assert mode == "LA"
    assert rgb[0].tolist() == [[60, 60, 60], [255, 255, 255]]


def test_cmyk_jpeg(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    mode, rgb = stored(tmp_path / "a.jpg", image, quality=95)
    assert mode == "CMYK"
    assert np.abs(rgb.astype(int) - [255, 0, 0]).max() < 6


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 257, 32767, 65535]], np.uint16)
    for suffix in ("png", "tif"):
        mode, rgb = stored(tmp_path / f"a.{suffix}", Image.fromarray(values))
        assert mode == "I;16"
        assert rgb[0, :, 0].tolist() == rgb[0, :, 2].tolist() == [0, 1, 127, 255]


def test_float_tiff(tmp_path):
    values = np.array([[0, 0.2, 1, np.nan]], np.float32)
    mode, rgb = stored(tmp_path / "a.tif", Image.fromarray(values))
    assert mode == "F"
    assert rgb[0, :, 1].tolist() == [0, 51, 255, 0]


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (7, 300)])
def test_tiny_jpeg(tmp_path, size):
    path = save_photo(tmp_path / "a.jpg", (250, 250, 250), size)
    check_image(path)
    assert read_image(path).size == read_size(path) == size


# What a camera stores, given the upright pixels, for each value of the tag (EXIF 2.32, 4.6.4).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_rotated_photos_are_upright(tmp_path, orientation, suffix):
    upright = np.zeros((32, 48, 3), np.uint8)  # 16 px blocks survive JPEG
    upright[:16, :16], upright[16:, 16:32], upright[:16, 32:] = 250, 130, 60
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"photo.{suffix}"
    stored_pixels = np.ascontiguousarray(STORED[orientation](upright))
    Image.fromarray(stored_pixels).save(path, exif=exif, quality=95, lossless=True)
    image = read_image(path)
    assert image.size == read_size(path) == (48, 32)
    assert np.abs(np.asarray(image).astype(int) - upright).max() <= (3 if suffix == "jpg" else 0)
    assert ImageOps.exif_transpose(image).tobytes() == image.tobytes()  # nobody turns it again


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_a_broken_exif_block_does_not_make_a_photo_unreadable(tmp_path, suffix):
    path = tmp_path / f"photo.{suffix}"
    save_photo(path, (40, 50, 60), exif=b"Exif\0\0this is none", lossless=True)
    assert read_size(path) == (12, 8)
    check_image(path)
    assert read_image(path).getpixel((5, 5)) == (40, 50, 60)


def test_masks_of_rotated_photos_are_upright_too(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    upright = np.zeros((8, 12), np.uint8)
    upright[1:4, 2:9] = 255
    (tmp_path / "train").mkdir()
    (tmp_path / "masks").mkdir()
    for name in ("drawn", "turned"):  # a mask drawn on the upright photo, or stored like the photo
        turned = Image.fromarray(np.ascontiguousarray(STORED[6](pixels())))
        turned.save(tmp_path / "train" / f"{name}_0.png", exif=exif)
    Image.fromarray(upright).save(tmp_path / "masks" / "drawn_0.png")
    rotated = Image.fromarray(np.ascontiguousarray(STORED[6](upright)))
    rotated.save(tmp_path / "masks" / "turned_0.png", exif=exif)
    dataset = Signs(data_dir=tmp_path, examples_per_class=1)
    for index in range(2):
        assert np.array_equal(np.asarray(dataset.get_image_by_idx(index)), pixels())
        assert np.array_equal(dataset.get_mask_by_idx(index), upright)
    rotated.save(tmp_path / "masks" / "turned_0.png")  # without the tag it does not fit
    message = r"mask of train/turned_0.png is 8x12 pixels, the photo is 12x8"
    with pytest.raises(UserError, match=message):
        dataset.get_mask_by_idx(1)


# --- masks and the cut around them -----------------------------------------------------------


def test_one_threshold_for_all_masks(tmp_path):
    wanted = np.array([[0, 255, 255, 0]], np.uint8)
    kinds = {
        "grey.png": Image.fromarray(np.array([[0, 1, 255, 0]], np.uint8)),
        "bits.png": Image.fromarray(np.array([[False, True, True, False]])),
        "deep.png": Image.fromarray(np.array([[0, 1, 65535, 0]], np.uint16)),
        "colour.png": Image.fromarray(np.array([[[0] * 3, [0, 0, 1], [9] * 3, [0] * 3]], np.uint8)),
        "alpha.png": Image.fromarray(
            np.array([[[0, 0, 0, 255], [0, 3, 0, 255], [1, 1, 1, 0], [0, 0, 0, 0]]], np.uint8)
        ),
    }
    kinds["palette.png"] = Image.new("P", (4, 1))
    kinds["palette.png"].putpalette([70, 80, 90, 0, 0, 0, 1, 2, 3])  # indices count, not colours
    kinds["palette.png"].putdata([0, 1, 2, 0])
    for name, image in kinds.items():
        image.save(tmp_path / name)
        mask = read_mask(tmp_path / name)
        assert mask.dtype == np.uint8 and mask.tolist() == wanted.tolist(), name
    assert binary_mask(np.array([[0.0, 0.4, -1.0, 0.0]])).tolist() == wanted.tolist()


def test_masks_are_read_only_when_asked_for(tmp_path):
    for number, mask in enumerate((b"broken", None)):
        save_photo(tmp_path / "train" / f"cat_{number}.png")
        if mask:
            (tmp_path / "masks").mkdir()
            (tmp_path / "masks" / f"cat_{number}.png").write_bytes(mask)
    dataset = Signs(data_dir=tmp_path, image_size=16)
    assert [dataset[i][0].shape for i in range(2)] == [(3, 16, 16)] * 2
    with pytest.raises(UserError, match=r"cannot read mask .*cat_0.png"):
        dataset.get_mask_by_idx(0)
    with pytest.raises(UserError, match=r"photo train/cat_1.png has no mask"):
        dataset.get_mask_by_idx(1)


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    box=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_the_square_around_an_object(shape, box):
    height, width = shape
    top, bottom = sorted(int(x * (height - 1)) for x in box[:2])
    left, right = sorted(int(x * (width - 1)) for x in box[2:])
    mask = np.zeros(shape, np.uint8)
    mask[top, left] = mask[bottom, right] = 255  # corners of the object, both inside it
    x0, y0, x1, y1 = object_box(mask)
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    side = x1 - x0
    assert side == y1 - y0
    grown = max(bottom - top, right - left) + 1 + 2 * CROP_MARGIN
    assert side == min(grown, height, width)
    if side >= right - left + 1:
        assert x0 <= left and right < x1
    if side >= bottom - top + 1:
        assert y0 <= top and bottom < y1
    if side == grown:  # the margin too, as far as the photo goes
        assert x0 <= max(left - CROP_MARGIN, 0) and x1 >= min(right + 1 + CROP_MARGIN, width)
        assert y0 <= max(top - CROP_MARGIN, 0) and y1 >= min(bottom + 1 + CROP_MARGIN, height)
    for low, high, first, last, whole in (
        (x0, x1, left, right, width),
        (y0, y1, top, bottom, height),
    ):
        if low > 0 and high < whole:  # not shifted: its middle is the object's
            assert abs((low + high) - (first + last + 1)) <= 1


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 60), st.integers(1, 60))))
def test_the_square_depends_on_the_bounding_box_alone(mask):
    rows, columns = np.nonzero(mask)
    if rows.size:
        filled = np.zeros_like(mask)
        filled[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        assert object_box(mask) == object_box(filled)
    else:
        x0, y0, x1, y1 = object_box(mask)
        assert x1 - x0 == y1 - y0 == min(mask.shape)


def test_crop_to_object_cuts_image_and_mask_alike(tmp_path):
    photo = pixels(100, 140)
    mask = np.zeros((100, 140), np.uint8)
    mask[40:50, 120:130] = 1  # near the right edge: 42 px would reach to column 146
    for folder, array in (("train", photo), ("masks", mask)):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / "cat_0.png")
    dataset = Signs(data_dir=tmp_path, crop_to_object=True, examples_per_class=1)
    assert np.array_equal(np.asarray(dataset.get_image_by_idx(0)), photo[24:66, 98:140])
    assert np.array_equal(dataset.get_mask_by_idx(0), mask[24:66, 98:140] * 255)
    whole = Signs(data_dir=tmp_path)
    assert whole.get_image_by_idx(0).size == (140, 100)
    assert whole.get_mask_by_idx(0).sum() == 100 * 255


# --- tensors ---------------------------------------------------------------------------------


def test_examples_are_tensors_in_minus_one_to_one(tmp_path):
    path = tmp_path / "train" / "cat_0.png"
    save_photo(path, (0, 255, 51), size=(30, 20))
    tensor, label = Signs(data_dir=tmp_path, image_size=16)[0]
    assert tensor.shape == (3, 16, 16) and tensor.dtype == torch.float32 and label == 0
    for channel, value in enumerate((-1, 1, -0.6)):
        assert torch.allclose(tensor[channel], torch.tensor(float(value)), atol=1e-6)
    assert Signs(data_dir=tmp_path, image_size=(10, 24))[0][0].shape == (3, 10, 24)
    assert Signs(data_dir=tmp_path)[0][0].shape == (3, 256, 256)
    flat = image_to_tensor(Image.fromarray(pixels(5, 7)), (5, 7))  # nothing to resize
    assert torch.equal(flat, torch.from_numpy(pixels(5, 7)).permute(2, 0, 1) / 127.5 - 1)


def test_synthetic_variants_take_the_place_of_their_photo(signs):
    dataset = Signs(data_dir=signs, split="val", image_size=8, synthetic_probability=1.0)
    dataset.synthetic_examples = {2: [(Image.new("RGB", (8, 8), "white"), 1)]}
    assert dataset[2][0].min() == 1 and dataset[2][1] == 1
    assert dataset[3][0].max() < 1
    dataset.synthetic_probability = 0.0
    assert dataset[2][0].max() < 1
    dataset.synthetic_probability = 0.5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = sum(bool(dataset[2][0].min() == 1) for _ in range(200))
    assert 70 < drawn < 130


def test_datasets_travel_to_worker_processes(signs):
    dataset = Signs(data_dir=signs, split="val", image_size=8)
    again = pickle.loads(pickle.dumps(dataset))
    assert sources(again) == sources(dataset)
    assert torch.equal(again[1][0], dataset[1][0])


# --- subclasses in the predecessors' style ---------------------------------------------------

OLD_STYLE = '''
import numpy as np
from PIL import Image

from semantic_aug.few_shot_dataset import FewShotDataset


class Closed(FewShotDataset):
    """Its constructor names what it takes; split, seed and image_size stay with it."""

    class_names = ["ant", "bee", "cow"]
    num_classes = 3

    def __init__(self, *args, split="train", seed=0, image_size=(256, 256), shade: int = 0,
                 examples_per_class=None, generative_aug=None, synthetic_probability=0.5,
                 synthetic_dir=None):
        super().__init__(*args, examples_per_class=examples_per_class,
                         generative_aug=generative_aug,
                         synthetic_probability=synthetic_probability, synthetic_dir=synthetic_dir)
        count = examples_per_class if split == "train" and examples_per_class else 4
        self.rows = [(label, seed + n) for label in range(3) for n in range(count)]
        self.shade = shade

    def __len__(self):
        return len(self.rows)

    def get_image_by_idx(self, idx):
        label, number = self.rows[idx]
        return Image.new("RGB", (30, 20), (label * 100, number, self.shade))

    def get_label_by_idx(self, idx):
        return self.rows[idx][0]

    def get_metadata_by_idx(self, idx):
        mask = np.zeros((20, 30), bool)
        mask[2:5, 3:7] = True
        return {"name": self.class_names[self.rows[idx][0]], "mask": mask}


class Open(Closed):
    """Its constructor passes on whatever it does not know."""

    def __init__(self, *args, split="train", seed=0, image_size=(256, 256), **kwargs):
        self.image_size = image_size
        FewShotDataset.__init__(self, *args, **kwargs)
        self.seen = split, seed
        self.rows = [(label, 0) for label in (2, 0)]
        self.shade = 9

    def get_metadata_by_idx(self, idx):
        mask = Image.new("L", (30, 20))
        mask.putpixel((4, 1), 1)
        return {"name": self.class_names[self.rows[idx][0]], "mask": mask, "source": f"s{idx}"}


class Bare(Closed):
    num_classes = None

    def get_metadata_by_idx(self, idx):
        return {"name": self.class_names[self.rows[idx][0]]}


class Transformed(Closed):
    transform = staticmethod(lambda image: image.size)


class Unsplit(Closed):
    def __init__(self, seed=0):
        super().__init__(seed=seed)


class Empty(Closed):
    def __len__(self):
        return 0


class Unnamed(Closed):
    class_names = None
'''

COMMON = {"seed": 7, "examples_per_class": 2, "image_size": 16, "data_dir": None}


@pytest.fixture
def old_style(workdir, monkeypatch):
    """A user's module in the working directory, which is where commands look for it."""
    (workdir / "old_style_signs.py").write_text(OLD_STYLE)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield "old_style_signs"
    sys.modules.pop("old_style_signs", None)


def test_old_style_subclass_with_a_closed_constructor(old_style, caplog):
    dataset = build_dataset(
        f"{old_style}:Closed", "train", dataset_args=["shade=33"], crop_to_object=False, **COMMON
    )
    assert len(dataset) == 6 and dataset.num_classes == 3
    assert (dataset.examples_per_class, dataset.seed, dataset.split) == (2, 7, "train")
    assert dataset.get_image_by_idx(3).getpixel((0, 0)) == (100, 8, 33)
    assert [dataset.get_label_by_idx(i) for i in range(6)] == [0, 0, 1, 1, 2, 2]
    tensor, label = dataset[3]
    assert tensor.shape == (3, 16, 16) and tensor.dtype == torch.float32 and label == 1
    assert tensor[0].max() == pytest.approx(100 / 127.5 - 1)
    mask = dataset.get_mask_by_idx(0)
    assert mask.dtype == np.uint8 and mask.shape == (20, 30)
    assert (mask == 255).sum() == 12 and mask[2:5, 3:7].min() == 255 and mask.sum() == 12 * 255
    assert dataset.indices(["bee"]) == [2, 3]
    assert dataset.empty_classes() == []
    with caplog.at_level(logging.WARNING):
        assert dataset.sources() == ["0", "1", "2", "3", "4", "5"]
    assert "Closed gives no `source`" in caplog.text


def test_old_style_subclass_with_an_open_constructor(old_style):
    dataset = build_dataset(f"{old_style}:Open", "val", crop_to_object=False, **COMMON)
    assert dataset.seen == ("val", 7)
    assert (dataset.split, dataset.seed, dataset.image_size) == ("val", 7, 16)
    tensor, label = dataset[0]
    assert tensor.shape == (3, 16, 16) and label == 2
    assert dataset.sources() == ["s0", "s1"]
    assert dataset.empty_classes() == ["bee"]
    mask = dataset.get_mask_by_idx(1)
    assert mask.shape == (20, 30) and np.argwhere(mask).tolist() == [[1, 4]]


def test_old_style_subclass_built_directly_keeps_its_size(old_style):
    build_dataset(f"{old_style}:Open", "val")
    module = sys.modules[old_style]
    assert module.Open(image_size=24)[0][0].shape == (3, 24, 24)
    assert module.Open()[0][0].shape == (3, 256, 256)


def test_old_style_subclass_without_masks_and_with_its_own_transform(old_style):
    bare = build_dataset(f"{old_style}:Bare", "train", **COMMON)
    assert bare.num_classes == 3
    with pytest.raises(UserError, match="photo 1 of Bare has no mask"):
        bare.get_mask_by_idx(1)
    assert build_dataset(f"{old_style}:Transformed", "train", **COMMON)[4] == ((30, 20), 2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Closed", {"data_dir": "photos"}, "Closed takes no data_dir, needed for data_dir=photos"),
        ("Closed", {"crop_to_object": True}, "Closed takes no crop_to_object"),
        ("Open", {"crop_to_object": True}, "crop_to_object: Open makes its images itself"),
        ("Unsplit", {}, "Unsplit takes no split, needed for split=val"),
        ("Empty", {}, "Empty has no photo of split 'val'"),
        ("Unnamed", {}, "Unnamed has no class_names"),
    ],
)
def test_old_style_subclasses_that_cannot_do_what_is_asked(old_style, name, options, message):
    with pytest.raises(UserError, match=message):
        build_dataset(f"{old_style}:{name}", "val", **options)
