"""Classifiers that train_classifier.py keeps: which, what of them, and that they answer alike."""

import csv
import json
import multiprocessing
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_backbone
from PIL import Image
from safetensors.torch import load_file, save_file

from semantic_aug import Run, UserError, load_classifier, predict, train_classifier
from semantic_aug.evaluation.classifiers import keep_selected, kept_classifiers, read_facts
from semantic_aug.evaluation.results import results_file
from semantic_aug.experiment.names import Trial
from semantic_aug.images.reading import read_image

SHORT = {"num_epochs": 2, "iterations_per_epoch": 6, "batch_size": 4, "learning_rate": 1e-2,
         "augmentation": "none", "num_synthetic": 0, "device": "cpu"}  # fmt: skip


@pytest.fixture
def run(photos, workdir, sketched) -> Run:
    return Run("e", dataset="folder", data_dir=photos, examples_per_class=2)


def results_of(folder: Path, seed=0, k=2, split="Test") -> dict[str, str]:
    """Values of the last epoch as the file has them, by metric."""
    with open(folder / f"results_{seed}_{k}.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    return {row["metric"]: row["value"] for row in rows}


def digits(value: float) -> str:
    return f"{value:.7g}"


TRAINED = {
    "frozen": {},
    "part": {"finetune": "last:1", "backbone_learning_rate": 1e-2},
    "whole": {"finetune": "all", "backbone_learning_rate": 1e-2},
    "scratch": {"finetune": "all", "backbone_learning_rate": 1e-2, "from_scratch": True},
    "supcon": {
        "finetune": "all",
        "objective": "supcon",
        "contrastive_epochs": 2,
        "contrastive_learning_rate": 1e-2,
    },
    "bfloat16": {"backbone_precision": "bfloat16"},
}


@pytest.mark.parametrize("how", TRAINED)
def test_predict_gives_the_numbers_of_the_results(run, photos, resnet, how):
    table = train_classifier(run, classifier_backbone=resnet, **SHORT, **TRAINED[how])
    folder = Path(table.attrs["folder"])
    path = folder / "classifier_0_2"
    found = predict(path, photos=photos / "test", labelled=True, device="cpu").attrs["evaluation"]
    expected = results_of(folder)
    assert digits(found.mean_accuracy) == digits(float(expected["Accuracy"]))
    assert digits(found.top1) == digits(float(expected["Top-1"]))
    assert digits(found.macro_f1) == digits(float(expected["Macro F1"]))
    assert found.mean_loss == pytest.approx(float(expected["Loss"]), rel=1e-5)
    scores = read_facts(path)["scores"]["Test"]
    assert scores["photos"] == 6 and digits(scores["ece"]) == digits(float(expected["ECE"]))
    changed = {key for key in load_file(path / "model.safetensors") if key.startswith("backbone.")}
    original = load_file(Path(resnet) / "model.safetensors")
    if how in ("frozen", "bfloat16"):
        assert not changed
    elif how == "part":  # of two stages, the last one
        assert changed and all("stages.1" in key for key in changed)
        assert len(changed) < len(original) / 2
    else:
        assert any("embedder" in key for key in changed)
    # The whole folder with its splits means the same photos, and images in Python do too.
    again = predict(path, photos=photos, labelled=True, device="cpu")
    assert again.attrs["evaluation"].confusion.equal(found.confusion)
    classifier = load_classifier(path, device="cpu")
    files = [photos / source for source in again["photo"]]
    assert classifier.predict(files) == list(again["class"])
    probabilities = classifier([Image.open(file) for file in files])
    assert probabilities.shape == (6, 3) and probabilities.dtype == torch.float32
    assert probabilities.amax(dim=1).tolist() == pytest.approx(list(again["probability"]), abs=1e-6)
    assert classifier.class_names == ["cat", "stop sign", "toy train"]


def test_what_stands_beside_the_head(run, photos, resnet):
    train_classifier(run, classifier_backbone=resnet, **SHORT)
    folder = Path("output/e/results/real")
    facts = json.loads((folder / "classifier_0_2/config.json").read_text())
    assert sum(p.stat().st_size for p in (folder / "classifier_0_2").iterdir()) < 8192
    assert facts["backbone"] == resnet and facts["image_size"] == [16, 16]
    assert facts["class_names"] == facts["trained_classes"] == ["cat", "stop sign", "toy train"]
    assert facts["image_mean"] == pytest.approx([0.4, 0.5, 0.6])
    assert len(facts["photos"]) == 6 and all(s.startswith("train/") for s in facts["photos"])
    assert facts["method"] == "real" and facts["synthetic_images"] == 0
    for split in ("Validation", "Test"):
        accuracy = float(results_of(folder, split=split)["Accuracy"])
        assert digits(facts["scores"][split]["accuracy"]) == digits(accuracy)
    with open(folder / "calibration_0_2.csv", newline="") as file:
        rows = {row["split"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"Validation", "Test"}
    for split, row in rows.items():
        assert float(row["temperature"]) == facts["temperature"] != 1
        assert row["calibrated"] == ("no" if facts["temperature"] in (0.01, 100) else "yes")
        assert row["ece"] == digits(facts["scores"][split]["ece"])
        assert row["ece_calibrated"] == digits(facts["scores"][split]["ece_calibrated"])


@pytest.mark.parametrize(
    "flags, kept",
    [
        ({}, {0, 1, 2}),
        ({"save_classifier": "none"}, set()),
        ({"finetune": "last:1"}, None),
    ],
)
def test_which_classifiers_stay(run, photos, resnet, flags, kept):
    several = Run("e", dataset="folder", data_dir=photos, examples_per_class=1, num_trials=3)
    shards = [{"shard_index": n, "num_shards": 3} for n in (2, 0, 1)]
    for shard in shards:  # in another order than that of seeds
        train_classifier(several, classifier_backbone=resnet, **SHORT, **flags, **shard)
    folder = Path("output/e/results/real")
    if kept is None:
        values = [float(results_of(folder, s, 1, "Validation")["Accuracy"]) for s in range(3)]
        kept = {values.index(max(values))}
    assert {trial.seed for trial in kept_classifiers(folder)} == kept
    config = json.loads((folder / "config.json").read_text())
    assert "save_classifier" not in config["settings"]
    assert config["arguments"].get("save_classifier") == flags.get("save_classifier")


def test_of_older_results_the_best_seed_alone_is_trained_again(photos, workdir, sketched, resnet):
    run = Run("e", dataset="folder", data_dir=photos, examples_per_class=(1, 2), num_trials=3)
    options = {"classifier_backbone": resnet, "finetune": "last:1", **SHORT}
    train_classifier(run, **options, save_classifier="all")
    folder = Path("output/e/results/real")
    scores = {t: read_facts(p)["scores"] for t, p in kept_classifiers(folder).items()}
    best = {k: max(range(3), key=lambda s: (scores[Trial(s, k)]["Validation"]["accuracy"], -s))
            for k in (1, 2)}  # fmt: skip
    for path in folder.glob("classifier_*"):
        shutil.rmtree(path)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("results_*")}
    train_classifier(run, **options, overwrite=True)
    assert kept_classifiers(folder).keys() == {Trial(seed, k) for k, seed in best.items()}
    new = {path.name for path in before if path.stat().st_mtime_ns != before[path]}
    assert new == {f"results_{seed}_{k}.csv" for k, seed in best.items()}


def kept_of(folder: Path, scores: dict[int, float]) -> None:
    """What `keep_selected` looks at, of one photo per class."""
    for seed, accuracy in scores.items():
        facts = dict.fromkeys(
            ("backbone", "backbone_identity", "from_scratch", "precision", "device", "image_size",
             "image_mean", "image_std", "class_names", "trained_classes", "crop_to_object", "bits",
             "temperature", "photos")
        )  # fmt: skip
        facts |= {"kind": "semantic-aug classifier", "temperature": 1, "image_size": [8, 8]}
        facts |= {"class_names": ["cat"], "trained_classes": ["cat"]}
        facts["scores"] = {"Validation": {"accuracy": accuracy}}
        path = folder / f"classifier_{seed}_1"
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(facts))
        results_file(folder, Trial(seed, 1)).touch()


def test_of_equal_seeds_the_smaller_stays_and_those_of_unfinished_trials_are_left(tmp_path):
    kept_of(tmp_path, {7: 0.5, 10: 0.75, 9: 0.75, 8: 0.25})
    results_file(tmp_path, Trial(8, 1)).unlink()  # a process is at work on it
    keep_selected(tmp_path)
    assert {path.name for path in tmp_path.glob("class*")} == {"classifier_9_1", "classifier_8_1"}
    assert not list(tmp_path.glob(".*"))


def test_processes_that_select_at_once_leave_the_best(tmp_path):
    kept_of(tmp_path, {seed: seed % 7 / 10 for seed in range(12)})
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=keep_selected, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert {path.name for path in tmp_path.glob("class*")} == {"classifier_6_1"}


def test_results_of_before_are_finished_and_say_that_no_classifier_was_kept(
    run, photos, resnet, called
):
    import train_classifier as script

    train_classifier(run, classifier_backbone=resnet, **SHORT)
    folder = Path("output/e/results/real")
    config = (folder / "config.json").read_bytes()
    shutil.rmtree(folder / "classifier_0_2")
    (folder / "calibration_0_2.csv").unlink()
    results = (folder / "results_0_2.csv").read_bytes()
    argv = ["--dataset=folder", f"--data_dir={photos}", "--experiment_name=e",
            "--examples_per_class=2", f"--classifier_backbone={resnet}"]  # fmt: skip
    argv += [f"--{key}={value}" for key, value in SHORT.items()]
    status, out, _ = called(script.main, *argv)
    assert status == 0 and "1 of 1 trials are finished: skipped" in out
    assert (
        "the classifiers of 1 finished trial were not kept: to have them, run it again with "
        "--overwrite" in out
    )
    assert (folder / "config.json").read_bytes() == config
    with pytest.raises(UserError, match=r"classifier_0_2 was not kept: run the train_cl"):
        predict(folder / "classifier_0_2", photos=photos)
    assert called(script.main, *argv, "--overwrite")[0] == 0
    assert (folder / "classifier_0_2/config.json").is_file()
    assert (folder / "results_0_2.csv").read_bytes() == results
    (folder / "results_0_2.csv").unlink()
    called(script.main, *argv, "--save_classifier=none")
    assert not (folder / "classifier_0_2").exists()
    assert (folder / "results_0_2.csv").read_bytes() == results


def test_results_of_other_settings_take_their_classifiers_with_them(run, resnet):
    two = Run("e", dataset="folder", data_dir=run.data_dir, examples_per_class=(1, 2))
    train_classifier(two, classifier_backbone=resnet, **SHORT)
    other = SHORT | {"learning_rate": 1e-3}
    train_classifier(run, classifier_backbone=resnet, **other, overwrite=True)
    folder = Path("output/e/results/real")
    assert {path.name for path in folder.glob("c*_*_*")} == {
        "confusion_0_2.csv", "calibration_0_2.csv", "classifier_0_2",
    }  # fmt: skip


def test_without_val_photos_probabilities_are_as_they_are(photos, workdir, sketched, resnet):

    from test_classifier import Colours, draw_photos

    draw_photos(workdir / "colours", {"train": 2})
    run = Run("e", dataset=Colours, data_dir=workdir / "colours", examples_per_class=2)
    train_classifier(run, classifier_backbone=resnet, **SHORT)
    facts = read_facts(Path("output/e/results/real/classifier_0_2"))
    assert facts["temperature"] == 1 and facts["scores"] == {}
    assert facts["class_names"] == ["red", "big green", "blue", "absent"]
    assert facts["trained_classes"] == ["red", "big green", "blue"]
    probabilities = load_classifier("output/e/results/real/classifier_0_2")(Image.new("L", (9, 5)))
    assert probabilities.shape == (1, 4) and probabilities[0, 3] == 0
    assert float(probabilities.sum()) == pytest.approx(1)


# --- in Python -------------------------------------------------------------------------------


@pytest.fixture
def cropped(photos, workdir, sketched, resnet):
    run = Run("e", dataset="folder", data_dir=photos, dataset_args={"masks": "masks"},
              crop_to_object=True, examples_per_class=2)  # fmt: skip
    train_classifier(run, classifier_backbone=resnet, **SHORT)
    return Path("output/e/results/real/classifier_0_2")


def test_a_classifier_of_cropped_photos_takes_masks(cropped, photos):
    table = predict(cropped, photos=photos / "test", mask_dir="masks/test", labelled=True)
    expected = results_of(cropped.parent)
    assert digits(table.attrs["evaluation"].mean_accuracy) == digits(float(expected["Accuracy"]))
    plain = predict(cropped, photos=photos / "test", mask_dir="masks/test")
    assert list(plain["class"]) == list(table["class"])
    single = photos / "test/cat/1.png"
    classifier = load_classifier(cropped)
    mask = np.asarray(Image.open("masks/test/cat/1.png"))
    by_hand = classifier(Image.open(single), [mask])
    assert float(by_hand.max()) == pytest.approx(
        predict(cropped, photos=single, mask_dir="masks/test/cat")["probability"][0], abs=1e-6
    )
    with pytest.raises(UserError, match=r"^masks: got none for 1 photos, expected a mask for each"):
        classifier(Image.open(single))
    with pytest.raises(UserError, match=r"^masks: got a mask of 48x39 pixels for a photo of 48x40"):
        classifier(Image.open(single), [mask[1:]])


def test_without_masks_it_is_said_how_to_have_them(cropped, photos, caplog):
    making = "masks are made by: semantic-aug masks --dataset=folder --data_dir=PHOTOS"
    with pytest.raises(UserError, match=f"^mask_dir is missing: this classifier was .*{making}"):
        predict(cropped, photos=photos / "test")
    with pytest.raises(UserError, match=f"^mask_dir: gone is no folder; {making}"):
        predict(cropped, photos=photos / "test", mask_dir="gone")
    Path("none").mkdir()
    with pytest.raises(
        UserError, match=f"^mask_dir: none has no mask for any of 6 photos; for .*0.png, .*{making}"
    ):
        predict(cropped, photos=photos / "test", mask_dir="none")
    with pytest.raises(UserError, match=r"^crop_to_object: no photo of split 'test' has a mask; m"):
        predict(cropped, photos=photos / "test", mask_dir="none", labelled=True)
    Path("masks/test/cat/1.png").unlink()
    table = predict(cropped, photos=photos / "test", mask_dir="masks/test")
    assert len(table) == 5
    assert "1 of 6 photos have no mask, or cannot be read: left out" in caplog.text
    # Masks that were made of the folder above are found for the one below.
    assert len(predict(cropped, photos=photos / "test/toy train", mask_dir="masks/test")) == 2


def test_an_empty_mask_counts_as_in_training_and_is_told(photos, workdir, sketched, resnet, caplog):
    for path in ("masks/test/cat/0.png", "masks/test/toy train/1.png"):
        Image.new("L", Image.open(path).size).save(path)
    run = Run("e", dataset="folder", data_dir=photos, dataset_args={"masks": "masks"},
              crop_to_object=True, examples_per_class=2)  # fmt: skip
    train_classifier(run, classifier_backbone=resnet, **SHORT)
    path = Path("output/e/results/real/classifier_0_2")
    caplog.clear()
    table = predict(path, photos=photos / "test", mask_dir="masks/test", labelled=True)
    expected = results_of(path.parent)
    found = table.attrs["evaluation"]
    assert digits(found.mean_accuracy) == digits(float(expected["Accuracy"]))
    assert found.mean_loss == pytest.approx(float(expected["Loss"]), rel=1e-5)
    told = [each for each in caplog.messages if "empty mask" in each]
    assert told == ["2 of 6 photos with an empty mask (cat/0.png, toy train/1.png): the square in "
                    "the middle is taken, as in training"]  # fmt: skip
    caplog.clear()
    image = Image.open(photos / "test/cat/0.png")
    masks = [np.zeros((image.height, image.width)), np.ones((image.height, image.width))]
    both = load_classifier(path)([image, image], masks)
    assert torch.equal(both[0], both[1])  # of an object that fills the photo, too
    assert [each for each in caplog.messages if "empty mask" in each] == [
        "1 of 2 photos with an empty mask (number 0): the square in the middle is taken, as in "
        "training"
    ]  # fmt: skip


def test_images_of_any_kind_are_read_as_files_are(run, photos, resnet, tmp_path):
    train_classifier(run, classifier_backbone=resnet, **SHORT)
    classifier = load_classifier("output/e/results/real/classifier_0_2")
    original = Image.open(photos / "test/cat/0.png")
    turned = original.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {"turned.png": {"exif": exif}, "turned.tif": {"exif": exif}}
    for name, options in files.items():
        turned.save(tmp_path / name, **options)
        with Image.open(tmp_path / name) as image:
            assert torch.equal(classifier(image), classifier(read_image(tmp_path / name)))
            assert torch.equal(classifier(image), classifier(original))
    grey = Image.fromarray((np.arange(600).reshape(20, 30) * 100).astype(np.uint16))
    grey.save(tmp_path / "grey.png")
    assert torch.equal(classifier(grey), classifier(read_image(tmp_path / "grey.png")))
    assert classifier([]).shape == (0, 3)
    with pytest.raises(UserError, match=r"cannot read image missing.jpg: no such file"):
        classifier.predict(["missing.jpg"])


# --- bad input -------------------------------------------------------------------------------


def test_what_is_wrong_with_a_classifier_is_one_line(run, photos, resnet, tmp_path):
    own = shutil.copytree(resnet, tmp_path / "own")
    train_classifier(run, classifier_backbone=own, **SHORT)
    folder = Path("output/e/results/real")
    path = folder / "classifier_0_2"

    def fails(match, where=path, **options):
        with pytest.raises(UserError) as error:
            load_classifier(where, **options)
        assert re.search(match, str(error.value)), str(error.value)
        assert "\n" not in str(error.value)

    fails(r"real is no classifier; give a classifier in .*: classifier_0_2", folder)
    fails(r"^nowhere is no classifier: expected a folder classifier_SEED_EXAMPLES", "nowhere")
    fails(r"own is no classifier: expected a folder classifier_SEED", own)
    fails("'gone' is no folder, and no hub model .* give its present place by classifier_backbone",
          classifier_backbone="gone")  # fmt: skip
    other = tmp_path / "other"
    other.mkdir()
    fails(
        "is another than this classifier was trained on: then ResNetModel .*, now ResNetModel",
        classifier_backbone=str(build_backbone(other)),
    )
    moved = shutil.move(own, tmp_path / "moved")
    fails("own' is no folder")
    assert load_classifier(path, classifier_backbone=str(moved)).class_names[0] == "cat"

    config = json.loads((path / "config.json").read_text())
    config["backbone"], config["image_size"] = str(moved), [1, 0]
    (path / "config.json").write_text(json.dumps(config))
    fails("gives no features for images of 1x0 pixels")
    (path / "config.json").write_text("{")
    fails("config.json is damaged")
    (path / "config.json").write_text(json.dumps(config | {"image_size": [16, 16]}))
    (path / "model.safetensors").write_bytes(b"no weights")
    fails("model.safetensors cannot be read")


def test_a_backbone_by_a_relative_path_is_found_from_anywhere(
    run, photos, resnet, workdir, monkeypatch
):
    shutil.copytree(resnet, "sample/backbone")
    (Path("sample/backbone") / "preprocessor_config.json").unlink()
    train_classifier(run, classifier_backbone="sample/backbone", **SHORT)
    path = Path("output/e/results/real/classifier_0_2").absolute()
    images = [Image.open(file) for file in sorted(photos.glob("test/*/*.png"))]
    expected = load_classifier(path, device="cpu")(images)
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert torch.equal(load_classifier(path, device="cpu")(images), expected)
    alone = shutil.copytree(path, "classifier_0_2")
    assert torch.equal(load_classifier(alone, device="cpu")(images), expected)
    Path("moved").mkdir()
    for name in ("output", "sample"):
        shutil.move(workdir / name, "moved")
    moved = Path("moved/output/e/results/real/classifier_0_2")
    assert torch.equal(load_classifier(moved, device="cpu")(images), expected)
    with pytest.raises(UserError, match=r"was .*sample/backbone; give its present place by class"):
        load_classifier(alone)
    given = load_classifier(alone, classifier_backbone="moved/sample/backbone", device="cpu")
    assert torch.equal(given(images), expected)


def test_the_mean_that_a_classifier_keeps_needs_no_preprocessor_file(run, photos, resnet, caplog):
    own = Path(shutil.copytree(resnet, "own"))
    train_classifier(run, classifier_backbone=str(own), **SHORT)
    path = Path("output/e/results/real/classifier_0_2")
    image = Image.open(photos / "test/cat/0.png")
    expected = load_classifier(path, device="cpu")(image)
    (own / "preprocessor_config.json").unlink()
    caplog.clear()
    assert torch.equal(load_classifier(path, device="cpu")(image), expected)
    assert "ImageNet" not in caplog.text


@pytest.mark.parametrize(
    "key, value", [("temperature", 0), ("temperature", "x"), ("image_size", [2.5, 2]),
                   ("trained_classes", ["dog"])],
)  # fmt: skip
def test_values_that_cannot_be_are_damage(run, photos, resnet, key, value):
    train_classifier(run, classifier_backbone=resnet, **SHORT)
    folder = Path("output/e/results/real/classifier_0_2")
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {key: value}))
    with pytest.raises(UserError, match=r"config.json is damaged"):
        predict(folder, photos=photos)


def test_weights_that_are_no_numbers_are_damage_and_colleagues_may_read_them(run, photos, resnet):
    train_classifier(run, classifier_backbone=resnet, **SHORT)
    file = Path("output/e/results/real/classifier_0_2/model.safetensors")
    assert file.stat().st_mode == (file.parent / "config.json").stat().st_mode
    weights = load_file(file)
    weights["head.weight"][0, 0] = float("nan")
    save_file(weights, file)
    with pytest.raises(UserError, match="its numbers are not finite"):
        predict(file.parent, photos=photos)


def test_classifiers_of_other_classes_are_not_averaged(run, photos, resnet):
    train_classifier(run, classifier_backbone=resnet, **SHORT)
    few = SHORT | {"classes": ["cat", "stop sign"], "method": "few"}
    train_classifier(run, classifier_backbone=resnet, **few)
    results = Path("output/e/results")
    both = [results / name / "classifier_0_2" for name in ("real", "few")]
    with pytest.raises(UserError, match="has other trained classes than"):
        predict(both, photos=photos)
    with pytest.raises(UserError, match="is a classifier: all classifiers stand before"):
        predict(both[0], photos=[photos, both[1]])
    Path("nothing").mkdir()
    with pytest.raises(UserError, match="no photo in nothing"):
        predict(both[0], photos=[photos, "nothing"])
    with pytest.raises(UserError, match="name is empty"):
        predict(both[0], photos=[""])
    with pytest.raises(UserError, match="cannot be written: it is a folder"):
        predict(both[0], photos=photos, csv="nothing")
