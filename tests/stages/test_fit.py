"""semantic-aug fit: from a folder of photos to a classifier, within the time, and bad input."""

import errno
import functools
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, draw_photo
from PIL import Image

from semantic_aug import Run, UserError, fit, load_classifier, predict
from semantic_aug.__main__ import main
from semantic_aug.datasets import build_dataset
from semantic_aug.evaluation.classifiers import read_facts
from semantic_aug.experiment.config import OtherSettings
from semantic_aug.experiment.names import EMBEDDINGS_FILE
from semantic_aug.masking.masker import Found, Masker
from semantic_aug.settings.fitting import Fitting
from semantic_aug.stages import fit as fitting
from semantic_aug.stages import (
    fitting_masks,
    fitting_methods,
    fitting_photos,
    fitting_result,
    fitting_words,
)
from semantic_aug.stages import masks as masking
from semantic_aug.words.embeddings import read_header

COLOURS = {"cat": (220, 40, 40), "dog": (40, 200, 40), "fox": (50, 60, 230)}
QUICK = {"iterations": 60, "learning_rate": 0.03, "device": "cpu", "num_synthetic": 2}
OUT = Path("output/photos/fit")


@pytest.fixture
def plain(tmp_path, workdir, monkeypatch) -> Path:
    """photos/CLASS/*.png, four of each of three classes, and masks beside it in `masks`."""
    for label, (name, colour) in enumerate(COLOURS.items()):
        for number in range(4):
            draw_photo(tmp_path / f"photos/{name}/{number}.png", colour, 10 * label + number)
    # As many repeats, views and samples as a test needs.
    monkeypatch.setattr("semantic_aug.evaluation.folds.REPEATS", (2, 2))
    monkeypatch.setattr("semantic_aug.stages.fitting_scores.PHOTO_VIEWS", 2)
    few = functools.partial(fitting_result.promise, samples=100)
    monkeypatch.setattr(fitting_result, "promise", few)
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
        prefix = "semantic-aug fit: error: "
        lines = [line for line in err.splitlines() if line.startswith(prefix)]
        assert status == 2 and len(lines) == 1, err
        return lines[0].removeprefix(prefix)

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
    assert (material.variants.seen.sum(dim=1) == 2).all()  # its photo, and the other's place
    sources = photos.dataset.sources()
    lines = Path("output/photos/paste/seed=0_ex=4/metadata.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        own = material.variants.photo == sources.index(line["source"])
        (n,) = (own & (material.variants.turn == line["repeat"])).nonzero().flatten().tolist()
        seen = {sources[idx] for idx in material.variants.seen[n].nonzero().flatten()}
        assert seen == {line["source"], line["other_photo"][0]}
    for fold in photos.folds:
        learned = material.learned_from(fold)
        chosen = (learned.first_row[learned.num_photos :] - len(material.features)) // 2
        seen = material.variants.seen[chosen].any(dim=0).nonzero().flatten()
        assert set(seen.tolist()) <= set(fold.trained)
        assert len(chosen) < 2 * len(fold.trained)  # some show what is held out


def test_an_own_val_split_judges_and_test_is_left_alone(photos, workdir, quickly, caplog):
    with caplog.at_level("INFO"):
        found = quickly(photos, candidates="randaugment")
    assert "does not name" not in caplog.text
    content = json.loads((OUT / "fit.json").read_text())
    assert content["judged_by"] == "val" and content["photos"] == 15
    assert "from 6 photos held out in the split val" in found.why
    assert "right answers on new photos like photos in val (95 % interval" in found.why
    trained = read_facts(found.classifier)["photos"]
    assert {source.split("/")[0] for source in trained} == {"train", "val"}
    held = pd.read_csv(OUT / "held_out.csv")
    assert all(photo.startswith("val/") for photo in held["photo"])


def test_a_val_split_that_cannot_judge_all_classes(photos, quickly):
    shutil.rmtree(photos / "val/cat")
    shutil.copy(next(photos.glob("train/stop sign/*.png")), photos / "val/stop sign/copy.png")
    said = "\n".join(quickly(photos, candidates="real").notes)
    assert "cat: no photo of val that can judge." in said and "too few photos" not in said
    assert "photos of val that are nearly equal to training photos judge nothing" in said


def test_results_of_other_photos_are_not_replaced_unasked(plain, quickly, workdir):
    quickly(candidates="real")
    exported = OUT / "exported"
    exported.mkdir()  # of the first classifier
    other = workdir / "other/photos"
    for label, name in enumerate(COLOURS):
        for number in range(2):
            draw_photo(other / f"{name}/{number}.png", "white", 50 + 10 * label + number)
    before = (OUT / "fit.json").read_bytes()
    with pytest.raises(UserError, match="holds the results of other photos: choose another"):
        quickly(other, candidates="real")
    assert (OUT / "fit.json").read_bytes() == before and exported.exists()
    quickly(other, candidates="real", overwrite=True)
    assert (OUT / "fit.json").read_bytes() != before and not exported.exists()


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
    (plain / "ape").mkdir()
    with caplog.at_level("INFO"):
        found = quickly(candidates="real")
    assert found.notes[0] == "1 photo cannot be read, such as cat/broken.jpg: left out."
    assert found.notes[1].startswith("ape: no photo that can be read.")
    assert found.notes[2].startswith("owl: too few photos to hold any out")
    facts = read_facts(found.classifier)
    assert "owl/0.png" in facts["photos"] and "owl" in facts["trained_classes"]
    assert "owl/0.png" not in set(pd.read_csv(OUT / "held_out.csv")["photo"])
    assert caplog.text.count("broken.jpg") == 1 and "does not name" not in caplog.text
    assert "readable photos than" not in caplog.text


# --- masks that are made ----------------------------------------------------------------------


def pngs(root: Path) -> dict[str, bytes]:
    found = (p for p in sorted(root.rglob("*.png")) if "report" not in p.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def by_colour(monkeypatch):
    """A masker without a model, which finds the discs of `draw_photo` in every way of --masker."""

    def paint(images, words):
        shares = [np.ptp(np.asarray(each).astype(int), axis=2) > 100 for each in images]
        return [Found(each.astype(np.float32)) for each in shares]

    def make(settings):
        return Masker({"model": settings.masker}, lambda words: None, lambda device: paint)

    for module in (masking, fitting_masks):
        monkeypatch.setattr(module, "make_masker", make)
    monkeypatch.setattr(masking, "write_sheets", lambda *_: None)


def test_a_masker_makes_masks_that_are_missing(quickly, plain, by_colour):
    draw_photo(plain / "cat/grey.png", (90, 90, 90), 3)
    wanted = {"masker": "colours", "candidates": "paste", "num_synthetic": 1, "iterations": 5}
    found = quickly(**wanted)
    assert len(pngs(plain / "masks")) == 13 and (plain / "masks/doubtful/cat/grey.png").exists()
    assert "12 of 13 photos have a mask; 1 more masks are doubtful" in found.notes[-1]
    assert found.table["images"].tolist() == [0, 12] and found.table["elsewhere"].notna().all()
    person = (plain / "masks/cat/0.png").read_bytes()
    made = pngs(Path("output/photos/paste"))
    found = quickly(**wanted)  # no image is made again, and nothing is taken for a new photo
    assert pngs(Path("output/photos/paste")) == made and found.left_out == {}
    # For a folder that cannot be written to, another one that need not exist yet.
    shutil.rmtree(plain / "masks")
    found = quickly(**wanted, mask_dir="elsewhere", output_dir="other")
    assert (Path("elsewhere/cat/0.png")).read_bytes() == person
    assert pngs(Path("other/photos/paste")) == made and not (plain / "masks").exists()


def test_masks_by_default_where_the_models_are_there(quickly, plain, by_colour, monkeypatch):
    wanted = {"candidates": "paste", "num_synthetic": 1, "iterations": 5}
    found = quickly(**wanted)  # no model is on the disk
    assert found.left_out["paste"].startswith(
        "there are no masks; give --mask_dir FOLDER or --mask"
    )
    assert found.left_out["paste"].endswith("masking --dataset=folder --data_dir=" + str(plain))
    monkeypatch.setattr(fitting_masks, "commit_of", lambda name: "there")
    assert quickly(candidates="randaugment").left_out == {} and not (plain / "masks").exists()
    put, left = masking.put, [5]

    def killed(*given):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        put(*given)

    monkeypatch.setattr(masking, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        quickly(**wanted)
    assert len(pngs(plain / "masks")) == 5
    monkeypatch.setattr(masking, "put", put)
    assert quickly(**wanted).table["images"].tolist() == [0, 12]
    assert len(pngs(plain / "masks")) == 12
    # Of somebody's own masks nothing is made anew, whether they are of all photos or not.
    shutil.rmtree(plain / "masks")
    shutil.copytree(plain.parent / "masks", "mine")
    (Path("mine/cat/0.png")).unlink()
    found = quickly(**wanted, mask_dir="mine", output_dir="other")
    assert found.table["images"].tolist() == [0, 11] and len(pngs(Path("mine"))) == 11


def test_masks_that_take_too_long_are_left_for_later(quickly, plain, by_colour, monkeypatch):
    made = fitting_masks.masks
    monkeypatch.setattr(
        fitting_masks, "masks",
        lambda run, settings, computed: made(run, settings, computed=lambda _, *n: computed(40, *n))
    )  # fmt: skip
    found = quickly(masker="colours", minutes=2, clock=lambda: 0.0)
    assert found.left_out["paste"].startswith(
        "masks of 8 photos are missing; making them takes 80 seconds"
    )
    assert len(pngs(plain / "masks")) == 4  # they are not lost
    assert found.table["elsewhere"].isna().all()


def test_the_masker_of_the_sample_on_a_plain_folder(workdir, quickly):
    for kind in ("bevel_gear", "wing_nut"):
        Path("parts", kind).mkdir(parents=True)
        for number, photo in enumerate(
            sorted((ROOT / "sample/mvip" / kind).rglob("*_rgb.png"))[:3]
        ):
            shutil.copy(photo, f"parts/{kind}/{number}.png")
    found = quickly(
        "parts", masker=ROOT / "sample/masker", candidates="paste", num_synthetic=1, iterations=5
    )
    assert found.table["images"].tolist() == [0, 6] and found.notes[0].startswith("6 of 6 photos")


def test_a_masker_that_cannot_work(plain, fails, resnet):
    assert fails("--masker=no/such").startswith(
        "--masker: 'no/such' is no folder, and no hub model"
    )
    assert "is a resnet, expected a semantic-segmentation model" in fails(f"--masker={resnet}")
    assert fails("--masker=named").startswith("--masker named: 'CIDAS/clipseg-rd64-refined' is no")
    assert fails("--masker=salient", "--mask_dir=/proc/m").startswith(
        "masks go to /proc/m: /proc can"
    )


# --- words ------------------------------------------------------------------------------------


@pytest.fixture
def with_words(quickly, plain, small_model):
    """Two photos of each class, in two folds and two repeats, for which words are learned."""
    for path in plain.rglob("[23].png"):
        path.unlink()

    def with_words(**settings):
        return quickly(
            model=small_model, word_steps=2, num_inference_steps=2, strength=0.5, num_synthetic=1,
            iterations=5, **settings,
        )  # fmt: skip

    return with_words


def test_words_are_learned_from_what_each_fold_learns_from(with_words, monkeypatch):
    seen = {}
    old = fitting.judge

    def judge(material, *rest):
        seen[rest[-1][0].repeat, len(rest[-1]), material.variants is not None] = material, rest
        return seen.setdefault("told", []).append(old(material, *rest)) or seen["told"][-1]

    monkeypatch.setattr(fitting, "judge", judge)
    found = with_words(candidates=("edits", "words", "mixture"))
    assert found.table["candidate"].tolist() == ["real", "edits-0.5", "words", "edits-0.5+words"]
    assert found.table["images"].tolist() == [0, 6, 6, 12] and found.left_out == {}
    material, (_, _, photos, *_) = seen[0, 2, True]  # of the mixture, in the first repeat alone
    sources = photos.dataset.sources()
    for number, fold in enumerate(fold for fold in photos.folds if fold.repeat == 0):
        table = pd.read_csv(OUT / f"folds/{number}.csv", index_col="source")
        trained = {sources[idx] for idx in fold.trained}
        assert set(table.index[table["split"] == "train"]) == trained and len(table) == 6
        folder = OUT / f"folds/{number}"
        for name in COLOURS:
            header = read_header(folder / f"fine-tuned/seed=0_ex=1/{name}/{EMBEDDINGS_FILE}")
            (idx,) = (n for n in fold.trained if sources[n].startswith(name))
            assert header["photos"] == photos.dataset.photo_digest([idx])
        lines = map(json.loads, (folder / "words/seed=0_ex=1/metadata.jsonl").open())
        assert {line["source"] for line in lines} == trained
        learned = material.learned_from(fold)
        assert learned.num_variants.tolist() == [2] * 3  # an edit, and an image by a word
    assert found.table.loc[2, "accuracy"] == np.nanmean(seen["told"][2].hits)
    assert np.isnan(seen["told"][2].hits[:, 1]).all()
    facts = read_facts(found.classifier)
    assert facts["class_names"] == list(COLOURS)


def test_words_for_which_there_is_no_time(with_words, monkeypatch):
    def learns(run, settings, computed):
        computed(60.0, 12)

    monkeypatch.setattr(fitting_words, "fine_tune", learns)
    words = fitting_methods.methods_of(Fitting(candidates=("words",)))
    monkeypatch.setattr(fitting, "methods_of", lambda _: words)
    found = with_words(minutes=3, clock=lambda: 0.0)
    # Three words in each of two folds, two steps of four photos each: 48; twelve take a minute.
    assert found.left_out == {
        "words": "takes at least 4 minutes, which is 69 seconds more than there is left"
    }


# --- time ------------------------------------------------------------------------------------


def ticking(step: float):
    """A clock that goes on by so many seconds whenever it is looked at."""
    ticks = itertools.count()
    return lambda: step * next(ticks)


def test_minutes_that_suffice_for_nothing_but_photos_alone(quickly):
    found = quickly(minutes=1, mask_dir="masks", clock=ticking(40))
    assert found.table["candidate"].tolist() == ["real"] and found.chosen == "real"
    assert found.why.startswith("The classifier learned from the photos alone, because nothing")
    for name in ("randaugment", "paste", "recoloured"):
        assert found.left_out[name].endswith(", and no time is left")
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
    assert (
        found.left_out["paste"]
        == "takes at least 2 minutes, which is 34 seconds more than there is left"
    )
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
        "photos has photos of one class, cat: a classifier needs two classes or more, with a "
        "folder of photos each"
    )
    for name in ("cat", "dog"):
        (plain / name).mkdir(exist_ok=True)
        for number in range(4):
            (plain / name / f"{number}.png").unlink(missing_ok=True)
        shutil.copy(workdir / f"fox/{len(name)}.png", plain / name / "0.png")
    Image.new("RGB", (8, 8), "red").save(plain / "dog/0.png")
    single = fails()
    assert single.startswith("photos has a single photo of each class, so no photo can be held")
    assert "train-classifier --" in single and "--num_synthetic=0" in single
    shutil.copy(plain / "dog/0.png", plain / "dog/1.png")
    assert fails().startswith("photos: no class has two different photos")
    for path in plain.rglob("*.png"):
        path.write_bytes(b"nothing")
    assert fails() == "photos: 3 photos, and none of them can be read"
    shutil.rmtree(plain)
    assert fails() == (
        "photos does not exist: expected a folder with a folder of photos for each class"
    )


def test_settings_that_cannot_be(plain, fails):
    assert fails("--model_path=nowhere").startswith("cannot get nowhere")
    assert fails("--mask_dir=nowhere").startswith("--mask_dir: nowhere is no folder; semantic-aug")
    Path("test.csv").write_text("source,split\ncat/0.png,test\n")
    assert fails("--splits=test.csv") == "photos has no photo of the split train"
    assert fails("--classifier_backbone=nowhere", "--masker=nowhere").startswith(
        "--classifier_backbone: 'nowhere' is no folder"  # before masks are made
    )
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
    assert fails().startswith("photos is being written to: 1 photo came and 0 changed while")
    monkeypatch.setattr(fitting_photos, "read_all", read)

    def changes(*args):
        draw_photo(plain / "dog/0.png", "white", 5)
        return judged(*args)

    monkeypatch.setattr(fitting, "write_result", changes)
    said = fails("--candidates=real")
    assert said.startswith("1 photo in photos, such as dog/0.png, changed or vanished")


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
    inside = plain / "mine"
    with pytest.raises(UserError, match=r"mine lies among the classes: call it .*photos/masks"):
        fitting_photos.run_of(plain, Fitting(mask_dir=inside))
    with pytest.raises(UserError, match=r"^minutes: got 0, expected a number above 0"):
        quickly(minutes=0)
