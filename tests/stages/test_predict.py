"""semantic-aug predict: which photos, several classifiers, tables, and bad input."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import draw_photo

from semantic_aug import Run, UserError, load_classifier, predict, train_classifier
from semantic_aug.__main__ import main
from semantic_aug.evaluation.classifiers import read_facts

SHORT = {"num_epochs": 2, "iterations_per_epoch": 6, "batch_size": 4, "learning_rate": 1e-2,
         "augmentation": "none", "num_synthetic": 0, "device": "cpu"}  # fmt: skip
RESULTS = Path("output/e/results/real")


@pytest.fixture
def trained(photos, workdir, sketched, resnet) -> Path:
    run = Run("e", dataset="folder", data_dir=photos, examples_per_class=2, num_trials=2)
    train_classifier(run, classifier_backbone=resnet, **SHORT)
    return RESULTS / "classifier_0_2"


@pytest.fixture
def says(called):
    """Lines on stdout and stderr of the command."""

    def says(*words, status=0):
        ended, out, err = called(main, "predict", *words)
        assert ended == status, err
        said = [line for line in err.splitlines() if line and "image/s]" not in line]
        return out.splitlines(), said

    return says


def test_files_folders_and_globs_in_the_order_given(trained, photos, says):
    (photos / "test/cat/deep").mkdir()
    shutil.copy(photos / "test/cat/0.png", photos / "test/cat/deep/9.png")
    words = ["photos/test/toy train/1.png", "photos/test/cat", "photos/t*st/stop*/*.png",
             "photos/test/cat/0.png"]  # fmt: skip
    lines, said = says(trained, *words, "--csv=t.csv", "--json", "t.json", "--top_k=3")
    expected = ["photos/test/toy train/1.png", "photos/test/cat/0.png", "photos/test/cat/1.png",
                "photos/test/cat/deep/9.png", "photos/test/stop sign/0.png",
                "photos/test/stop sign/1.png"]  # fmt: skip
    with open("t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["photo"] for row in rows] == expected
    assert list(rows[0]) == ["photo", "class", "probability", "class_2", "probability_2", "class_3",
                             "probability_3"]  # fmt: skip
    for row in rows:
        shares = [float(row[f"probability{n}"]) for n in ("", "_2", "_3")]
        assert sum(shares) == pytest.approx(1, abs=1e-5) and shares == sorted(shares, reverse=True)
    assert rows[1]["class"] == rows[3]["class"] and rows[1]["probability"] == rows[3]["probability"]
    content = json.loads(Path("t.json").read_text())
    assert content["classifiers"] == [str(trained)]
    assert [row["class"] for row in content["photos"]] == [row["class"] for row in rows]
    head, *told = lines
    assert head.split() == ["photo", "class", "probability", "next", "classes"]
    for line, row in zip(told, rows, strict=True):
        assert line.startswith(f"{row['photo']} ") and f"  {row['class']} " in line
        assert f"{float(row['probability']):.3f}" in line
    assert said == []


def test_what_is_not_sure(trained, photos, says):
    table = predict(trained, photos=photos / "test")
    middle = sorted(table["probability"])[3]
    found = predict(trained, photos=photos / "test", min_probability=middle, top_k=1)
    unsure = table["probability"] < middle
    assert 0 < unsure.sum() < 6
    assert list(found["class"] == "unsure") == list(unsure)
    assert list(found["likeliest"]) == list(table["class"])
    lines, _ = says(trained, "photos/test", "--top_k=1", f"--min_probability={middle}")
    assert lines[0].split() == ["photo", "class", "probability"]
    assert sum("unsure (" in line for line in lines) == unsure.sum()


def test_probabilities_of_several_classifiers_are_averaged(trained, photos, says, monkeypatch):
    from semantic_aug.stages import predict as stage

    loaded = []
    monkeypatch.setattr(stage, "load_backbone", lambda *a, load=stage.load_backbone, **k:
                        loaded.append(a) or load(*a, **k))  # fmt: skip
    both = [trained, RESULTS / "classifier_1_2"]
    files = sorted((photos / "test").glob("*/*.png"))
    table = predict(both, photos=files, top_k=3)
    assert len(loaded) == 1
    names = load_classifier(trained).class_names
    from PIL import Image

    images = [Image.open(file) for file in files]
    mean = torch.stack([load_classifier(path)(images) for path in both]).mean(dim=0)
    for row, expected in zip(table.to_dict(orient="records"), mean.tolist(), strict=True):
        found = {row[f"class{n}"]: row[f"probability{n}"] for n in ("", "_2", "_3")}
        assert [found[name] for name in names] == pytest.approx(expected, abs=1e-6)
    lines, _ = says(*both, *files, "--labelled", status=2)
    lines, _ = says(*both, "--labelled", photos / "test")  # flags may stand between
    hits = [label == names.index(Path(f).parent.name) for f, label in
            zip(files, mean.argmax(dim=1).tolist())]  # fmt: skip
    told = next(line for line in lines if line.startswith("Accuracy"))
    assert f"Top-1 {sum(hits) / 6:.7g} (of all photos)" in told and "6 photos" in told


def test_labelled_photos(trained, photos, says):
    lines, said = says(trained, photos / "test", "--labelled", "--json=t.json")
    start = lines.index("of the photos of each class, as many were taken for:")
    confusions = {}
    for line in lines[start + 1 :]:
        name, _, told = line.strip().partition(": ")
        confusions[name] = dict(each.rsplit(" ", 1) for each in told.split(", "))
    assert set(confusions) == {"cat", "stop sign", "toy train"}
    rows = json.loads(Path("t.json").read_text())
    for name, told in confusions.items():
        answers = [row["class"] for row in rows["photos"] if row["true"] == name]
        assert told == {each: str(answers.count(each)) for each in answers}
    right = sum(row["class"] == row["true"] for row in rows["photos"])
    assert rows["scores"]["Top-1"] == pytest.approx(right / 6)
    assert said == []

    draw_photo(photos / "test/a dog/0.png", (9, 9, 9), 5)
    draw_photo(photos / "test/toy_train/0.png", (50, 60, 230), 77)  # as folders are called here
    (photos / "test/cat/broken.png").write_bytes(b"no image")
    shutil.copy(next((photos / "train/cat").iterdir()), photos / "test/cat/2.png")
    trained_on = read_facts(trained)["photos"]
    shutil.copy(photos / next(source for source in trained_on if "cat" in source),
                photos / "test/cat/3.png")  # fmt: skip
    lines, said = says(trained, photos / "test", "--labelled")
    assert "9 photos" in next(line for line in lines if line.startswith("Accuracy"))
    told = " ".join(said)
    assert "the classifier was not trained on their classes: 1 photo of a dog" in told
    assert "cat/broken.png: cannot read image" in told and "1 of 10 photos cannot be read" in told
    assert "of 9 photos are training photos of the classifier, such as cat/" in told


def test_bad_input(trained, photos, says, resnet):
    def fails(match, *words):
        out, said = says(*words, status=2)
        assert out == []
        assert said[-1].startswith("semantic-aug predict: error: ")
        assert match in said[-1], said

    fails("no photo is given: name files, folders or globs", trained)
    fails("nothing.jpg: no such file or folder", trained, "nothing.jpg")
    fails("*.jpg finds no file", trained, "*.jpg")
    Path("empty").mkdir()
    fails("no photo in empty", trained, "empty")
    Path("text.png").write_text("no image")
    fails("1 photo given, and none of them can be read", trained, "text.png")
    fails("photos is no classifier: expected a folder classifier_SEED_EXAMPLES", "photos", "empty")
    absent = RESULTS / "classifier_5_2"
    fails("classifier_5_2 is no classifier; give a classifier in", absent, "photos")
    fails("--labelled: got text.png, expected one folder", trained, "text.png", "--labelled")
    fails("--mask_dir: this classifier takes whole photos", trained, "photos", "--mask_dir=masks")
    fails("no/t.csv cannot be written", trained, "photos", "--csv=no/t.csv")
    fails("'gone' is no folder", trained, "photos", "--classifier_backbone=gone")
    fails("expected a number in [0, 1]", trained, "photos", "--min_probability=2")
    other = Path(shutil.copytree(photos, "other"))
    (other / "test/cat").rename(other / "test/dog")
    (other / "train/cat").rename(other / "train/dog")
    (other / "val/cat").rename(other / "val/dog")
    run = Run("o", dataset="folder", data_dir=other, examples_per_class=2)
    train_classifier(run, classifier_backbone=resnet, **SHORT)
    mixed = Path("output/o/results/real/classifier_0_2")
    fails("has other classes than output/e/results/real/classifier_0_2: there cat, here dog; cl",
          trained, mixed, "photos")  # fmt: skip
    for name in ("toy train", "stop sign"):
        shutil.rmtree(other / "test" / name)
    fails("no folder has the name of a class: got dog, expected some of cat, stop sign",
          trained, other / "test", "--labelled")  # fmt: skip
    with pytest.raises(UserError, match=r"^there is no setting 'topk'; is top_k meant\?$"):
        predict(trained, photos="photos", topk=3)
    with pytest.raises(UserError, match=r"^classifier: got 3, expected str or "):
        predict(3, photos="photos")
