"""semantic-aug export: transformers and onnxruntime answer as the classifier does."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from scipy.stats import binomtest
from test_backbone import FAMILIES, saved

from semantic_aug import Run, UserError, export, load_classifier, predict, train_classifier
from semantic_aug.evaluation.backbone import load_backbone
from semantic_aug.evaluation.classifiers import Classifier
from semantic_aug.evaluation.exporting import to_transformers, write_transformers
from semantic_aug.evaluation.model_card import model_card, wilson_interval
from semantic_aug.evaluation.training import Head
from semantic_aug.stages.common import dataset_of

SHORT = {"num_epochs": 2, "iterations_per_epoch": 6, "batch_size": 4, "learning_rate": 1e-2,
         "augmentation": "none", "num_synthetic": 0, "device": "cpu"}  # fmt: skip
NAMES = ["a", "never", "b"]
REFUSED = {"clip", "clip_vision"}  # whose heads see the mean of the patches, or nothing alike


@pytest.fixture
def trained(photos, workdir, sketched, resnet) -> Path:
    run = Run("e", dataset="folder", data_dir=photos, examples_per_class=2, num_trials=2)
    options = SHORT | {"finetune": "all", "backbone_learning_rate": 1e-3}
    train_classifier(run, classifier_backbone=resnet, **options, save_classifier="all")
    return Path("output/e/results/real/classifier_0_2")


def answers(folder, images) -> list[dict[str, float]]:
    from transformers import pipeline

    ask = pipeline("image-classification", model=str(folder), device="cpu")
    return [{each["label"]: each["score"] for each in ask(image, top_k=99)} for image in images]


def noise(number: int, size=(37, 23)) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))
            for _ in range(number)]  # fmt: skip


def classifier_on(folder: Path, size=None) -> Classifier:
    """A classifier on a small backbone, with three classes of which one was not trained."""
    backbone = load_backbone(str(folder), torch.device("cpu"), size)
    linear = torch.nn.Linear(backbone.num_features, 3)
    facts = {"class_names": NAMES, "crop_to_object": False, "bits": None}
    return Classifier(backbone, Head(linear, torch.tensor([True, False, True])), 0.25, facts)


@pytest.mark.parametrize("make", FAMILIES)
def test_every_kind_of_backbone_answers_alike_or_is_refused(tmp_path, make):
    torch.manual_seed(1)
    classifier = classifier_on(Path(saved(make, tmp_path)))
    if make.__name__ in REFUSED:
        with pytest.raises(UserError, match=r"^transformers has no classifier|uses other features"):
            to_transformers(classifier)
        return
    out = tmp_path / "out"
    out.mkdir()
    write_transformers(out, to_transformers(classifier), classifier)
    images = noise(5)
    for found, expected in zip(answers(out, images), classifier(images).tolist(), strict=True):
        assert found["never"] == 0
        assert [found[name] for name in NAMES] == pytest.approx(expected, abs=1e-5)


def test_a_size_that_the_model_does_not_take_is_refused(tmp_path):
    vit = next(make for make in FAMILIES if make.__name__ == "vit")
    classifier = classifier_on(Path(saved(vit, tmp_path)), (24, 32))
    with pytest.raises(UserError, match="ViTForImageClassification takes no images of 24x32"):
        to_transformers(classifier)


def test_a_trained_classifier_goes_out_whole(trained, photos, called):
    from semantic_aug.__main__ import main

    status, out, err = called(main, "export", trained, "model", "--onnx")
    assert (status, out, err) == (0, "model: a ResNetForImageClassification of transformers\n", "")
    folder, classifier = Path("model"), load_classifier(trained)
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "model.onnx", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    files = sorted(photos.glob("*/*/*.png"))
    images = [Image.open(file) for file in files]
    expected = classifier(images)
    for found, row in zip(answers(folder, map(str, files)), expected.tolist(), strict=True):
        assert next(iter(found)) == classifier.class_names[int(np.argmax(row))]
        assert [found[name] for name in classifier.class_names] == pytest.approx(row, abs=1e-5)

    import onnxruntime
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor(images, return_tensors="np")["pixel_values"]
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (logits,) = session.run(["logits"], {"pixel_values": pixels})
    assert torch.from_numpy(logits).softmax(dim=1).numpy() == pytest.approx(
        expected.numpy(), abs=1e-5
    )
    card = (folder / "README.md").read_text()
    facts = json.loads((trained / "config.json").read_text())
    assert "6 photos, up to 2 of each class." in card and "(--finetune all)" in card
    assert f"- Test: {facts['scores']['Test']['top1']:.1%} of 6 photos right" in card
    assert "in 2 trials that differ in their training photos: mean accuracy over" in card
    assert "/" not in next(line for line in card.splitlines() if "Backbone:" in line)


def test_a_card_claims_no_more_than_is_known(tmp_path):
    training = {
        "aug_name": ["made"], "finetune": "last:1", "objective": "supcon", "select": "best_val",
        "num_epochs": 9, "iterations_per_epoch": 2, "batch_size": 4, "learning_rate": 1e-3,
        "augmentation": ["flip"],
    }  # fmt: skip
    facts = {
        "class_names": ["a", "b"], "trained_classes": ["a"], "photos": {"x": "digest"},
        "examples_per_class": 1, "synthetic_images": 3, "training": training, "epoch": 3,
        "image_size": [16, 24], "backbone": "own/net", "backbone_places": ["/home/me/own/net"],
        "backbone_identity": "Net 1", "from_scratch": False, "crop_to_object": True,
        "method": "m", "seed": 0, "scores": {}, "temperature": 1.0,
    }  # fmt: skip
    card = model_card(facts, tmp_path, "K", [])
    for line in (
        "- Photos: 1 photo, up to 1 of each class.",
        "- Synthetic images: 3, generated from these photos (set made).",
        "- Backbone: net (Net 1), fine-tuned by supervised contrastive learning (Khosla et al. "
        "2020), before the head (--finetune last:1).",
        "- Not evaluated: there were no validation photos and no test photos.",
        "- The probabilities are not calibrated: there were no validation photos.",
        "- The class b had no training photo and is never predicted.",
    ):
        assert line in card.splitlines()
    assert "weights are from epoch 4, which had the best validation accuracy" in card
    assert "to 24x16 pixels (width x height)" in card and "Crop your photos" in card
    expected = facts | {"expected": {"accuracy": 0.5, "low": 0.25, "high": 0.75}}
    assert "50.0% (95% confidence interval 25.0% to 75.0%)" in model_card(
        expected, tmp_path, "K", []
    )
    for temperature, said in (
        (0.5, "calibrated by"),
        (100.0, "not calibrated: no temperature"),
    ):
        card = model_card(expected | {"temperature": temperature}, tmp_path, "K", [])
        assert f"- The probabilities are {said}" in card


@pytest.mark.parametrize("right, number", [(0, 1), (3, 7), (240, 360), (50, 50)])
def test_intervals_of_shares(right, number):
    low, high = wilson_interval(right, number)
    expected = binomtest(right, number).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_bad_input(trained, called, monkeypatch):
    from semantic_aug.__main__ import main

    def fails(match, *words):
        status, out, err = called(main, "export", *words)
        assert status == 2 and out == ""
        *_, line = err.splitlines()
        assert line.startswith("semantic-aug export: error: ") and match in line, err

    Path("full").mkdir()
    Path("full/file").touch()
    fails("full holds files: expected a folder that is absent or empty", trained, "full")
    fails("file is a file", trained, "full/file")
    fails("nowhere is no classifier", "nowhere", "model")
    fails("'gone' is no folder", trained, "model", "--classifier_backbone=gone")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fails("--onnx needs onnx, onnxscript, onnxruntime: pip install", trained, "model", "--onnx")
    assert not Path("model").exists() and not list(Path().glob(".model*"))
    Path("empty").mkdir()
    assert export(trained, folder="empty") == Path("empty")
    assert (Path("empty") / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("finetune", ["none", "last:1", "all"])
def test_every_test_photo_of_the_sample_gets_the_same_answer(workdir, sketched, finetune):
    import onnxruntime
    from transformers import AutoImageProcessor

    sample = ROOT / "sample"
    run = Run("e", dataset="mvip", data_dir=sample / "mvip", examples_per_class=2)
    options = SHORT | {"finetune": finetune, "iterations_per_epoch": 10}
    train_classifier(run, classifier_backbone=sample / "backbone", **options)
    path = Path("output/e/results/real/classifier_0_2")
    records = dataset_of(run, "test").records
    for record in records:  # as folders of classes
        file = Path("test", record.class_name, record.source.replace("/", "_"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(record.path.resolve())
    found = predict(path, photos="test", labelled=True, device="cpu").attrs["evaluation"]
    with open(path.parent / "results_0_2.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "Test"]
    expected = {row["metric"]: row["value"] for row in rows}
    for metric, value in (("Accuracy", found.mean_accuracy), ("Top-1", found.top1),
                          ("Macro F1", found.macro_f1)):  # fmt: skip
        assert f"{value:.7g}" == expected[metric]

    export(path, folder="model", onnx=True, device="cpu")
    classifier = load_classifier(path, device="cpu")
    images = [Image.open(record.path) for record in records]
    mine, names = classifier(images), classifier.class_names
    of_files = answers("model", [str(record.path) for record in records])
    theirs = torch.tensor([[each[name] for name in names] for each in of_files])
    processor = AutoImageProcessor.from_pretrained("model", backend="pil")
    pixels = processor(images, return_tensors="np")["pixel_values"]
    (logits,) = onnxruntime.InferenceSession("model/model.onnx").run(None, {"pixel_values": pixels})
    for other in (theirs, torch.from_numpy(logits).softmax(dim=1)):
        assert torch.equal(other.argmax(dim=1), mine.argmax(dim=1))
        assert float((other - mine).abs().max()) < 1e-4
