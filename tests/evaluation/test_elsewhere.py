"""train_classifier.py --elsewhere: objects on places of other classes, as a split of its own."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

import train_classifier
from semantic_aug import UserError
from semantic_aug.datasets import build_dataset
from semantic_aug.evaluation.elsewhere import Elsewhere, places_of
from semantic_aug.evaluation.results import ELSEWHERE, TEST, VALIDATION
from semantic_aug.few_shot_dataset import FewShotDataset

RESULTS = Path("output/e/results")
GROUNDS = {"bolt": (40, 160, 60), "nut": (60, 70, 200), "pin": (200, 190, 60)}
OBJECTS = {"bolt": (200, 40, 40), "nut": (235, 235, 235), "pin": (20, 20, 20)}
SIZE = (48, 40)


def draw(path: Path, seed: int, ground, colour) -> None:
    """A disc on a ground of one colour, both with a little noise, and the disc's mask."""
    random = np.random.default_rng(seed)
    image, mask = Image.new("RGB", SIZE, ground), Image.new("L", SIZE, 0)
    x, y = (int(each) for each in random.integers(8, 14, 2))
    ImageDraw.Draw(image).ellipse((x, y, x + 14, y + 14), fill=colour)
    ImageDraw.Draw(mask).ellipse((x, y, x + 14, y + 14), fill=255)
    noise = random.integers(-4, 5, (SIZE[1], SIZE[0], 3))
    pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    for each, root in ((Image.fromarray(pixels), "photos"), (mask, "masks")):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        each.save(root / path)


def draw_all(objects=OBJECTS, grounds=GROUNDS, count=3) -> None:
    seed = 0
    for split in ("train", "val", "test"):
        for name in GROUNDS:
            for number in range(count):
                seed += 1
                draw(Path(split, name, f"{number}.png"), seed, grounds[name], objects[name])


@pytest.fixture
def drawn(workdir) -> Path:
    """Photos and masks of three classes that differ in objects and grounds."""
    draw_all()
    return workdir


def split(name="val", **more) -> FewShotDataset:
    return build_dataset("folder", name, data_dir="photos", dataset_args=["masks=masks"], **more)


@pytest.fixture
def train(resnet, sketched, called):
    """Run train_classifier.py: what it says, on stdout and stderr."""

    def train(*flags, status=0, elsewhere=True, masks=("--dataset_args", "masks=masks")):
        argv = ["--dataset=folder", "--data_dir=photos", *masks, "--experiment_name=e",
                f"--classifier_backbone={resnet}", "--num_epochs=2", "--iterations_per_epoch=5",
                "--batch_size=4", "--augmentation=none", "--device=cpu", "--num_synthetic=0",
                *["--elsewhere"] * elsewhere, *flags]  # fmt: skip
        ended, out, err = called(train_classifier.main, *argv)
        assert ended == status, err
        return out + err

    return train


def rows(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def accuracy(method: str, of: str) -> float:
    (row,) = [r for r in rows(RESULTS / method / "summary.csv") if r["split"] == of]
    return float(row["mean_accuracy"])


# --- the photos ------------------------------------------------------------------------------


def test_an_object_stands_on_a_place_of_another_class(drawn):
    val = split()
    elsewhere = Elsewhere(val)
    assert len(elsewhere) == len(val) and elsewhere.class_names == val.class_names
    for idx in range(len(elsewhere)):
        label, there = (val.get_label_by_idx(n[idx]) for n in (elsewhere.of, elsewhere.places))
        assert elsewhere.get_label_by_idx(idx) == label != there
        photo, made = (np.asarray(each.get_image_by_idx(idx), int) for each in (val, elsewhere))
        assert made.shape == photo.shape
        inside = val.get_mask_by_idx(idx) != 0
        middle = tuple(int(n.mean()) for n in inside.nonzero())
        assert (made[middle] == photo[middle]).all()
        ground = np.array(list(GROUNDS.values())[there])
        assert np.abs(made[[0, 0, -1, -1], [0, -1, 0, -1]] - ground).max() < 30
        # The place's own object is gone: nothing outside has its colour.
        others = np.abs(made[~inside] - np.array(list(OBJECTS.values())[there])).max(axis=1)
        assert (others < 20).mean() < 0.02


def test_crops_are_pasted_on_crops(drawn):
    """A place is emptied as a whole, then cut to the square where its object was."""
    val, cut = split(), split(crop_to_object=True)
    elsewhere = Elsewhere(val, crop=True)
    for idx in range(len(elsewhere)):
        made, crop = elsewhere.get_image_by_idx(idx), cut.get_image_by_idx(idx)
        assert made.size == crop.size != SIZE
        middle = tuple(int(n.mean()) for n in cut.get_mask_by_idx(idx).nonzero()[::-1])
        assert made.getpixel(middle) == crop.getpixel(middle)
        there = val.get_label_by_idx(elsewhere.places[idx])
        assert np.abs(np.array(made.getpixel((0, 0))) - list(GROUNDS.values())[there]).max() < 30


def test_places_depend_on_nothing_but_photos(drawn):
    first = Elsewhere(split())
    assert first.digest == Elsewhere(split(seed=5)).digest
    assert first.digest != Elsewhere(split(), classes=["bolt", "nut"]).digest
    assert first.content_digests([1, 0]) == first.content_digests(range(9))[1::-1]
    before = first.content_digests(range(9))
    idx = first.of[4]
    mask = Path("masks/val") / val_name(first.photos, idx)
    Image.fromarray(np.asarray(Image.open(mask)) // 2 * (np.arange(48) < 20)).save(mask)
    second = Elsewhere(split())
    changed = [n for n in range(9) if before[n] != second.content_digests([n])[0]]
    assert changed == [n for n in range(9) if idx in (first.of[n], first.places[n])]
    assert first.digest != second.digest


def val_name(photos, idx: int) -> str:
    return photos.records[idx].source.removeprefix("val/")


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=6), st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_places_are_drawn_by_source(labels, data):
    sources = list(labels)
    if len(set(labels.values())) == 1:
        with pytest.raises(UserError, match="all photos with masks are of one class"):
            places_of(sources, list(labels.values()))
        return
    found = places_of(sources, list(labels.values()))
    place = {source: sources[number] for source, number in zip(sources, found)}
    assert all(labels[source] != labels[there] for source, there in place.items())
    shuffled = data.draw(st.permutations(sources))
    again = places_of(shuffled, [labels[source] for source in shuffled])
    assert {s: shuffled[n] for s, n in zip(shuffled, again)} == place


# --- masks that serve ------------------------------------------------------------------------


def test_photos_without_a_mask_that_serves_are_counted(drawn, caplog):
    Path("masks/val/bolt/0.png").unlink()
    for name, value in (("nut/1", 0), ("pin/2", 255)):
        Image.new("L", SIZE, value).save(f"masks/val/{name}.png")
    Image.new("L", (8, 8), 255).save("masks/val/pin/0.png")
    elsewhere = Elsewhere(split())
    assert "Elsewhere: 4 of 9 photos of split 'val' left out, because their masks" in caplog.text
    assert "mask of val/pin/0.png is 8x8 pixels" in caplog.text
    names = {val_name(elsewhere.photos, idx) for idx in elsewhere.of}
    assert names == {"bolt/1.png", "bolt/2.png", "nut/0.png", "nut/2.png", "pin/1.png"}
    assert {*elsewhere.places} <= {*elsewhere.of}


def test_bad_input_is_one_line_and_writes_nothing(drawn, train):
    said = train(masks=(), status=2)
    assert "--elsewhere: of 9 photos of split 'val', none has a mask" in said
    assert "semantic-aug masks" in said and said.count("error:") == 1
    assert "are of one class" in train("--classes", "nut", status=2)
    shutil.rmtree("photos/val")
    for name in GROUNDS:  # so few that train keeps them all
        for number in (1, 2):
            Path(f"photos/train/{name}/{number}.png").unlink()
    assert "--elsewhere needs photos in split 'val'" in train(status=2)
    assert not Path("output").exists()


# --- results ---------------------------------------------------------------------------------


def test_elsewhere_is_a_split_like_any_other(drawn, train):
    train("--num_trials=2", "--method=without", elsewhere=False)
    said = train("--num_trials=2", "--compare", "without")
    assert "elsewhere accuracy %" in said
    assert re.search(r"seed=1_ex=1: val [\d.]+%, test [\d.]+%, elsewhere [\d.]+% ", said)
    assert f"without has no {ELSEWHERE} results: it was made without --elsewhere" in said
    assert "other settings" not in said
    for seed in (0, 1):
        name = f"results_{seed}_1.csv"
        before, after = (rows(RESULTS / method / name) for method in ("without", "real"))
        added = [row for row in after if row["split"] == ELSEWHERE]
        assert [row for row in after if row not in added] == before  # nothing else changes
        assert {row["epoch"] for row in added} == {"1"}
        of_test = [row["metric"] for row in after if row["split"] == TEST]
        assert [row["metric"] for row in added] == of_test
    shown = {row["split"] for row in rows(RESULTS / "real/confusion_0_1.csv")}
    assert shown == {VALIDATION, TEST, ELSEWHERE}
    pictures = {"accuracy", "per_class", "confusion"}
    assert {path.stem for path in RESULTS.glob("real/*.png")} == {
        *pictures, *(f"{name}_elsewhere" for name in pictures)
    }  # fmt: skip
    assert {path.stem for path in RESULTS.glob("without/*.png")} == pictures
    said = train("--num_trials=2", "--method=new", "--learning_rate=0.01", "--compare", "real")
    pairs = rows(RESULTS / "new/comparison.csv")
    assert [row["split"] for row in pairs] == [VALIDATION, TEST, ELSEWHERE]
    assert "new - real, 1 per class, elsewhere: " in said
    (row,) = [r for r in rows(RESULTS / "new/summary.csv") if r["split"] == ELSEWHERE]
    assert row["gain"] == pairs[2]["difference"] and row["num_trials"] == "2"


def test_results_with_and_without_are_not_mixed(drawn, train):
    train(elsewhere=False)
    config = json.loads((RESULTS / "real/config.json").read_text())
    assert "elsewhere" not in config["settings"] | config["arguments"]
    assert "--elsewhere: there none, now " in train("--num_trials=2", status=2)
    train("--method=m")
    digest = json.loads((RESULTS / "m/config.json").read_text())["settings"]["elsewhere"]
    assert f"--elsewhere: there {digest}, now none" in train(
        "--method=m", elsewhere=False, status=2
    )
    assert "1 of 1 trials are finished: skipped" in train("--method=m")
    Path("masks/val/nut/1.png").unlink()
    assert f"--elsewhere: there {digest}, now " in train("--method=m", status=2)


@pytest.mark.parametrize("finetune", ["none", pytest.param("all", marks=pytest.mark.slow)])
def test_a_photo_that_is_trained_on_is_left_out_here_too(drawn, train, finetune):
    draw_all(count=11)
    for root in ("photos", "masks"):
        shutil.copy(f"{root}/train/nut/4.png", f"{root}/val/nut/3.png")
    said = train("--examples_per_class=11", f"--finetune={finetune}")
    assert "left out of split 'val' (1 of 33)" in said
    counts = {VALIDATION: 0, ELSEWHERE: 0}
    for row in rows(RESULTS / "real/confusion_0_11.csv"):
        if row["split"] in counts:
            counts[row["split"]] += int(row["count"])
    assert counts == {VALIDATION: 32, ELSEWHERE: 32}


@pytest.mark.parametrize("bias", ["grounds", "objects"])
def test_it_tells_what_was_learned(workdir, train, bias):
    """Classes that differ in their grounds alone are all taken for others; objects stay known."""
    same = dict.fromkeys(GROUNDS, (120, 120, 120))
    if bias == "grounds":
        draw_all(objects=same)
    else:
        draw_all(grounds=same)
    train("--examples_per_class=3", "--learning_rate=0.02", "--iterations_per_epoch=60")
    assert accuracy("real", VALIDATION) == 1
    expected = 0 if bias == "grounds" else 1
    assert accuracy("real", ELSEWHERE) == pytest.approx(expected, abs=0.25)
