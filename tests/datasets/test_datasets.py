"""COCO, MVIP and folders, each written to disk in its true layout and read through
`build_dataset`; the registry and --dataset_args; and real photos, where there are any."""

import json
import logging
import os
import pickle
import random
import subprocess
import sys
import types
from collections import Counter

import numpy as np
import pycocotools.mask
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from semantic_aug import UserError, stable_hash
from semantic_aug.datasets import build_dataset, dataset_class, parse_dataset_args
from semantic_aug.datasets.coco import CLASS_NAMES, COCODataset
from semantic_aug.datasets.coco_outlines import decode_segmentation
from semantic_aug.datasets.folder import FolderDataset
from semantic_aug.datasets.mvip import MVIPDataset
from semantic_aug.few_shot_dataset import SPLITS, FewShotDataset
from semantic_aug.images import reading
from semantic_aug.images.reading import readable_suffixes


def sources(dataset):
    return [record.source for record in dataset.records]


def labelled(dataset):
    return {record.source: record.class_name for record in dataset.records}


def save_photo(path, colour=(10, 20, 30), size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


# --- COCO ------------------------------------------------------------------------------------

SIZE = (16, 12)  # width, height
CATEGORY_IDS = {"person": 1, "train": 7, "stop sign": 13, "cat": 17, "toothbrush": 90}


def rectangle(top, bottom, left, right):
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def polygon(top, bottom, left, right):
    return [left, top, right, top, right, bottom, left, bottom]


def runs(mask):
    """Uncompressed RLE: lengths of runs of 0, 1, 0 ... down the columns."""
    counts, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def compressed(mask):
    encoded = pycocotools.mask.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def annotation(number, image_id, name="cat", area=10.0, segmentation=None, iscrowd=0):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": CATEGORY_IDS[name],
        "area": area,
        "iscrowd": iscrowd,
        "bbox": [0, 0, 4, 4],
        "segmentation": [polygon(1, 5, 1, 5)] if segmentation is None else segmentation,
    }


def write_coco(root, split, image_ids, annotations, absent=()):
    """ROOT/annotations/instances_{split}2017.json and ROOT/{split}2017/ with these images."""
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "width": SIZE[0], "height": SIZE[1]}
        for number in image_ids
    ]
    (root / f"{split}2017").mkdir(parents=True, exist_ok=True)
    for image in images:
        if image["id"] not in absent:
            save_photo(root / f"{split}2017" / image["file_name"], (image["id"] % 256, 0, 0), SIZE)
    content = {
        "info": {"url": "http://mscoco.org"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in CATEGORY_IDS.items()],
    }
    (root / "annotations").mkdir(exist_ok=True)
    path = root / "annotations" / f"instances_{split}2017.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def coco(tmp_path):
    """Twelve training and forty validation images of cats and trains."""
    root = tmp_path / "coco"
    for split, count, first in (("train", 12, 100), ("val", 40, 500)):
        ids = range(first, first + count)
        names = ("cat", "train")
        annotations = [annotation(n, n, names[n % 2]) for n in ids]
        write_coco(root, split, ids, annotations)
    return root


def test_coco_names_are_the_80_in_the_order_of_their_ids(coco):
    dataset = build_dataset("coco", "train", data_dir=coco)
    assert len(set(CLASS_NAMES)) == len(CLASS_NAMES) == dataset.num_classes == 80
    assert dataset.class_names == CLASS_NAMES
    places = {"person": 0, "train": 6, "stop sign": 11, "cat": 15, "toothbrush": 79}
    assert {name: CLASS_NAMES.index(name) for name in places} == places
    assert isinstance(dataset, COCODataset)
    assert [dataset.get_label_by_idx(i) for i in (0, 11)] == [6, 15]
    assert len(dataset.empty_classes()) == 78
    assert sources(dataset)[0] == "train2017/000000000101.jpg"
    assert dataset.get_metadata_by_idx(0) == {
        "name": "train",
        "source": "train2017/000000000101.jpg",
    }


def test_coco_class_is_that_of_the_largest_annotation_by_area(tmp_path):
    whole, small = [polygon(0, 12, 0, 16)], [polygon(0, 2, 0, 2)]
    rows = [
        annotation(1, 1, "person", 5.0, whole),  # the file's area counts, not the polygon's
        annotation(2, 1, "cat", 9.0, small),
        annotation(7, 2, "person", 5.0),  # of equals, the lowest id
        annotation(5, 2, "train", 5.0),
        annotation(6, 2, "cat", 5.0),
        annotation(8, 3, "person", 3.0),
        annotation(9, 3, "stop sign", 300.0, runs(rectangle(0, 12, 0, 16)), iscrowd=1),
    ]
    write_coco(tmp_path, "train", [1, 2, 3, 4], rows)  # image 4 has no annotation, so no class
    dataset = build_dataset("coco", "train", data_dir=tmp_path)
    assert labelled(dataset) == {
        "train2017/000000000001.jpg": "cat",
        "train2017/000000000002.jpg": "train",
        "train2017/000000000003.jpg": "stop sign",
    }
    masks = {r.class_name: dataset.get_mask_by_idx(i) for i, r in enumerate(dataset.records)}
    assert np.array_equal(masks["cat"], rectangle(0, 2, 0, 2) * 255)
    assert np.array_equal(masks["stop sign"], rectangle(0, 12, 0, 16) * 255)


def test_coco_masks_of_all_encodings(tmp_path):
    shape = rectangle(3, 9, 2, 8)
    both = rectangle(3, 9, 2, 8) | rectangle(0, 2, 10, 15)
    cases = {
        1: ([polygon(3, 9, 2, 8)], 0, shape),
        2: ([polygon(3, 9, 2, 8), polygon(0, 2, 10, 15)], 0, both),
        3: (compressed(both), 0, both),
        4: (compressed(both), 1, both),
        5: (runs(both), 0, both),
        6: (runs(both), 1, both),
        7: ([polygon(3, 9, 2, 8), [1, 1, 5, 5]], 0, shape),  # two points enclose nothing
        8: ([[1, 1, 5, 5]], 0, np.zeros_like(shape)),
    }
    rows = [annotation(n, n, "cat", 9.0, seg, crowd) for n, (seg, crowd, _) in cases.items()]
    write_coco(tmp_path, "train", cases, rows)
    dataset = build_dataset("coco", "train", data_dir=tmp_path)
    assert len(dataset) == len(cases)
    for index, (number, (_, _, wanted)) in enumerate(sorted(cases.items())):
        mask = dataset.get_mask_by_idx(index)
        assert mask.dtype == np.uint8 and np.array_equal(mask, wanted * 255), number
    again = pickle.loads(pickle.dumps(dataset))  # as worker processes get it
    assert np.array_equal(again.get_mask_by_idx(1), both * 255)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(0, 40)] * 4))
def test_coco_encodings_agree(corners):
    (top, bottom), (left, right) = sorted(corners[:2]), sorted(corners[2:])
    mask = np.zeros((40, 41), np.uint8)
    mask[top:bottom, left:right] = 1
    assert np.array_equal(decode_segmentation(runs(mask), 40, 41), mask)
    assert np.array_equal(decode_segmentation(compressed(mask), 40, 41), mask)
    outline = [polygon(top, bottom, left, right)]
    assert np.array_equal(decode_segmentation(outline, 40, 41), mask)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 1, 5, None, 5, 5]],
        [[1, 1, 5, "five", 5, 5]],
        [[1, 1, 1e12, 1, 5, 5]],  # would fill all memory
        {"size": [12, 16], "counts": [3, 4]},  # would leave pixels undefined
        {"size": [12, 16], "counts": [3, -4, 193]},
        {"size": [12, 16]},
        {"size": [12, 16], "counts": 7},
        "rle",
    ],
)
def test_coco_malformed_segmentation_hurts_only_when_asked_for(tmp_path, segmentation):
    rows = [annotation(1, 1, segmentation=segmentation)]
    write_coco(tmp_path, "train", [1], rows)
    dataset = build_dataset("coco", "train", data_dir=tmp_path)
    assert dataset.get_image_by_idx(0).size == SIZE
    with pytest.raises(UserError, match=r"malformed segmentation of 000000000001.jpg"):
        dataset.get_mask_by_idx(0)


def test_coco_annotations_without_segmentation_or_area(tmp_path):
    rows = [annotation(n, n // 10, name) for n, name in ((10, "cat"), (20, "cat"), (21, "train"))]
    del rows[0]["segmentation"], rows[0]["area"], rows[1]["area"]
    rows[2] |= {"segmentation": [], "area": 17.0}  # more than the 16 pixels of the other outline
    write_coco(tmp_path, "train", [1, 2], rows)
    dataset = build_dataset("coco", "train", data_dir=tmp_path)
    assert [r.class_name for r in dataset.records] == ["train", "cat"]
    for index in range(2):
        with pytest.raises(UserError, match="has no mask"):
            dataset.get_mask_by_idx(index)
    with pytest.raises(UserError, match="crop_to_object: no photo"):
        build_dataset("coco", "train", data_dir=tmp_path, crop_to_object=True)


def test_coco_val_and_test_are_halves_of_val2017(coco):
    val, test = (build_dataset("coco", split, data_dir=coco) for split in ("val", "test"))
    every = {f"val2017/{n:012d}.jpg" for n in range(500, 540)}
    assert set(sources(val)) | set(sources(test)) == every
    assert not set(sources(val)) & set(sources(test))
    assert 12 <= len(val) <= 28
    # The half depends on the id alone: it stays when the other images go.
    ids = (500, 517, 530)
    write_coco(coco, "val", ids, [annotation(n, n, "cat") for n in ids])
    fewer = {s: set(sources(build_dataset("coco", s, data_dir=coco))) for s in ("val", "test")}
    assert fewer["val"] < set(sources(val)) and fewer["test"] < set(sources(test))
    half = {f"val2017/{n:012d}.jpg" for n in ids if stable_hash(n) & 1}
    assert fewer["test"] == half


def test_coco_published_val_is_all_of_val2017(coco):
    options = {"data_dir": coco, "dataset_args": ["published_val=true"]}
    assert len(build_dataset("coco", "val", **options)) == 40
    assert len(build_dataset("coco", "train", **options)) == 12
    with pytest.raises(UserError, match=r"published_val=true .* no test"):
        build_dataset("coco", "test", **options)
    off = build_dataset("coco", "val", data_dir=coco, dataset_args=["published_val=0"])
    assert len(off) < 40


def test_coco_images_absent_from_disk_are_counted_and_left_out(tmp_path, caplog, capsys):
    rows = [annotation(n, n) for n in range(1, 8)]
    write_coco(tmp_path, "train", range(1, 8), rows, absent=[2, 5, 6])
    dataset = build_dataset("coco", "train", data_dir=tmp_path)
    assert sources(dataset) == [f"train2017/{n:012d}.jpg" for n in (1, 3, 4, 7)]
    assert len(caplog.records) == 1
    assert "3 of the 7 annotated photos" in caplog.text
    assert capsys.readouterr().out == ""  # pycocotools is silent


def test_coco_endings_of_any_case(tmp_path, caplog):
    write_coco(tmp_path, "train", range(1, 5), [annotation(n, n) for n in range(1, 5)])
    before = labelled(build_dataset("coco", "train", data_dir=tmp_path))
    for number, ending in ((1, ".JPG"), (2, ".JPEG"), (3, ".Jpg")):
        path = tmp_path / "train2017" / f"{number:012d}.jpg"
        path.rename(path.with_suffix(ending))
    after = labelled(build_dataset("coco", "train", data_dir=tmp_path))
    assert list(after)[:2] == ["train2017/000000000001.JPG", "train2017/000000000002.JPEG"]
    assert list(after.values()) == list(before.values()) and len(after) == 4
    assert not caplog.records


def test_coco_the_same_file_under_two_ids_is_one_photo(tmp_path):
    path = write_coco(tmp_path, "train", [1, 2], [annotation(n, n) for n in (1, 2)])
    content = json.loads(path.read_text())
    content["images"][1]["file_name"] = content["images"][0]["file_name"]
    path.write_text(json.dumps(content))
    dataset = build_dataset("coco", "train", data_dir=tmp_path, examples_per_class=2)
    assert sources(dataset) == ["train2017/000000000001.jpg"]


def test_coco_a_file_written_again_is_read_again(tmp_path):
    path = write_coco(tmp_path, "train", [1], [annotation(1, 1, "cat")])
    assert build_dataset("coco", "train", data_dir=tmp_path).records[0].class_name == "cat"
    before = path.stat().st_mtime_ns
    write_coco(tmp_path, "train", [1], [annotation(1, 1, "train")])
    os.utime(path, ns=(before + 1, before + 1))
    assert build_dataset("coco", "train", data_dir=tmp_path).records[0].class_name == "train"


@pytest.mark.parametrize(
    ("split", "missing", "message"),
    [
        ("train", "annotations", r"annotations is missing: a COCO root holds train2017/ and"),
        ("train", "train2017", r"train2017 is missing: .* --data_dir or set COCO_DIR"),
        ("val", "val2017", r"val2017 is missing"),
        ("test", "annotations/instances_val2017.json", r"instances_val2017.json is missing"),
    ],
)
def test_coco_root_with_something_missing(coco, split, missing, message):
    (coco / missing).rename(coco / "elsewhere")
    with pytest.raises(UserError, match=message) as caught:
        build_dataset("coco", split, data_dir=coco)
    assert "\n" not in str(caught.value)


def without(*keys):
    def edit(content):
        for key in keys:
            del content[key]

    return edit


def rename_category(content):
    content["categories"][3]["name"] = "gear / wheel"


def drop_image_key(content):
    del content["images"][0]["file_name"]


def drop_annotation_key(content):
    del content["annotations"][0]["image_id"]


def unknown_category_id(content):
    content["annotations"][0]["category_id"] = 12


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without("images"), r"no COCO annotation file: it has no list of images, expected the"),
        (without("annotations", "categories"), r"it has no list of annotations, expected the keys"),
        (rename_category, r"uses categories that COCO 2017 lacks \('gear / wheel'\)"),
        (drop_image_key, r"file_name in images \(id 100\) is null, expected a text"),
        (drop_annotation_key, r"image_id in annotations \(id 100\) is null, expected a number"),
        (
            unknown_category_id,
            r"annotation 100 has the category_id 12, but the ids .* are 1, 7",
        ),
    ],
)
def test_coco_file_that_is_something_else(coco, edit, message):
    path = coco / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        build_dataset("coco", "train", data_dir=coco)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", '{"images": [{"id"', "\x00\x01", "[1, 2]", '"text"'])
def test_coco_file_truncated_or_no_object(coco, text):
    path = coco / "annotations" / "instances_train2017.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"no readable JSON|no COCO annotation file") as caught:
        build_dataset("coco", "train", data_dir=coco)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# --- MVIP ------------------------------------------------------------------------------------


def write_mvip_class(root, name, super_class=("CarComponent",), description="a part", photos=2):
    folder = root / name
    meta = {"super_class": list(super_class), "description": description}
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps(meta))
    for number in range(photos):
        for camera in (0, 1):
            for place in (
                f"train_data/{number}/top",
                f"valid_data/{number}",
                f"test_data/{number}",
            ):
                cam = folder / place / f"cam{camera}"
                shade = 100 * camera + number
                save_photo(cam / f"x{number}_rgb.png", (shade, len(place), 0), (20, 10))
                mask = np.zeros((10, 20), np.uint8)
                mask[: number + 1, : camera + 1] = 1
                Image.fromarray(mask * 200).save(cam / f"x{number}_rgb_mask_gen.png")
                save_photo(cam / f"x{number}_depth.png")
    return folder


@pytest.fixture
def mvip(tmp_path):
    root = tmp_path / "mvip"
    write_mvip_class(root, "Rotor", description="a rotor of steel")
    write_mvip_class(root, "Brake", ["Heavy", "CarComponent"])
    write_mvip_class(root, "Apron", ["Textile"])
    write_mvip_class(root, "Clutch")
    return root


def test_mvip_classes_photos_and_masks(mvip):
    dataset = build_dataset("mvip", "train", data_dir=mvip)
    assert isinstance(dataset, MVIPDataset)
    assert dataset.class_names == ["Brake", "Clutch", "Rotor"] and dataset.num_classes == 3
    assert sources(dataset)[:4] == [
        f"Brake/train_data/{number}/top/cam{camera}/x{number}_rgb.png"
        for number in (0, 1)
        for camera in (0, 1)
    ]
    assert Counter(r.class_name for r in dataset.records) == {"Brake": 4, "Clutch": 4, "Rotor": 4}
    for index in range(4):
        number, camera = divmod(index, 2)
        assert dataset.get_image_by_idx(index).getpixel((0, 0))[0] == 100 * camera + number
        mask = dataset.get_mask_by_idx(index)
        assert mask[: number + 1, : camera + 1].min() == 255
        assert (mask > 0).sum() == (number + 1) * (camera + 1)
    assert dataset.get_metadata_by_idx(8) == {
        "name": "Rotor",
        "source": "Rotor/train_data/0/top/cam0/x0_rgb.png",
        "description": "a rotor of steel",
    }


def test_mvip_splits_are_its_own(mvip):
    datasets = {split: build_dataset("mvip", split, data_dir=mvip) for split in SPLITS}
    parts = {split: {s.split("/")[1] for s in sources(d)} for split, d in datasets.items()}
    assert parts == {"train": {"train_data"}, "val": {"valid_data"}, "test": {"test_data"}}
    assert [len(d) for d in datasets.values()] == [12, 12, 12]
    assert len({tuple(d.class_names) for d in datasets.values()}) == 1
    assert sources(datasets["val"])[0] == "Brake/valid_data/0/cam0/x0_rgb.png"
    groups = [record.group for record in datasets["train"].records[:5]]
    assert groups[:4] == [f"Brake/train_data/{n}" for n in (0, 0, 1, 1)]
    assert groups[4] == "Clutch/train_data/0"
    assert datasets["val"].records[0].group == "Brake/valid_data/0"


def test_mvip_options(mvip):
    def names(*options, split="val"):
        dataset = build_dataset("mvip", split, data_dir=mvip, dataset_args=options)
        assert dataset.num_classes == len(dataset.class_names)
        assert {r.class_name for r in dataset.records} == set(dataset.class_names)
        return dataset.class_names

    assert names("num_classes=2") == ["Brake", "Clutch"]
    assert names("super_class=Heavy") == ["Brake"]
    assert names("super_class=all") == ["Apron", "Brake", "Clutch", "Rotor"]
    assert names("super_class=all", "num_classes=1") == ["Apron"]
    message = r"belongs to 'Car'; there are: CarComponent, Heavy, Textile, and all"
    with pytest.raises(UserError, match=message):
        names("super_class=Car")  # part of a name is not the name
    with pytest.raises(UserError, match="num_classes: got 0, expected 1 or more"):
        names("num_classes=0")
    with pytest.raises(UserError, match="num_classes='many', expected a whole number"):
        names("num_classes=many")


def test_mvip_class_names_are_nfc_and_sorted_as_such(mvip):
    write_mvip_class(mvip, "E\u0301crou")
    dataset = build_dataset("mvip", "val", data_dir=mvip)
    assert dataset.class_names == ["Brake", "Clutch", "Rotor", "\u00c9crou"]
    assert sources(dataset)[-1].startswith("E\u0301crou/valid_data/")
    assert dataset.get_image_by_idx(15).size == (20, 10)


def test_mvip_takes_the_first_20_classes(tmp_path):
    for number in random.Random(0).sample(range(25), 25):
        write_mvip_class(tmp_path, f"part {number:02d}", photos=1)
    dataset = build_dataset("mvip", "test", data_dir=tmp_path)
    assert dataset.class_names == [f"part {number:02d}" for number in range(20)]


def test_mvip_classes_without_photos_keep_their_label(mvip):
    for path in (mvip / "Clutch" / "train_data").rglob("*_rgb.png"):
        path.unlink()
    dataset = build_dataset("mvip", "train", data_dir=mvip, examples_per_class=1)
    assert dataset.class_names == ["Brake", "Clutch", "Rotor"]
    assert dataset.empty_classes() == ["Clutch"]
    assert [dataset.get_label_by_idx(i) for i in range(2)] == [0, 2]


def test_mvip_masks_pair_by_name_and_may_be_missing(mvip):
    camera = mvip / "Brake" / "train_data" / "0" / "top" / "cam0"
    (camera / "x0_rgb_mask_gen.png").rename(camera / "w0_rgb_mask_gen.png")
    other = mvip / "Brake" / "train_data" / "0" / "top" / "cam1"
    (other / "x0_rgb_mask_gen.png").write_bytes(b"broken")
    save_photo(camera / "._x0_rgb.png")  # what macOS leaves beside a file
    dataset = build_dataset("mvip", "train", data_dir=mvip)
    assert len(dataset) == 12
    with pytest.raises(UserError, match=r"cam0/x0_rgb.png has no mask"):
        dataset.get_mask_by_idx(0)
    with pytest.raises(UserError, match=r"cannot read mask .*cam1/x0_rgb_mask_gen.png"):
        dataset.get_mask_by_idx(1)
    assert dataset.get_image_by_idx(1).size == (20, 10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        ("", "is no readable JSON"),
        ('{"super_class": ["Car', "is no readable JSON"),
        ("[]", "expected an object with super_class"),
        ("{}", "super_class is None, expected a list of names"),
        ('{"super_class": "CarComponent"}', "super_class is 'CarComponent', expected a list"),
        ('{"super_class": [["CarComponent"]]}', "expected a list of names"),
        ('{"super_class": ["CarComponent"], "description": 5}', "description is 5, expected text"),
    ],
)
def test_mvip_bad_meta_is_named(mvip, content, message):
    path = mvip / "Rotor" / "meta.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        build_dataset("mvip", "val", data_dir=mvip)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_mvip_meta_without_description_and_with_a_byte_order_mark(mvip):
    path = mvip / "Rotor" / "meta.json"
    path.write_text('\ufeff{"super_class": ["CarComponent"], "description": null}', "utf-8")
    dataset = build_dataset("mvip", "val", data_dir=mvip)
    assert dataset.get_metadata_by_idx(11)["name"] == "Rotor"
    assert "description" not in dataset.get_metadata_by_idx(11)


def test_mvip_root_that_is_none(coco):
    with pytest.raises(UserError, match=r"is no MVIP root: expected CLASS/meta.json"):
        build_dataset("mvip", "train", data_dir=coco)


# --- folders ---------------------------------------------------------------------------------


def write_photos(folder, count, suffix="png", first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        save_photo(folder / f"{number}.{suffix}", (number, 0, 0))


def read_splits(root, *options, **common):
    return {
        split: build_dataset("folder", split, data_dir=root, dataset_args=options, **common)
        for split in SPLITS
    }


def counts(datasets):
    """Photos per split and class, of data whose splits must not meet."""
    found = [sources(dataset) for dataset in datasets.values()]
    assert len(set().union(*found)) == sum(map(len, found))
    per_class = {split: Counter(labelled(d).values()) for split, d in datasets.items()}
    names = datasets["train"].class_names
    assert all(d.class_names == names for d in datasets.values())
    return {name: tuple(per_class[split][name] for split in SPLITS) for name in names}


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folder_with_splits(tmp_path, val):
    for split, count in (("train", 3), (val, 2), ("test", 1)):
        for name in ("dog", "cat"):
            write_photos(tmp_path / split / name, count)
    datasets = read_splits(tmp_path)
    assert isinstance(datasets["val"], FolderDataset)
    assert counts(datasets) == {"cat": (3, 2, 1), "dog": (3, 2, 1)}
    assert sources(datasets["val"]) == [
        f"{val}/{c}/{n}.png" for c in ("cat", "dog") for n in (0, 1)
    ]


@pytest.mark.parametrize("names", ["Train Val Test", "training validation testing"])
def test_folder_names_of_splits_as_people_write_them(tmp_path, names):
    for name in names.split():
        write_photos(tmp_path / name / "cat", 2)
    assert counts(read_splits(tmp_path)) == {"cat": (2, 2, 2)}


def test_folder_without_train_does_not_send_people_into_test(tmp_path):
    write_photos(tmp_path / "Test" / "cat", 2)
    write_photos(tmp_path / "val" / "cat", 2)
    with pytest.raises(UserError, match=r"has Test/ but no train/ with a folder per class; exp"):
        build_dataset("folder", "train", data_dir=tmp_path)


def test_folder_of_a_class_that_holds_other_files_is_named(tmp_path, caplog):
    write_photos(tmp_path / "cat", 3)
    write_photos(tmp_path / "dog" / "2024", 3)
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee" / "IMG_1.HEIC").write_bytes(b"ftypheic")
    (tmp_path / "ant").mkdir()  # empty: a class that has no photo yet
    assert build_dataset("folder", "train", data_dir=tmp_path).num_classes == 4
    assert "bee holds no photo itself, but IMG_1.HEIC" in caplog.text
    assert "1 HEIC photo left out, such as bee/IMG_1.HEIC: to read such photos" in caplog.text
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 2


def test_folder_takes_every_kind_of_image_that_pillow_reads(tmp_path):
    kinds = (
        "jpg jfif jpe avif ppm pgm pbm jp2 j2k tga png apng webp bmp dib tif gif pcx sgi qoi dds"
    )
    for number, kind in enumerate(kinds.split()):
        photo = Image.new("1" if kind == "pbm" else "RGB", (12, 8), "white")
        (tmp_path / "a").mkdir(exist_ok=True)
        photo.save(tmp_path / "a" / f"{number}.{kind}")
        photo.save(tmp_path / "a" / f"{number} upper.{kind.upper()}")
    for name in ("notes.txt", "0.json", "scan.pcd", "thumb.ico", "table.h5", "clip.mpg", "b.PDF"):
        (tmp_path / "a" / name).write_text("no photo")
    datasets = read_splits(tmp_path)
    assert sum(counts(datasets)["a"]) == 2 * len(kinds.split())
    for dataset in datasets.values():
        for index in range(len(dataset)):
            image = dataset.get_image_by_idx(index)
            assert image.size == (12, 8) and image.getpixel((5, 5)) == (255, 255, 255)


def test_folder_takes_heic_where_its_plugin_is_installed(tmp_path, monkeypatch, caplog):
    """The plug-in is not: a module in its place reads a PNG under that name."""
    write_photos(tmp_path / "photos" / "a", 3)
    write_photos(tmp_path / "photos" / "a", 2, first=7)
    for number in (7, 8):
        path = tmp_path / "photos" / "a" / f"{number}.png"
        path.rename(path.with_suffix(".HEIC"))
    clear = (reading._load_plugins.cache_clear, readable_suffixes.cache_clear)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    for each in clear:
        each()
    assert counts(read_splits(tmp_path / "photos")) == {"a": (1, 1, 1)}
    assert "2 HEIC photos left out, such as a/7.HEIC: to read such photos" in caplog.text
    caplog.clear()
    plugin = types.ModuleType("pillow_heif")
    plugin.register_heif_opener = lambda: Image.register_extension("PNG", ".heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    for each in clear:
        each()
    found = read_splits(tmp_path / "photos")
    assert counts(found) == {"a": (3, 1, 1)} and not caplog.text
    assert {7, 8} < {d.get_image_by_idx(i).getpixel((0, 0))[0] for d in found.values()
                     for i in range(len(d))}  # fmt: skip
    monkeypatch.undo()
    for each in clear:
        each()


def test_folder_photos_below_the_folder_of_their_class(tmp_path, caplog):
    write_photos(tmp_path / "photos" / "a", 2)
    write_photos(tmp_path / "photos" / "a" / "session2", 3, "jpg")
    write_photos(tmp_path / "photos" / "a" / "session3" / "left", 2)
    write_photos(tmp_path / "photos" / "b" / "deep" / "deeper", 3)
    for junk in ("@eaDir", "__MACOSX", ".hidden", "masks"):
        write_photos(tmp_path / "photos" / "a" / junk, 2)
        write_photos(tmp_path / "photos" / "b" / "deep" / junk, 2)
    for junk in ("@eaDir", "__MACOSX"):
        write_photos(tmp_path / "photos" / junk, 2)
    found = read_splits(tmp_path / "photos")
    assert {name: sum(each) for name, each in counts(found).items()} == {"a": 7, "b": 3}
    below = {source for dataset in found.values() for source in sources(dataset)}
    assert {"a/session3/left/1.png", "a/session2/0.jpg", "b/deep/deeper/2.png"} < below
    assert not caplog.text
    split = tmp_path / "split"
    for name in SPLITS:
        write_photos(split / name / "a" / "x", 2)
        write_photos(split / name / "b", 1)
    assert counts(read_splits(split)) == {"a": (2, 2, 2), "b": (1, 1, 1)}
    # masks at the same relative path
    write_mask(tmp_path / "drawn" / "train" / "a" / "x" / "1.png", (3, 4))
    dataset = read_splits(split, f"masks={tmp_path / 'drawn'}")["train"]
    assert np.argwhere(dataset.get_mask_by_idx(1)).tolist() == [[4, 3]]


def test_folder_links_to_folders_below_a_class(tmp_path):
    root = tmp_path / "photos"
    write_photos(root / "a" / "one", 2)
    write_photos(root / "b", 2)
    write_photos(tmp_path / "far", 1)
    write_photos(tmp_path / "far" / "more", 3)
    (root / "a" / "far").symlink_to(tmp_path / "far")  # followed
    (root / "a" / "again").symlink_to(tmp_path / "far" / "more")  # the same photos, a second time
    (root / "a" / "latest").symlink_to(root / "a" / "one")
    (root / "a" / "round").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(tmp_path)
    (root / "b" / "other").symlink_to(root / "a")
    (tmp_path / "far" / "back").symlink_to(tmp_path / "far")
    found = {source for dataset in read_splits(root).values() for source in sources(dataset)}
    # The first of two names in the order of names, whatever the file system lists first.
    linked = {f"a/again/{n}.png" for n in range(3)} | {"a/far/0.png"}
    assert found == {"a/one/0.png", "a/one/1.png", "b/0.png", "b/1.png"} | linked


def test_folder_masks_that_mirror_the_photos_are_no_class(tmp_path, caplog):
    for name in ("cat", "dog"):
        write_photos(tmp_path / "flat" / name, 3)
        write_photos(tmp_path / "flat" / "masks" / name, 3)
        write_photos(tmp_path / "split" / "train" / name, 3)
        write_photos(tmp_path / "split" / "Masks" / "train" / name, 3)
        write_photos(tmp_path / "within" / "train" / name, 3)
        write_photos(tmp_path / "within" / "train" / "masks" / name, 3)
        write_photos(tmp_path / "other" / name, 3)
        write_photos(tmp_path / "other" / "segments" / name, 3)
        write_photos(tmp_path / "above" / "images" / name, 3)
        write_photos(tmp_path / "above" / "masks" / name, 3)
    both = {"cat": (1, 1, 1), "dog": (1, 1, 1)}
    for root in ("flat", "split", "within"):
        assert counts(read_splits(tmp_path / root)) == both
    assert counts(read_splits(tmp_path / "flat", "masks=masks")) == both
    assert counts(read_splits(tmp_path / "other", "masks=segments")) == both
    message = f"above is one level too high: give {tmp_path / 'above' / 'images'}"
    with pytest.raises(UserError, match=message):
        read_splits(tmp_path / "above")
    # A class of that name, as of a costume shop.
    for name in ("hats", "masks"):
        write_photos(tmp_path / "shop" / name / f"{name} of spring", 3)
    assert counts(read_splits(tmp_path / "shop")) == {"hats": (1, 1, 1), "masks": (1, 1, 1)}


def test_folder_older_list_is_that_of_earlier_versions(tmp_path, caplog):
    root = tmp_path / "photos"
    for name in ("a", "b"):
        write_photos(root / name, 10)
        write_photos(root / "masks" / name, 10)
    before = read_splits(root, "older_list=true")
    assert before["train"].class_names == ["a", "b", "masks"]
    listed = {split: sources(dataset) for split, dataset in before.items()}
    write_photos(root / "a" / "session2", 4)
    write_photos(root / "b", 3, "avif")
    caplog.clear()
    again = read_splits(root, "older_list=true")
    assert {split: sources(dataset) for split, dataset in again.items()} == listed
    assert "older_list: 27 photos are left out, such as " in caplog.text
    assert {name: sum(each) for name, each in counts(read_splits(root)).items()} == {
        "a": 14, "b": 13,
    }  # fmt: skip


def test_folder_photos_beside_the_classes_are_counted(tmp_path, caplog):
    for split in SPLITS:
        write_photos(tmp_path / split / "cat", 2)
    write_photos(tmp_path / "test", 3)
    read_splits(tmp_path)
    assert f"3 photos without a class directly in {tmp_path / 'test'}" in caplog.messages


def test_folder_classes_are_those_of_all_splits_with_the_empty_ones(tmp_path):
    write_photos(tmp_path / "train" / "bee", 2)
    write_photos(tmp_path / "val" / "cow", 2)
    write_photos(tmp_path / "test" / "ant", 2)
    (tmp_path / "train" / "art").mkdir()
    (tmp_path / "train" / ".cache").mkdir()
    datasets = read_splits(tmp_path)
    assert counts(datasets) == {
        "ant": (0, 0, 2),
        "art": (0, 0, 0),
        "bee": (2, 0, 0),
        "cow": (0, 2, 0),
    }
    assert datasets["train"].empty_classes() == ["ant", "art", "cow"]
    assert [datasets[s].get_label_by_idx(0) for s in SPLITS] == [2, 3, 0]


def test_folder_without_splits_is_cut_60_20_20(tmp_path, caplog):
    sizes = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 10, "g": 40, "h": 0}
    for name, count in sizes.items():
        write_photos(tmp_path / name, count)
    with caplog.at_level(logging.INFO, "semantic_aug"):
        datasets = read_splits(tmp_path)
    assert counts(datasets) == {
        "a": (1, 0, 0), "b": (1, 0, 1), "c": (1, 1, 1), "d": (2, 1, 1), "e": (3, 1, 1),
        "f": (6, 2, 2), "g": (24, 8, 8), "h": (0, 0, 0),
    }  # fmt: skip
    assert "photos are cut into 60 % train, 20 % val and 20 % test" in caplog.text
    again = read_splits(tmp_path)
    assert all(sources(again[split]) == sources(datasets[split]) for split in SPLITS)
    ranked = sorted((f"g/{number}.png" for number in range(40)), key=stable_hash)
    wanted = {"val": ranked[:8], "test": ranked[8:16], "train": ranked[16:]}  # fixed for ever
    for split, names in wanted.items():
        found = [source for source in sources(datasets[split]) if source.startswith("g/")]
        assert found == sorted(names)


def test_folder_cut_of_a_class_does_not_depend_on_other_classes(tmp_path):
    write_photos(tmp_path / "a", 10)
    before = read_splits(tmp_path)
    write_photos(tmp_path / "b", 7)
    for split, dataset in read_splits(tmp_path).items():
        assert [s for s in sources(dataset) if s.startswith("a/")] == sources(before[split])


def test_folder_cut_does_not_depend_on_where_the_folder_lies(tmp_path):
    for root in ("x", "y/z"):
        write_photos(tmp_path / root / "a", 12)
    one, two = read_splits(tmp_path / "x"), read_splits(tmp_path / "y" / "z")
    assert all(sources(one[split]) == sources(two[split]) for split in SPLITS)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=3).filter(any))
def test_folder_cut_of_any_size(tmp_path_factory, sizes):
    root = tmp_path_factory.mktemp("photos")
    for label, count in enumerate(sizes):
        (root / str(label)).mkdir()
        for number in range(count):
            (root / str(label) / f"{number}.png").touch()  # whole splits are not decoded
    parts = {}
    for split in SPLITS:
        try:
            parts[split] = Counter(labelled(FolderDataset(data_dir=root, split=split)).values())
        except UserError:
            parts[split] = Counter()
    for label, count in enumerate(sizes):
        train, val, test = (parts[split][str(label)] for split in SPLITS)
        assert train + val + test == count
        if count >= 3:
            assert min(train, val, test) >= 1
            assert val == test and abs(val - count / 5) <= 0.5 + (count == 3) and train >= val
        else:
            assert (train, val, test) == [(0, 0, 0), (1, 0, 0), (1, 0, 1)][count]


def test_folder_without_test_halves_val(tmp_path, caplog):
    write_photos(tmp_path / "train" / "cat", 2)
    for number in range(30):
        write_photos(tmp_path / "val" / f"single {number:02d}", 1)
    for name, count in (("cat", 10), ("dog", 5)):
        write_photos(tmp_path / "val" / name, count)
    (tmp_path / "test").mkdir()
    save_photo(tmp_path / "test" / "unlabelled.png")  # in no class folder: not a test split
    with caplog.at_level(logging.INFO, "semantic_aug"):
        found = counts(read_splits(tmp_path))
    assert found["cat"] == (2, 5, 5) and found["dog"] in {(0, 2, 3), (0, 3, 2)}
    singles = Counter(found[name] for name in found if name.startswith("single"))
    assert set(singles) == {(0, 1, 0), (0, 0, 1)} and min(singles.values()) > 5
    assert "no photos for test, half of val is taken" in caplog.text


def test_folder_without_val_cuts_it_from_train(tmp_path, caplog):
    for name, count in (("a", 1), ("b", 2), ("c", 3), ("d", 20)):
        write_photos(tmp_path / "train" / name, count)
    write_photos(tmp_path / "test" / "a", 4)
    with caplog.at_level(logging.INFO, "semantic_aug"):
        found = counts(read_splits(tmp_path))
    assert found == {"a": (1, 0, 4), "b": (2, 0, 0), "c": (2, 1, 0), "d": (16, 4, 0)}
    assert "no photos for val, 20 % of train are taken" in caplog.text


def test_folder_with_train_alone_is_cut_like_one_without_splits(tmp_path):
    write_photos(tmp_path / "train" / "a", 10)
    assert counts(read_splits(tmp_path)) == {"a": (6, 2, 2)}


def test_folder_classes_called_train_and_test(tmp_path, caplog):
    for name in ("train", "test", "toy train"):
        write_photos(tmp_path / name, 5)
    names = ["test", "toy train", "train"]
    assert counts(read_splits(tmp_path)) == dict.fromkeys(names, (3, 1, 1))
    assert "taken for a class" not in caplog.text
    split = tmp_path / "split"
    write_photos(split / "train" / "train", 2)
    write_photos(split / "val" / "train", 2)
    write_photos(split / "test" / "val", 2)
    assert counts(read_splits(split)) == {"train": (2, 2, 0), "val": (0, 0, 2)}
    unlabelled = tmp_path / "unlabelled"
    for name in ("train", "val"):
        write_photos(unlabelled / name, 5)
    assert counts(read_splits(unlabelled)) == {"train": (3, 1, 1), "val": (3, 1, 1)}
    assert "train holds photos directly and is taken for a class" in caplog.text


def test_folder_train_that_is_both_a_class_and_a_split(tmp_path):
    write_photos(tmp_path / "train" / "cat", 2)
    save_photo(tmp_path / "train" / "overview.png")
    message = r"train holds both photos \(overview.png ...\) and folders \(cat ...\)"
    with pytest.raises(UserError, match=message):
        build_dataset("folder", "train", data_dir=tmp_path)


def test_folder_names_are_kept_and_classes_are_nfc(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    names = ["a.b", "Stop sign", "\u6a5f\u68b0", "dots..dots", decomposed]
    for name in names:
        write_photos(tmp_path / name, 3)
    datasets = read_splits(tmp_path)
    assert datasets["train"].class_names == sorted([*names[:-1], composed])
    index = datasets["train"].indices([composed])[0]
    assert datasets["train"].records[index].source.startswith(decomposed + "/")
    assert datasets["train"].get_image_by_idx(index).size == (12, 8)
    write_photos(tmp_path / composed, 3)  # both spellings are one class
    assert counts(read_splits(tmp_path))[composed] == (4, 1, 1)


def test_folder_suffixes_links_and_stray_files(tmp_path, caplog):
    root = tmp_path / "root"
    for suffix in ("JPG", "jpeg", "PNG", "webp", "bmp", "TIFF", "gif"):
        write_photos(root / "cat", 1, suffix)
    (root / "cat" / "notes.txt").write_text("notes")
    (root / "cat" / ".0.png").write_bytes(b"")
    (root / "cat" / "Thumbs.db").write_bytes(b"")
    write_photos(tmp_path / "far" / "dogs", 3)
    (root / "dog").symlink_to(tmp_path / "far" / "dogs")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    (root / "cat" / "linked.png").symlink_to(tmp_path / "far" / "dogs" / "0.png")
    save_photo(root / "stray.png")
    found = counts(read_splits(root))
    assert sum(found["cat"]) == 8 and found["dog"] == (1, 1, 1) and len(found) == 2
    assert "1 photo without a class directly in" in caplog.text
    (tmp_path / "link").symlink_to(root)
    assert counts(read_splits(tmp_path / "link")) == found


def test_folder_roots_that_are_wrong(tmp_path, workdir):
    def message(root):
        with pytest.raises(UserError) as caught:
            build_dataset("folder", "train", data_dir=root)
        assert "expected ROOT/CLASS/*.jpg or ROOT/{train,val,test}/CLASS" in str(caught.value)
        return str(caught.value)

    write_photos(tmp_path / "photos" / "cat", 3)
    deep = message(tmp_path / "photos" / "cat")
    assert "cat holds photos itself (0.png ...): give the folder above it" in deep
    high = message(tmp_path)
    assert f"is one level too high: give {tmp_path / 'photos'}, whose folders hold photos" in high
    (tmp_path / "empty").mkdir()
    assert "has no folders in it" in message(tmp_path / "empty")
    for name in "abcd":
        (tmp_path / "hollow" / name).mkdir(parents=True)
    assert "has no photo in its 4 folders (a, b, c ...)" in message(tmp_path / "hollow")
    for name in ("apple", "pear"):
        for split in ("train", "test"):
            write_photos(tmp_path / "nested" / split / "Fruit" / name, 2)
    nested = message(tmp_path / "nested")
    fruit = tmp_path / "nested" / "train" / "Fruit"
    assert "has one class, Fruit, whose photos lie in folders: move apple/ and others" in nested
    assert f"from {fruit} to {fruit.parent}, likewise in the other splits" in nested
    with pytest.raises(UserError, match=r"no data root for FolderDataset: .* FOLDER_DIR"):
        build_dataset("folder", "train")
    write_photos(tmp_path / "tested" / "test" / "cat", 3)
    (tmp_path / "tested" / "train" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="no photo of split 'train'"):
        build_dataset("folder", "train", data_dir=tmp_path / "tested")


def write_mask(path, pixel):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", (12, 8))
    mask.putpixel(pixel, 255)
    mask.save(path)


@pytest.mark.parametrize("place", ["working directory", "root", "absolute", "deep in root"])
@pytest.mark.parametrize("layout", ["flat", "split"])
def test_folder_masks_in_a_parallel_tree(workdir, place, layout):
    root = workdir / "photos"
    folder = "cat" if layout == "flat" else "train/cat"
    write_photos(root / folder, 3, "JPG")
    if layout == "split":
        write_photos(root / "val/cat", 2, "JPG")
        write_photos(root / "test/cat", 2, "JPG")
    masks = "aux/masks" if place == "deep in root" else "masks"
    tree = (workdir if place == "working directory" else root) / masks
    for number, suffix in enumerate(("png", "TIF", "JPG.png")):
        write_mask(tree / folder / f"{number}.{suffix}", (number, 1))
    option = str(tree) if place == "absolute" else masks
    checked = 0
    for dataset in read_splits(root, f"masks={option}").values():
        assert dataset.class_names == ["cat"]  # the masks are no class
        for index, record in enumerate(dataset.records):
            if record.source.startswith(folder):
                mask = dataset.get_mask_by_idx(index)
                assert np.argwhere(mask).tolist() == [[1, int(record.path.stem)]]
                checked += 1
    assert checked == 3


def test_folder_masks_inside_a_class_folder(workdir):
    write_photos(workdir / "cat", 3)
    write_mask(workdir / "cat" / "masks" / "cat" / "0.png", (1, 1))
    assert counts(read_splits(workdir, "masks=cat/masks")) == {"cat": (1, 1, 1)}


def test_folder_mask_of_the_same_name_wins_over_one_of_the_same_stem(workdir):
    for suffix in ("png", "bmp"):
        write_photos(workdir / "photos" / "train" / "cat", 1, suffix)
    write_mask(workdir / "masks" / "train" / "cat" / "0.bmp", (1, 1))
    write_mask(workdir / "masks" / "train" / "cat" / "0.png", (2, 2))
    write_photos(workdir / "photos" / "val" / "cat", 2)
    dataset = build_dataset(
        "folder", "train", data_dir=workdir / "photos", dataset_args=["masks=masks"]
    )
    found = {r.path.suffix: np.argwhere(dataset.get_mask_by_idx(i)).tolist()
             for i, r in enumerate(dataset.records)}  # fmt: skip
    assert found == {".bmp": [[1, 1]], ".png": [[2, 2]]}


def test_folder_masks_beside_the_classes_are_found(tmp_path, caplog):
    for name in ("cat", "dog"):
        write_photos(tmp_path / "flat" / name, 10)
        write_photos(tmp_path / "split" / "train" / name, 10)
    write_mask(tmp_path / "flat" / "Masks" / "cat" / "1.bmp", (3, 4))
    write_mask(tmp_path / "split" / "masks" / "train" / "cat" / "1.png.png", (3, 4))
    for root, source in (("flat", "cat/1.png"), ("split", "train/cat/1.png")):
        splits = read_splits(tmp_path / root)
        assert splits["train"].class_names == ["cat", "dog"] and not caplog.text
        records = [record for dataset in splits.values() for record in dataset.records]
        assert [record.source for record in records if record.mask] == [source]
        assert all(sources(dataset) for dataset in splits.values())
    elsewhere = read_splits(tmp_path / "flat", f"masks={tmp_path / 'split' / 'masks'}")
    assert not any(record.mask for dataset in elsewhere.values() for record in dataset.records)


def test_folder_masks_that_the_command_made_are_found_whatever_they_are(tmp_path):
    root = tmp_path / "photos"
    for name in ("a", "b"):
        write_photos(root / name, 10)
    lists = {older: read_splits(root, f"older_list={older}") for older in ("true", "false")}
    write_mask(root / "masks" / "doubtful" / "a" / "1.png", (3, 4))
    (root / "masks" / ".made").mkdir()
    for older, before in lists.items():
        after = read_splits(root, f"older_list={older}")
        assert after["train"].class_names == ["a", "b"]
        assert all(sources(after[split]) == sources(before[split]) for split in before)
        assert not any(record.mask for split in after.values() for record in split.records)
    write_mask(root / "masks" / "a" / "1.png", (3, 4))
    for older in lists:
        records = [r for d in read_splits(root, f"older_list={older}").values() for r in d.records]
        assert [record.source for record in records if record.mask] == ["a/1.png"]


def test_folder_masks_missing_and_broken_hurt_only_when_asked_for(workdir, caplog):
    for name in ("cat", "dog"):
        write_photos(workdir / "photos" / "train" / name, 1)
        write_photos(workdir / "photos" / "val" / name, 2)
    options = {"data_dir": workdir / "photos", "dataset_args": ["masks=masks"]}
    with pytest.raises(UserError, match=r"masks=masks: expected a folder, masks or .*photos/masks"):
        build_dataset("folder", "train", **options)
    (workdir / "masks" / "train" / "cat").mkdir(parents=True)
    (workdir / "masks" / "train" / "cat" / "0.png").write_bytes(b"broken")
    dataset = build_dataset("folder", "train", **options)
    assert len(dataset) == 2 and dataset.get_image_by_idx(0).size == (12, 8)
    with pytest.raises(UserError, match=r"cannot read mask masks/train/cat/0.png"):
        dataset.get_mask_by_idx(0)
    with pytest.raises(UserError, match=r"photo train/dog/0.png has no mask"):
        dataset.get_mask_by_idx(1)
    assert caplog.text == ""
    build_dataset("folder", "val", **options)
    assert "masks=masks: none for split val, such as in masks/val/cat/" in caplog.text
    with pytest.raises(UserError, match="is the folder of the photos"):
        build_dataset("folder", "val", data_dir="photos", dataset_args=["masks=photos"])


# --- all of them -----------------------------------------------------------------------------


def written(kind, root, order):
    """A small dataset whose files are created in this order."""
    if kind == "coco":
        ids = [number + 1 for number in order]
        for split in ("train", "val"):
            write_coco(root, split, ids, [annotation(n, n, ["cat", "train"][n % 2]) for n in ids])
    for number in order:
        if kind == "mvip":
            write_mvip_class(root, f"part {number}")
        elif kind == "folder":
            for split in SPLITS:
                for name in ("cat", "dog"):
                    write_photos(root / split / name, 1, first=number)
        elif kind == "flat":
            for name in random.Random(number).sample(["cat", "dog", "eel"], 3):
                write_photos(root / name, 1, first=number)


@pytest.mark.parametrize("kind", ["coco", "mvip", "folder", "flat"])
def test_the_order_of_files_on_disk_does_not_matter(tmp_path, kind, monkeypatch):
    name = "folder" if kind == "flat" else kind

    def read(root):
        trial = build_dataset(name, "train", data_dir=root, seed=5, examples_per_class=2)
        whole = [build_dataset(name, split, data_dir=root) for split in SPLITS]
        assert not set(sources(whole[0])) & set(sources(whole[1]))
        assert not set(sources(whole[1])) & set(sources(whole[2]))
        return trial.class_names, sources(trial), [sources(dataset) for dataset in whole]

    chance = random.Random(0)
    written(kind, tmp_path / "0", range(10))
    expected = read(tmp_path / "0")
    scandir, listdir = os.scandir, os.listdir

    class Shuffled:
        """os.scandir in random order: many file systems list by name, whatever the creation."""

        def __init__(self, path="."):
            with scandir(path) as entries:
                self.entries = list(entries)
            chance.shuffle(self.entries)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    def shuffled(path="."):
        names = listdir(path)
        chance.shuffle(names)
        return names

    monkeypatch.setattr(os, "scandir", Shuffled)
    monkeypatch.setattr(os, "listdir", shuffled)
    for attempt in (1, 2, 3):
        written(kind, tmp_path / str(attempt), chance.sample(range(10), 10))
        assert read(tmp_path / str(attempt)) == expected


@pytest.mark.parametrize("kind", ["coco", "mvip", "folder"])
def test_data_roots_from_the_environment(tmp_path, workdir, monkeypatch, kind):
    with pytest.raises(UserError, match=f"set {kind.upper()}_DIR"):
        build_dataset(kind, "train")
    written(kind, tmp_path / "data", range(3))
    monkeypatch.setenv(f"{kind.upper()}_DIR", str(tmp_path / "data"))
    assert len(build_dataset(kind, "train")) > 0
    if kind != "folder":
        monkeypatch.delenv(f"{kind.upper()}_DIR")
        (workdir / "data").rename(workdir / "moved")
        default = {"coco": "data/coco2017", "mvip": "data/mvip"}[kind]
        (workdir / default).parent.mkdir()
        (workdir / "moved").rename(workdir / default)
        assert len(build_dataset(kind, "train")) > 0


# --- the registry and --dataset_args ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cocoo", r"got 'cocoo', expected coco, mvip, .* hf, or package.module:ClassName"),
        ("semantic_aug.datasets.coco", r"expected coco, mvip"),
        (":COCODataset", r"expected coco, mvip"),
        ("semantic_aug.datasets.coco:", r"expected coco, mvip"),
        ("", r"expected coco, mvip"),
        ("no_such_module:Data", r"cannot import 'no_such_module': No module named"),
        ("semantic_aug.few_shot_dataset:Record", r"Record is not a FewShotDataset"),
        ("semantic_aug.few_shot_dataset:SPLITS", r"SPLITS is not a FewShotDataset"),
        ("semantic_aug.few_shot_dataset:Nothing", r"few_shot_dataset has no class Nothing"),
        (".coco:COCODataset", r"cannot import '.coco': TypeError"),
    ],
)
def test_dataset_names_that_name_nothing(name, message):
    with pytest.raises(UserError, match=message):
        dataset_class(name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_package_either", "No module named 'no_such_package_either'"),
        ("def broken(:", r"SyntaxError: invalid syntax \(failing_dataset.py, line 1\)"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_fails_to_import(workdir, monkeypatch, source, message):
    (workdir / "failing_dataset.py").write_text(source)
    monkeypatch.syspath_prepend(str(workdir))
    with pytest.raises(UserError, match=f"cannot import 'failing_dataset': {message}"):
        dataset_class("failing_dataset:Data")


def test_a_module_in_the_working_directory_is_found(workdir, monkeypatch):
    (workdir / "local_dataset.py").write_text(
        "from semantic_aug.datasets.folder import FolderDataset as Local"
    )
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    write_photos(workdir / "photos" / "cat", 3)
    assert len(build_dataset("local_dataset:Local", "train", data_dir="photos")) == 1
    sys.modules.pop("local_dataset")


class Options(FewShotDataset):
    def __init__(
        self,
        *,
        flag: bool = False,
        count: int = 3,
        rate: float = 0.5,
        maybe: int | None = None,
        bare=7,
        text: str = "",
        needed: str,
        **kwargs,
    ):
        super().__init__(**kwargs)


def test_dataset_args_have_the_types_of_the_constructor():
    pairs = ["flag=Yes", "count=12", "rate=1e-3", "maybe=4", "bare=5", "text=a=b c", "needed="]
    options = parse_dataset_args(Options, pairs)
    assert options == {
        "flag": True, "count": 12, "rate": 0.001, "maybe": 4, "bare": 5, "text": "a=b c",
        "needed": "",
    }  # fmt: skip
    assert {type(options[key]) for key in ("count", "maybe", "bare")} == {int}
    assert parse_dataset_args(Options, ["flag=false"])["flag"] is False
    assert parse_dataset_args(Options, []) == {}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("flag=maybe", "flag='maybe', expected true or false"),
        ("count=1.5", "count='1.5', expected a whole number"),
        ("rate=fast", "rate='fast', expected a number"),
        ("count", "got 'count', expected key=value"),
        ("colour=red", "unknown key 'colour'; Options has: flag, count, rate, maybe, bare, text"),
        ("seed=3", "unknown key 'seed'"),  # a flag of its own
        ("count=1 count=2", "count is given twice"),
    ],
)
def test_dataset_args_that_are_wrong(pair, message):
    with pytest.raises(UserError, match=f"--dataset_args: {message}"):
        parse_dataset_args(Options, pair.split())


def test_dataset_args_unknown_or_missing(coco):
    for name, known in (("coco", "published_val"), ("mvip", "super_class, num_classes"),
                        ("folder", "masks, splits, older_list")):  # fmt: skip
        with pytest.raises(UserError, match=rf"unknown key 'x'; \w+ has: {known}, bits$"):
            build_dataset(name, "train", data_dir=coco, dataset_args=["x=1"])
    with pytest.raises(UserError, match=r"--dataset_args: Options: missing .*'needed'"):
        build_dataset(f"{__name__}:Options", "train", data_dir=coco)


def test_importing_the_package_touches_no_data(tmp_path):
    """In an empty folder, without an environment; every file that is opened is program text."""
    script = """
import os, sys
import torch, numpy, PIL.Image, pycocotools.coco
own = os.path.realpath(sys.argv[1])
seen = []
def watch(event, args):
    if event in ("open", "os.listdir", "os.scandir", "os.mkdir") and isinstance(args[0], str):
        seen.append(os.path.realpath(args[0]))
sys.addaudithook(watch)
import importlib, semantic_aug.datasets.check, semantic_aug.datasets.__main__
for path in semantic_aug.datasets.DATASETS.values():
    importlib.import_module(path.partition(":")[0])
program = (os.path.join(own, "semantic_aug"), sys.prefix, sys.base_prefix)
print([path for path in seen if path != own and not path.startswith(program)])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


# --- real photos -----------------------------------------------------------------------------


def test_real_coco(real_data):
    root = real_data / "coco2017"
    train, val, test = (build_dataset("coco", split, data_dir=root) for split in SPLITS)
    assert len(train) == 49 and len(val) + len(test) == 48
    assert not set(sources(val)) & set(sources(test))
    published = build_dataset("coco", "val", data_dir=root, dataset_args=["published_val=true"])
    assert set(sources(published)) == set(sources(val)) | set(sources(test))
    assert labelled(published)["val2017/000000397133.jpg"] == "dining table"
    assert len(train.empty_classes()) == 65
    for dataset in (train, published):
        for index in range(len(dataset)):
            mask, image = dataset.get_mask_by_idx(index), dataset.get_image_by_idx(index)
            assert mask.shape == image.size[::-1] and image.mode == "RGB"
            assert 0.001 < (mask > 0).mean() < 1
    trial = build_dataset("coco", "train", data_dir=root, examples_per_class=1, image_size=64)
    assert len(trial) == 80 - 65
    assert [trial[i][1] for i in range(15)] == sorted({trial[i][1] for i in range(15)})


def test_real_coco_mask_covers_the_area_of_its_annotation(real_data):
    root = real_data / "coco2017"
    content = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    largest = {}
    for row in content["annotations"]:
        largest[row["image_id"]] = max(largest.get(row["image_id"], 0), row["area"])
    train = build_dataset("coco", "train", data_dir=root)
    for index, record in enumerate(train.records):
        pixels = (train.get_mask_by_idx(index) > 0).sum()
        assert pixels == pytest.approx(largest[int(record.path.stem)], rel=0.05)


def test_real_caltech_in_one_folder_per_class(real_data):
    root = real_data / "caltech101" / "101_ObjectCategories"
    datasets = read_splits(root, image_size=32)
    found = counts(datasets)
    assert len(found) == 12 and set(found.values()) == {(24, 8, 8)}
    assert list(found)[:4] == ["butterfly", "chair", "elephant", "grand_piano"]
    trial = build_dataset("folder", "train", data_dir=root, examples_per_class=4, seed=1)
    assert len(trial) == 48 and trial.unreadable == []
    assert {trial.get_image_by_idx(i).mode for i in range(48)} == {"RGB"}
    assert len({trial.get_image_by_idx(i).size for i in range(48)}) > 5
