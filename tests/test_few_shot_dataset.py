"""The base class: trial subsets, reading of images and masks, the cut around the object, and
subclasses in the predecessors' style."""

import collections
import logging
import os
import pickle
import random
import socket
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms, ImageOps

from semantic_aug import UserError, few_shot_dataset
from semantic_aug.datasets import build_dataset
from semantic_aug.few_shot_dataset import FewShotDataset, Record
from semantic_aug.images.masks import CROP_MARGIN, binary_mask, object_box, read_mask
from semantic_aug.images.reading import check_image, image_to_tensor, read_image, read_size

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
    for name, count in (("cat", 2), ("dog", 5), ("eel", 1)):
        for number in range(count):
            save_photo(tmp_path / "train" / f"{name}_{number}.png")
    dataset = Signs(data_dir=tmp_path, examples_per_class=4)
    assert [dataset.get_label_by_idx(i) for i in range(len(dataset))] == [0, 0, 1, 1, 1, 1, 2]
    assert caplog.messages == [
        "2 classes have fewer readable photos than 4, such as 'cat' with 2: all are used"
    ]


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


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    """Opening a FIFO would wait for ever, and a device may never end."""
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    photo = save_photo(tmp_path / "train" / "cat_0.png")
    os.mkfifo("train/cat_1.png")
    held = os.open("train/cat_1.png", os.O_RDWR)  # so that a reader gets something, and goes on
    os.write(held, b"nothing that is an image")
    (tmp_path / "train" / "cat_2.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("train/cat_3.png")
        dataset = Signs(data_dir=tmp_path, examples_per_class=4)
        assert sources(dataset) == ["train/cat_0.png"] and len(dataset.unreadable) == 3
        for number, kind in ((1, "FIFO"), (2, "device"), (3, "socket")):
            path = tmp_path / "train" / f"cat_{number}.png"
            message = rf"cannot read \w+ {path}: it is a {kind}, expected a regular file$"
            for read in (read_image, read_mask, read_size, check_image):
                with pytest.raises(UserError, match=message):
                    read(path)
    os.close(held)
    assert read_image(photo).size == (12, 8)


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


def test_float_images_above_one_are_cut_at_white_and_named(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 0.5, 1, 1.02]], np.float32)).save(path)
    assert np.asarray(read_image(path))[0, :, 0].tolist() == [0, 128, 255, 255]
    assert check_image(path) == "float values up to 1.02, where 1.0 is taken for white"
    assert check_image(path, bits=1) == ""  # it is known that 1 is white
    Image.fromarray(np.array([[0, 3, 6]], np.float32)).save(path)  # of 255, or light itself?
    assert check_image(path) == "almost black (0 to 6 of 255)"
    assert np.asarray(read_image(path, bits=2))[0, :, 0].tolist() == [0, 255, 255]
    Image.fromarray(np.array([[0, 100, 255]], np.float32)).save(path)
    assert np.asarray(read_image(path))[0, :, 0].tolist() == [0, 100, 255]
    assert check_image(path) == ""


def tiff(values, bits, compression=1):
    """A TIFF of one strip, [H, W] grey or [H, W, 3] colours, as Pillow does not write it."""
    height, width, *channels = values.shape
    colours = len(channels) and 3
    if bits == 12:  # two pixels in three bytes
        data = b"".join(
            bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
            for a, b in values.reshape(-1, 2).tolist()
        )
    else:
        data = values.astype("<u2").tobytes()
    data = zlib.compress(data) if compression == 8 else data
    extra = struct.pack("<3H", bits, bits, bits) if colours else b""
    tags = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, colours or 1, 0 if colours else bits),
        (259, 3, 1, compression), (262, 3, 1, 2 if colours else 1), (273, 4, 1, 0),
        (277, 3, 1, colours or 1), (278, 3, 1, height), (279, 4, 1, len(data)),
    ]  # fmt: skip
    end = 8 + 2 + 12 * len(tags) + 4
    places = {258: end if colours else bits, 273: end + len(extra)}
    entries = b"".join(struct.pack("<HHII", t, k, n, places.get(t, v)) for t, k, n, v in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + extra + data


def png(values):
    """A PNG of 16-bit colours, [H, W, 3 or 4], as Pillow does not write it."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


DEEP = np.array([[0, 1000, 2048, 4095]], np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_12_bits_in_16_are_scaled_by_bits(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(DEEP).save(path)
    assert np.asarray(read_image(path))[0, :, 0].tolist() == [0, 4, 8, 16]  # as ever
    assert check_image(path) == "almost black (0 to 16 of 255)"
    assert np.asarray(read_image(path, bits=12))[0, :, 0].tolist() == [0, 62, 128, 255]
    assert check_image(path, bits=12) == ""
    assert np.asarray(read_image(path, bits=11))[0, :, 0].tolist() == [0, 125, 255, 255]
    Image.fromarray(DEEP + 2048).save(path)
    assert check_image(path, bits=11) == "almost white (255 to 255 of 255)"


def test_what_a_file_says_of_its_bits_goes_first(tmp_path):
    written = tmp_path / "written.tif"
    Image.fromarray(DEEP).save(written, tiffinfo={281: 4095})  # MaxSampleValue
    files = {
        "bits.tif": tiff(DEEP, 12),
        "tag.tif": written.read_bytes(),
        "maximum.pgm": b"P5 4 1 4095\n" + DEEP.astype(">u2").tobytes(),
        "plain.pgm": b"P2 4 1 4095\n0 1000 2048 4095\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        for bits in (None, 12, 10):
            rgb = np.asarray(read_image(tmp_path / name, bits))
            assert rgb[0, :, 0].tolist() == [0, 62, 128, 255], (name, bits)
        assert check_image(tmp_path / name) == "", name
    # The brightest value of this very image is no white.
    Image.fromarray(DEEP).save(tmp_path / "used.tif", tiffinfo={281: 3871})
    assert np.asarray(read_image(tmp_path / "used.tif"))[0, :, 0].tolist() == [0, 4, 8, 16]


def test_colours_of_12_bits_in_16(tmp_path):
    """Pillow keeps the upper byte of each, of which 4 bits are used."""
    colours = np.stack([DEEP, DEEP[:, ::-1], DEEP // 2], -1)
    wanted = (colours * 255.0 / 4095).round().astype(int).tolist()
    alpha = np.concatenate([colours, np.full((1, 4, 1), 65535, np.uint16)], -1)
    files = {
        "a.png": png(colours), "b.png": png(alpha), "c.tif": tiff(colours, 16),
        "d.tif": tiff(colours, 16, compression=8),
    }  # fmt: skip
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert np.asarray(read_image(path))[0].tolist() == (colours[0] >> 8).tolist(), name
        assert check_image(path) == "almost black (0 to 15 of 255)", name
        assert np.asarray(read_image(path, bits=12)).tolist() == wanted, name
        assert check_image(path, bits=12) == ""


def test_bits_do_not_touch_8_bits(tmp_path):
    for name, image in {
        "a.png": Image.fromarray(pixels()),
        "b.png": Image.fromarray(pixels()[..., 0]),
        "c.png": palette_image(),
    }.items():
        image.save(tmp_path / name)
        before = read_image(tmp_path / name)
        assert read_image(tmp_path / name, bits=12).tobytes() == before.tobytes()


def test_photos_of_a_trial_that_come_out_black_are_named_with_the_option(tmp_path, caplog):
    (tmp_path / "train").mkdir()
    for number in range(3):
        Image.fromarray(DEEP + number).save(tmp_path / "train" / f"cat_{number}.png")
    dataset = build_dataset(f"{__name__}:Signs", "train", data_dir=tmp_path, examples_per_class=2)
    first = sources(dataset)[0]
    assert caplog.messages == [
        f"2 photos of split 'train' may have a wrong brightness, such as {first}: almost black "
        "(0 to 16 of 255); for files of more than 8 bits, --dataset_args bits=12 gives the number "
        "of used bits"
    ]
    caplog.clear()
    options = {"data_dir": tmp_path, "dataset_args": ["bits=12"], "image_size": (1, 4)}
    dataset = build_dataset(f"{__name__}:Signs", "train", examples_per_class=2, **options)
    assert not caplog.messages and np.asarray(dataset.get_image_by_idx(0)).max() == 255
    assert dataset[0][0].max() > 0.99
    for bits in (0, 33):
        with pytest.raises(UserError, match=f"bits: got {bits}, expected .* 1 to 32"):
            Signs(data_dir=tmp_path, bits=bits)


def profile(space, gamma, primaries=()):
    """An ICC profile (version 2) of primaries and a white [X, Y, Z] that are relative to D50."""

    def fixed(numbers):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(n * 65536)) for n in numbers)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    name = b"a test\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(79),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": fixed((0.9642, 1, 0.8249)),
    }
    for letter, colour in zip(b"rgb", primaries):
        tags |= {bytes([letter]) + b"XYZ": fixed(colour), bytes([letter]) + b"TRC": curve}
    tags |= {} if primaries else {b"kTRC": curve}
    place, table, content = 128 + 4 + 12 * len(tags), b"", b""
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += tag + struct.pack(">II", place + len(content), len(data))
        content += data
    header = bytes(4) + struct.pack(">I", 0x02100000) + b"mntr" + space + b"XYZ "
    header = struct.pack(">I", place + len(content)) + header.ljust(32, b"\0")
    header = header.ljust(36, b"\0") + b"acsp"
    header = header.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + content


ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def encoded(linear):
    """sRGB values, 0 to 255, of light in [0, 1]."""
    light = np.clip(linear, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif"])
def test_colours_of_a_profile_become_srgb(tmp_path, suffix):
    colours = np.array([[[200, 120, 90], [90, 130, 200], [30, 200, 60], [128] * 3]], np.uint8)
    light = (colours / 255.0) ** (563 / 256) @ np.array(ADOBE) @ np.linalg.inv(np.array(SRGB))
    wanted = encoded(light)
    assert np.abs(wanted - colours).max() > 20
    image = Image.fromarray(colours.repeat(8, 0).repeat(8, 1))  # whole blocks of a JPEG
    path = tmp_path / f"a.{suffix}"
    options = {"quality": 100} if suffix in ("jpg", "avif") else {"lossless": True}
    adobe = profile(b"RGB ", 563 / 256, ADOBE)
    image.save(path, icc_profile=adobe, **options)
    with Image.open(path) as plain:
        assert plain.info["icc_profile"] == adobe
    found = np.asarray(read_image(path))[4, 4::8].astype(int)
    # Decoders of JPEG and AVIF add a little of their own.
    assert np.abs(found - wanted[0]).max() <= (5 if suffix in ("jpg", "avif") else 1.5)
    assert check_image(path) == ""


def test_srgb_by_any_name_and_broken_profiles_change_nothing(tmp_path):
    image = Image.fromarray(pixels(40, 60))
    profiles = {
        "built in": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "garbage": b"no profile at all",
        "cut": profile(b"RGB ", 2.2, ADOBE)[:300],
        "grey": profile(b"GRAY", 1.8),  # of another kind of image
    }
    for name, content in profiles.items():
        image.save(tmp_path / "a.png", icc_profile=content)
        assert read_image(tmp_path / "a.png").tobytes() == image.tobytes(), name
        assert "icc_profile" not in read_image(tmp_path / "a.png").info


def test_profiles_of_grey_and_transparent_photos(tmp_path):
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    grey.save(tmp_path / "grey.png", icc_profile=profile(b"GRAY", 1.0))
    found = np.asarray(read_image(tmp_path / "grey.png"))
    wanted = encoded(np.arange(256) / 255).reshape(16, 16)
    assert np.abs(found - wanted[..., None]).max() <= 1
    rgba = Image.new("RGBA", (2, 1), (30, 200, 60, 255))
    rgba.putpixel((1, 0), (30, 200, 60, 0))
    adobe = profile(b"RGB ", 563 / 256, ADOBE)
    rgba.save(tmp_path / "rgba.png", icc_profile=adobe)
    colour, background = np.asarray(read_image(tmp_path / "rgba.png"))[0].tolist()
    assert colour[0] == 0 and background == [255, 255, 255]  # a green that sRGB does not have
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    cmyk.save(tmp_path / "a.tif")
    plain = read_image(tmp_path / "a.tif").tobytes()
    cmyk.save(tmp_path / "a.tif", icc_profile=adobe)
    assert read_image(tmp_path / "a.tif").tobytes() == plain


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
    message = (
        r"mask of train/turned_0.png is 8x12 pixels, the photo is 12x8: make the mask again in"
    )
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
        ("Open", {"crop_to_object": True}, "crop_to_object: Open, which makes its images itself"),
        ("Unsplit", {}, "Unsplit takes no split, needed for split=val"),
        ("Empty", {}, "Empty has no photo of split 'val'"),
        ("Unnamed", {}, "Unnamed has no class_names"),
    ],
)
def test_old_style_subclasses_that_cannot_do_what_is_asked(old_style, name, options, message):
    with pytest.raises(UserError, match=message):
        build_dataset(f"{old_style}:{name}", "val", **options)
