"""train_classifier.py and what it is made of: features, augmentation, training, result files."""

import csv
import dataclasses
import json
import math
import random
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
from conftest import save_resnet
from PIL import Image

import train_classifier
from semantic_aug.evaluation import features, pictures, training
from semantic_aug.evaluation.backbone import load_backbone
from semantic_aug.evaluation.features import load_split, split_features
from semantic_aug.evaluation.results import TEST, TRAINING, VALIDATION, metric_names
from semantic_aug.evaluation.sampling import load_examples
from semantic_aug.evaluation.training import (
    TrainingOptions,
    known_logits,
    train_trial,
)
from semantic_aug.experiment.config import read_config
from semantic_aug.experiment.names import Trial
from semantic_aug.experiment.timing import GENERATE, TRAIN, timed
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.generative_augmentation import GenerativeAugmentation
from semantic_aug.settings.classification import Classification
from semantic_aug.settings.common import Run
from semantic_aug.stages import train_classifier as stage

CPU = torch.device("cpu")
COLOURS = {"red": (230, 30, 30), "big green": (30, 200, 40), "blue": (20, 40, 220)}
COUNTS = {"train": 3, "val": 4, "test": 5}


class Colours(FewShotDataset):
    """data_dir/SPLIT/CLASS_NUMBER.png; class_names do not depend on the files."""

    default_dir = "photos"
    class_names = (*COLOURS, "absent")

    def __init__(self, names: str = "", **kwargs):
        if names:
            self.class_names = names.split(",")
        super().__init__(**kwargs)

    def list_records(self, split):
        for path in self.images_in(self.data_dir / split):
            yield self.record(path, class_name=path.stem.rpartition("_")[0])


class OldStyle(FewShotDataset):
    """Written as the predecessors' datasets are: no test split, no source, its own few shots."""

    class_names, num_classes = ["red", "blue"], 2

    def __init__(
        self,
        *args,
        split="train",
        seed=0,
        examples_per_class=None,
        generative_aug=None,
        synthetic_probability=0.5,
        synthetic_dir=None,
        image_size=(256, 256),
    ):
        super().__init__(
            *args,
            examples_per_class=examples_per_class,
            generative_aug=generative_aug,
            synthetic_probability=synthetic_probability,
            synthetic_dir=synthetic_dir,
        )
        number, shift = {"train": (examples_per_class or 4, 9), "val": (3, 0)}[split]
        self.photos = [
            (Image.new("RGB", (20, 16 + shift + other), COLOURS[name]), label)
            for label, name in enumerate(self.class_names)
            for other in range(number)
        ]

    def __len__(self):
        return len(self.photos)

    def get_image_by_idx(self, idx):
        return self.photos[idx][0]

    def get_label_by_idx(self, idx):
        return self.photos[idx][1]

    def get_metadata_by_idx(self, idx):
        return {"name": self.class_names[self.photos[idx][1]]}


class Tinted(GenerativeAugmentation):
    """Stands for the diffusion model: photos with a little noise of their own generator."""

    def augment(self, images, labels, metadata, generators):
        results = []
        for image, generator in zip(images, generators):
            shift = int(torch.randint(20, (), generator=generator))
            results.append(image.point(lambda value, shift=shift: value - shift))
        return results, [[] for _ in results]


def draw_photos(root: Path, counts=COUNTS, colours=COLOURS, order=0) -> Path:
    """One file per photo, each with a little noise of its own, written in an order of choice."""
    jobs = [(s, c, n) for s, count in counts.items() for c in colours for n in range(count)]
    random.Random(order).shuffle(jobs)
    for split, name, number in jobs:
        noise = random.Random(f"{split} {name} {number}")
        colour = tuple(value + noise.randint(-20, 20) for value in colours[name])
        path = root / split / f"{name}_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 20), colour).save(path)
    return root


@pytest.fixture
def coloured(workdir) -> Path:
    """A working directory with photos in three colours."""
    draw_photos(workdir / "photos")
    return workdir


@pytest.fixture
def data(coloured, sketched) -> Path:
    return coloured


def arguments(backbone, *more, experiment="exp", dataset="Colours"):
    common = f"--dataset={__name__}:{dataset} --experiment_name={experiment}".split()
    short = ["--num_epochs=2", "--iterations_per_epoch=5", "--batch_size=4", "--augmentation=none"]
    return [*common, f"--classifier_backbone={backbone}", *short, *more]


def run(backbone, *more, **kwargs):
    train_classifier.main(arguments(backbone, *more, **kwargs))


def fails(capsys, backbone, *more, **kwargs) -> str:
    """The one line on stderr of a command that ends with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(backbone, *more, **kwargs)
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert ended.value.code == 2
    assert len(lines) == 1
    return lines[0]


def read(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def final(path, split=VALIDATION, metric="Accuracy") -> float:
    return float(
        [r for r in read(path) if (r["split"], r["metric"]) == (split, metric)][-1]["value"]
    )


def val_features(backbone, dataset):
    return split_features(backbone, load_split(dataset, backbone.image_size))


def make_synthetic(folder: Path, seed: int, examples: int, number: int) -> None:
    dataset = Colours(
        seed=seed, examples_per_class=examples, generative_aug=Tinted(), synthetic_dir=folder
    )
    dataset.generate_augmentations(number)


# --- the command -----------------------------------------------------------------------------


def test_files_columns_and_rows_of_every_trial(data, resnet, capsys):
    run(resnet, "--num_synthetic=0", "--examples_per_class", 1, 2, "--num_trials=2", "--seed=3")
    folder = data / "output/exp/results/real"
    assert {path.name for path in folder.iterdir()} == {
        "accuracy.png",
        *(f"calibration_{seed}_{k}.csv" for seed in (3, 4) for k in (1, 2)),
        *(f"classifier_{seed}_{k}" for seed in (3, 4) for k in (1, 2)),
        "config.json",
        *(f"confusion_{seed}_{k}.csv" for seed in (3, 4) for k in (1, 2)),
        "confusion.png",
        "per_class.png",
        *(f"results_{seed}_{k}.csv" for seed in (3, 4) for k in (1, 2)),
        "summary.csv",
    }
    rows = read(folder / "results_4_2.csv")
    assert list(rows[0]) == ["seed", "examples_per_class", "epoch", "value", "metric", "split"]
    assert {(row["seed"], row["examples_per_class"]) for row in rows} == {("4", "2")}
    counts = Counter((row["split"], row["epoch"]) for row in rows)
    metrics = 2 * (1 + len(COLOURS))  # loss and accuracy: the mean, and each class with photos
    whole = ("Top-1", "Top-5", "Macro F1", "ECE")
    assert counts == {
        **{(TRAINING, epoch): metrics for epoch in "01"},
        (VALIDATION, "0"): metrics + len(whole),
        (VALIDATION, "1"): metrics + len(whole) + 1,  # and that it is the selected epoch
        (TEST, "1"): metrics + len(whole),
    }
    assert {row["metric"] for row in rows} == {
        *(
            f"{what}{name}"
            for what in ("Loss", "Accuracy")
            for name in ("", " Red", " Big Green", " Blue")
        ),
        *whole,
        "Selected",
    }
    for split in (VALIDATION, TEST):
        classes = [
            final(folder / "results_4_2.csv", split, f"Accuracy {n.title()}") for n in COLOURS
        ]
        mean = final(folder / "results_4_2.csv", split)
        assert mean == pytest.approx(sum(classes) / 3, abs=1e-6)
    out = capsys.readouterr()
    assert "seed=4_ex=2: 6 photos and 0 synthetic images of 3 classes" in out.out
    assert out.err.count("no training photo of 'absent'") == 1
    assert "no test photo" not in out.err  # of the classes that were trained


def test_summary_has_mean_and_student_interval_over_trials(data, resnet, capsys):
    run(resnet, "--num_synthetic=0", "--num_trials=3", "--learning_rate=0.003")
    folder = data / "output/exp/results/real"
    values = [final(folder / f"results_{seed}_1.csv", TEST) for seed in range(3)]
    row = next(r for r in read(folder / "summary.csv") if r["split"] == TEST)
    mean = sum(values) / 3
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    assert (row["method"], row["examples_per_class"], row["num_trials"]) == ("real", "1", "3")
    assert float(row["mean_accuracy"]) == pytest.approx(mean, abs=1e-6)
    assert float(row["std_accuracy"]) == pytest.approx(std, abs=1e-6)
    half = 4.302653 * std / math.sqrt(3)
    assert float(row["ci95_low"]) == pytest.approx(mean - half, abs=1e-5)
    assert float(row["ci95_high"]) == pytest.approx(mean + half, abs=1e-5)
    assert f"{100 * mean:.1f} ± {100 * half:.1f}" in capsys.readouterr().out
    run(resnet, "--num_synthetic=0", "--method=one")
    one = read(data / "output/exp/results/one/summary.csv")
    assert [r["std_accuracy"] + r["ci95_low"] + r["ci95_high"] for r in one] == ["", "", ""]


@pytest.mark.parametrize("augmentation", ["none", "flip-rotate", "randaugment"])
def test_classes_of_one_colour_each_are_learned(data, resnet, augmentation):
    more = ["--num_synthetic=0", "--learning_rate=0.02", "--iterations_per_epoch=40"]
    run(resnet, *more, f"--augmentation={augmentation}", "--examples_per_class=3", "--batch_size=8")
    file = data / "output/exp/results/real/results_0_3.csv"
    least = 1 if augmentation != "randaugment" else 0.8  # it changes colours
    assert final(file, VALIDATION) >= least
    assert final(file, TEST) >= least


def test_shuffled_labels_stay_at_chance(workdir, resnet):
    # Every class holds every colour equally often; photos of one colour differ in size alone.
    for height, split in enumerate(COUNTS, 16):
        for number in range(9):
            path = workdir / "photos" / split / f"{list(COLOURS)[number % 3]}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, height), list(COLOURS.values())[number // 3]).save(path)
    run(resnet, "--num_synthetic=0", "--examples_per_class=3", "--learning_rate=0.02")
    file = workdir / "output/exp/results/real/results_0_3.csv"
    assert final(file, VALIDATION) == pytest.approx(1 / 3)
    assert final(file, TEST) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "flags, views", [(["none"], 1), (["flip-rotate", "--views=5"], 5), (["flip-rotate"], None)]
)
def test_every_image_or_view_passes_the_backbone_once(data, resnet, monkeypatch, flags, views):
    passed, load = [], load_backbone

    def counting(*args):
        backbone = load(*args)
        backbone.model.register_forward_hook(lambda m, i, output: passed.append(len(output[0])))
        return backbone

    monkeypatch.setattr(stage, "load_backbone", counting)
    run(
        resnet,
        "--num_synthetic=0",
        "--num_trials=2",
        "--num_epochs=4",
        "--examples_per_class",
        1,
        2,
        "--augmentation",
        *flags,
    )
    evaluated, trained = 3 * (COUNTS["val"] + COUNTS["test"]), 2 * 3 * (1 + 2) * (views or 0)
    if views is None:  # every draw of four trials
        trained = 4 * 4 * 5 * 4
    assert sum(passed) == evaluated + trained


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["none"], "--views 4 means nothing with --augmentation none"),
        (["flip-rotate", "cutmix"], "--views 4: cutmix mixes the images of a batch"),
        (["mixup"], "--views 4: mixup mixes the images of a batch"),
        (
            ["flip-rotate", "--finetune=all"],
            "--views 4 needs a frozen backbone, and --finetune all",
        ),
        (["flip-rotate", "--finetune=last:1"], "--finetune last:1 trains it"),
    ],
)
def test_views_that_cannot_be_kept_are_refused(data, resnet, capsys, monkeypatch, flags, expected):
    monkeypatch.setattr(stage, "load_backbone", lambda *_: 1 / 0)
    line = fails(capsys, resnet, "--num_synthetic=0", "--views=4", "--augmentation", *flags)
    assert expected in line
    assert not (data / "output").exists()


def test_views_are_compared_and_leave_no_trace_where_they_are_not_given(data, resnet, capsys):
    flags = ["--num_synthetic=0", "--augmentation=flip-rotate"]
    run(resnet, *flags)
    folder = data / "output/exp/results"
    assert "views" not in (folder / "real/config.json").read_text()
    assert "--views: there none, now 2;" in fails(capsys, resnet, *flags, "--views=2")
    run(resnet, *flags, "--views=2", "--method=kept")
    config = read_config(folder / "kept")
    assert config["settings"]["views"] == config["arguments"]["views"] == 2
    fresh, kept = ((folder / name / "results_0_1.csv").read_bytes() for name in ("real", "kept"))
    assert fresh != kept


def test_views_that_do_not_fit_are_refused_before_results_are_removed(data, resnet, capsys):
    flags = ["--num_synthetic=0", "--augmentation=flip-rotate"]
    run(resnet, *flags)
    line = fails(
        capsys, resnet, *flags, "--overwrite", "--views=9999", "--image_memory=1", "--batch_size=3"
    )
    assert "--views 9999 of 3 images in seed=0_ex=1 are" in line
    assert (data / "output/exp/results/real/results_0_1.csv").exists()


def test_test_split_is_scored_once_per_trial_and_after_the_last_epoch(data, resnet, monkeypatch):
    scored = []

    def counting(head, split):
        scored.append(len(split.labels))
        return known_logits(head, split)

    monkeypatch.setattr(training, "known_logits", counting)
    monkeypatch.setattr(stage, "known_logits", counting)
    run(resnet, "--num_synthetic=0", "--num_epochs=3")
    # The val split after every epoch, and once more for the temperature.
    assert scored == [3 * COUNTS["val"]] * 4 + [3 * COUNTS["test"]]


@pytest.mark.parametrize(
    "flags", [["none"], ["flip-rotate"], ["randaugment"], ["randaugment", "--views=3"]]
)
def test_equal_seeds_give_equal_files_whatever_the_order_of_photos(data, resnet, flags):
    draw_photos(data / "again", order=1)
    make_synthetic(data / "output/exp/aug/seed=0_ex=2", 0, 2, 2)
    files = []
    for number, root in enumerate(("photos", "again")):
        torch.manual_seed(number)  # the global state must not matter
        before = torch.random.get_rng_state()
        run(
            resnet,
            f"--method={number}",
            f"--data_dir={root}",
            "--examples_per_class=2",
            "--augmentation",
            *flags,
        )
        assert torch.equal(torch.random.get_rng_state(), before)
        files.append((data / f"output/exp/results/{number}/results_0_2.csv").read_bytes())
    assert files[0] == files[1]


def test_another_seed_gives_another_file(data, resnet):
    run(resnet, "--num_synthetic=0", "--num_trials=2", "--examples_per_class=3")
    folder = data / "output/exp/results/real"
    values = [[r["value"] for r in read(folder / f"results_{seed}_3.csv")] for seed in (0, 1)]
    assert values[0] != values[1]


def test_finished_trials_are_skipped_and_missing_ones_made(data, resnet, capsys):
    run(resnet, "--num_synthetic=0", "--num_trials=2")
    folder = data / "output/exp/results/real"
    whole = (folder / "results_1_1.csv").read_bytes()
    kept = (folder / "results_0_1.csv").stat().st_mtime_ns
    (folder / "results_1_1.csv").unlink()
    run(resnet, "--num_synthetic=0", "--num_trials=3", "--overwrite")  # the settings are the same
    assert "1 of 3 trials are finished: skipped" in capsys.readouterr().out
    assert (folder / "results_0_1.csv").stat().st_mtime_ns == kept
    assert (folder / "results_1_1.csv").read_bytes() == whole
    assert {row["num_trials"] for row in read(folder / "summary.csv")} == {"3"}


def test_damaged_results_are_made_again_by_the_same_command(data, resnet, capsys):
    flags = ["--num_synthetic=0", "--num_trials=4"]
    run(resnet, *flags)
    folder = data / "output/exp/results/real"
    names = [f"{what}_{seed}_1.csv" for what in ("results", "confusion") for seed in range(4)]
    whole = {name: (folder / name).read_bytes() for name in names}
    (folder / "results_1_1.csv").write_bytes(whole["results_1_1.csv"][:700])
    (folder / "results_2_1.csv").write_bytes(whole["results_2_1.csv"] * 2)
    (folder / "confusion_3_1.csv").write_bytes(whole["confusion_3_1.csv"][:-9])
    kept = (folder / "results_0_1.csv").stat().st_mtime_ns
    capsys.readouterr()
    run(resnet, "--num_synthetic=0")  # of one trial: the others do not count
    out = capsys.readouterr()
    assert out.err.count("does not count, and the command that made it makes it again") == 3
    assert {row["num_trials"] for row in read(folder / "summary.csv")} == {"1"}
    run(resnet, *flags)
    assert "1 of 4 trials are finished: skipped" in capsys.readouterr().out
    assert {name: (folder / name).read_bytes() for name in names} == whole
    assert (folder / "results_0_1.csv").stat().st_mtime_ns == kept
    assert {row["num_trials"] for row in read(folder / "summary.csv")} == {"4"}


def test_two_trials_are_listed(data, resnet, capsys):
    run(resnet, "--num_synthetic=0", "--num_trials=2", "--seed", 2**61)
    folder = data / "output/exp/results/real"
    files = [folder / f"results_{2**61 + number}_1.csv" for number in range(2)]
    cells = [
        "2 trials: " + ", ".join(f"{100 * final(file, split):.1f}" for file in files)
        for split in (VALIDATION, TEST)
    ]
    (line,) = [s for s in capsys.readouterr().out.splitlines() if "trials:" in s]
    assert line.split() == ["1", "2", *" ".join(cells).split()]


def test_other_settings_are_refused_and_with_overwrite_made_again(data, resnet, capsys):
    run(resnet, "--num_synthetic=0", "--num_trials=2")
    folder = data / "output/exp/results/real"
    before = (folder / "results_0_1.csv").read_bytes()
    run(resnet, "--num_synthetic=0", "--backbone_precision=float32")  # what a CPU means
    assert "backbone_precision" not in read_config(folder)["settings"]
    line = fails(capsys, resnet, "--num_synthetic=0", "--backbone_precision=bfloat16")
    assert "--backbone_precision: there none, now bfloat16;" in line
    line = fails(capsys, resnet, "--num_synthetic=0", "--batch_size=3")
    assert "--batch_size: there 4, now 3;" in line and "--overwrite" in line
    assert (folder / "results_0_1.csv").read_bytes() == before
    run(resnet, "--num_synthetic=0", "--batch_size=3", "--overwrite")
    assert (folder / "results_0_1.csv").read_bytes() != before
    assert not (folder / "results_1_1.csv").exists()  # of the old settings, and not asked for
    assert read_config(folder)["settings"]["batch_size"] == 3
    (folder / "config.json").unlink()
    assert "no readable config.json" in fails(capsys, resnet, "--num_synthetic=0", "--batch_size=3")


def test_results_of_other_photos_are_not_mixed(data, resnet, capsys):
    photos = "--dataset=folder", "--num_synthetic=0"  # which takes train, val, test for classes
    shutil.copytree(data / "photos", data / "others")
    run(resnet, *photos, "--data_dir=photos", "--num_trials=2")
    run(resnet, *photos, "--data_dir=others", "--num_trials=2")  # a copy: the same photos
    assert "2 of 2 trials are finished" in capsys.readouterr().out
    for size, path in enumerate(sorted((data / "others").rglob("*.png")), 9):
        Image.new("RGB", (24, size), "white").save(path)
    line = fails(capsys, resnet, *photos, "--data_dir=others", "--num_trials=3")
    assert "results made with other settings: evaluation photos: there" in line
    shutil.rmtree(data / "others")
    shutil.copytree(data / "photos", data / "others")
    one = next(path for path in sorted((data / "others").rglob("*")) if path.suffix == ".png")
    shutil.copytree(one.parent, one.parent.with_name("zebra"))
    line = fails(capsys, resnet, *photos, "--data_dir=others", "--num_trials=1")
    assert " photos: there" in line
    run(resnet, *photos, "--data_dir=others", "--method=more", "--compare=real")
    assert "real was made with other settings: photos (here" in capsys.readouterr().err


def test_a_moved_backbone_is_the_same_and_other_weights_are_not(data, resnet, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    run(resnet, "--num_synthetic=0")
    shutil.copytree(resnet, tmp_path / "moved")
    run(tmp_path / "moved", "--num_synthetic=0")
    assert "1 of 1 trials are finished" in capsys.readouterr().out
    weights = tmp_path / "moved" / "model.safetensors"
    tensors = load_file(weights)
    save_file({key: 2 * t if t.ndim == 4 else t for key, t in tensors.items()}, weights)
    assert "--classifier_backbone: there" in fails(capsys, tmp_path / "moved", "--num_synthetic=0")


def test_shards_share_trials_and_an_idle_one_says_so(data, resnet, capsys):
    trials = ["--num_synthetic=0", "--num_trials=3"]
    run(resnet, *trials, "--shard_index=1", "--num_shards=2")
    folder = data / "output/exp/results/real"
    assert [path.name for path in folder.glob("results_*")] == ["results_0_1.csv"]
    run(resnet, *trials, "--shard_index=0", "--num_shards=2")
    assert len(list(folder.glob("results_*"))) == 3
    run(resnet, *trials, "--method=whole")
    for seed in range(3):
        name = f"results_{seed}_1.csv"
        assert (folder / name).read_bytes() == (folder.parent / "whole" / name).read_bytes()
    capsys.readouterr()
    run(resnet, *trials, "--shard_index=3", "--num_shards=4")
    assert "nothing to do: shard 3 of 4" in capsys.readouterr().out


def test_classes_and_logdir(data, resnet, capsys):
    run(resnet, "--num_synthetic=0", "--classes", "blue", "red", "--logdir=elsewhere/logs")
    rows = read(data / "elsewhere/logs/real/results_0_1.csv")
    assert {row["metric"] for row in rows if "Loss" in row["metric"]} == {
        "Loss",
        "Loss Red",
        "Loss Blue",
    }
    out = capsys.readouterr()
    assert "2 photos and 0 synthetic images of 2 classes" in out.out
    assert "green" not in out.err and "absent" not in out.err
    assert not (data / "output/exp/results").exists()


def test_a_dataset_without_test_split_reports_two_splits(workdir, resnet, capsys):
    more = ["--num_synthetic=0", "--learning_rate=0.02", "--iterations_per_epoch=30"]
    run(resnet, *more, dataset="OldStyle")
    file = workdir / "output/exp/results/real/results_0_1.csv"
    assert {row["split"] for row in read(file)} == {TRAINING, VALIDATION}
    assert final(file) == 1
    out = capsys.readouterr()
    assert out.err.count("no test split") == 1
    assert out.out.splitlines()[-3].split() == ["1", "1", "100.0", "-"]


def test_unreadable_evaluation_photos_are_named_and_counted(data, resnet, capsys):
    (data / "photos/val/red_0.png").write_bytes(b"")
    broken = data / "photos/val/blue_1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    run(resnet, "--num_synthetic=0")
    err = capsys.readouterr().err
    assert "val/red_0.png" in err and "val/blue_1.png" in err
    assert "2 of 12 photos of split 'val' cannot be read" in err


def test_a_cached_hub_model_serves_offline_and_quietly(data, resnet, capfd, monkeypatch):
    cached = data / "hub/models--microsoft--resnet-50"
    shutil.copytree(resnet, cached / "snapshots/abc")
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "hub")
    capfd.readouterr()
    run("resnet50", "--num_synthetic=0", "--classes", "red", "blue")
    out, err = capfd.readouterr()
    bars = ("val features", "test features", "seed=0_ex=1")
    assert all(line.startswith(bars) for line in err.splitlines() if line)
    assert out.splitlines()[-2] == "results: output/exp/results/real"
    assert out.splitlines()[-1].startswith("next: python generate_augmentations.py --experiment_na")
    settings = read_config(data / "output/exp/results/real")["settings"]
    assert settings["image_size"] == [16, 16]
    assert settings["image_mean"] == pytest.approx([0.4, 0.5, 0.6])


# --- synthetic images ------------------------------------------------------------------------


def test_synthetic_images_of_the_generation_stage_are_used(data, resnet, capsys):
    for k in (1, 2):
        make_synthetic(data / f"output/exp/aug/seed=0_ex={k}", 0, k, 4)
    run(resnet, "--examples_per_class", 1, 2)
    out = capsys.readouterr().out
    assert "seed=0_ex=1: 3 photos and 12 synthetic images of 3 classes" in out
    assert "seed=0_ex=2: 6 photos and 24 synthetic images of 3 classes" in out
    run(resnet, "--num_synthetic=3", "--method=three")
    assert "3 photos and 9 synthetic images" in capsys.readouterr().out
    assert (data / "output/exp/results/aug/results_0_2.csv").exists()


def test_missing_synthetic_images_name_the_command_that_makes_them(data, resnet, capsys):
    line = fails(capsys, resnet, "--seed=2", "--aug_name=mild", "--num_synthetic=5")
    assert (
        "python generate_augmentations.py --experiment_name=exp --seed=2 "
        f"--dataset={__name__}:Colours --aug_name=mild --num_synthetic=5 " in line
    )
    assert not (data / "output").exists()
    make_synthetic(data / "output/exp/mild/seed=2_ex=1", 2, 1, 4)
    assert "3 of 15 synthetic images are missing" in fails(
        capsys, resnet, "--seed=2", "--aug_name=mild", "--num_synthetic=5"
    )
    assert not (data / "output/exp/results").exists()


def test_synthetic_images_of_other_photos_are_refused(data, resnet, capsys):
    for seed in range(1, 9):
        if (
            Colours(seed=seed, examples_per_class=1).sources()
            != Colours(examples_per_class=1).sources()
        ):
            break
    make_synthetic(data / "output/exp/aug/seed=0_ex=1", seed, 1, 1)
    assert "not among the training photos" in fails(capsys, resnet)


def test_other_synthetic_images_are_other_settings_for_finished_trials_alone(data, resnet, capsys):
    for seed in (0, 1):
        make_synthetic(data / f"output/exp/aug/seed={seed}_ex=1", seed, 1, 1)
    run(resnet)
    make_synthetic(data / "output/exp/aug/seed=1_ex=1", 1, 1, 2)  # not yet trained on
    run(resnet, "--num_trials=2")
    assert "1 of 2 trials are finished" in capsys.readouterr().out
    run(resnet, "--seed=1")  # leaves what is noted of seed 0 alone
    assert "1 of 1 trials are finished" in capsys.readouterr().out
    make_synthetic(data / "output/exp/aug/seed=0_ex=1", 0, 1, 2)
    line = fails(capsys, resnet, "--num_trials=2")
    assert "synthetic images of seed=0_ex=1: there" in line and "seed=1" not in line
    run(resnet, "--num_trials=2", "--overwrite")
    assert "2 results of other settings removed" in capsys.readouterr().out


@pytest.mark.parametrize("shift, accuracy", [(0, 1.0), (1, 0.0)])
def test_wrong_synthetic_labels_spoil_the_classifier(data, resnet, shift, accuracy):
    backbone = load_backbone(resnet, CPU)
    train, val = Colours(examples_per_class=3), Colours(split="val")
    train.synthetic_examples = {
        idx: [(train.get_image_by_idx(idx), (train.get_label_by_idx(idx) + shift) % 3)]
        for idx in range(len(train))
    }
    options = TrainingOptions(2, 60, 8, 0.02, synthetic_probability=1.0, augmentation=())
    examples = load_examples(train, backbone.image_size)
    validation = val_features(backbone, val)
    result = train_trial(examples, lambda: validation, backbone, options, Trial(0, 3), 4)
    assert result.validation.mean_accuracy == accuracy


# --- training and evaluation -----------------------------------------------------------------


def test_the_backbone_is_frozen_and_its_batch_norm_does_not_move(data, resnet):
    backbone = load_backbone(resnet, CPU)
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    assert any("running_mean" in key for key in before)
    examples = load_examples(Colours(examples_per_class=1), backbone.image_size)
    validation = val_features(backbone, Colours(split="val"))
    options = TrainingOptions(1, 5, 4, 0.01)
    head = train_trial(examples, lambda: validation, backbone, options, Trial(0, 1), 4).head
    after = backbone.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    start = training.make_head(
        backbone.num_features, head.trained, CPU, training.trial_generator(Trial(0, 1))
    )
    moved = (head.linear.weight != start.linear.weight).any(dim=1)
    assert moved.tolist() == [True, True, True, False]  # "absent" has no photo


def test_a_class_without_training_photos_is_never_predicted(data, resnet):
    for path in (data / "photos/train").glob("blue_*"):
        path.unlink()
    backbone = load_backbone(resnet, CPU)
    examples = load_examples(Colours(), backbone.image_size)
    validation = val_features(backbone, Colours(split="val"))
    options = TrainingOptions(1, 30, 8, 0.02, augmentation=())
    result = train_trial(examples, lambda: validation, backbone, options, Trial(0, 1), 4)
    head, history = result.head, result.history
    predicted = head(validation.features).argmax(dim=1)
    assert set(predicted.tolist()) == {0, 1}
    assert history[0][1].accuracy.isnan().tolist() == [False, False, True, True]
    assert history[0][1].mean_accuracy == 1  # over the two classes that could be learned
    run(resnet, "--num_synthetic=0")
    rows = read(data / "output/exp/results/real/results_0_1.csv")
    assert "Accuracy Blue" not in {row["metric"] for row in rows}


@pytest.mark.parametrize(
    "flags",
    [
        ["--learning_rate=1e37"],
        ["--learning_rate=1e6"],
        ["--finetune=all", "--backbone_learning_rate=1e20"],
    ],
)
def test_a_diverging_loss_stops_and_leaves_no_result(data, resnet, capsys, flags):
    run(resnet, "--num_synthetic=0", "--method=m")
    for name in ("results_0_1.csv", "config.json"):
        (data / "output/exp/results/m" / name).unlink()
    line = fails(capsys, resnet, "--num_synthetic=0", "--method=m", *flags)
    rate = flags[-1].partition("=")[2].replace("e", "e+").replace("e+6", "e+06")
    assert "training diverges" in line and rate in line and "smaller" in line
    assert not list((data / "output/exp/results/m").glob("results_*"))


def test_mixed_images_are_learned_by_both_labels():
    """Image i shows image 1 - i alone: learned with its partner's label, a head turns round."""
    features, labels = torch.tensor([[5.0, 0], [0, 5.0]]), torch.tensor([0, 1])

    def learned(share):
        head = training.make_head(
            2, torch.ones(2, dtype=torch.bool), CPU, training.trial_generator(Trial(0, 1))
        )
        optimizer = torch.optim.Adam(head.linear.parameters(), lr=0.1)
        draws = torch.tensor([[0, 1]]).expand(60, -1)
        batch = (features, torch.tensor([1, 0]), torch.full((2,), share))
        training._train_epoch(head, optimizer, draws, labels, iter([batch] * 60))
        return head(features).softmax(dim=1)

    assert learned(1.0).argmax(dim=1).tolist() == [0, 1]
    assert learned(0.0).argmax(dim=1).tolist() == [1, 0]
    assert learned(0.75)[0, 0].item() == pytest.approx(0.75, abs=0.05)


def test_titles_that_would_meet_stay_as_they_are():
    assert metric_names(["cat", "toy train"]) == ["Cat", "Toy Train"]
    assert metric_names(["cat", "Cat", "dog"]) == ["cat", "Cat", "Dog"]


# --- protocol --------------------------------------------------------------------------------


def selected(rows) -> int:
    (row,) = [row for row in rows if row["metric"] == "Selected"]
    return int(row["epoch"])


def values_of(rows, split, metric="Accuracy") -> list[float]:
    return [float(r["value"]) for r in rows if (r["split"], r["metric"]) == (split, metric)]


@pytest.mark.parametrize("finetune", ["none", "all"])
def test_best_val_reports_the_best_epoch_and_test_by_its_weights(data, resnet, finetune):
    common = ["--num_synthetic=0", "--learning_rate=0.3", f"--finetune={finetune}"]
    common += ["--iterations_per_epoch=1", "--batch_size=1", "--augmentation=flip-rotate"]
    folder = data / "output/exp/results"
    run(resnet, *common, "--num_epochs=6", "--select=best_val", "--method=best")
    rows = read(folder / "best/results_0_1.csv")
    accuracies, losses = values_of(rows, VALIDATION), values_of(rows, VALIDATION, "Loss")
    ranks = [(accuracy, -loss) for accuracy, loss in zip(accuracies, losses)]
    best = ranks.index(max(ranks))
    assert selected(rows) == best < 5  # else the test says nothing
    assert {row["epoch"] for row in rows if row["split"] == TEST} == {str(best)}
    # Training that ends there gives the same numbers: the draws of an epoch come from one stream.
    run(resnet, *common, f"--num_epochs={best + 1}", "--method=short")
    short = read(folder / "short/results_0_1.csv")
    for metric in ("Accuracy", "Loss", "ECE", "Macro F1"):
        assert values_of(rows, TEST, metric) == values_of(short, TEST, metric)
    summary = {row["split"]: row for row in read(folder / "best/summary.csv")}
    assert float(summary[VALIDATION]["mean_accuracy"]) == pytest.approx(max(accuracies), abs=1e-6)
    run(resnet, *common, "--num_epochs=6", "--method=last")
    assert selected(read(folder / "last/results_0_1.csv")) == 5


def test_confusions_count_every_photo_of_a_split(data, resnet):
    run(resnet, "--num_synthetic=0", "--learning_rate=0.02", "--iterations_per_epoch=40")
    folder = data / "output/exp/results/real"
    rows = read(folder / "confusion_0_1.csv")
    for split, count in ((VALIDATION, COUNTS["val"]), (TEST, COUNTS["test"])):
        mine = [row for row in rows if row["split"] == split]
        for name in COLOURS:
            assert sum(int(row["count"]) for row in mine if row["true"] == name) == count
        right = sum(int(row["count"]) for row in mine if row["true"] == row["predicted"])
        assert right / (3 * count) == final(folder / "results_0_1.csv", split, "Top-1")


def test_classes_without_test_photos_are_named_and_left_out(data, resnet, capsys):
    for path in (data / "photos/test").glob("blue_*"):
        path.unlink()
    run(resnet, "--num_synthetic=0", "--learning_rate=0.02", "--iterations_per_epoch=40")
    assert "no test photo of 'blue': left out of its mean accuracy" in capsys.readouterr().err
    rows = read(data / "output/exp/results/real/results_0_1.csv")
    tested = {row["metric"] for row in rows if row["split"] == TEST}
    assert "Accuracy Red" in tested and "Accuracy Blue" not in tested


# --- speed: features, memory, workers --------------------------------------------------------


@pytest.fixture
def passed(monkeypatch) -> list[int]:
    """How many images each pass of a backbone had, counted without the probe when it is loaded."""
    counts = []

    def counting(*args):
        backbone = load_backbone(*args)
        backbone.model.register_forward_hook(lambda m, i, output: counts.append(len(output[0])))
        return backbone

    monkeypatch.setattr(stage, "load_backbone", counting)
    return counts


def test_validation_passes_once_for_fifty_epochs_and_in_the_next_run_never(data, resnet, passed):
    more = ["--num_synthetic=0", "--num_epochs=50", "--iterations_per_epoch=2"]
    run(resnet, *more)
    assert sum(passed) == 3 * (COUNTS["val"] + COUNTS["test"] + 1)
    passed.clear()
    run(resnet, *more, "--method=again")
    assert sum(passed) == 0
    folder = data / "output/exp/results"
    first, again = (folder / name / "results_0_1.csv" for name in ("real", "again"))
    assert first.read_bytes() == again.read_bytes()
    # Random augmentation changes what is trained on; what is evaluated stays.
    run(resnet, *more, "--method=flips", "--augmentation=flip-rotate")
    assert sum(passed) == 50 * 2 * 4


@pytest.mark.parametrize(
    ("value", "dtype"), [(math.nan, torch.float32), (math.inf, torch.float32), (1, torch.int64)]
)
def test_cached_features_that_are_no_numbers_are_made_again(tmp_path, caplog, value, dtype):
    """Else training would seem to diverge."""
    file, backbone = tmp_path / "key.safetensors", SimpleNamespace(num_features=2, device=CPU)
    rows = torch.tensor([[1.5, 2], [3, 4]])
    features._write(file, rows)
    found, read = features._read(file, 2, backbone)
    assert torch.equal(found, rows) and read.tolist() == [True, True]
    rows[1, 0] = value
    features._write(file, rows.to(dtype))
    assert features._read(file, 2, backbone) is None
    assert f"{file} does not hold finite features: made again" in caplog.text


def test_the_cache_knows_files_backbones_and_sizes_by_their_content(
    data, resnet, passed, tmp_path, capsys
):
    def passes(*flags, backbone=resnet):
        passed.clear()
        run(backbone, "--num_synthetic=0", *flags, f"--method=m{len(list(data.rglob('m*')))}")
        return sum(passed)

    val, test, train = (3 * COUNTS[split] for split in ("val", "test", "train"))
    everything = val + test + 3
    assert passes() == everything
    shutil.copytree(data / "photos", data / "moved")
    assert passes("--data_dir=moved") == 0
    photo = data / "photos/val/red_0.png"
    Image.new("RGB", (24, 20), (250, 0, 0)).save(photo)
    assert passes() == val
    assert passes("--image_size=24") == everything
    assert passes("--backbone_precision=float32") == 0  # as it is on a CPU
    assert passes("--backbone_precision=bfloat16") == everything
    assert passes(backbone=save_resnet(tmp_path / "half", {"size": 16}, half=True)) == everything
    cache = data / "output/exp/cache"
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert passes() == everything
    assert "made again" in capsys.readouterr().err
    assert passes() == 0
    # Broken photos are named in every run.
    photo.write_bytes(b"")
    for _ in range(2):
        assert passes() == val - 1
        assert "val/red_0.png" in capsys.readouterr().err
    assert train == 9


@pytest.mark.parametrize("flags", [["--augmentation=cutmix"], ["--finetune=last:1"], []])
def test_memory_and_workers_change_nothing(data, resnet, flags, monkeypatch):
    make_synthetic(data / "output/exp/aug/seed=0_ex=2", 0, 2, 2)
    decoded = []
    read_pixels = pictures.resized_pixels

    def counting(*args):
        decoded.append(1)
        return read_pixels(*args)

    monkeypatch.setattr(pictures, "resized_pixels", counting)
    files, numbers = [], []
    for number, machine in enumerate(["", "--image_memory=0", "--num_workers=1"]):
        decoded.clear()
        more = [machine, "--image_memory=0"] if number == 2 else [machine] if machine else []
        shutil.rmtree(data / "output/exp/cache", ignore_errors=True)
        run(resnet, "--examples_per_class=2", *flags, *more, f"--method=m{number}")
        files.append((data / f"output/exp/results/m{number}/results_0_2.csv").read_bytes())
        numbers.append(len(decoded))
    assert files[0] == files[1] == files[2]
    assert numbers[1] == numbers[2]
    assert numbers[1] > numbers[0] if flags else numbers[1] == numbers[0]


# --- tuning a part of the backbone -----------------------------------------------------------


@pytest.mark.parametrize("finetune", ["all", "last:1"])
def test_tuned_backbones_start_anew_in_every_trial(data, resnet, finetune):
    common = ["--num_synthetic=0", f"--finetune={finetune}", "--backbone_learning_rate=0.01"]
    run(resnet, *common, "--num_trials=2", "--method=both")
    run(resnet, *common, "--seed=1", "--method=alone")
    folder = data / "output/exp/results"
    both, alone = ((folder / name / "results_1_1.csv").read_bytes() for name in ("both", "alone"))
    assert both == alone
    run(resnet, "--num_synthetic=0", "--seed=1", "--method=frozen")
    assert (folder / "frozen/results_1_1.csv").read_bytes() != alone
    settings = read_config(folder / "alone")["settings"]
    assert (settings["finetune"], settings["backbone_learning_rate"]) == (finetune, 0.01)


def test_a_network_from_scratch_learns_colours(data, tmp_path):
    folder = save_resnet(tmp_path / "new", {"size": 16})
    (tmp_path / "new/model.safetensors").unlink()
    run(
        folder, "--from_scratch", "--finetune=all", "--num_synthetic=0", "--examples_per_class=3",
        "--iterations_per_epoch=40", "--learning_rate=0.02", "--backbone_learning_rate=0.01",
        "--batch_size=9",
    )  # fmt: skip
    assert final(data / "output/exp/results/real/results_0_3.csv", TEST) == 1


def test_unreadable_evaluation_photos_are_left_out_while_tuning_too(data, resnet, capsys):
    (data / "photos/val/red_0.png").write_bytes(b"")
    run(resnet, "--num_synthetic=0", "--finetune=last:1")
    assert "1 of 12 photos of split 'val' cannot be read" in capsys.readouterr().err


# --- synthetic images: ways to use them, filters ---------------------------------------------


def reject(folder: Path, *names: str, kept=False) -> None:
    """What a filter appends to the records."""
    identity = read_config(folder)["id"]
    with open(folder / "records" / f"{identity}.9.filter.jsonl", "a") as file:
        for name in names:
            file.write(json.dumps({"file_name": name, "score": 0.1, "kept": kept}) + "\n")


def test_only_kept_images_are_used_where_a_filter_has_run(data, resnet, capsys):
    folder = data / "output/exp/aug/seed=0_ex=1"
    make_synthetic(folder, 0, 1, 3)
    run(resnet)
    reject(folder, "000000-000.png", "000001-001.png")
    reject(folder, "000002-002.png", kept=True)
    assert "2 rejected" in fails(capsys, resnet)  # other images give another result
    run(resnet, "--method=kept")
    assert "3 photos and 7 synthetic images" in capsys.readouterr().out
    run(resnet, "--method=two", "--num_synthetic=2")  # the first two that were kept
    assert "3 photos and 6 synthetic images" in capsys.readouterr().out
    run(resnet, "--ignore_filter", "--method=everything")
    assert "3 photos and 9 synthetic images" in capsys.readouterr().out
    results = data / "output/exp/results"
    unfiltered, everything = (
        (results / name / "results_0_1.csv").read_bytes() for name in ("aug", "everything")
    )
    assert unfiltered == everything
    reject(folder, *(f"00000{n}-00{m}.png" for n in range(3) for m in range(3)))
    assert "rejected every synthetic image" in fails(capsys, resnet, "--method=none")


@pytest.mark.parametrize("utilization", ["mix", "append", "pretrain", "balance"])
def test_wrong_records_spoil_the_result_however_images_are_used(data, resnet, utilization):
    good, bad = data / "output/exp/aug/seed=0_ex=3", data / "output/exp/bad/seed=0_ex=3"
    for folder in (good, bad):
        make_synthetic(folder, 0, 3, 8)
    swap_pictures(bad)
    common = ["--examples_per_class=3", "--learning_rate=0.02", "--iterations_per_epoch=40"]
    common += [f"--utilization={utilization}", "--num_epochs=4"]
    for name in ("aug", "bad"):
        run(resnet, *common, f"--aug_name={name}")
    losses = {}
    for name in ("aug", "bad"):
        file = data / f"output/exp/results/{name}/results_0_3.csv"
        losses[name] = values_of(read(file), VALIDATION, "Loss")
    assert final(data / "output/exp/results/aug/results_0_3.csv", TEST) == 1
    # Two epochs in, pretrain has seen nothing but wrong pictures; the photos then mend it.
    assert losses["bad"][1] > 2 * losses["aug"][1]
    if utilization in ("append", "balance"):
        assert final(data / "output/exp/results/bad/results_0_3.csv", TEST) <= 0.5


def swap_pictures(folder: Path) -> None:
    """Each record now stands for a picture of the next class."""
    records = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    pictures = {r["file_name"]: (folder / r["file_name"]).read_bytes() for r in records}
    names = [record["file_name"] for record in records]
    shift = len(names) // 3
    for name, other in zip(names, names[shift:] + names[:shift]):
        (folder / name).write_bytes(pictures[other])


def test_records_that_name_missing_files_are_an_error(data, resnet, capsys):
    folder = data / "output/exp/aug/seed=0_ex=1"
    make_synthetic(folder, 0, 1, 2)
    for number in range(3):  # the last variant of every photo: no hole among the others
        (folder / f"00000{number}-001.png").unlink()
    line = fails(capsys, resnet)
    assert "3 of 6 synthetic images are missing" in line
    assert "3 recorded files missing or cut short, such as 000000-001.png" in line
    run(resnet, "--num_synthetic=1")


def test_records_of_other_classes_are_refused(data, resnet, capsys):
    make_synthetic(data / "output/exp/aug/seed=0_ex=1", 0, 1, 1)
    line = fails(capsys, resnet, "--dataset_args", "names=big green,red,blue")
    assert "was made with other classes: label 0 is 'red' there and 'big green' here" in line


# --- comparison, cost, pictures --------------------------------------------------------------


def test_a_comparison_is_paired_by_trial(data, resnet, capsys):
    common = ["--num_synthetic=0", "--examples_per_class", 1, 2]
    run(resnet, *common, "--num_trials=4", "--method=base")
    run(resnet, *common, "--num_trials=3", "--seed=1", "--method=base", experiment="other")
    capsys.readouterr()
    more = ["--learning_rate=0.01", "--num_trials=3", "--method=new"]
    run(resnet, *common, *more, "--compare", "base", "other:base")
    out = capsys.readouterr()
    folder = data / "output/exp/results"
    rows = read(folder / "new/comparison.csv")
    assert [(row["other"], row["num_trials"]) for row in rows if row["split"] == TEST] == [
        ("base", "3"), ("base", "3"), ("other:base", "2"), ("other:base", "2"),
    ]  # fmt: skip
    row = next(row for row in rows if row["split"] == TEST)
    names = [f"results_{seed}_1.csv" for seed in range(3)]
    new, base = ([final(folder / m / name, TEST) for name in names] for m in ("new", "base"))
    differences = [a - b for a, b in zip(new, base)]
    assert float(row["difference"]) == pytest.approx(sum(differences) / 3, abs=1e-6)
    assert row["method"] == "new" and row["examples_per_class"] == "1"
    assert "base was made with other settings: learning_rate (here 0.01, there 0.0001);" in out.err
    assert "new - base, 1 per class, test:" in out.out
    both = ", ".join(f"{100 * d:+.1f}" for d in differences[1:])  # of seeds 1 and 2
    assert f"(2 trials: {both})" in out.out


def test_every_setting_but_those_of_the_images_is_compared(data, resnet, capsys):
    make_synthetic(data / "output/exp/aug/seed=0_ex=1", 0, 1, 2)
    run(resnet, "--num_synthetic=0")
    run(resnet, "--compare", "real")
    run(resnet, "--num_synthetic=1", "--method=one", "--compare", "aug", "real")
    assert "other settings" not in capsys.readouterr().err
    more = ["--augmentation=mixup", "--image_size=24", "--utilization=append", "--method=more"]
    run(resnet, *more, "--compare", "real", "aug")
    said = capsys.readouterr().err
    common = 'image_size (here [24, 24], there [16, 16]), augmentation (here ["mixup"], there [])'
    assert f"real was made with other settings: {common}; not only images" in said
    for key, value in {"mix": '"append"', "0.5": "null"}.items():  # as both use images
        there = f'"{key}"' if key == "mix" else key
        assert f"(here {value}, there {there})" in said.partition("aug was made")[2]


def test_nothing_in_common_is_said_before_anything_is_trained(data, resnet, capsys):
    run(resnet, "--num_synthetic=0", "--method=base", "--seed=5")
    line = fails(capsys, resnet, "--num_synthetic=0", "--method=new", "--compare", "base")
    assert "has no result of seed=0_ex=1" in line
    assert not (data / "output/exp/results/new").exists()
    line = fails(capsys, resnet, "--num_synthetic=0", "--method=new", "--compare", "lost")
    assert "no results in output/exp/results/lost; there are: base" in line


def test_cost_stands_beside_gain(data, resnet):
    for seed in (0, 1):
        with timed(data / "output/exp", GENERATE, "aug", Trial(seed, 1), CPU) as work:
            work.images = 3
        make_synthetic(data / f"output/exp/aug/seed={seed}_ex=1", seed, 1, 1)
    run(resnet, "--num_synthetic=0", "--num_trials=2")
    run(resnet, "--num_trials=2", "--learning_rate=0.02")
    timing = json.loads((data / "output/exp/timing.json").read_text())
    stages = {(t["stage"], t["method"], t["seed"], t["images"], t["device"]) for t in timing}
    evaluated = 3 * (COUNTS["val"] + COUNTS["test"])
    assert stages == {
        *((GENERATE, "aug", seed, 3, "cpu") for seed in (0, 1)),
        *((TRAIN, m, seed, 2 * 5 * 4, "cpu") for m in ("real", "aug") for seed in (0, 1)),
        *((TRAIN, m, None, evaluated, "cpu") for m in ("real", "aug")),
    }
    results = data / "output/exp/results"
    row = next(row for row in read(results / "aug/summary.csv") if row["split"] == TEST)
    means = [
        sum(final(results / m / f"results_{seed}_1.csv", TEST) for seed in (0, 1)) / 2
        for m in ("aug", "real")
    ]
    assert float(row["gain"]) == pytest.approx(means[0] - means[1], abs=1e-6)
    seconds = float(row["generate_seconds"]) + float(row["train_seconds"])
    assert row["fine_tune_seconds"] == ""
    per_minute = 100 * float(row["gain"]) / (seconds / 60)
    assert float(row["gain_per_minute"]) == pytest.approx(per_minute, rel=1e-4)
    real = next(row for row in read(results / "real/summary.csv") if row["split"] == TEST)
    assert real["gain"] == real["gain_per_minute"] == "" != real["train_seconds"]


def test_results_with_words_of_other_trials_say_so(data, resnet, capsys):
    for seed, note in enumerate([{"borrowed_words": None}, {"borrowed_words": "seed=7_ex=4"}, {}]):
        images = data / f"output/exp/aug/seed={seed}_ex=1"
        make_synthetic(images, seed, 1, 1)
        config = read_config(images) | note  # an older revision has none
        (images / "config.json").write_text(json.dumps(config))
    run(resnet, "--num_synthetic=0", "--num_trials=2")
    run(resnet, "--num_trials=2")
    folder = data / "output/exp/results/aug"
    assert {row["borrowed_words"] for row in read(folder / "summary.csv")} == {"1"}
    assert {r["borrowed_words"] for r in read(folder.parent / "real/summary.csv")} == {"0"}
    words = {"seed=0_ex=1": None, "seed=1_ex=1": "seed=7_ex=4"}
    assert read_config(folder)["borrowed_words"] == words
    said = "images of seed=1_ex=1 were made with words of seed=7_ex=4: results are optimistic"
    assert said in capsys.readouterr().err
    run(resnet, "--num_trials=3")
    assert {row["borrowed_words"] for row in read(folder / "summary.csv")} == {""}
    assert read_config(folder)["borrowed_words"] == words


def test_pictures_are_pictures(coloured, resnet):
    run(resnet, "--num_synthetic=0", "--num_trials=2", "--examples_per_class", 1, 2)
    run(resnet, "--num_synthetic=0", "--num_trials=2", "--method=new", "--compare", "real")
    for name in ("accuracy.png", "per_class.png", "confusion.png"):
        with Image.open(coloured / "output/exp/results/new" / name) as image:
            image.load()
            grey = image.convert("L")
            assert min(image.size) > 200
            assert grey.getextrema() == (0, 255)


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--examples_per_class=0"], "from 1"),
        (["--synthetic_probability=1.5"], "in [0, 1]"),
        (["--learning_rate=0"], "positive"),
        (["--learning_rate=nan"], "positive"),
        (["--learning_rate=fast"], "positive"),
        (["--learning_rate=1e39"], "positive"),
        (["--num_synthetic=-1"], "from 0"),
        (["--augmentation=blur"], "flip-rotate"),
        (["--augmentation", "none", "mixup"], "none alone"),
        (["--augmentation", "mixup", "mixup"], "each name once"),
        (["--utilization=append"], "needs synthetic images"),
        (["--utilization=both"], "append"),
        (["--utilization=append", "--num_synthetic=1", "--synthetic_probability=1"], "to --util"),
        (["--finetune=last"], "last:2"),
        (["--finetune=last:0"], "last:2"),
        (["--finetune=last:3"], "ResNetModel has 2 blocks"),
        (["--backbone_learning_rate=1e-3"], "needs --finetune"),
        (["--finetune=all", "--backbone_precision=float16"], "trains computes in float32"),
        (["--image_size=30000"], "--image_size: expected 4096 at most"),
        (["--iterations_per_epoch=100000000"], ",000,000 images, expected 10,000,000 at most"),
        (["--from_scratch"], "needs --finetune all"),
        (["--compare", "other"], "there are: none"),
        (["--compare", "exp:real"], "is the method that is to be compared"),
        (["--compare", "../x:real"], "--experiment_name"),
        (["--select=best_test"], "best_val"),
        (["--num_workers=0"], "from 1"),
        (["--num_epochs=none"], "--num_epochs"),
        (["--nonsense=1"], "--nonsense"),
        (["--method=../up"], "--method"),
        (["--aug_name=a/b"], "--aug_name"),
        (["--aug_name=results"], "another stage's folder"),
        (["--experiment_name=../x"], "--experiment_name"),
        (["--classes", "red", "purple"], "'purple'"),
        (["--device=abacus"], "--device"),
        (["--shard_index=2"], "go together"),
        (["--dataset=nothing"], "--dataset"),
        (["--dataset_args", "colour=red"], "unknown key 'colour'"),
        (["--data_dir=nowhere"], "nowhere is not a folder"),
        (["--classes", "absent"], "no training photo of the selected classes"),
        (["--classifier_backbone=resnet50"], "'microsoft/resnet-50' is no folder"),
        (["--classifier_backbone=no/such/model"], "is no folder"),
        (["--classifier_backbone=photos"], "holds no usable image model"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(data, resnet, capsys, flags, expected):
    line = fails(capsys, resnet, "--num_synthetic=0", *flags)
    assert expected in line
    assert not (data / "output").exists()


def test_backbones_that_cannot_serve_are_refused(data, resnet, capsys, tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig, BertModel

    weightless = save_resnet(tmp_path / "weightless", {})
    (tmp_path / "weightless" / "model.safetensors").unlink()
    assert "holds no usable image model" in fails(capsys, weightless, "--num_synthetic=0")
    broken = save_resnet(tmp_path / "broken", {})
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"broken")
    assert "holds no usable image model" in fails(capsys, broken, "--num_synthetic=0")

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertModel(BertConfig(vocab_size=9, intermediate_size=8, **sizes)).save_pretrained(
        tmp_path / "text"
    )
    assert "gives no features for images" in fails(capsys, tmp_path / "text", "--num_synthetic=0")

    partial = save_resnet(tmp_path / "partial", {})
    tensors = load_file(tmp_path / "partial" / "model.safetensors")
    kept = {key: value for key, value in tensors.items() if "embedder" not in key}
    save_file(kept, tmp_path / "partial" / "model.safetensors", metadata={"format": "pt"})
    assert "has no weights for" in fails(capsys, partial, "--num_synthetic=0")
    assert not (data / "output").exists()


def test_class_names_must_not_depend_on_the_split(data, resnet, capsys, monkeypatch):
    class Fickle(Colours):
        def list_records(self, split):
            self.class_names = sorted(COLOURS) if split == "val" else [*COLOURS]
            yield from super().list_records(split)

    monkeypatch.setattr(sys.modules[__name__], "Fickle", Fickle, raising=False)
    assert "labels do not mean the same" in fails(
        capsys, resnet, "--num_synthetic=0", dataset="Fickle"
    )


def test_a_broken_synthetic_image_is_named(data, resnet, capsys):
    make_synthetic(data / "output/exp/aug/seed=0_ex=1", 0, 1, 1)
    image = data / "output/exp/aug/seed=0_ex=1/000001-000.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:40] + bytes(len(whole) - 52) + whole[-12:])
    assert "cannot read image" in fails(capsys, resnet)
    for left in (b"", whole[:40]):  # as good as none: the next generation makes it again
        image.write_bytes(left)
        assert "1 of 3 synthetic images are missing" in fails(capsys, resnet)
    assert not list((data / "output/exp/results").rglob("results_*"))


def test_what_to_type_next(tmp_path):
    """Real photos alone, then the comparison, then the images to look at."""
    run = Run("e", dataset="folder", num_trials=2)
    mild = Classification(aug_name="mild", num_epochs=3, utilization="append", class_balanced=True)
    of = "python train_classifier.py --experiment_name=e --num_trials=2 --dataset=folder "
    folder = tmp_path / "mild"
    assert train_classifier._next(run, mild, folder) == (
        f"{of}--num_synthetic=0 --num_epochs=3 --class_balanced"
    )
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "results_0_1.csv").touch()
    after = (
        f"{of}--aug_name=mild --utilization=append --num_epochs=3 --class_balanced --compare real"
    )
    assert train_classifier._next(run, mild, folder) == after
    compared = dataclasses.replace(mild, compare=("real",))
    assert train_classifier._next(run, compared, folder) == (
        "python -m semantic_aug.report --experiment_name=e --num_trials=2 --dataset=folder "
        "--aug_name mild"
    )
    assert train_classifier._next(run, Classification(num_synthetic=0), tmp_path / "real") == (
        "python generate_augmentations.py --experiment_name=e --num_trials=2 --dataset=folder"
    )
