"""train_classifier.py --aug_name a b: one classifier of several sets of images."""

import csv
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import semantic_aug
import train_classifier
from semantic_aug import UserError
from semantic_aug.cluster.chain import commands_of
from semantic_aug.cluster.status import done_lines
from semantic_aug.datasets import build_dataset
from semantic_aug.evaluation.sampling import draw_epoch, load_examples
from semantic_aug.experiment.config import read_config
from semantic_aug.experiment.names import Trial
from semantic_aug.experiment.timing import FINE_TUNE, GENERATE, TRAIN, seconds_per_trial, timed
from semantic_aug.generative_augmentation import GenerativeAugmentation
from semantic_aug.report import __main__ as report
from semantic_aug.settings.classification import Classification, TrainingOptions
from semantic_aug.settings.common import Run
from semantic_aug.stages.classified_photos import in_turn, training_photos

RESULTS = Path("output/e/results")


class Shifted(GenerativeAugmentation):
    """Stands for a model: photos a little darker, by an amount of their own."""

    def augment(self, images, labels, metadata, generators):
        made = []
        for image, generator in zip(images, generators):
            shift = int(torch.randint(20, (), generator=generator))
            made.append(image.point(lambda value, shift=shift: value - shift))
        return made, [[] for _ in made]


def make_set(name: str, number: int, seed: int = 0) -> Path:
    folder = Path(f"output/e/{name}/seed={seed}_ex=1")
    dataset = build_dataset("folder", "train", data_dir="photos", seed=seed, examples_per_class=1,
                            generative_aug=Shifted(), synthetic_dir=folder)  # fmt: skip
    dataset.generate_augmentations(number)
    return folder


@pytest.fixture
def train(photos, workdir, resnet, sketched, called):
    """Run train_classifier.py on photos with the sets a, of 2 images, and b, of 3: its lines."""
    make_set("a", 2)
    make_set("b", 3)

    def train(*flags, status=0):
        argv = ["--dataset=folder", "--data_dir=photos", "--experiment_name=e",
                f"--classifier_backbone={resnet}", "--num_epochs=1", "--iterations_per_epoch=2",
                "--batch_size=4", "--augmentation=none", "--device=cpu", *flags]  # fmt: skip
        ended, out, err = called(train_classifier.main, *argv)
        assert ended == status, err
        return err if status else out

    return train


def rows(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_classifier_has_the_images_of_all_sets(train, capsys):
    said = train("--aug_name", "a", "b")
    assert "seed=0_ex=1: 3 photos and 15 synthetic images of 3 classes" in said
    assert said.splitlines()[-2] == f"results: {RESULTS}/a+b"
    config = read_config(RESULTS / "a+b")
    assert config["settings"]["aug_name"] == config["arguments"]["aug_name"] == ["a", "b"]
    ids = [read_config(Path(f"output/e/{name}/seed=0_ex=1"))["id"] for name in ("a", "b")]
    noted = config["settings"]["synthetic images of seed=0_ex=1"]
    assert noted.startswith(f"a: {ids[0]}, words ") and f", 2 per photo; b: {ids[1]}, " in noted
    assert {row["method"] for row in rows(RESULTS / "a+b/summary.csv")} == {"a+b"}
    assert "1 of 1 trials are finished: skipped" in train("--aug_name", "a", "b")
    # The method is a name like any other, wherever results are named.
    train("--num_synthetic=0")
    said = train("--aug_name", "b", "--compare", "a+b", "e:a+b", "real")
    assert "b - a+b, 1 per class, val" in said and "b - e:a+b, 1 per class, val" in said
    said = train("--aug_name", "a", "b", "--compare", "real")
    assert "semantic_aug.report" in said and said.endswith(" --aug_name a b\n")
    assert (TRAIN, "a+b", Trial(0, 1)) in done_lines(Path("output/e"))
    report.main(["--dataset=folder", "--data_dir=photos", "--experiment_name=e",
                 "--aug_name", "a", "b"])  # fmt: skip


def test_one_set_is_recorded_as_before(train):
    train("--aug_name", "a")
    text = (RESULTS / "a/config.json").read_text()
    assert text.count('"aug_name": "a"') == 2  # among settings and arguments
    identity = read_config(Path("output/e/a/seed=0_ex=1"))["id"]
    noted = json.loads(text)["settings"]["synthetic images of seed=0_ex=1"]
    assert noted.startswith(f"{identity}, words ") and noted.endswith(", 2 per photo")


def test_numbers_count_per_photo_and_set(train):
    assert "3 photos and 6 synthetic" in train("--aug_name", "a", "b", "--num_synthetic=1")
    error = train("--aug_name", "a", "b", "--num_synthetic=3", "--method=m", status=2)
    assert "3 of 9 synthetic images are missing in output/e/a/seed=0_ex=1" in error
    assert " --aug_name=a --num_synthetic=3 " in error
    error = train("--aug_name", "b", "lost", status=2)
    assert "no synthetic images in output/e/lost/" in error and " --aug_name=lost " in error
    error = train("--aug_name", "a", "b", "a", status=2)
    assert error.count("error: ") == 1 and "--aug_name: got a b a, expected each set once" in error
    assert not (RESULTS / "a+b+a").exists()


def test_results_of_other_sets_are_other_results(train):
    train("--aug_name", "a", "b", "--method=m")
    error = train("--aug_name", "a", "--method=m", status=2)
    assert "--aug_name: there a b, now a;" in error
    shutil.rmtree("output/e/b/seed=0_ex=1")
    make_set("b", 4)
    error = train("--aug_name", "a", "b", "--method=m", status=2)
    assert "synthetic images of seed=0_ex=1: there a: " in error and "4 per photo" in error


def test_sets_differ_and_trials_do_not(train):
    """Of each set, the images of all trials are to be made alike; the sets need not be."""
    for name in ("a", "b"):
        make_set(name, 3, seed=1)
    path = Path("output/e/b/seed=1_ex=1/config.json")
    config = json.loads(path.read_text())
    config["settings"]["strength"] = 0.5
    path.write_text(json.dumps(config))
    error = train("--aug_name", "a", "b", "--num_trials=2", status=2)
    assert "images in set 'b' of these trials were made with different settings: strength" in error
    assert "set 'a'" not in error
    assert "are trained" not in train("--aug_name", "a", "b", "--num_trials=2", "--mixed_settings")


def test_words_of_another_trial_in_one_set_are_named(train):
    path = Path("output/e/b/seed=0_ex=1/config.json")
    for note, shown in ({}, ""), ({"borrowed_words": "seed=7_ex=4"}, "1"):
        path.write_text(json.dumps(json.loads(path.read_text()) | note))
        train("--aug_name", "a", "b")
        assert {row["borrowed_words"] for row in rows(RESULTS / "a+b/summary.csv")} == {shown}
    path = Path("output/e/a/seed=0_ex=1/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"borrowed_words": None}))
    train("--aug_name", "a", "b")
    words = {"seed=0_ex=1": "seed=7_ex=4"}
    assert read_config(RESULTS / "a+b")["borrowed_words"] == words


def test_sets_cost_together(tmp_path):
    for stage, method, trials in (
        (GENERATE, "a", (0, 1)), (GENERATE, "b", (0,)), (GENERATE, "c", (0,)),
        (TRAIN, "a+b", (0,)), (FINE_TUNE, "", (0,)),
    ):  # fmt: skip
        for seed in trials:
            with timed(tmp_path, stage, method, Trial(seed, 1)) as work:
                work.images = 1
    for path in (tmp_path / "timing").iterdir():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for number, line in enumerate(lines):
            line["seconds"] = 10**number
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = seconds_per_trial(tmp_path, "a+b", ("a", "b"), 1)
    assert found == {GENERATE: (1 + 10) / 2 + 100, TRAIN: 10_000}


def test_python_takes_several_names(train, resnet):
    run = Run("e", dataset="folder", data_dir="photos")
    table = semantic_aug.train_classifier(
        run, aug_name=("b", "a"), classifier_backbone=resnet, num_epochs=1, iterations_per_epoch=1,
        augmentation="none", device="cpu",
    )  # fmt: skip
    assert table.attrs["folder"] == "output/e/results/b+a"


def test_variants_are_drawn_from_all_sets(train):
    settings, trial = Classification(aug_name=("a", "b")), Trial(0, 1)
    dataset = build_dataset("folder", "train", data_dir="photos", seed=0, examples_per_class=1)
    folders = [Path(f"output/e/{name}/seed=0_ex=1") for name in settings.aug_name]
    photos = training_photos(Run("e", dataset="folder"), settings, trial, dataset, folders)
    names = ["a", "b", "a", "b", "b"]
    for variants in photos.synthetic_examples.values():
        assert [path.parent.parent.name for path, _ in variants] == names
    examples = load_examples(photos, (8, 8))
    options = TrainingOptions(
        iterations_per_epoch=500, batch_size=20, synthetic_probability=1.0, num_epochs=1
    )
    shown = draw_epoch(examples, options, torch.Generator().manual_seed(0)).flatten()
    counts = torch.bincount(shown, minlength=3 + 15)
    assert (counts[:3] == 0).all()
    assert (counts[3:] / len(shown)).tolist() == pytest.approx([1 / 15] * 15, rel=0.2)


@given(st.lists(st.integers(0, 6), max_size=4))
def test_every_variant_has_its_turn(sizes):
    sets = [[(name, number) for number in range(size)] for name, size in enumerate(sizes)]
    by_turn = sorted(itertools.chain(*sets), key=lambda each: (each[1], each[0]))
    assert in_turn(sets) == by_turn


def test_a_chain_makes_sets_and_trains_on_all(tmp_path):
    file = tmp_path / "both.args"
    file.write_text("--dataset folder --experiment_name e generate: --aug_name a\n"
                    "generate: --aug_name b train_classifier: --aug_name a b")  # fmt: skip
    found = [" ".join(each.argv) for each in commands_of([f"@{file}"])]
    assert [line.split()[-2:] for line in found[2:]] == [["--aug_name", "a"], ["--aug_name", "b"],
                                                         ["a", "b"]]  # fmt: skip


def test_names_are_checked_each():
    with pytest.raises(UserError, match="aug_name is empty"):
        Classification(aug_name=("a", ""))
