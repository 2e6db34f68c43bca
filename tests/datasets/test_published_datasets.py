"""Published datasets, each written in the layout and the file formats it is distributed in (a few
small files of it) and read through `build_dataset`."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat, savemat

from semantic_aug import UserError
from semantic_aug.datasets import DATASETS, build_dataset, dataset_class
from semantic_aug.datasets.imagenet import unique_names
from semantic_aug.datasets.pascal import largest_object
from semantic_aug.few_shot_dataset import SPLITS

SIZE = (12, 10)  # width, height
SHAPE = (10, 12)


def save_photo(path, seed=0, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")


def save_lines(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def save_struct(path, variable, rows, shape=(1, -1), **more):
    """A MATLAB file with an array of structs, as the published ones have: cells of 1 x 1."""
    dtype = [(key, object) for key in rows[0]]
    array = np.array([tuple(row.values()) for row in rows], dtype).reshape(shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {variable: array, **more})


def cell(texts):
    array = np.empty((1, len(texts)), object)
    array[0, :] = texts
    return array


# --- the datasets, each a function that writes one and returns its options ----------------------

PALETTE = [value for index in range(256) for value in (index, 255 - index, index // 2)]


def save_palette(path, indices):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(indices, np.uint8), "P")
    image.putpalette(PALETTE)
    image.save(path)


def voc_masks(label, number=2, other_label=15, width=6):
    """A large object `number` of class index `label`, a small one before it, borders of 255."""
    classes, objects = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    for picture, small, large in ((classes, other_label, label), (objects, 1, number)):
        picture[0:2, 0:3] = 255
        picture[0:2, 0:2] = small
        picture[3:9, 3 : 4 + width] = 255
        picture[4:8, 4 : 3 + width] = large
    return classes, objects


def write_pascal(root):
    for split, first, count in (("train", 0, 10), ("val", 100, 12)):
        names = [f"2007_{number:06d}" for number in range(first, first + count)]
        save_lines(root / "ImageSets" / "Segmentation" / f"{split}.txt", *names)
        for number, name in enumerate(names):
            save_photo(root / "JPEGImages" / f"{name}.jpg", first + number)
            classes, objects = voc_masks(label=(8, 12)[number % 2])  # cat, dog
            save_palette(root / "SegmentationClass" / f"{name}.png", classes)
            save_palette(root / "SegmentationObject" / f"{name}.png", objects)
    save_photo(root / "JPEGImages" / "2012_000001.jpg", 999)  # of another part of VOC


def write_devkit(root, wnids=("n01440764", "n02012849", "n03126707"), truth=()):
    words = {
        "n01440764": "tench, Tinca tinca",
        "n02012849": "crane, water bird",
        "n03126707": "crane",
        "n00001740": "entity",
    }
    rows = [
        {
            "ILSVRC2012_ID": number, "WNID": wnid, "words": words[wnid], "gloss": "a thing",
            "num_children": int(wnid == "n00001740"), "children": [1, 2],
            "wordnet_height": 0, "num_train_images": 1300,
        }
        for number, wnid in enumerate([*reversed(wnids), "n00001740"], start=1)
    ]  # fmt: skip
    data = root / "ILSVRC2012_devkit_t12" / "data"
    save_struct(data / "meta.mat", "synsets", rows, shape=(-1, 1))
    save_lines(data / "ILSVRC2012_validation_ground_truth.txt", *truth)


def write_imagenet(root):
    wnids = ("n01440764", "n02012849", "n03126707")
    for label, wnid in enumerate(wnids):
        for number in range(5):
            save_photo(root / "train" / wnid / f"{wnid}_{number}.JPEG", 10 * label + number)
    truth = [1, 2, 3, 3, 2, 1, 1, 2, 3]  # class 1 is the last id: the devkit's own order
    for number in range(1, 10):
        save_photo(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", 100 + number)
    write_devkit(root, wnids, truth)


TINY = ("n03444034", "n01443537")


def write_tiny(root):
    save_lines(root / "wnids.txt", *TINY)
    save_lines(root / "words.txt", "n00001740\tentity", "n01443537\tgoldfish, Carassius auratus",
               "n03444034\tgo-kart")  # fmt: skip
    for label, wnid in enumerate(TINY):
        folder = root / "train" / wnid
        for number in range(5):
            save_photo(folder / "images" / f"{wnid}_{number}.JPEG", 10 * label + number, (64, 64))
        boxes = [f"{wnid}_{number}.JPEG\t0\t{number}\t63\t58" for number in range(5)]
        save_lines(folder / f"{wnid}_boxes.txt", *boxes)
    rows = [f"val_{n}.JPEG\t{TINY[n % 2]}\t10\t20\t{12 + n}\t20" for n in range(8)]
    save_lines(root / "val" / "val_annotations.txt", *rows)
    for number in range(8):
        save_photo(root / "val" / "images" / f"val_{number}.JPEG", 100 + number, (64, 64))
        save_photo(root / "test" / "images" / f"test_{number}.JPEG", 200 + number, (64, 64))


def write_caltech(root):
    photos = {"Faces": 10, "grand_piano": 10, "BACKGROUND_Google": 3}
    outlines = {"Faces": "Faces_2", "grand_piano": "grand_piano"}
    for label, (name, count) in enumerate(photos.items()):
        for number in range(1, count + 1):
            path = root / "101_ObjectCategories" / name / f"image_{number:04d}.jpg"
            save_photo(path, 100 * label + number)
            if name in outlines:
                annotation = root / "Annotations" / outlines[name] / f"annotation_{number:04d}.mat"
                annotation.parent.mkdir(parents=True, exist_ok=True)
                contour = np.array([[0.0, 4.0, 4.0, 0.0], [0.0, 0.0, 3.0, 3.0]])
                box = np.array([[3, 8, 5, 11]], np.uint16)  # top, bottom, left, right from 1
                savemat(annotation, {"box_coord": box, "obj_contour": contour})


def write_flowers(root):
    labels = [77, 1, 77, 1, 77, 1, 77, 1, 77, 1, 77, 1]
    splits = {"trnid": [1, 2, 3, 4, 5, 6], "valid": [12, 11], "tstid": [7, 8, 9, 10]}
    for number in range(1, 13):
        save_photo(root / "jpg" / f"image_{number:05d}.jpg", number)
        pixels = np.full((*SHAPE, 3), (0, 0, 254), np.uint8)
        pixels[:, :8] = (180, 60, 90)
        (root / "segmim").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / "segmim" / f"segmim_{number:05d}.jpg")
    savemat(root / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    savemat(root / "setid.mat", {k: np.array([v], np.uint16) for k, v in splits.items()})


def write_aircraft(root):
    levels = {
        "variant": ("variants.txt", ["707-320", "F/A-18"]),
        "family": ("families.txt", ["Boeing 707", "F/A-18"]),
        "manufacturer": ("manufacturers.txt", ["Boeing", "McDonnell Douglas"]),
    }
    data = root / "data"
    for level, (file, names) in levels.items():
        save_lines(data / file, *names)
        for split, first in (("train", 0), ("val", 6), ("test", 12)):
            lines = [f"{n:07d} {names[n % 2]}" for n in range(first, first + 6)]
            save_lines(data / f"images_{level}_{split}.txt", *lines)
    for number in range(18):
        save_photo(data / "images" / f"{number:07d}.jpg", number)


CARS = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"]


def car(number, **more):
    box = {"bbox_x1": 39, "bbox_y1": 116, "bbox_x2": 569, "bbox_y2": 375}
    return {**box, "class": number % 2 + 1, **more}


def write_cars(root):
    rows = {
        split: [car(n, fname=f"{n:05d}.jpg") for n in range(1, 11)] for split in ("train", "test")
    }
    save_struct(root / "devkit" / "cars_train_annos.mat", "annotations", rows["train"])
    save_struct(root / "cars_test_annos_withlabels.mat", "annotations", rows["test"])
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": cell(CARS)})
    for label, (split, found) in enumerate(rows.items()):
        for number, row in enumerate(found):
            save_photo(root / f"cars_{split}" / row["fname"], 100 * label + number)


def write_cars_in_one_folder(root):
    rows = [
        {"relative_im_path": f"car_ims/{n:06d}.jpg", **car(n, test=int(n > 10))}
        for n in range(1, 21)
    ]
    save_struct(root / "cars_annos.mat", "annotations", rows, class_names=cell(CARS))
    for number in range(1, 21):
        save_photo(root / "car_ims" / f"{number:06d}.jpg", number)


def write_spurge(root):
    for version, size in (("crop", (39, 39)), ("context", (64, 64))):
        for split, count in (("train", 10), ("test", 4)):
            folder = root / "data" / version / split
            for label, name in enumerate(("absent", "present")):
                for number in range(count):
                    seed = 1000 * len(version) + 100 * label + 10 * len(split) + number
                    save_photo(folder / name / f"{number}.jpg", seed, size)
            save_lines(folder / "metadata.csv", "file_name,longitude", "absent/0.jpg,-114.03")


def write_pets(root):
    names = [f"Abyssinian_{n}" for n in range(1, 11)] + [f"yorkshire_terrier_{n}" for n in range(9)]
    lines = [f"{n} {1 if n[0] == 'A' else 37} {1 if n[0] == 'A' else 2} 1" for n in names]
    head = ["#Image CLASS-ID SPECIES BREED ID"]
    save_lines(root / "annotations" / "list.txt", *head, *lines)
    save_lines(root / "annotations" / "trainval.txt", *lines[:14])
    save_lines(root / "annotations" / "test.txt", *lines[14:])
    trimap = np.full(SHAPE, 2, np.uint8)
    trimap[2:8, 2:8] = 3
    trimap[3:7, 3:7] = 1
    (root / "annotations" / "trimaps").mkdir()
    for number, name in enumerate(names):
        save_photo(root / "images" / f"{name}.jpg", number)
        Image.fromarray(trimap).save(root / "annotations" / "trimaps" / f"{name}.png")
        (root / "annotations" / "trimaps" / f"._{name}.png").write_bytes(b"\x00\x05\x16\x07")
    save_photo(root / "images" / "Bengal_99.jpg", 99)  # some photos are in no list
    (root / "images" / "Abyssinian_100.mat").write_bytes(b"MATLAB")


PUBLISHED = {
    "pascal": ("pascal", write_pascal),
    "imagenet": ("imagenet", write_imagenet),
    "tiny-imagenet": ("imagenet", write_tiny),
    "caltech101": ("caltech101", write_caltech),
    "flowers102": ("flowers102", write_flowers),
    "aircraft": ("aircraft", write_aircraft),
    "cars": ("cars", write_cars),
    "cars in one folder": ("cars", write_cars_in_one_folder),
    "spurge": ("spurge", write_spurge),
    "pets": ("pets", write_pets),
}


@pytest.fixture
def published(tmp_path):
    """A function that writes a dataset, and gives its splits or one of them."""
    roots = {}

    def root_of(kind):
        if kind not in roots:
            roots[kind] = tmp_path / kind
            roots[kind].mkdir()
            PUBLISHED[kind][1](roots[kind])
        return roots[kind]

    def build(kind, split="train", *options, **common):
        name = PUBLISHED[kind][0]
        return build_dataset(name, split, data_dir=root_of(kind), dataset_args=options, **common)

    build.root = root_of
    return build


def sources(dataset):
    return [record.source for record in dataset.records]


def labelled(dataset):
    return {record.source: record.class_name for record in dataset.records}


def counts(dataset):
    return dict(Counter(record.class_name for record in dataset.records))


# --- what all of them keep -------------------------------------------------------------------


@pytest.mark.parametrize("kind", PUBLISHED)
def test_splits_are_disjoint_and_subsets_are_nested(published, kind):
    datasets = {split: published(kind, split) for split in SPLITS}
    found = {split: set(sources(dataset)) for split, dataset in datasets.items()}
    assert all(found.values())
    assert sum(map(len, found.values())) == len(set.union(*found.values()))
    names = datasets["train"].class_names
    assert all(dataset.class_names == names for dataset in datasets.values())
    assert len(set(names)) == len(names) == datasets["test"].num_classes
    for split, dataset in datasets.items():
        assert sources(published(kind, split)) == sources(dataset)  # deterministic
        assert dataset.get_image_by_idx(0).mode == "RGB"
    subsets = [published(kind, examples_per_class=n, seed=3) for n in (1, 2, 3)]
    small, middle, large = (set(sources(subset)) for subset in subsets)
    assert small < middle < large <= found["train"]
    assert set(counts(subsets[0]).values()) == {1}
    others = {tuple(sources(published(kind, examples_per_class=1, seed=s))) for s in range(8)}
    assert len(others) > 1


@pytest.mark.parametrize("kind", PUBLISHED)
def test_masks_and_records_travel_to_worker_processes(published, kind):
    dataset = published(kind, examples_per_class=2)
    again = pickle.loads(pickle.dumps(dataset))
    assert sources(again) == sources(dataset)
    if dataset.records[0].mask is not None:
        assert np.array_equal(again.get_mask_by_idx(0), dataset.get_mask_by_idx(0))


@pytest.mark.parametrize("kind", PUBLISHED)
def test_labels_do_not_depend_on_which_photos_are_there(published, kind):
    names = published(kind).class_names
    victim = published(kind, "test").records[0].path
    victim.unlink()
    assert published(kind).class_names == names


WRONG_LEVELS = {
    "pascal": "JPEGImages",
    "imagenet": "train",
    "tiny-imagenet": "val",
    "caltech101": "101_ObjectCategories",
    "flowers102": "jpg",
    "aircraft": "data",
    "cars": "devkit",
    "cars in one folder": "car_ims",
    "spurge": "data",
    "pets": "annotations",
}


@pytest.mark.parametrize(("kind", "folder"), WRONG_LEVELS.items())
def test_a_root_one_level_too_high_or_too_low_is_named(published, kind, folder):
    root, name = published.root(kind), PUBLISHED[kind][0]
    with pytest.raises(UserError) as high:
        build_dataset(name, "train", data_dir=root.parent)
    assert f"this is one level too high: pass --data_dir {root}" in str(high.value)
    assert f"found {root.name}/" in str(high.value)
    with pytest.raises(UserError) as low:
        build_dataset(name, "train", data_dir=root / folder)
    assert f"this is one level too low: pass --data_dir {root}" in str(low.value)
    with pytest.raises(UserError) as nowhere:
        (root.parent / "x" / "y" / "z").mkdir(parents=True)
        build_dataset(name, "train", data_dir=root.parent / "x" / "y")
    assert f"found z/; pass the root as --data_dir or set {dataset_class(name).env}" in str(
        nowhere.value
    )
    assert all("\n" not in str(each.value) for each in (high, low, nowhere))


def test_of_two_right_folders_below_none_is_chosen(published):
    root = published.root("caltech101")
    other = root.with_name("a copy")
    other.symlink_to(root)
    with pytest.raises(UserError) as high:
        build_dataset("caltech101", "train", data_dir=root.parent)
    assert f"too high: pass --data_dir one of {other}, {root}" in str(high.value)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_endings_of_any_case(published, kind):
    before = {source.rsplit(".", 1)[0]: name for source, name in labelled(published(kind)).items()}
    for number, record in enumerate(published(kind).records):
        record.path.rename(record.path.with_suffix((".JPG", ".JPEG", ".Jpg")[number % 3]))
    after = {source.rsplit(".", 1)[0]: name for source, name in labelled(published(kind)).items()}
    # Splits cut by hashes of the paths may change; labels may not.
    assert len(after) == len(before) and before.items() & after.items()
    assert all(after[key] == before[key] for key in after.keys() & before.keys())


@pytest.mark.parametrize(
    "kind",
    ["pascal", "caltech101", "flowers102", "aircraft", "cars", "cars in one folder", "pets"],
)
def test_two_images_of_one_name(published, kind):
    path = published(kind).records[0].path
    twin = path.with_suffix(".JPEG")
    twin.write_bytes(path.read_bytes())
    with pytest.raises(
        UserError, match=rf"{twin.name} and {path.name}, two images of the same name"
    ):
        published(kind)


def test_every_registered_dataset_has_a_docstring_that_says_its_layout():
    for name in DATASETS:
        cls = dataset_class(name)
        assert "ROOT" in cls.__doc__ or name == "hf"
        assert cls.env or name == "hf"


# --- PASCAL VOC ------------------------------------------------------------------------------


def test_pascal_class_and_mask_are_those_of_the_largest_object(published):
    dataset = published("pascal")
    assert dataset.num_classes == 20 and dataset.class_names[7] == "cat"
    assert counts(dataset) == {"cat": 5, "dog": 5}
    assert [dataset.get_label_by_idx(i) for i in (0, 9)] == [7, 11]
    assert labelled(dataset)["JPEGImages/2007_000001.jpg"] == "dog"
    wanted = np.zeros(SHAPE, np.uint8)
    wanted[4:8, 4:9] = 255  # without the border of 255, without the other object
    assert np.array_equal(dataset.get_mask_by_idx(0), wanted)


def test_pascal_splits(published):
    val, test = published("pascal", "val"), published("pascal", "test")
    assert len(val) == len(test) == 6
    assert counts(val) == counts(test) == {"cat": 3, "dog": 3}
    every = published("pascal", "val", "published_val=true")
    assert set(sources(every)) == set(sources(val)) | set(sources(test))
    with pytest.raises(UserError, match=r"published_val=true .* no test is left"):
        published("pascal", "test", "published_val=true")


def test_pascal_photos_without_an_object_or_not_on_disk(published, caplog):
    root = published.root("pascal")
    nothing = np.full(SHAPE, 255)  # border alone is no object
    save_palette(root / "SegmentationObject" / "2007_000000.png", nothing)
    (root / "JPEGImages" / "2007_000002.jpg").unlink()
    assert len(published("pascal")) == 8
    assert "1 of the 10 images that" in caplog.text and "train.txt lists are not" in caplog.text


def test_pascal_missing_masks_and_short_lists_are_said(published, caplog):
    root = published.root("pascal")
    lists = root / "ImageSets" / "Segmentation"
    (root / "SegmentationClass" / "2007_000001.png").unlink()
    (root / "SegmentationObject" / "2007_000002.png").unlink()
    save_lines(lists / "val.txt", *(lists / "val.txt").read_text().split()[:5])
    assert len(published("pascal")) == 8
    assert caplog.text.count("1 of the ") == 2 and "masks that" in caplog.text
    assert "7 of the 21 photos with masks are neither in train.txt nor in val.txt" in caplog.text
    (lists / "val.txt").unlink()
    with pytest.raises(UserError, match=r"Segmentation/val.txt is missing, expected"):
        published("pascal")


def test_pascal_masks_that_lost_their_palette(published):
    path = published.root("pascal") / "SegmentationObject" / "2007_000000.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(UserError, match=r"2007_000000.png: expected one index per pixel, got mode"):
        published("pascal")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 4), st.data())
def test_pascal_largest_object_of_any_picture(tmp_path_factory, labels, largest, data):
    largest %= len(labels)
    heights = [data.draw(st.integers(0, 3)) for _ in labels]
    heights[largest] = 4  # rows of ten pixels
    classes, objects = np.zeros((25, 10), np.uint8), np.zeros((25, 10), np.uint8)
    for number, (label, height) in enumerate(zip(labels, heights), start=1):
        top = 5 * (number - 1)
        classes[top : top + height], objects[top : top + height] = label, number
        classes[top + height], objects[top + height] = 255, 255
    folder = tmp_path_factory.mktemp("voc")
    save_palette(folder / "c.png", classes)
    save_palette(folder / "o.png", objects)
    found = largest_object(folder / "c.png", folder / "o.png")
    assert found == (labels[largest] - 1, largest + 1)


# --- ImageNet --------------------------------------------------------------------------------


def test_imagenet_labels_follow_the_ids_and_names_are_unique(published):
    dataset = published("imagenet")
    assert dataset.class_names == ["tench", "crane, water bird", "crane"]
    assert counts(dataset) == dict.fromkeys(dataset.class_names, 5)
    assert labelled(dataset)["train/n02012849/n02012849_4.JPEG"] == "crane, water bird"


def test_imagenet_val_in_one_folder_is_labelled_by_the_devkit(published):
    dataset = published("imagenet", "val", "published_val=true")
    # Number 1 of this devkit is n03126707, number 3 is n01440764.
    assert labelled(dataset) == {
        f"val/ILSVRC2012_val_{n:08d}.JPEG": dataset.class_names[label]
        for n, label in enumerate([2, 1, 0, 0, 1, 2, 2, 1, 0], start=1)
    }
    halves = [published("imagenet", split) for split in ("val", "test")]
    assert set(sources(halves[0])) | set(sources(halves[1])) == set(sources(dataset))


def test_imagenet_val_in_folders_is_the_same(published):
    flat = published("imagenet", "val", "published_val=true")
    val = published.root("imagenet") / "val"
    wnids = dict(zip(flat.class_names, ("n01440764", "n02012849", "n03126707")))
    for record in flat.records:
        (val / wnids[record.class_name]).mkdir(exist_ok=True)
        record.path.rename(val / wnids[record.class_name] / record.path.name)
    again = published("imagenet", "val", "published_val=true")
    assert {s.split("/")[-1]: c for s, c in labelled(again).items()} == {
        s.split("/")[-1]: c for s, c in labelled(flat).items()
    }


@pytest.mark.parametrize(
    ("name", "text", "class_names"),
    [
        ("ids.txt", "n03126707\nn01440764\n", ["crane", "tench"]),
        ("imagenet100.txt", "n03126707 crane\nn01440764 tench, Tinca tinca", ["crane", "tench"]),
        ("ids.csv", "n03126707,lifting crane\nn01440764", ["lifting crane", "tench"]),
        (
            "Labels.json",
            '{"n03126707": "crane, derrick", "n01440764": "tench"}',
            ["crane", "tench"],
        ),
    ],
)
def test_imagenet_class_lists_have_their_own_order(published, tmp_path, name, text, class_names):
    (tmp_path / name).write_text(text)
    option = f"class_list={tmp_path / name}"
    for split in SPLITS:
        dataset = published("imagenet", split, option)
        assert dataset.class_names == class_names
        assert set(counts(dataset)) <= set(class_names)
    train = published("imagenet", "train", option)
    assert labelled(train)["train/n03126707/n03126707_0.JPEG"] == class_names[0]
    assert train.get_label_by_idx(0) == 0 and len(train) == 10


def test_imagenet_needs_no_devkit_where_a_list_names_the_classes(published, tmp_path):
    root = published.root("imagenet")
    (root / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").unlink()
    with pytest.raises(UserError, match=r"meta.mat, .* is missing: .* pass class_list=FILE"):
        published("imagenet")
    (tmp_path / "names.txt").write_text("n01440764 tench, Tinca tinca\nn02012849 crane")
    dataset = published("imagenet", "train", f"class_list={tmp_path / 'names.txt'}")
    assert counts(dataset) == {"tench": 5, "crane": 5}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.txt", "", "is empty: expected a WordNet id per line"),
        ("list.txt", "n01440764\nn01440764 tench", "has n01440764 twice"),
        ("list.txt", "n01440764\nn99999999", "1 WordNet ids .* such as 'n99999999'"),
        ("list.txt", "n01440764: tench", "has 'n01440764:' in place of a WordNet id"),
        ("list.csv", "wnid,name\nn01440764,tench", "has 'wnid' in place of a WordNet id"),
        ("list.json", '{"0": "tench"}', "has '0' in place of a WordNet id"),
        ("list.json", "[1, 2]", "expected an object of WordNet ids and names"),
        ("list.json", "{", "no readable JSON"),
        ("none.txt", None, "is no file: expected a file with a WordNet id per line"),
    ],
)
def test_imagenet_bad_class_lists(published, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        published("imagenet", "train", f"class_list={tmp_path / name}")


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("nx12", min_size=1), st.lists(st.sampled_from("abc"), min_size=1)))
def test_imagenet_names_are_unique_whatever_the_synonyms(synonyms):
    words = {wnid: ", ".join(names) for wnid, names in synonyms.items()}
    names = unique_names(words)
    assert list(names) == list(words) and len(set(names.values())) == len(words)
    assert all(name.startswith(words[wnid].split(",")[0]) for wnid, name in names.items())
    backwards = unique_names(dict(reversed(words.items())))
    assert backwards == names  # a name does not depend on the order


def test_imagenet_folders_that_are_links_hidden_or_of_no_class(published, tmp_path, caplog):
    root = published.root("imagenet")
    (root / "train" / "n01440764").rename(tmp_path / "elsewhere")
    (root / "train" / "n01440764").symlink_to(tmp_path / "elsewhere")
    (root / "train" / ".n02012849").mkdir()
    save_photo(root / "train" / ".n02012849" / "a.JPEG")
    save_photo(root / "train" / "n02012849" / "._a.JPEG")
    save_photo(root / "train" / "n55555555" / "a.JPEG")
    (root / "train" / "n66666666").symlink_to(tmp_path / "nothing")
    assert len(published("imagenet")) == 15
    assert "1 folders in train are no classes: n55555555" in caplog.text


def test_imagenet_val_with_photos_missing_or_a_stray_folder(published, caplog):
    val = published.root("imagenet") / "val"
    (val / "thumbnails").mkdir()
    (val / "ILSVRC2012_val_00000002.JPEG").unlink()
    assert len(published("imagenet", "val", "published_val=true")) == 8
    assert "1 of the 9 images that" in caplog.text and "00000002: left out" in caplog.text


def test_imagenet_classes_without_a_folder_are_said(published, tmp_path, caplog):
    (tmp_path / "list.txt").write_text("n01440764 tench\nn99999999 unicorn\n")
    dataset = published("imagenet", "train", f"class_list={tmp_path / 'list.txt'}")
    assert dataset.class_names == ["tench", "unicorn"] and counts(dataset) == {"tench": 5}
    assert "1 of the 2 classes have no folder in" in caplog.text and "n99999999" in caplog.text


def test_imagenet_ground_truth_with_fewer_lines_than_images(published):
    data = published.root("imagenet") / "ILSVRC2012_devkit_t12" / "data"
    save_lines(data / "ILSVRC2012_validation_ground_truth.txt", 1, 2, 3)
    message = r"has 3 labels, and 6 of the 9 images have no label \(ILSVRC2012_val_00000004 ...\)"
    with pytest.raises(UserError, match=message):
        published("imagenet", "val")
    assert len(published("imagenet")) == 15  # training does not ask for it


def test_imagenet_damaged_devkit(published):
    meta = published.root("imagenet") / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"
    meta.write_bytes(meta.read_bytes()[:300])
    with pytest.raises(UserError, match=r"meta.mat is no readable .mat file"):
        published("imagenet")
    savemat(meta, {"other": [1]})
    with pytest.raises(UserError, match=r"meta.mat has no variable 'synsets'"):
        published("imagenet")
    savemat(meta, {"synsets": [1, 2]})
    with pytest.raises(UserError, match="has no synsets as ILSVRC's devkit has"):
        published("imagenet")


def test_tiny_imagenet_labels_and_boxes(published):
    dataset = published("tiny-imagenet")
    assert dataset.class_names == ["goldfish", "go-kart"]
    assert counts(dataset) == {"goldfish": 5, "go-kart": 5}
    mask = dataset.get_mask_by_idx(3)
    assert sources(dataset)[3] == "train/n01443537/images/n01443537_3.JPEG"
    assert mask.shape == (64, 64)
    assert mask[3:59, :].min() == 255 and (mask > 0).sum() == 56 * 64  # both ends are inside
    val = published("tiny-imagenet", "val", "published_val=true")
    names = {f"val/images/val_{n}.JPEG": ("go-kart", "goldfish")[n % 2] for n in range(8)}
    assert labelled(val) == names
    index = sources(val).index("val/images/val_4.JPEG")
    assert np.argwhere(val.get_mask_by_idx(index)).tolist() == [[20, x] for x in range(10, 17)]


def test_tiny_imagenet_boxes_go_by_the_name_without_its_ending(published):
    folder = published.root("tiny-imagenet") / "train" / "n01443537" / "images"
    (folder / "n01443537_3.JPEG").rename(folder / "n01443537_3.jpg")
    dataset = published("tiny-imagenet")
    index = sources(dataset).index("train/n01443537/images/n01443537_3.jpg")
    assert (dataset.get_mask_by_idx(index) > 0).sum() == 56 * 64


def test_tiny_imagenet_half_unpacked(published):
    (published.root("tiny-imagenet") / "words.txt").unlink()
    with pytest.raises(UserError, match=r"words.txt is missing: unpack the dataset's archive"):
        published("tiny-imagenet")


def test_tiny_imagenet_annotations_with_fewer_lines_than_images(published):
    path = published.root("tiny-imagenet") / "val" / "val_annotations.txt"
    lines = path.read_text().splitlines()
    save_lines(path, *lines[:5])
    with pytest.raises(
        UserError, match=r"has 5 labels, and 3 of the 8 images have no label \(val_5"
    ):
        published("tiny-imagenet", "val")
    save_lines(path, *lines[:7], "val_7.JPEG\tn034")
    with pytest.raises(UserError, match=r"line 8 is 'val_7.JPEG\\tn034', expected 6 columns"):
        published("tiny-imagenet", "val")


# --- Caltech-101 -----------------------------------------------------------------------------


def test_caltech_classes_and_splits(published):
    datasets = [published("caltech101", split) for split in SPLITS]
    assert datasets[0].num_classes == 101 and "background google" not in datasets[0].class_names
    assert [counts(dataset) for dataset in datasets] == [
        {"faces": 6, "grand piano": 6}, {"faces": 2, "grand piano": 2},
        {"faces": 2, "grand piano": 2},
    ]  # fmt: skip
    assert datasets[0].class_names == sorted(datasets[0].class_names)
    assert {s.split("/")[1] for s in sources(datasets[0])} == {"Faces", "grand_piano"}


def test_caltech_outlines_are_the_masks(published):
    dataset = published("caltech101")
    wanted = np.zeros(SHAPE, np.uint8)
    wanted[2:6, 4:9] = 255  # box at 3, 5 counted from 1; the outline spans 4 x 3 pixels from there
    for index in (0, 11):  # Faces, whose outlines lie in Faces_2, and grand_piano
        assert np.array_equal(dataset.get_mask_by_idx(index), wanted)


def test_caltech_without_annotations_and_with_damaged_ones(published):
    root = published.root("caltech101")
    for path in (root / "Annotations" / "Faces_2").iterdir():
        path.write_bytes(b"no matlab")
    dataset = published("caltech101")
    with pytest.raises(UserError, match=r"annotation_\d+.mat is no readable .mat file"):
        dataset.get_mask_by_idx(0)
    (root / "Annotations").rename(root / "elsewhere")
    with pytest.raises(UserError, match="has no mask"):
        published("caltech101").get_mask_by_idx(0)


def test_caltech_unknown_folders_and_stray_files(published, caplog):
    categories = published.root("caltech101") / "101_ObjectCategories"
    save_photo(categories / "tmp" / "image_0001.jpg")
    save_photo(categories / ".hidden" / "image_0001.jpg")
    save_photo(categories / "image_0001.jpg")
    assert len(published("caltech101")) == 12
    assert "tmp is no class of Caltech-101: left out" in caplog.text
    assert len(caplog.records) == 1


def test_real_caltech(real_data):
    datasets = [build_dataset("caltech101", s, data_dir=real_data / "caltech101") for s in SPLITS]
    assert [len(dataset) for dataset in datasets] == [288, 96, 96]
    assert set(counts(datasets[1]).values()) == {8}
    assert set(counts(datasets[0])) >= {"butterfly", "grand piano", "helicopter"}
    trial = build_dataset(
        "caltech101", "train", data_dir=real_data / "caltech101", examples_per_class=4
    )
    assert len(trial) == 48 and set(sources(trial)) < set(sources(datasets[0]))
    assert {trial.get_image_by_idx(i).mode for i in range(48)} == {"RGB"}


# --- Flowers, Aircraft, Cars, Spurge, Pets -----------------------------------------------------


def test_flowers_labels_splits_and_masks(published):
    datasets = [published("flowers102", split) for split in SPLITS]
    assert [len(dataset) for dataset in datasets] == [6, 2, 4]
    names = datasets[0].class_names
    assert len(names) == 102 and names[0] == "pink primrose" and names[76] == "passion flower"
    assert names[101] == "blackberry lily"
    assert labelled(datasets[1]) == {
        "jpg/image_00011.jpg": "passion flower",
        "jpg/image_00012.jpg": "pink primrose",
    }
    assert [datasets[1].get_label_by_idx(index) for index in (0, 1)] == [0, 76]
    mask = datasets[0].get_mask_by_idx(0)
    assert mask[:, :7].min() == 255 and mask[:, 9:].max() == 0  # JPEG blurs the edge


def test_flowers_without_segmentations(published):
    root = published.root("flowers102")
    (root / "segmim").rename(root / "elsewhere")
    dataset = published("flowers102")
    assert all(record.mask is None for record in dataset.records)


def test_flowers_fewer_labels_than_images_or_labels_out_of_range(published):
    path = published.root("flowers102") / "imagelabels.mat"
    savemat(path, {"labels": np.array([[77, 1, 77]], np.uint8)})
    with pytest.raises(UserError, match=r"imagelabels.mat has 3 labels, and 9 of the 12 images"):
        published("flowers102")
    savemat(path, {"labels": np.array([[1] * 11 + [103]], np.uint8)})
    with pytest.raises(UserError, match="has the label 103, expected 1 to 102"):
        published("flowers102")
    savemat(path, {"labels": "none"})
    with pytest.raises(UserError, match=r"labels is .*'none'.*, expected a whole number"):
        published("flowers102")


def test_flowers_lists_of_floats_are_whole_numbers_too(published):
    path = published.root("flowers102") / "setid.mat"
    before = sources(published("flowers102"))
    content = loadmat(path)
    lists = {name: content[name].astype(float) for name in ("trnid", "valid", "tstid")}
    savemat(path, lists)
    assert sources(published("flowers102")) == before
    savemat(path, {**lists, "trnid": lists["trnid"] + 0.5})
    with pytest.raises(UserError, match=r"trnid is .*, expected a whole number"):
        published("flowers102")


@pytest.mark.parametrize(
    ("level", "names"),
    [
        ("variant", ["707-320", "F/A-18"]),
        ("family", ["Boeing 707", "F/A-18"]),
        ("manufacturer", ["Boeing", "McDonnell Douglas"]),
    ],
)
def test_aircraft_levels(published, level, names):
    datasets = [published("aircraft", split, f"level={level}") for split in SPLITS]
    assert [dataset.class_names for dataset in datasets] == [names] * 3
    assert [counts(dataset) for dataset in datasets] == [dict.fromkeys(names, 3)] * 3
    assert labelled(datasets[2])["data/images/0000013.jpg"] == names[1]
    with pytest.raises(UserError, match="level: got 'model', expected one of variant, family"):
        published("aircraft", "train", "level=model")


def test_aircraft_list_with_fewer_lines_than_images(published):
    path = published.root("aircraft") / "data" / "images_variant_val.txt"
    save_lines(path, *path.read_text().splitlines()[:4])
    with pytest.raises(UserError, match=r"has 16 labels, and 2 of the 18 images have no label"):
        published("aircraft")
    save_lines(path, "0000006")
    with pytest.raises(UserError, match="line 1 is '0000006', expected 2 columns"):
        published("aircraft")


def test_cars_both_distributions_have_the_same_classes(published):
    for kind, folder in (("cars", "cars_train"), ("cars in one folder", "car_ims")):
        datasets = [published(kind, split) for split in SPLITS]
        assert all(dataset.class_names == CARS for dataset in datasets)
        assert [counts(d) for d in datasets] == [dict.fromkeys(CARS, n) for n in (4, 1, 5)]
        for split, dataset in zip(SPLITS, datasets):
            for source, name in labelled(dataset).items():
                number = int(source.split("/")[1].removesuffix(".jpg"))
                assert name == CARS[number % 2]
                assert kind == "cars" or (number > 10) == (split == "test")
        assert sources(datasets[0])[0].startswith(folder)


def test_cars_test_without_labels(published):
    root = published.root("cars")
    (root / "cars_test_annos_withlabels.mat").rename(root / "devkit" / "cars_test_annos.mat")
    message = "cars_test_annos_withlabels.mat is neither in .* cars_test_annos.mat has no labels"
    with pytest.raises(UserError, match=message):
        published("cars")
    rows = [{key: value for key, value in car(n, fname="00001.jpg").items() if key != "class"}
            for n in (1, 2)]  # fmt: skip
    save_struct(root / "devkit" / "cars_test_annos_withlabels.mat", "annotations", rows)
    with pytest.raises(UserError, match="has annotations without class"):
        published("cars")


def test_cars_fewer_annotations_than_images_and_classes_out_of_range(published):
    root = published.root("cars")
    rows = [car(n, fname=f"{n:05d}.jpg") for n in range(1, 8)]
    save_struct(root / "devkit" / "cars_train_annos.mat", "annotations", rows)
    with pytest.raises(
        UserError, match=r"has 7 labels, and 3 of the 10 images have no label \(00008"
    ):
        published("cars")
    rows = [{**car(n, fname=f"{n:05d}.jpg"), "class": 5} for n in range(1, 11)]
    save_struct(root / "devkit" / "cars_train_annos.mat", "annotations", rows)
    with pytest.raises(UserError, match="has the class 5 of 2"):
        published("cars")


@pytest.mark.parametrize(("field", "value"), [("class", "sedan"), ("class", []), ("fname", 3)])
def test_cars_annotations_of_another_kind(published, field, value):
    rows = [{**car(1, fname="00001.jpg"), field: value}]
    save_struct(published.root("cars") / "devkit" / "cars_train_annos.mat", "annotations", rows)
    (published.root("cars") / "cars_train").rename(published.root("cars") / "all")
    save_photo(published.root("cars") / "cars_train" / "00001.jpg")
    with pytest.raises(UserError, match=rf"cars_train_annos.mat: {field} is .*, expected a"):
        published("cars")


def test_spurge_versions(published):
    crop, context = published("spurge"), published("spurge", "train", "version=context")
    assert crop.class_names == ["grassland", "leafy spurge"]
    assert counts(crop) == counts(context) == {"grassland": 8, "leafy spurge": 8}
    assert crop.get_image_by_idx(0).size == (39, 39)
    assert context.get_image_by_idx(0).size == (64, 64)
    assert sources(crop)[-1].startswith("data/crop/train/present/")
    test = published("spurge", "test")
    assert len(test) == 8 and {s.split("/")[2] for s in sources(test)} == {"test"}
    with pytest.raises(UserError, match="version: got 'whole', expected one of crop, context"):
        published("spurge", "train", "version=whole")


def test_spurge_in_its_first_layout(published):
    root = published.root("spurge")
    for split in ("train", "test"):
        (root / "data" / "crop" / split).rename(root / "data" / split)
    assert counts(published("spurge")) == {"grassland": 8, "leafy spurge": 8}


def test_pets_lists_and_trimaps(published):
    datasets = [published("pets", split) for split in SPLITS]
    assert [len(dataset) for dataset in datasets] == [11, 3, 5]
    assert datasets[0].num_classes == 37
    assert counts(datasets[0]) == {"Abyssinian": 8, "yorkshire terrier": 3}
    assert counts(datasets[2]) == {"yorkshire terrier": 5}
    assert datasets[0].get_label_by_idx(10) == 36
    mask = datasets[0].get_mask_by_idx(0)
    assert mask[3:7, 3:7].min() == 255 and (mask > 0).sum() == 16  # neither ground nor border


def test_pets_damaged_lists(published):
    annotations = published.root("pets") / "annotations"
    save_lines(annotations / "test.txt", "Abyssinian_9 40 1 1")
    with pytest.raises(UserError, match="Abyssinian_9 has the class 40, expected 1 to 37"):
        published("pets")
    save_lines(annotations / "test.txt", "Abyssinian_9 1 1 1")
    with pytest.raises(UserError, match=r"test}.txt has 14 labels, and 5 of the 19 images have"):
        published("pets")
    (annotations / "test.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"test.txt cannot be read as text"):
        published("pets")
    (annotations / "trainval.txt").unlink()
    with pytest.raises(UserError, match=r"annotations/trainval.txt is missing, expected images"):
        published("pets")


# --- Hugging Face ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Local datasets of the library: images in folders, and in parquet files."""
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("hub")
    for split, count in (("train", 5), ("test", 4)):
        for label, name in enumerate(("zebra", "ant")):
            for number in range(count):
                path = root / "folders" / split / name / f"{number}.jpg"
                save_photo(path, 100 * label + 10 * len(split) + number)
    for split, count in (("train", 10), ("validation", 4)):
        features = {
            "photo": datasets.Image(),
            "kind": datasets.ClassLabel(names=["zebra", "ant"]),
            "colour": datasets.Value("string"),
            "number": datasets.Value("int64"),
        }
        images = []
        for number in range(count):
            save_photo(root / "images" / f"{split}-{number}.jpg", 10 * len(split) + number)
            images.append({"bytes": (root / "images" / f"{split}-{number}.jpg").read_bytes()})
        columns = {
            "photo": images,
            "kind": [-1 if n == 9 else n % 2 for n in range(count)],
            "colour": [("red", "blue")[n % 2] for n in range(count)],
            "number": [(10, 9)[n % 2] for n in range(count)],
        }
        (root / "parquet").mkdir(exist_ok=True)
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(root / "parquet" / f"{split}-00000-of-00001.parquet")
    return root


@pytest.fixture
def hf_cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def test_hf_parquet(hub, hf_cache):
    splits = [build_dataset("hf:parquet", s, data_dir=hub / "parquet",
                            dataset_args=["label_column=kind"]) for s in SPLITS]  # fmt: skip
    train, val, test = splits
    assert train.class_names == ["zebra", "ant"]  # the order of the labels, not of the alphabet
    assert counts(train) == {"zebra": 5, "ant": 4}  # the row of label -1 is left out
    assert [len(val), len(test)] == [2, 2]  # no test: half of val
    assert not set(sources(val)) & set(sources(test))
    assert sources(train)[:2] == ["train/0000000", "train/0000002"]
    with Image.open(hub / "images" / "train-2.jpg") as wanted:
        assert np.array_equal(np.asarray(train.get_image_by_idx(1)), np.asarray(wanted))
    again = pickle.loads(pickle.dumps(train))
    assert again.get_image_by_idx(1).tobytes() == train.get_image_by_idx(1).tobytes()
    assert train.photo_digest() == again.photo_digest() != val.photo_digest()


@pytest.mark.parametrize(
    ("column", "names"), [("colour", ["blue", "red"]), ("number", ["9", "10"])]
)
def test_hf_labels_that_are_texts_or_numbers(hub, hf_cache, column, names):
    options = ["image_column=photo", f"label_column={column}"]
    dataset = build_dataset("hf:parquet", "train", data_dir=hub / "parquet", dataset_args=options)
    assert dataset.class_names == names
    assert counts(dataset) == dict.fromkeys(names, 5)
    small = build_dataset("hf:parquet", "train", data_dir=hub / "parquet", dataset_args=options,
                          examples_per_class=2)  # fmt: skip
    assert set(sources(small)) < set(sources(dataset)) and len(small) == 4


@pytest.mark.parametrize("local", [True, False])
def test_hf_folders(hub, hf_cache, local):
    def build(split, **common):
        if local:
            return build_dataset(f"hf:{hub / 'folders'}", split, **common)
        return build_dataset("hf:imagefolder", split, data_dir=hub / "folders", **common)

    train, val, test = (build(split) for split in SPLITS)
    assert [len(train), len(val), len(test)] == [8, 2, 8]
    assert train.class_names == ["ant", "zebra"]
    assert sources(test)[0] == "test/ant/0.jpg"
    nested = [set(sources(build("train", examples_per_class=n))) for n in (1, 2, 4)]
    assert nested[0] < nested[1] < nested[2] == set(sources(train))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hf", [], "got 'hf', expected hf:NAME, such as hf:food101"),
        ("hf:", [], "got 'hf', expected hf:NAME"),
        ("hf:parquet", ["label_column=x"], "label_column: got 'x', expected one of photo, kind"),
        ("hf:parquet", ["image_column=x"], "image_column: got 'x', expected one of photo, kind"),
        ("hf:parquet", ["image_column=number"], "'number' of hf:parquet holds no images"),
        ("hf:parquet", ["label_column=photo"], "label_column: 'photo' of hf:parquet holds no lab"),
        ("hf:nobody/nothing", [], "hf:nobody/nothing cannot be loaded: .*; expected a dataset of"),
        ("hf:parquet", ["splits=3"], "unknown key 'splits'; HuggingFaceDataset has: name, image"),
    ],
)
def test_hf_bad_input(hub, hf_cache, name, options, message):
    with pytest.raises(UserError, match=message) as caught:
        build_dataset(name, "train", data_dir=hub / "parquet", dataset_args=options)
    assert "\n" not in str(caught.value)


def test_hf_files_need_a_folder(hf_cache):
    with pytest.raises(UserError, match="no data root for HuggingFaceDataset: pass --data_dir"):
        build_dataset("hf:parquet", "train")


def test_hf_without_its_library(hub, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the library datasets .*: pip install datasets"):
        build_dataset("hf:food101", "train")


def test_hf_unreadable_photos_are_named_and_replaced(hub, hf_cache, tmp_path, caplog):
    datasets = pytest.importorskip("datasets")
    good = (hub / "images" / "train-0.jpg").read_bytes()
    images = [{"bytes": b"broken"}, *[{"bytes": good}] * 3]
    columns = {"image": images, "label": ["a"] * 4}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(tmp_path / "train.parquet")
    table.select(range(1, 4)).to_parquet(tmp_path / "test.parquet")
    table.select(range(1, 4)).to_parquet(tmp_path / "validation.parquet")
    dataset = build_dataset("hf:parquet", "train", data_dir=tmp_path, examples_per_class=4)
    assert "cannot read image row 0 of train of parquet" in caplog.text
    assert set(sources(dataset)) == {f"train/{row:07d}" for row in (1, 2, 3)}
    assert dataset.unreadable == ["train/0000000"]


def test_json_class_list_of_another_encoding_is_an_error(published, tmp_path):
    (tmp_path / "list.json").write_bytes(json.dumps({"n01440764": "é"}).encode("utf-16")[:-1])
    with pytest.raises(UserError, match="no readable JSON"):
        published("imagenet", "train", f"class_list={tmp_path / 'list.json'}")
