"""The page of mistakes: which val photos, and what lies nearest to them."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from semantic_aug import Run, UserError, generate, train_classifier
from semantic_aug.datasets.folder import FolderDataset
from semantic_aug.evaluation.classifiers import Classifier
from semantic_aug.evaluation.training import Head
from semantic_aug.experiment.names import Trial
from semantic_aug.generative_augmentation import Edit, GenerativeAugmentation
from semantic_aug.report.__main__ import main
from semantic_aug.report.mistakes import find_mistakes, write_mistakes
from semantic_aug.stages.common import dataset_of

TRIAL = Trial(0, 1)
UNTRAINED = {"num_epochs": 1, "iterations_per_epoch": 1, "learning_rate": 1e-9,
             "augmentation": "none", "device": "cpu"}  # fmt: skip


class Mirrored(GenerativeAugmentation):
    """Photos mirrored, without a model."""

    needs_model = False

    def __init__(self, pipeline=None, **options):
        pass

    def augment(self, images, labels, metadata, generators):
        flipped = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
        return flipped, [[Edit("mirrored", "", None, None, False, False)] for _ in images]


@pytest.fixture
def run(photos, workdir, sketched, resnet) -> Run:
    """Results of a classifier that answers `cat` whatever it sees, as nothing was learned."""
    run = Run("e", dataset="folder", data_dir=photos)
    generate(run, aug=Mirrored, num_synthetic=1)
    train_classifier(run, classifier_backbone=resnet, **UNTRAINED)
    return run


def test_the_surest_mistakes_come_first_with_what_is_nearest(run, photos, resnet):
    from semantic_aug import load_classifier

    classifier = load_classifier("output/e/results/aug/classifier_0_1", device="cpu")
    train, val = dataset_of(run, "train", TRIAL), dataset_of(run, "val")
    files = sorted(Path("output/e/aug/seed=0_ex=1").glob("*.png"))
    found, number, total = find_mistakes(classifier, val, train, [0, 1, 2], files)
    images = [val.get_image_by_idx(n) for n in range(6)]
    probabilities = classifier(images)
    labels = [val.get_label_by_idx(n) for n in range(6)]
    wrong = {n for n, row in enumerate(probabilities) if int(row.argmax()) != labels[n]}
    assert {each.index for each in found} == wrong and (number, total) == (len(wrong), 6)
    assert 0 < len(wrong) < 6
    shares = [each.probability for each in found]
    assert shares == sorted(shares, reverse=True)

    def features(image):
        from semantic_aug.evaluation.pictures import pixels_of

        return classifier.backbone.features(pixels_of(image, (16, 16))[None])[0]

    for each in found:
        assert each.answer == int(probabilities[each.index].argmax()) != labels[each.index]
        assert each.true_probability == pytest.approx(
            float(probabilities[each.index, labels[each.index]])
        )
        mine = features(images[each.index])
        for near, pictures in (
            (each.photos, [train.get_image_by_idx(n) for n in range(3)]),
            (each.variants, [Image.open(file) for file in files]),
        ):
            expected = [
                float(torch.cosine_similarity(mine, features(picture), dim=0))
                for picture in pictures
            ]
            assert [n.number for n in near] == sorted(range(3), key=lambda n: -expected[n])
            assert [n.likeness for n in near] == pytest.approx(sorted(expected)[::-1], abs=1e-5)


def test_the_command_writes_one_file_that_needs_no_other(run, photos, called, resnet):
    flags = ["--dataset=folder", f"--data_dir={photos}", "--experiment_name=e", "--mistakes=aug"]
    status, out, err = called(main, *flags)
    assert status == 0, err
    path = Path("output/e/report/seed=0_ex=1_mistakes_aug.html")
    assert out.splitlines()[-1] == str(path)
    page = path.read_text(encoding="utf-8")
    number = page.count('class="mistake"')
    assert f"<p>{number} of 6 val photos" in page and "{{" not in page
    assert page.count("data:image/webp;base64,") == number * (1 + 3 + 3)
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "val/" in page and "test/" not in page

    def fails(match, *flags):
        status, _, err = called(main, *flags)
        assert status == 2 and match in err.splitlines()[-1], err

    for trained in ({"num_synthetic": 0}, {"aug_name": "other", "num_synthetic": 1}):
        generate(run, aug=Mirrored, num_synthetic=1, aug_name="other")
        train_classifier(run, classifier_backbone=resnet, **UNTRAINED, **trained)
    for path in Path("output/e").glob("aug/*/*.png"):
        path.unlink()
    for method, pictures in (("real", 1 + 3), ("other", 1 + 3 + 3)):  # neither needs set aug
        shutil.rmtree("output/e/report")
        status, out, err = called(main, *flags[:-1], f"--mistakes={method}")
        assert status == 0, err
        (path,) = map(Path, out.splitlines())
        assert path.name == f"seed=0_ex=1_mistakes_{method}.html"
        assert list(path.parent.iterdir()) == [path]
        page = path.read_text(encoding="utf-8")
        assert page.count("data:image/webp;base64,") == page.count('class="mistake"') * pictures
    shutil.rmtree("output/e/report")
    shutil.rmtree("output/e/other")
    fails("output/e/other", *flags[:-1], "--mistakes=other")
    assert not Path("output/e/report").exists()

    fails("results/none/classifier_0_1 is no classifier", *flags[:-1], "--mistakes=none")
    fails("expected one folder name", *flags[:-1], "--mistakes=a/b")


def test_what_is_written_in_names_stays_text(tmp_path, resnet):
    from semantic_aug.evaluation.backbone import load_backbone

    for split in ("train", "val", "test"):
        for number, name in enumerate(("<b>&", "plain")):
            path = tmp_path / "p" / split / name / f"{split}.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (20, 20), (200 * number, 30, len(split))).save(path)
    train, val = (FolderDataset(data_dir=tmp_path / "p", split=each) for each in ("train", "val"))
    names = train.class_names
    backbone = load_backbone(resnet, torch.device("cpu"))
    linear = torch.nn.Linear(backbone.num_features, 2)
    torch.nn.init.zeros_(linear.weight)
    facts = {"class_names": names, "trained_classes": names, "crop_to_object": False, "bits": None,
             "photos": dict.fromkeys(train.sources(), ""),
             "training": {"aug_name": None, "num_synthetic": None}}  # fmt: skip
    for bias in ([5.0, 0.0], [0.0, 5.0]):
        linear.bias.data = torch.tensor(bias)
        head = Head(linear, torch.tensor([True, True]))
        classifier = Classifier(backbone, head, 1.0, facts)
        write_mistakes(tmp_path / "m.html", "<i>", classifier, val, train, [0, 1], {}, {})
        page = (tmp_path / "m.html").read_text(encoding="utf-8")
        assert page.count('class="mistake"') == 1 and "1 of 2 val photos is taken for" in page
        assert "&lt;b&gt;&amp;" in page and "<b>" not in page and "<i>" not in page
    # What it was not trained on does not stand there.
    assert page.count("<figure>") == 3  # the val photo, and both of training
    few = facts | {"photos": {train.sources()[1]: ""}}
    classifier = Classifier(backbone, head, 1.0, few)
    made = {
        "aug": {idx: [{"file_name": "0.png", "class_name": "plain", "repeat": 0}] for idx in (0, 1)}
    }
    folders = {"aug": tmp_path / "none"}  # whose images would be read if they were shown
    write_mistakes(tmp_path / "m.html", "", classifier, val, train, [0, 1], folders, made)
    assert (tmp_path / "m.html").read_text(encoding="utf-8").count("<figure>") == 2
    for other in ({"class_names": ["a", "b"]}, {"crop_to_object": True}):
        classifier = Classifier(backbone, head, 1.0, facts | other)
        with pytest.raises(UserError, match="mistakes: the classifier was trained on other"):
            find_mistakes(classifier, val, train, [0, 1], [])
