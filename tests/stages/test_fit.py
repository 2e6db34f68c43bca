"""semantic-aug fit: from a folder of photos to a classifier, within the time, and bad input."""

import errno
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import draw_photo
from PIL import Image

from semantic_aug import Run, UserError, fit, load_classifier, predict
from semantic_aug.__main__ import main
from semantic_aug.datasets import build_dataset
from semantic_aug.evaluation.classifiers import read_facts
from semantic_aug.experiment.config import OtherSettings
from semantic_aug.settings.fitting import Fitting
from semantic_aug.stages import fit as fitting
from semantic_aug.stages import fitting_methods, fitting_photos, fitting_result

COLOURS = {"cat": (220, 40, 40), "dog": (40, 200, 40), "fox": (50, 60, 230)}
QUICK = {"iterations": 60, "learning_rate": 0.03, "device": "cpu", "num_synthetic": 2}
OUT = Path("output/photos/fit")


@pytest.fixture
def plain(tmp_path, workdir, monkeypatch) -> Path:
    """photos/CLASS/*.png, four of each of three classes, and masks beside it in `masks`."""
    for label, (name, colour) in enumerate(COLOURS.items()):
        for number in range(4):
            draw_photo(tmp_path / f"photos/{name}/{number}.png", colour, 10 * label + number)
    # As many repeats and views as a test needs.
    monkeypatch.setattr("semantic_aug.evaluation.folds.REPEATS", (2, 2))
    monkeypatch.setattr("semantic_aug.stages.fitting_scores.PHOTO_VIEWS", 2)
    return tmp_path / "photos"


@pytest.fixture
def quickly(resnet, plain):
    def quickly(photos=plain, **settings):
        return fit(photos, **{**QUICK, "classifier_backbone": resnet, **settings})

    return quickly


@pytest.fixture
def fails(resnet, called):
    """The command's only line on stderr, without what it is called."""

    def fails(*words):
        status, _, err = called(main, "fit", "photos", "--iterations=5", "--device=cpu",
                                f"--classifier_backbone={resnet}", *words)  # fmt: skip
        lines = [line for line in err.splitlines() if line.startswith("fit: error: ")]
        assert status == 2 and len(lines) == 1, err
        return lines[0].removeprefix("fit: error: ")

    return fails


def test_from_photos_to_a_classifier(quickly, plain, called, resnet):
    wanted = ("real", "randaugment", "paste", "recoloured", "mixture")
    found = quickly(mask_dir=plain.parent / "masks", candidates=wanted)
    table = found.table.set_index("candidate")
    assert list(table.index) == ["real", "randaugment", "paste", "recoloured", "paste+recoloured"]
    assert table["images"].tolist() == [0, 0, 24, 24, 48]
    assert table["elsewhere"].between(0, 1).all() and found.left_out == {}
    assert np.isnan(table.loc["real", "over_real"]) and found.chosen in table.index
    row = table.loc["paste"]
    assert row["over_real_low"] <= row["over_real"] <= row["over_real_high"]
    assert row["over_real"] == pytest.approx(row["score"] - table.loc["real", "score"])
    assert 0 <= found.low <= found.accuracy <= found.high <= 1
    assert table["chosen"].sum() == 1 and table["chosen_in_samples"].sum() == pytest.approx(1)
    kept = pd.read_csv(OUT / "candidates.csv")
    assert kept["score"].tolist() == pytest.approx(table["score"].tolist(), abs=1e-6)
    content = json.loads((OUT / "fit.json").read_text())
    assert content["chosen"] == found.chosen and content["why"] == found.why
    assert content["expected"]["accuracy"] == pytest.approx(found.accuracy, abs=1e-6)
    page = (OUT / "fit.html").read_text()
    assert page.startswith("<!doctype html>") and "{{" not in page and "https://" not in page
    facts = read_facts(found.classifier)
    assert len(facts["photos"]) == 12 and facts["temperature"] > 0
    assert facts["expected"]["accuracy"] == content["expected"]["accuracy"]
    told = predict(found.classifier, photos=plain, labelled=True)
    assert (told["class"] == told["true"]).mean() > 0.6  # photos that it has learned
    held = pd.read_csv(OUT / "held_out.csv")
    assert len(held) == 12 and held["right"].is_monotonic_increasing
    # The same list of candidates gives the same bytes, wherever and whenever.
    words = ["--candidates", *wanted, "--mask_dir=masks", "--iterations=60", "--learning_rate=0.03",
             "--num_synthetic=2"]  # fmt: skip
    status, out, err = called(main, "fit", "photos", "--output_dir=again", "--device=cpu",
                              f"--classifier_backbone={resnet}", *words)  # fmt: skip
    assert status == 0, err
    lines = out.splitlines()
    assert lines[-1] == "semantic-aug predict again/photos/fit/classifier PHOTOS"
    assert found.why in lines
    assert sum(line.endswith("<- chosen") for line in lines) == 1
    for name in ("candidates.csv", "held_out.csv", "photos.csv", "classifier/model.safetensors"):
        assert (Path("again/photos/fit") / name).read_bytes() == (OUT / name).read_bytes(), name


def test_images_that_show_a_held_out_photo_are_not_learned_from_in_its_fold(quickly, monkeypatch):
    seen = []
    old = fitting.judge

    def judge(material, *rest):
        seen.append((material, rest[2]))
        return old(material, *rest)

    monkeypatch.setattr(fitting, "judge", judge)
    quickly(mask_dir="masks", candidates="paste")
    material, photos = seen[-1]
    assert (material.variants.shows >= 0).all()
    sources = photos.dataset.sources()
    lines = Path("output/photos/paste/seed=0_ex=4/metadata.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        own = material.variants.photo == sources.index(line["source"])
        (n,) = (own & (material.variants.turn == line["repeat"])).nonzero().flatten().tolist()
        assert sources[material.variants.shows[n]] == line["other_photo"][0]
    for fold in photos.folds:
        learned = material.learned_from(fold)
        chosen = (learned.first_row[learned.num_photos :] - len(material.features)) // 2
        for of in (material.variants.photo, material.variants.shows):
            assert set(of[chosen].tolist()) <= set(fold.trained)
        assert len(chosen) < 2 * len(fold.trained)  # some show what is held out


def test_an_own_val_split_judges_and_test_is_left_alone(photos, workdir, quickly, capsys):
    found = quickly(photos, candidates="randaugment")
    content = json.loads((OUT / "fit.json").read_text())
    assert content["judged_by"] == "val" and content["photos"] == 15
    assert "from 6 photos held out in the split val" in found.why
    trained = read_facts(found.classifier)["photos"]
    assert {source.split("/")[0] for source in trained} == {"train", "val"}
    held = pd.read_csv(OUT / "held_out.csv")
    assert all(photo.startswith("val/") for photo in held["photo"])


def test_groups_and_copies_stay_together(plain, quickly):
    shutil.copy(plain / "cat/0.png", plain / "cat/copy.png")
    shutil.copy(plain / "dog/0.png", plain / "fox/9.png")
    rows = []
    for path in sorted(plain.rglob("*.png")):
        own = path.parent.name == "cat" and path.stem != "copy"
        group = f"cat{int(path.stem) // 2}" if own else ""
        rows.append(f"{path.relative_to(plain).as_posix()},train,{group}")
    Path("table.csv").write_text("\n".join(["source,split,group", *rows]))
    found = quickly(candidates="real", splits="table.csv")
    said = "\n".join(found.notes)
    assert "4 photos are nearly equal to others, such as cat/copy.png and cat/0.png" in said
    assert "1 pair of these are of two classes, such as dog/0.png and fox/9.png" in said
    assert "fewer than three groups" not in said  # the cats have three
    table = build_dataset("folder", "train", data_dir=plain,
                          dataset_args=[f"splits={OUT / 'photos.csv'}"])  # fmt: skip
    assert [r.group for r in table.records[:5]] == ["cat0", "cat0", "cat1", "cat1", ""]


def test_a_broken_photo_and_a_class_with_one(plain, quickly, caplog):
    (plain / "cat/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    draw_photo(plain / "owl/0.png", (9, 9, 9), 1)
    with caplog.at_level("INFO"):
        found = quickly(candidates="real")
    assert found.notes[0] == "1 photo cannot be read, such as cat/broken.jpg: left out."
    assert found.notes[1].startswith("owl: too few photos to hold one out")
    facts = read_facts(found.classifier)
    assert "owl/0.png" in facts["photos"] and "owl" in facts["trained_classes"]
    assert "owl/0.png" not in set(pd.read_csv(OUT / "held_out.csv")["photo"])
    assert "broken.jpg" in caplog.text


# --- time ------------------------------------------------------------------------------------


def ticking(step: float):
    """A clock that goes on by so many seconds whenever it is looked at."""
    ticks = itertools.count()
    return lambda: step * next(ticks)


def test_minutes_that_suffice_for_nothing_but_photos_alone(quickly):
    found = quickly(minutes=1, mask_dir="masks", clock=ticking(40))
    assert found.table["candidate"].tolist() == ["real"] and found.chosen == "real"
    assert found.why.startswith("The photos alone are learned from, and nothing else was tried.")
    for name in ("randaugment", "paste", "recoloured"):
        assert "at least, and 0 seconds are left" in found.left_out[name]
    assert "no Stable Diffusion" in found.left_out["edits-0.5"]
    assert "words" in found.left_out
    assert load_classifier(found.classifier, device="cpu").class_names == list(COLOURS)
    assert (OUT / "fit.html").is_file()


def watched(quickly, plain, monkeypatch, minutes, seconds):
    """Paste alone, whose blocks take so many seconds by their own word."""
    old = fitting_methods.generate

    def generate(run, settings, computed):
        told = computed and (lambda _, images: computed(seconds, images))
        return old(run, settings, computed=told)

    monkeypatch.setattr(fitting_methods, "generate", generate)
    monkeypatch.setattr(fitting, "seconds_per_image", lambda *_: 0.0)
    methods = fitting_methods.methods_of(Fitting(candidates=("paste",)))
    monkeypatch.setattr(fitting, "methods_of", lambda _: methods)
    return quickly(minutes=minutes, mask_dir="masks", num_synthetic=6, clock=lambda: 0.0)


@pytest.mark.slow
def test_images_are_fewer_where_time_does_not_suffice(quickly, plain, monkeypatch):
    # A block of 4 images takes 40 s, so that an image of each of 12 photos takes 120.
    found = watched(quickly, plain, monkeypatch, minutes=7, seconds=40)
    assert found.table["images"].tolist() == [0, 3 * 12]
    # With more minutes it goes on with what is there.
    found = watched(quickly, plain, monkeypatch, minutes=30, seconds=40)
    assert found.table["images"].tolist() == [0, 6 * 12]


def test_a_method_of_which_not_one_image_each_fits_is_left_out(quickly, plain, monkeypatch):
    found = watched(quickly, plain, monkeypatch, minutes=1.5, seconds=40)
    assert found.table["candidate"].tolist() == ["real"]
    assert found.left_out["paste"] == "takes 2 minutes at least, and 86 seconds are left"
    assert len(list(Path("output/photos/paste").rglob("*.png"))) > 0  # they are not lost


@pytest.mark.slow
def test_an_interruption_changes_no_byte(quickly, plain, monkeypatch):
    made = fitting_methods.generate
    settings = {"mask_dir": "masks", "candidates": ("paste", "recoloured"), "batch_size": 4}
    quickly(**settings, output_dir="whole")

    def stops(run, wanted, computed):
        def told(seconds, images):
            if wanted.layout_colour:
                raise KeyboardInterrupt

        made(run, wanted, computed=told)

    monkeypatch.setattr(fitting_methods, "generate", stops)
    with pytest.raises(KeyboardInterrupt):
        quickly(**settings)
    assert not (OUT / "fit.json").exists()
    monkeypatch.setattr(fitting_methods, "generate", made)
    quickly(**settings)
    for path in Path("whole").rglob("*"):
        if path.suffix in (".png", ".csv", ".safetensors"):
            there = "output" / path.relative_to("whole")
            assert there.read_bytes() == path.read_bytes(), path


# --- bad input -------------------------------------------------------------------------------


def test_folders_that_nothing_can_be_learned_from(plain, fails, workdir):
    for name in ("dog", "fox"):
        shutil.move(plain / name, workdir / name)
    assert fails() == (
        "photos has photos of one class, cat: a classifier tells classes apart, expected a folder "
        "for each of two or more"
    )
    for name in ("cat", "dog"):
        (plain / name).mkdir(exist_ok=True)
        for number in range(4):
            (plain / name / f"{number}.png").unlink(missing_ok=True)
        shutil.copy(workdir / f"fox/{len(name)}.png", plain / name / "0.png")
    Image.new("RGB", (8, 8), "red").save(plain / "dog/0.png")
    single = fails()
    assert single.startswith("photos has a single photo of each class, so that none can be held")
    assert "train-classifier --" in single and "--num_synthetic=0" in single
    shutil.copy(plain / "dog/0.png", plain / "dog/1.png")
    assert fails().startswith("photos: no class has two photos that differ")
    for path in plain.rglob("*.png"):
        path.write_bytes(b"nothing")
    assert fails() == "photos: 3 photos, and none of them can be read"
    shutil.rmtree(plain)
    assert fails() == (
        "photos is not there: expected a folder with a folder of photos for each class"
    )


def test_settings_that_cannot_be(plain, fails):
    assert fails("--model_path=nowhere").startswith("cannot get nowhere")
    assert fails("--mask_dir=nowhere").startswith("masks=nowhere: expected a folder")
    assert fails("--splits=nowhere").startswith("splits=nowhere: expected a file")


@pytest.mark.parametrize("words", (["--output_dir=."], ["--output_dir=photos/output"],
                                   ["--output_dir=photos", "--experiment_name=mine"]))  # fmt: skip
def test_an_experiment_among_the_photos(plain, fails, words):
    """Images that are made would be taken for photos."""
    before = sorted(plain.rglob("*"))
    assert re.fullmatch(
        r"--output_dir: got \S+, where (photos|mine) would lie within photos, expected a folder "
        "that is not among the photos",
        fails(*words),
    )
    assert sorted(plain.rglob("*")) == before


@pytest.mark.slow
def test_other_settings_are_not_mixed_in(quickly, plain):
    quickly(candidates="paste", mask_dir="masks", num_synthetic=1)
    draw_photo(plain / "dog/0.png", COLOURS["dog"], 79)
    with pytest.raises(OtherSettings, match=r"photos: there .* choose another experiment_name"):
        quickly(candidates="paste", mask_dir="masks", num_synthetic=1)
    again = quickly(candidates="paste", mask_dir="masks", num_synthetic=1, overwrite=True)
    assert again.table["images"].tolist() == [0, 12]


def test_a_folder_that_is_being_written_to(plain, fails, monkeypatch):
    read, judged = fitting_photos.read_all, fitting.write_result

    def comes(*args):
        shutil.copy(plain / "cat/0.png", plain / "cat/new.png")
        return read(*args)

    monkeypatch.setattr(fitting_photos, "read_all", comes)
    assert fails().startswith(
        "photos is being written to: while its photos were read, 1 came and 0"
    )
    monkeypatch.setattr(fitting_photos, "read_all", read)

    def changes(*args):
        draw_photo(plain / "dog/0.png", "white", 5)
        return judged(*args)

    monkeypatch.setattr(fitting, "write_result", changes)
    said = fails("--candidates=real")
    assert said.startswith("photos has changed meanwhile: 1 photo, such as dog/0.png")


def test_a_full_disk(plain, fails, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "output/photos/fit/candidates.csv")

    monkeypatch.setattr(fitting_result, "write_table", full)
    assert fails("--candidates=real") == (
        "output/photos/fit/candidates.csv: No space left on device; make room and run the same "
        "command again"
    )


def test_a_name_is_that_of_the_folder_and_python_says_its_own_words(plain, quickly):
    assert fitting_photos.run_of(plain, Fitting()).experiment_name == "photos"
    assert isinstance(fitting_photos.run_of(plain, Fitting(experiment_name="e")), Run)
    (plain / "masks").mkdir()
    assert fitting_photos.run_of(plain, Fitting()).dataset_args == (f"masks={plain / 'masks'}",)
    with pytest.raises(UserError, match=r"^minutes: got 0, expected a number above 0"):
        quickly(minutes=0)
