"""What a trial is evaluated on: no photo that it has learned from, and the same in every trial."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train_classifier
from semantic_aug.datasets import build_dataset
from semantic_aug.few_shot_dataset import FewShotDataset, Record
from semantic_aug.generative_augmentation import GenerativeAugmentation
from semantic_aug.stages.result_settings import made_with

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 220)}


class ByStem(FewShotDataset):
    """SPLIT/CLASS_NUMBER.png, with the number as the photo's stable id."""

    default_dir = "stems"

    def list_records(self, split):
        for path in self.images_in(self.data_dir / split):
            yield Record(path, path.stem.split("_")[0], path.stem)


class Pixels(FewShotDataset):
    """Makes its images itself, as the predecessors' datasets do; one photo in both splits."""

    class_names, num_classes = list(COLOURS), 3

    def __init__(self, *args, split="train", seed=0, **kwargs):
        self.split, self.seed = split, seed
        super().__init__(*args, **kwargs)

    def __len__(self):
        return 3 if self.split == "train" else 30

    def get_image_by_idx(self, idx):
        shift = 0 if idx == 0 or self.split == "train" else idx
        return Image.new("RGB", (16, 16), tuple(v - shift for v in list(COLOURS.values())[idx % 3]))

    def get_label_by_idx(self, idx):
        return idx % 3

    def get_metadata_by_idx(self, idx):
        return {"name": self.class_names[idx % 3]}


def draw(path: Path, colour, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 20, (16, 20, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def photos(workdir, sketched) -> Path:
    """photos/{train,val,test}/CLASS/N.png: 3, 7 and 7 of each of three classes."""
    seed = 0
    for split, count in (("train", 3), ("val", 7), ("test", 7)):
        for name, colour in COLOURS.items():
            for number in range(count):
                seed += 1
                draw(workdir / "photos" / split / name / f"{number}.png", colour, seed)
    return workdir / "photos"


@pytest.fixture
def train(resnet, called):
    """Run train_classifier.py: exit status, stdout and stderr."""

    def train(*flags, dataset="folder", name="e"):
        argv = [f"--dataset={dataset}", f"--experiment_name={name}", "--num_synthetic=0",
                f"--classifier_backbone={resnet}", "--num_epochs=2", "--iterations_per_epoch=2",
                "--batch_size=4", "--augmentation=none", "--device=cpu", *flags]  # fmt: skip
        return called(train_classifier.main, *argv)

    return train


def rows(name="e", trial="0_3", method="real") -> list[dict]:
    with open(f"output/{name}/results/{method}/results_{trial}.csv", newline="") as file:
        return list(csv.DictReader(file))


def settings(name="e", method="real") -> dict:
    path = Path(f"output/{name}/results/{method}/config.json")
    return json.loads(path.read_text())["settings"]


FOLDER = ("--data_dir=photos", "--examples_per_class=3")


# --- photos that were trained on -------------------------------------------------------------


@pytest.mark.parametrize("split, name", [("val", "Validation"), ("test", "Test")])
@pytest.mark.parametrize("finetune", ["none", "all"])
def test_a_training_photo_is_not_scored(photos, train, split, name, finetune):
    """The result is the one of a split that does not have the photo."""
    flags = (*FOLDER, f"--finetune={finetune}")
    copy = photos / split / "red" / "copy of it.png"
    assert train(*flags, name="without")[0] == 0
    shutil.copy(photos / "train" / "green" / "1.png", copy)
    status, _, err = train(*flags, name="with")
    assert status == 0
    assert f"left out of split '{split}' (1 of 22), because the trial trains on them: " in err
    assert f"{split}/red/copy of it.png" in err
    assert rows("with") == rows("without")
    assert settings("with")["photos of seed=0_ex=3"].endswith(f", 1 of {name} left out")


def test_more_than_a_tenth_of_a_split_is_an_error(photos, train):
    for number in range(3):
        shutil.copy(
            photos / "train" / "red" / f"{number}.png", photos / f"test/red/{9 + number}.png"
        )
    status, _, err = train(*FOLDER)
    assert status == 2 and not Path("output").exists()
    assert "split 'test' holds photos that are trained on (3 of 24: test/red/10.png, " in err
    assert "python -m semantic_aug.datasets check folder --data_dir photos lists all" in err
    # With fewer photos per class, only some of them are in the trial.
    status, _, err = train("--data_dir=photos", "--examples_per_class=1")
    assert status == 0 and "left out of split 'test' (1 of 24)" in err


def test_the_same_files_as_train_and_test_are_an_error(photos, train):
    shutil.rmtree(photos / "test")
    shutil.rmtree(photos / "val")
    shutil.copytree(photos / "train", photos / "test")
    status, _, err = train("--data_dir=photos", "--examples_per_class=2")
    assert status == 2 and "split 'test' holds photos that are trained on" in err


def test_one_id_is_one_photo(workdir, train):
    for number in range(24):
        for label, (name, colour) in enumerate(COLOURS.items()):
            draw(workdir / f"stems/test/{name}_{number}.png", colour, 100 * label + number)
            draw(workdir / f"stems/val/{name}_{30 + number}.png", colour, 100 * label + number + 30)
            if number < 1:
                draw(workdir / f"stems/train/{name}_{number}.png", colour, 1000 + label)
    status, _, err = train("--examples_per_class=1", dataset=f"{__name__}:ByStem")
    assert status == 0
    assert "left out of split 'test' (3 of 72), because the trial trains on them: blue_0, " in err
    assert "'val'" not in err


def test_images_that_a_subclass_makes_itself_are_compared(workdir, train):
    status, _, err = train("--examples_per_class=1", dataset=f"{__name__}:Pixels")
    assert status == 0
    assert "left out of split 'val' (1 of 30), because the trial trains on them: photo 0" in err


def test_results_of_an_older_version_that_scored_training_photos_are_refused(photos, train):
    shutil.copy(photos / "train" / "green" / "1.png", photos / "val" / "red" / "copy.png")
    train(*FOLDER)
    forget_photos("output/e/results/real/config.json")
    status, _, err = train(*FOLDER, "--num_trials=2")
    assert status == 2
    assert re.search(r"photos of seed=0_ex=3: there none, now \w+, 1 of Validation left out;", err)
    assert train(*FOLDER, "--num_trials=2", "--overwrite")[0] == 0


def forget_photos(path: str) -> None:
    """Make a configuration such as were written before photos were noted."""
    config = json.loads(Path(path).read_text())
    config["settings"] = {
        key: value
        for key, value in config["settings"].items()
        if not key.startswith("photos of ") and key != "evaluation photos"
    }
    Path(path).write_text(json.dumps(config))


# --- photos that change between two runs -----------------------------------------------------


@pytest.mark.parametrize(
    "changed, key",
    [
        ("train/green/1.png", "photos of seed=0_ex=3"),
        ("val/green/4.png", "evaluation photos"),
        ("test/blue/0.png", "evaluation photos"),
    ],
)
def test_changed_photos_are_not_mixed(photos, train, changed, key):
    train(*FOLDER)
    before = rows()
    draw(photos / changed, (90, 90, 90), 1)
    status, _, err = train(*FOLDER, "--num_trials=2")
    assert status == 2 and f"{key}: there " in err and rows() == before
    assert not Path("output/e/results/real/results_1_3.csv").exists()
    assert train(*FOLDER, "--num_trials=2", "--overwrite")[0] == 0
    assert rows("e", "1_3")


def test_a_photo_that_is_mended_counts_as_another(photos, train):
    good = (photos / "test/red/3.png").read_bytes()
    (photos / "test/red/3.png").write_bytes(good[:60])
    assert "1 of 21 photos of split 'test' cannot be read" in train(*FOLDER)[2]
    (photos / "test/red/3.png").write_bytes(good)
    status, _, err = train(*FOLDER, "--num_trials=2")
    assert status == 2 and "evaluation photos: there " in err


def test_a_photo_of_another_trial_may_change(photos, train):
    for name, colour in COLOURS.items():
        draw(photos / "train" / name / "3.png", colour, 77)
    flags = ("--data_dir=photos", "--examples_per_class=1")
    train(*flags)
    chosen = {record.source for record in dataset(photos, 0).records}
    other = next(r for r in dataset(photos, 1).records if r.source not in chosen)
    draw(other.path, (90, 90, 90), 1)
    assert train(*flags, "--num_trials=2")[0] == 0


def test_shards_write_one_configuration(photos, train):
    flags = (*FOLDER, "--num_trials=3", "--examples_per_class", "1", "2")
    train(*flags, name="whole")
    for index in (1, 2, 0):
        assert train(*flags, f"--shard_index={index}", "--num_shards=3", name="shared")[0] == 0
    assert settings("shared") == settings("whole")
    assert list(settings("shared")) == list(settings("whole"))
    assert len([key for key in settings("whole") if key.startswith("photos of ")]) == 6


def dataset(photos: Path, seed: int) -> FewShotDataset:
    return build_dataset("folder", "train", data_dir=photos, seed=seed, examples_per_class=1)


@pytest.mark.parametrize("split", ["train", "test"])
def test_changed_masks_count_where_photos_are_cut_by_them(photos, train, split):
    for path in photos.rglob("*.png"):
        mask = Image.new("L", (20, 16))
        mask.paste(255, (2, 2, 6, 6))
        place = photos.parent / "masks" / path.relative_to(photos)
        place.parent.mkdir(parents=True, exist_ok=True)
        mask.save(place)
    flags = (*FOLDER, "--dataset_args", "masks=masks")
    for cut, status in (((), 0), (("--crop_to_object", "--method=cut"), 2)):
        assert train(*flags, *cut)[0] == 0
        mask.paste(255, (2, 2, 9, 9) if cut else (2, 2, 8, 8))
        mask.save(photos.parent / "masks" / split / "red" / "1.png")
        assert train(*flags, *cut, "--num_trials=2")[0] == status


# --- few photos ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count, reported, said",
    [
        (1, {"Training"}, "1 photos and"),
        (2, {"Training", "Test"}, "no val split, reported: Training and Test alone"),
    ],
)
def test_one_or_two_photos_per_class_are_enough(workdir, train, count, reported, said):
    for label, (name, colour) in enumerate(COLOURS.items()):
        for number in range(count):
            draw(workdir / "few" / name / f"{number}.jpg", colour, 10 * label + number)
    status, out, err = train("--data_dir=few", "--num_trials=2")
    assert status == 0
    assert "no val split, reported: " in err and (said in err or count == 1)
    assert "is this the root" not in err
    assert {row["split"] for row in rows(trial="0_1") if row["metric"] == "Accuracy"} == reported
    assert ("evaluated on nothing" in out) == (count == 1)
    assert Path("output/e/results/real/accuracy.png").exists() == (count == 2)
    status, out, _ = train("--data_dir=few", "--num_trials=2")
    assert status == 0 and "2 of 2 trials are finished" in out
    status, _, err = train("--data_dir=few", "--select=best_val", name="other")
    assert status == 2 and "--select best_val needs photos in split 'val'" in err


def test_a_wrong_root_is_still_an_error(workdir, train):
    (workdir / "few").mkdir()
    status, _, err = train("--data_dir=few")
    assert status == 2 and "has no folders in it" in err


# --- images of trials that were made in different ways ---------------------------------------


class Same(GenerativeAugmentation):
    """Stands for the diffusion model: the photos themselves."""

    def augment(self, images, labels, metadata, generators):
        return list(images), [[] for _ in images]


def make_images(photos: Path, seed: int, strengths: list[float]) -> None:
    folder = Path(f"output/e/aug/seed={seed}_ex=3")
    trial = build_dataset("folder", "train", data_dir=photos, seed=seed, examples_per_class=3)
    trial.generative_aug, trial.synthetic_dir = Same(), folder
    trial.generate_augmentations(1)
    config = json.loads((folder / "config.json").read_text())
    edits = [{"aug": "real-guidance", "strength": strength} for strength in strengths]
    config["settings"]["edits"] = edits  # as generate_augmentations.py has it
    (folder / "config.json").write_text(json.dumps(config))


def test_trials_whose_images_differ_in_strength_are_not_mixed(photos, train):
    images = (*FOLDER, "--num_synthetic=1")
    make_images(photos, 0, [0.2])
    assert train(*images)[0] == 0
    make_images(photos, 1, [1.0])
    status, _, err = train(*images, "--seed=1")  # whose results would enter the same mean
    assert status == 2
    assert 'edits (seed=0_ex=3: {"strength": [0.2]}, seed=1_ex=3: {"strength": [1.0]})' in err
    assert "--mixed_settings" in err
    for flag in ("--mixed_settings", "--overwrite"):
        status, out, err = train(*images, "--num_trials=2", flag)
        assert status == 0 and "of 2 trials are finished" in out
        assert 'edits (seed=0_ex=3: {"strength": [0.2]}, seed=1_ex=3: {"strength": [1.0]})' in err
    make_images(photos, 2, [0.2])
    assert train(*images, "--num_trials=3")[0] == 2
    assert train("--num_trials=2", *FOLDER)[0] == 0  # real photos alone


def test_a_different_number_of_edits_is_named_too(photos, train):
    make_images(photos, 0, [0.2])
    make_images(photos, 1, [0.2, 1.0])
    status, _, err = train(*FOLDER, "--num_synthetic=1", "--num_trials=2")
    assert status == 2
    assert 'seed=0_ex=3: {"aug": ["real-guidance"], "strength": [0.2]}' in err
    assert '"strength": [0.2, 1.0]}' in err


def test_images_are_known_by_words_unet_and_masks_but_older_ones_by_words():
    older = {"class_name": "cat", "embeddings": "abc", "unet": "sha256:1"}
    assert made_with(older) == "cat abc"  # as older results have it
    newer = older | {"masks": "9", "precision": "no"}
    assert made_with(newer) == "cat abc unet sha256:1 masks 9"
