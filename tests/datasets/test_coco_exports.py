"""COCO files as other tools write them: the right photo, class and mask, or what is damaged."""

import json

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

from semantic_aug import UserError
from semantic_aug.datasets import build_dataset
from semantic_aug.datasets.coco import find_files
from semantic_aug.datasets.coco_outlines import decode_segmentation

WIDTH, HEIGHT = 16, 12


def box_mask(left, top, width, height):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def polygon(left, top, width, height):
    right, bottom = left + width, top + height
    return [left, top, right, top, right, bottom, left, bottom]


def compressed(mask):
    encoded = pycocotools.mask.encode(np.asfortranarray(mask))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def runs(mask):
    """Lengths of runs of 0, 1, 0 ... down the columns."""
    flat = np.concatenate([[0], mask.T.ravel(), [1 - mask.T.ravel()[-1]]])
    edges = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff([0, *edges]).tolist()}


def write(root, content, files, indent=None):
    """A root with this annotation file for train, and photos at these places in train2017."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "train2017").mkdir(exist_ok=True)
    path = root / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps(content, indent=indent))
    for shade, name in enumerate(files):
        place = root / "train2017" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (shade, 0, 0)).save(place)
    return path


def read(root):
    return build_dataset("coco", "train", data_dir=root)


def labelled(dataset):
    return {
        record.source.removeprefix("train2017/"): record.class_name for record in dataset.records
    }


def image(number, name, **more):
    return {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT, **more}


def category(number, name, **more):
    return {"id": number, "name": name, **more}


def annotation(number, image_id, category_id, **more):
    return {"id": number, "image_id": image_id, "category_id": category_id, **more}


def content_of(images, categories, annotations, **more):
    return {"images": images, "categories": categories, "annotations": annotations, **more}


# --- tool by tool ----------------------------------------------------------------------------

SMALL, LARGE = (1, 1, 3, 3), (2, 2, 10, 8)

# Tool -> annotation file, photos, and the wanted class and mask of each photo.
EXPORTS = {
    # All ids from 0, and a category for the project that no annotation uses.
    "roboflow": (
        content_of(
            [
                image(0, "a_jpg.rf.3f2c.jpg", license=1, date_captured="2020-07-20T19:39:26+00:00"),
                image(1, "b_jpg.rf.77aa.jpg", license=1),
            ],
            [
                category(0, "animals", supercategory="none"),
                category(1, "cat", supercategory="animals"),
                category(2, "dog", supercategory="animals"),
            ],
            [
                annotation(0, 0, 2, bbox=list(SMALL), area=9, segmentation=[], iscrowd=0),
                annotation(1, 0, 1, bbox=list(LARGE), area=80, segmentation=[], iscrowd=0),
                annotation(2, 1, 2, bbox=list(SMALL), area=9, segmentation=[[]], iscrowd=0),
            ],
            info={"year": "2020", "contributor": "Roboflow"},
        ),
        ["a_jpg.rf.3f2c.jpg", "b_jpg.rf.77aa.jpg"],
        {"a_jpg.rf.3f2c.jpg": ("cat", None), "b_jpg.rf.77aa.jpg": ("dog", None)},
    ),
    # Folders of jobs in the names; masks as counts, boxes without an outline.
    "cvat": (
        content_of(
            [
                image(1, "job_1/1.jpg", license=0, flickr_url="", coco_url="", date_captured=0),
                image(2, "job_2/1.jpg", license=0, flickr_url="", coco_url="", date_captured=0),
            ],
            [category(n + 1, name, supercategory="") for n, name in enumerate(["dog", "cat"])],
            [
                annotation(
                    1, 1, 1, segmentation=runs(box_mask(*LARGE)), area=80.0, bbox=list(LARGE),
                    iscrowd=1, attributes={"occluded": False, "rotation": 0.0},
                ),
                annotation(2, 1, 2, segmentation=[], area=9.0, bbox=list(SMALL), iscrowd=0),
                annotation(
                    3, 2, 2, segmentation=[polygon(*SMALL)], area=9.0, bbox=list(SMALL), iscrowd=0
                ),
            ],
            licenses=[{"name": "", "id": 0, "url": ""}],
        ),
        ["job_1/1.jpg", "job_2/1.jpg"],
        {"job_1/1.jpg": ("dog", box_mask(*LARGE)), "job_2/1.jpg": ("cat", box_mask(*SMALL))},
    ),
    # Paths of the machine it ran on, on Windows with backslashes; ids from 0.
    "label studio": (
        content_of(
            [
                image(0, "images\\1/90fbb0c7-a.jpg"),
                image(1, "..\\..\\label-studio\\media\\upload\\4\\cb0618f6-b.png"),
                image(2, "images/c.jpg"),
            ],
            [category(0, "cat"), category(1, "dog"), category(2, "scratch")],
            [
                annotation(
                    0, 0, 0, segmentation=[], bbox=list(SMALL), ignore=0, iscrowd=0, area=9
                ),
                annotation(
                    1, 1, 1, segmentation=[polygon(*LARGE)], bbox=list(LARGE), ignore=0, iscrowd=0,
                    area=80.0,
                ),
                annotation(2, 2, 0, segmentation=[], bbox=list(SMALL), ignore=0, iscrowd=0, area=9),
            ],
            info={"contributor": "Label Studio", "version": "1.0"},
        ),
        ["90fbb0c7-a.jpg", "cb0618f6-b.png", "images/c.jpg"],
        {
            "90fbb0c7-a.jpg": ("cat", None),
            "cb0618f6-b.png": ("dog", box_mask(*LARGE)),
            "images/c.jpg": ("cat", None),
        },
    ),
    # Absolute paths; null where there is nothing; categories from 0, no key for what lacks.
    "fiftyone": (
        content_of(
            [
                image(1, "/home/ann/fiftyone/zoo/data/x.jpg", license=None, coco_url=None),
                image(2, "C:\\Users\\Ann\\fiftyone\\y.jpg", license=None, coco_url=None),
            ],
            [category(n, name, supercategory=None) for n, name in enumerate(["cat", "dog"])],
            [
                annotation(1, 1, 0, bbox=[1.0, 1.0, 3.0, 3.0], area=9.0, score=0.9),
                annotation(
                    2, 1, 1, bbox=[2.0, 2.0, 10.0, 8.0], segmentation=[polygon(*LARGE)], area=80.0,
                ),
                annotation(3, 2, 0, bbox=[1.0, 1.0, 3.0, 3.0], area=9.0, iscrowd=0),
            ],
            licenses=[],
        ),
        ["x.jpg", "y.jpg"],
        {"x.jpg": ("dog", box_mask(*LARGE)), "y.jpg": ("cat", None)},
    ),
    # Sizes of 0 where it has not read the photo; labels alone, without box or area.
    "datumaro": (
        content_of(
            [
                {"id": 5, "file_name": "p.jpg", "width": 0, "height": 0, "date_captured": 0},
                {"id": 6, "file_name": "q.jpg", "width": 0, "height": 0, "date_captured": 0},
            ],
            [category(1, "dog", supercategory=""), category(2, "cat", supercategory="")],
            [
                annotation(1, 5, 2),
                annotation(2, 6, 1, segmentation=[polygon(*LARGE)], bbox=list(LARGE), area=80.0),
            ],
        ),
        ["p.jpg", "q.jpg"],
        {"p.jpg": ("cat", None), "q.jpg": ("dog", box_mask(*LARGE))},
    ),
    # Scripts: ids of one list as text, no sizes, no area, encodings in a list.
    "a script": (
        content_of(
            [{"id": "7", "file_name": "./s.jpg"}, {"id": "t", "file_name": "t.jpg"}],
            [category("1", "dog"), category("2", "cat")],
            [
                annotation("a", 7, 1, segmentation=[compressed(box_mask(*SMALL))]),
                annotation(
                    "b", 7, 2, segmentation=[runs(box_mask(0, 0, 4, 4)), runs(box_mask(9, 9, 3, 3))]
                ),
                annotation("c", "t", 1, bbox=[0, 0, 5, 5]),
            ],
        ),
        ["s.jpg", "t.jpg"],
        {"s.jpg": ("cat", box_mask(0, 0, 4, 4) | box_mask(9, 9, 3, 3)), "t.jpg": ("dog", None)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("tool", EXPORTS)
def test_what_tools_write(tmp_path, tool, caplog):
    content, files, wanted = EXPORTS[tool]
    write(tmp_path, content, files, indent=2 if tool == "label studio" else None)
    dataset = read(tmp_path)
    assert labelled(dataset) == {name: class_name for name, (class_name, _) in wanted.items()}
    for index, record in enumerate(dataset.records):
        mask = wanted[record.source.removeprefix("train2017/")][1]
        assert dataset.get_image_by_idx(index).size == (WIDTH, HEIGHT)
        if mask is None:
            assert record.mask is None
        else:
            assert np.array_equal(dataset.get_mask_by_idx(index), mask * 255)
    assert not caplog.records


# --- which object is the largest -------------------------------------------------------------


@pytest.mark.parametrize("area", [None, 0, 0.0, float("nan"), float("inf"), -5, "absent"])
@pytest.mark.parametrize("size", ["polygon", "runs", "encoding", "list of encodings", "box"])
def test_without_an_area_the_outline_counts_or_the_box(tmp_path, area, size):
    def described(place):
        return {
            "polygon": {"segmentation": [polygon(*place)]},
            "runs": {"segmentation": runs(box_mask(*place))},
            "encoding": {"segmentation": compressed(box_mask(*place))},
            "list of encodings": {"segmentation": [compressed(box_mask(*place))]},
            "box": {"segmentation": [], "bbox": list(place)},
        }[size] | ({} if area == "absent" else {"area": area})

    rows = [
        annotation(1, 1, 17, **described(SMALL)),
        annotation(2, 1, 18, **described(LARGE)),
        annotation(3, 1, 17, **described((0, 0, 5, 5))),
        annotation(4, 2, 17, area=81, segmentation=[polygon(*SMALL)]),  # a true area counts
        annotation(5, 2, 18, **described(LARGE)),
    ]
    categories = [category(17, "cat"), category(18, "dog")]
    content = content_of([image(1, "1.jpg"), image(2, "2.jpg")], categories, rows)
    write(tmp_path, content, ["1.jpg", "2.jpg"])
    assert labelled(read(tmp_path)) == {"1.jpg": "dog", "2.jpg": "cat"}


def test_what_has_no_size_at_all_goes_last_and_by_id(tmp_path):
    rows = [
        annotation(9, 1, 17),
        annotation(8, 1, 18, bbox=[0, 0, -3, -3], segmentation=[[1, 1, 2, 2]]),
        annotation(7, 2, 17, segmentation=[["x"] * 8], bbox=[0, 0, 2, 2]),
        annotation(6, 2, 18, bbox=[]),
    ]
    categories = [category(17, "cat"), category(18, "dog")]
    content = content_of([image(1, "1.jpg"), image(2, "2.jpg")], categories, rows)
    write(tmp_path, content, ["1.jpg", "2.jpg"])
    assert labelled(read(tmp_path)) == {"1.jpg": "dog", "2.jpg": "cat"}


def test_real_photos_have_the_same_class_without_areas(real_data, tmp_path):
    for split in ("train", "val"):
        name = f"annotations/instances_{split}2017.json"
        content = json.loads((real_data / "coco2017" / name).read_text())
        for each in content["annotations"]:
            del each["area"]
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
        (tmp_path / f"{split}2017").symlink_to(real_data / "coco2017" / f"{split}2017")
        options = {"dataset_args": ["published_val=true"]}
        plain = build_dataset("coco", split, data_dir=real_data / "coco2017", **options)
        without = build_dataset("coco", split, data_dir=tmp_path, **options)
        assert labelled(without) == labelled(plain) and len(plain) in (48, 49)
        for index in (0, 20, 40):
            assert np.array_equal(without.get_mask_by_idx(index), plain.get_mask_by_idx(index))


# --- masks -----------------------------------------------------------------------------------


def test_several_encodings_are_joined():
    one, two = box_mask(*SMALL), box_mask(8, 8, 3, 3)
    for parts in ([compressed(one), compressed(two)], [runs(one), compressed(two)]):
        assert np.array_equal(decode_segmentation(parts, HEIGHT, WIDTH), one | two)


@pytest.mark.parametrize(
    "segmentation",
    [
        [polygon(*SMALL), runs(box_mask(*SMALL))],
        [{"size": [HEIGHT, WIDTH]}],
        [{"size": [4, 4], "counts": "04L4"}],
        [{"size": [HEIGHT, WIDTH], "counts": [3]}],
        [1, 2, 3, 4, 5, 6],
    ],
)
def test_malformed_masks_are_no_empty_masks(segmentation):
    with pytest.raises(UserError, match=r"malformed segmentation of 1.jpg"):
        decode_segmentation(segmentation, HEIGHT, WIDTH, "1.jpg")


# --- which photo a name means ----------------------------------------------------------------


def test_names_with_folders_mean_no_photo_twice(tmp_path):
    for place in ("1.jpg", "cam1/1.jpg", "cam1/2.JPEG", "3.jpg", "val/4.jpg"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
    wanted = {
        "1.jpg": "1.jpg",
        "cam1\\1.jpg": "cam1/1.jpg",
        "/data/cam1/2.jpg": "cam1/2.JPEG",
        "cam2/1.jpg": None,  # another photo than 1.jpg, which is listed as such
        "a/3.jpg": None,  # either may be 3.jpg
        "b/3.jpg": None,
        "../val/4.jpg": "val/4.jpg",
        "..": None,
        "a\0b/1.png": None,
        "x" * 300 + "/5.jpg": None,
    }
    found = find_files(tmp_path, wanted)
    assert found == {name: path for name, path in wanted.items() if path}
    assert find_files(tmp_path, ["a/3.jpg", "a\\3.jpg"]) == {
        "a/3.jpg": "3.jpg",
        "a\\3.jpg": "3.jpg",
    }


# --- what is damaged -------------------------------------------------------------------------


def good():
    return content_of(
        [image(1, "1.jpg"), image(2, "2.jpg")],
        [category(17, "cat"), category(18, "dog")],
        [
            annotation(1, 1, 17, area=9, bbox=list(SMALL), segmentation=[polygon(*SMALL)]),
            annotation(2, 2, 18, bbox=list(SMALL)),
        ],
    )


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("images 0 file_name", 3, "file_name in images (id 1) is 3, expected a text"),
        ("images 0 file_name", "", 'file_name in images (id 1) is "", expected a text'),
        ("images 0 id", None, "id in images (id null) is null, expected a number or a text"),
        ("images 0 id", 1.5, "id in images (id 1.5) is 1.5, expected a number or a text"),
        ("images 1 id", [2], "id in images (id [2]) is [2], expected a number or a text"),
        ("images 1 height", "12", 'height in images (id 2) is "12", expected a whole number of'),
        ("images 1 width", -3, "width in images (id 2) is -3, expected a whole number of pixels"),
        ("images 1 width", float("inf"), "width in images (id 2) is Infinity, expected a whole"),
        ("images 1", 5, "an entry of images is 5, expected an object"),
        ("images", {"1": "a"}, "it has no list of images, expected the keys images, annotations"),
        ("categories 0 name", 7, "name in categories (id 17) is 7, expected a text"),
        ("categories 0 id", {}, "id in categories (id {}) is {}, expected a number or a text"),
        ("categories 1", None, "an entry of categories is null, expected an object"),
        ("annotations 0 area", "9", 'area in annotations (id 1) is "9", expected a number'),
        ("annotations 0 area", [9], "area in annotations (id 1) is [9], expected a number"),
        ("annotations 0 id", [], "id in annotations (id []) is [], expected a number or a text"),
        ("annotations 1 bbox", "1234", 'bbox in annotations (id 2) is "1234", expected left, top'),
        ("annotations 1 bbox", [1, 2], "bbox in annotations (id 2) is [1, 2], expected left, top,"),
        ("annotations 1 image_id", True, "image_id in annotations (id 2) is true, expected a num"),
        ("annotations 1", "x", 'an entry of annotations is "x", expected an object'),
        ("annotations 1 category_id", 99, "annotation 2 has the category_id 99, but the ids of c"),
        ("categories 1 id", 17, "two categories have the id 17, cat and dog"),
        ("images 1 id", 1, "two images have the id 1, 1.jpg and 2.jpg"),
        ("categories 0 name", "gear", "uses categories that COCO 2017 lacks ('gear'): for class"),
    ],
)
def test_the_entry_that_is_damaged_is_named(tmp_path, place, value, message):
    content = good()
    *way, last = (int(part) if part.isdigit() else part for part in place.split())
    inner = content
    for part in way:
        inner = inner[part]
    inner[last] = value
    path = write(tmp_path, content, ["1.jpg", "2.jpg"])
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert str(path) in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damage_that_matters_to_nobody_does_no_harm(tmp_path):
    content = good()
    content["images"].append({"id": 3, "file_name": None, "width": "?"})  # not annotated
    content["annotations"][0]["bbox"] = "?"  # there is an area
    content["annotations"][0] |= {"iscrowd": "no", "keypoints": 5, "attributes": [{"id": []}]}
    content["categories"].append(category(19, "gear"))
    write(tmp_path, content, ["1.jpg", "2.jpg"])
    assert labelled(read(tmp_path)) == {"1.jpg": "cat", "2.jpg": "dog"}


def test_annotations_that_belong_to_no_image(tmp_path, caplog):
    content = good()
    content["annotations"].append(annotation(3, "000000000001", 17, area=9))
    write(tmp_path, content, ["1.jpg", "2.jpg"])
    assert len(read(tmp_path)) == 2
    assert "1 annotations in " in caplog.text and "belong to no image" in caplog.text
    for each in content["annotations"]:
        each["image_id"] = f"{each['image_id']:>012}"
    write(tmp_path / "none", content, ["1.jpg", "2.jpg"])
    with pytest.raises(UserError) as caught:
        read(tmp_path / "none")
    assert "no annotation belongs to an image; image_id of annotations: '000000000001'" in str(
        caught.value
    )
    assert str(caught.value).endswith("id of images: 1, 2")


def test_none_of_the_photos_is_there(tmp_path):
    write(tmp_path, good(), ["other.jpg"])
    with pytest.raises(UserError, match=r"none of the 2 photos .* such as '1.jpg': found other"):
        read(tmp_path)


def test_nesting_without_end_is_no_json(tmp_path):
    path = write(tmp_path, good(), [])
    path.write_text('{"images": ' + "[" * 200_000)
    with pytest.raises(UserError, match="is no readable JSON"):
        read(tmp_path)
