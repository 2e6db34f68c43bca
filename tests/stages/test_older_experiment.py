"""An experiment that revision 99240b1 has begun goes on: every stage is half finished there.

The folder `older_experiment` was made by its make.py. Nothing that is finished is made again, ids
stay, and what is missing is made as that revision would have made it.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import aggregate_embeddings
import fine_tune
import generate_augmentations
import train_classifier

OLDER = ROOT / "tests" / "older_experiment"
sys.path.insert(0, str(OLDER))
import make as older  # noqa: E402  (the commands that were given then)

sys.path.remove(str(OLDER))
EXPERIMENT = Path("output/e")


@pytest.fixture
def begun(workdir):
    """A copy of the experiment in the working directory."""
    shutil.copytree(OLDER, workdir, dirs_exist_ok=True)
    return workdir


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
    assert paths
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def config(folder: str) -> dict:
    return json.loads((EXPERIMENT / folder / "config.json").read_text())


def lines(folder: str) -> list[dict]:
    text = (EXPERIMENT / folder / "metadata.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_folder_stays_small():
    assert sum(path.stat().st_size for path in OLDER.rglob("*") if path.is_file()) < 300_000


def test_words_go_on(begun, capsys):
    before = contents(EXPERIMENT / "fine-tuned", "*/*/learned_embeds.safetensors", "*/config.json")
    fine_tune.main([*older.WORDS, "--num_trials=2"])
    said = capsys.readouterr().err
    assert "seed=0_ex=2/motor: goes on from step 2 of 4" in said
    assert said.splitlines().count("4 words finished already: skipped") == 1
    after = contents(EXPERIMENT / "fine-tuned", "*/*/learned_embeds.safetensors", "*/config.json")
    assert after.keys() - before.keys() == {
        f"seed=0_ex=2/{name}/learned_embeds.safetensors" for name in ("bird", "motor")
    }
    assert {name: after[name] for name in before} == before
    # A word says the same of itself as one of then, its own name and photos aside.
    headers = []
    for name in ("cat", "motor"):
        path = EXPERIMENT / f"fine-tuned/seed=0_ex=2/{name}/learned_embeds.safetensors"
        with safe_open(path, "np") as file:
            headers.append(file.metadata())
    own = ("class", "token", "initializer", "photos")
    cat, motor = ({k: v for k, v in header.items() if k not in own} for header in headers)
    assert cat == motor and cat["config_id"] == config("fine-tuned/seed=0_ex=2")["id"]


def test_words_are_merged(begun):
    fine_tune.main(older.WORDS)
    before = (EXPERIMENT / "fine-tuned-merged/seed=1_ex=2.safetensors").read_bytes()
    aggregate_embeddings.main(["--experiment_name=e", "--num_trials=2", "--examples_per_class=2"])
    assert (EXPERIMENT / "fine-tuned-merged/seed=1_ex=2.safetensors").read_bytes() == before
    merged = load_file(EXPERIMENT / "fine-tuned-merged/seed=0_ex=2.safetensors")
    assert merged.keys() == {"<cat>", "<motor>", "<bird>"}


@pytest.mark.parametrize(
    "folder, flags",
    [
        ("aug/seed=1_ex=2", [*older.IMAGES, "--seed=1"]),
        ("masked/seed=1_ex=2", [*older.MASKED, "--seed=1"]),
        ("masked/seed=0_ex=2", older.MASKED),
    ],
    ids=["words", "masked", "finished"],
)
def test_images_go_on(begun, folder, flags):
    before = contents(EXPERIMENT / folder, "*.png", "config.json")
    keys = list(lines(folder)[0])
    generate_augmentations.main(flags)
    after = contents(EXPERIMENT / folder, "*.png", "config.json")
    assert {name: after[name] for name in before} == before
    records = lines(folder)
    assert [record["file_name"] for record in records] == sorted(after.keys() - {"config.json"})
    assert len(records) == 12
    for record in records:  # what is added comes after what was there
        assert [key for key in record if key in keys] == keys


def test_an_image_is_made_again(begun, capsys):
    generate_augmentations.main(["--reproduce", "output/e/masked/seed=0_ex=2/000003-001.png"])
    said = capsys.readouterr().out
    assert "equal" in said or "at most" in said  # another processor rounds in its own way


def test_results_go_on(begun, capsys):
    before = contents(EXPERIMENT / "results", "*/results_0_2.csv", "*/confusion_0_2.csv")
    train_classifier.main([*older.CLASSIFIER, "--num_synthetic=0", "--num_trials=2"])
    generate_augmentations.main([*older.MASKED, "--seed=1"])
    masked = [*older.CLASSIFIER, "--dataset_args", "masks=masks", "--aug_name=masked"]
    capsys.readouterr()
    train_classifier.main([*masked, "--num_trials=2", "--compare=real"])
    said = capsys.readouterr()
    assert "1 of 2 trials are finished: skipped" in said.out
    assert contents(EXPERIMENT / "results", "*/results_0_2.csv", "*/confusion_0_2.csv") == before
    for method in ("real", "masked"):
        summary = (EXPERIMENT / "results" / method / "summary.csv").read_text().splitlines()
        assert {line.split(",")[3] for line in summary[1:]} == {"2"}


def test_images_are_the_same_as_then(begun):
    folder = EXPERIMENT / "aug/seed=1_ex=2"
    then = {path.name: np.asarray(Image.open(path)).astype(int) for path in folder.glob("*.png")}
    shutil.rmtree(folder)
    generate_augmentations.main([*older.IMAGES, "--seed=1"])
    assert len(then) == 4
    for name, pixels in then.items():
        assert np.abs(np.asarray(Image.open(folder / name)).astype(int) - pixels).max() <= 2
