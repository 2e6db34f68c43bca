"""Indexes of what is slow to list: what is kept, when it is made again, and COCO's in one pass."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from semantic_aug import UserError
from semantic_aug.datasets import build_dataset, coco, index
from semantic_aug.datasets.coco import Photo, read_photos
from semantic_aug.datasets.coco_outlines import without_outlines
from semantic_aug.datasets.index import cached, image_names
from semantic_aug.experiment.digests import cache_dir

LONG_AGO = 1_500_000_000


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache that keeps what was quick to build too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(index, "KEEP_FROM", 0)
    return tmp_path / "xdg" / "semantic_aug"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.txt"
    path.write_text("one")
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def counted(value):
    """A function that gives `value`, and a list that grows with every call."""
    calls = []

    def build():
        calls.append(1)
        return value

    return build, calls


# --- what is kept ----------------------------------------------------------------------------


def test_an_index_is_built_once(cache, source):
    build, calls = counted([["a", 1], {"b": None}])
    assert [cached("kind", [source], build) for _ in range(3)] == [[["a", 1], {"b": None}]] * 3
    assert len(calls) == 1
    assert [path.parent for path in cache.iterdir()] == [cache]
    assert next(cache.iterdir()).name.startswith("kind-")
    cached("other", [source], build)
    assert len(calls) == 2 and len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("change", ["content", "size only", "time only", "another file"])
def test_an_index_of_changed_files_is_built_again(cache, source, tmp_path, change):
    build, calls = counted(1)
    cached("kind", [source], build)
    paths = [source]
    if change == "another file":
        paths.append(tmp_path / "more.txt")
        paths[1].touch()
        os.utime(paths[1], (LONG_AGO, LONG_AGO))
    else:
        source.write_text("one" if change == "time only" else "three")
        late = LONG_AGO if change == "size only" else LONG_AGO + 1
        os.utime(source, (late, late))
    cached("kind", paths, build)
    cached("kind", paths, build)
    assert len(calls) == 2
    if change != "another file":
        assert len(list(cache.iterdir())) == 1  # in the place of the old one


def test_files_of_this_very_moment_are_not_trusted(cache, source):
    build, calls = counted(1)
    os.utime(source)
    for _ in range(2):
        cached("kind", [source], build)
    assert len(calls) == 2 and not cache.exists()


def test_what_is_quick_to_build_is_not_kept(cache, source, monkeypatch):
    monkeypatch.setattr(index, "KEEP_FROM", 1.0)
    cached("kind", [source], lambda: 1)
    assert not cache.exists()


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"made_from": 1}', b'{"made_from": []}', b"\xff\xfe", b"null"]
)
def test_a_damaged_index_is_built_again(cache, source, damage):
    build, calls = counted("fine")
    cached("kind", [source], build)
    next(cache.iterdir()).write_bytes(damage)
    assert cached("kind", [source], build) == cached("kind", [source], build) == "fine"
    assert len(calls) == 2


@pytest.mark.parametrize("place", ["a file", "in a file", "no home"])
def test_without_a_cache_everything_works_silently(
    source, tmp_path, monkeypatch, capfd, caplog, place
):
    monkeypatch.setattr(index, "KEEP_FROM", 0)
    (tmp_path / "file").touch()
    unusable = tmp_path / "file" / ("below" if place == "in a file" else "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(unusable))
    if place == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")

        def no_home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", no_home)
    build, calls = counted(7)
    assert [cached("kind", [source], build) for _ in range(2)] == [7, 7]
    assert len(calls) == 2
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_place_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "semantic_aug"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_dir() == tmp_path / "home" / ".cache" / "semantic_aug"


# --- folders ---------------------------------------------------------------------------------


def test_names_in_folders_are_listed_anew_when_one_changes(cache, tmp_path, monkeypatch):
    folders = [tmp_path / "photos" / name for name in ("b", "a", "empty")]
    for folder in folders:
        folder.mkdir(parents=True)
    for name in ("2.JPEG", "1.jpg", "notes.txt", ".hidden.jpg"):
        (folders[0] / name).touch()
    (folders[1] / "3.png").touch()

    def settle():
        for folder in folders:
            os.utime(folder, (LONG_AGO, folder.stat().st_mtime - 1000))

    settle()
    wanted = {folders[0]: ["1.jpg", "2.JPEG"], folders[1]: ["3.png"], folders[2]: []}
    assert image_names(folders) == wanted
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", None)  # no folder is listed again
        assert image_names(folders) == wanted
        assert list(image_names(folders)) == folders
    (folders[1] / "4.png").touch()
    os.utime(folders[1], (LONG_AGO, LONG_AGO + 5))
    assert image_names(folders)[folders[1]] == ["3.png", "4.png"]


# --- COCO ------------------------------------------------------------------------------------

numbers = st.integers(-9, 999) | st.floats(0, 999).map(lambda x: round(x, 2))
texts = st.text('a"\\[]{}:,\n\u00e9 ', max_size=6) | st.sampled_from(
    ["segmentation", '"segmentation": [1]}', 'x"segmentation', "segmentation\\", '\\"segmentation"']
)
polygons = st.lists(st.lists(numbers, max_size=8), max_size=3)
encodings = st.fixed_dictionaries({"counts": texts | st.lists(numbers), "size": st.just([4, 5])})
values = st.none() | numbers | texts | polygons | encodings | st.lists(encodings, max_size=2)
documents = st.recursive(
    values,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts | st.just("segmentation"), inner, max_size=4)
    ),
    max_leaves=20,
)


def restored(content, text):
    """`content` with the value of each span, which must be its key and value in the file."""
    if isinstance(content, list):
        return [restored(each, text) for each in content]
    if not isinstance(content, dict):
        return content
    found = {key: restored(value, text) for key, value in content.items()}
    span = content.get("segmentation")
    if isinstance(span, list) and len(span) == 2 and all(type(each) is int for each in span):
        member = text[span[0] : span[0] + span[1]]
        found["segmentation"] = json.loads(b"{" + member + b"}")["segmentation"]
    return found


def without_empty(content):
    """What is as short as an empty outline and holds no digit is none."""
    if isinstance(content, list):
        return [without_empty(each) for each in content]
    if not isinstance(content, dict):
        return content
    found = {key: without_empty(value) for key, value in content.items()}
    value = found.get("segmentation")
    if isinstance(value, list | dict) and not any(c.isdigit() for c in json.dumps(value)):
        found["segmentation"] = None
    return found


@settings(max_examples=100, deadline=None)
@given(documents, st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_outlines_are_left_out_of_any_json_and_found_again(
    tmp_path_factory, document, chunk_size, indent, ascii_only
):
    path = tmp_path_factory.mktemp("json") / "file.json"
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode()
    path.write_bytes(text)
    content = json.loads(without_outlines(path, chunk_size))
    assert without_empty(restored(content, text)) == without_empty(document)


def test_outlines_are_not_in_what_is_parsed(tmp_path):
    path = write_instances(tmp_path, [[[1.5, 1, 9, 1, 9, 8.25]], {"counts": "a]}\\", "size": [1]}])
    for chunk_size in (7, 64, 1 << 20):
        text = without_outlines(path, chunk_size)
        assert "8.25" not in text and "counts" not in text
        spans = [each["segmentation"] for each in json.loads(text)["annotations"]]
        assert [len(span) for span in spans] == [2, 2]


def write_instances(root, segmentations, split="train", size=(12, 10)):
    """One photo for each of these segmentations, of classes cat, dog, cat ..."""
    (root / f"{split}2017").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number, segmentation in enumerate(segmentations, start=1):
        name = f"{number:012d}.jpg"
        Image.new("RGB", size).save(root / f"{split}2017" / name)
        images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        annotations.append({
            "segmentation": segmentation, "area": 9, "iscrowd": 0, "image_id": number,
            "category_id": (17, 18)[number % 2], "id": number,
        })  # fmt: skip
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
    }
    path = root / "annotations" / f"instances_{split}2017.json"
    path.write_text(json.dumps(content))
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def sources(dataset):
    return [(record.source, record.class_name) for record in dataset.records]


SQUARE = [[2, 2, 6, 2, 6, 6, 2, 6]]


def test_coco_the_second_time_comes_from_the_index(cache, tmp_path, monkeypatch):
    path = write_instances(tmp_path, [SQUARE, [], SQUARE])
    first = build_dataset("coco", "train", data_dir=tmp_path)
    assert [kept.name[:5] for kept in cache.iterdir()] == ["coco-"]
    read_photos.cache_clear()
    monkeypatch.setattr(coco, "_largest_objects", None)  # would fail if it were asked
    again = build_dataset("coco", "train", data_dir=tmp_path)
    assert sources(again) == sources(first)
    for dataset in (first, again):
        assert [record.mask is None for record in dataset.records] == [True, False, False]
        assert (dataset.get_mask_by_idx(1) > 0).sum() == 16
    read_photos.cache_clear()
    os.utime(path, (LONG_AGO, LONG_AGO + 1))
    with pytest.raises(TypeError, match="NoneType"):  # the stand-in
        build_dataset("coco", "train", data_dir=tmp_path)


def test_coco_masks_are_read_only_when_asked_for(cache, tmp_path, monkeypatch):
    write_instances(tmp_path, [SQUARE] * 3)
    asked = []
    real = coco.decode_segmentation
    monkeypatch.setattr(
        coco, "decode_segmentation", lambda *given: asked.append(given[3]) or real(*given)
    )
    dataset = build_dataset("coco", "train", data_dir=tmp_path, examples_per_class=1)
    assert asked == []
    dataset.get_mask_by_idx(0)
    assert asked == [Path(dataset.records[0].source).name]


def test_coco_file_that_changed_since_it_was_listed(cache, tmp_path):
    path = write_instances(tmp_path, [SQUARE])
    dataset = build_dataset("coco", "train", data_dir=tmp_path)
    path.write_text(path.read_text().replace("{", "{ ", 1))
    with pytest.raises(UserError, match="has changed since it was read: start again"):
        dataset.get_mask_by_idx(0)


def test_coco_a_range_that_holds_no_outline(tmp_path):
    path = tmp_path / "file.json"
    path.write_text('{"segmentation": [[1, 2,, 3]], "id": 1}')
    with pytest.raises(UserError, match=r"malformed segmentation of 1.jpg in .*file.json"):
        Photo(path, 1, "1.jpg", 10, 12, "cat", [1, 30]).mask()


def test_coco_index_agrees_with_pycocotools_on_real_photos(real_data, cache):
    from pycocotools.coco import COCO

    path = real_data / "coco2017" / "annotations" / "instances_val2017.json"
    plain = COCO(path)
    photos = read_photos(path, time.time_ns())
    assert [photo.id for photo in photos] == sorted(plain.imgToAnns)
    for photo in photos:
        largest = max(plain.imgToAnns[photo.id], key=lambda each: (each["area"], -each["id"]))
        assert photo.class_name == plain.cats[largest["category_id"]]["name"]
        assert np.array_equal(photo.mask(), plain.annToMask(largest))
