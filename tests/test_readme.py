"""Every command and every piece of Python in README.md runs, with a small model in its place."""

import csv
import importlib
import json
import re
import shlex
import sys

import numpy as np
import pytest
from conftest import ROOT, build_backbone, build_clip, draw_photo
from PIL import Image

from generate_augmentations import Remade
from semantic_aug.cluster.status import Showing
from semantic_aug.settings import fields_of
from semantic_aug.settings.classification import Classification
from semantic_aug.settings.common import Run
from semantic_aug.settings.fine_tuning import FineTuning
from semantic_aug.settings.fitting import Fitting
from semantic_aug.settings.generation import Generation, Previewing
from semantic_aug.settings.masking import Masking
from semantic_aug.settings.merging import Merging
from semantic_aug.settings.reporting import Reporting
from semantic_aug.settings.reproducing import Reproduction
from semantic_aug.settings.using import Exporting, Predicting

README = (ROOT / "README.md").read_text(encoding="utf-8")
METHODS = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
COCO_CLASSES = {1: "person", 17: "cat", 18: "dog"}


def blocks(language: str, page: str = README) -> list[str]:
    """The fenced blocks of a language, also those that stand in a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page, re.MULTILINE | re.DOTALL)
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines())
            for indent, text in found]  # fmt: skip


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    lines = [line.replace("python -m semantic_aug.", "python semantic_aug.") for line in lines]
    return [
        shlex.split(line)
        for line in lines
        if re.match(r"python (\w+\.py|semantic_aug.report)", line)
    ]


def write_coco(root):
    """COCO 2017's layout with a few drawn photos."""
    for split, count in (("train", 24), ("val", 16)):
        images, annotations = [], []
        for number in range(count):
            category = list(COCO_CLASSES)[number % 3]
            path = root / f"{split}2017" / f"{number:012d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            colour = {1: (200, 30, 30), 17: (30, 200, 30), 18: (30, 30, 200)}[category]
            photo = Image.new("RGB", (40, 30), colour)
            photo.putpixel((number, len(split)), (255, 255, 255))  # no photo is another one
            photo.save(path, quality=100)
            images.append({"id": number, "file_name": path.name, "width": 40, "height": 30})
            annotations.append({
                "id": number, "image_id": number, "category_id": category, "area": 100,
                "bbox": [5, 5, 10, 10], "iscrowd": 0,
                "segmentation": [[5, 5, 15, 5, 15, 15, 5, 15]],
            })  # fmt: skip
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": key, "name": name} for key, name in COCO_CLASSES.items()],
        }
        path = root / "annotations" / f"instances_{split}2017.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def write_mvip(root):
    """MVIP's layout with two classes."""
    for label, name in enumerate(("starter", "alternator")):
        (root / name).mkdir(parents=True)
        meta = {"super_class": ["CarComponent"], "description": f"an old {name}"}
        (root / name / "meta.json").write_text(json.dumps(meta))
        folders = ("train_data/0/1/cam0", "valid_data/0/cam0", "test_data/0/cam0")
        for green, folder in enumerate(folders, 60):
            for number in range(2):
                path = root / name / folder / f"{number}_rgb.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 30), (200 * label, green, 40 * number)).save(path)
                mask = np.zeros((30, 40), np.uint8)
                mask[5:20, 8:25] = 255
                Image.fromarray(mask).save(path.with_name(f"{number}_rgb_mask_gen.png"))


def write_welds(root):
    """What the example of a dataset of one's own reads."""
    root.mkdir(parents=True)
    rows = [("file", "label", "split", "camera")]
    for number in range(12):
        label = ("good", "crack", "pore")[number % 3]
        Image.new("RGB", (40, 30), (20 * number, 90, 60)).save(root / f"{number}.png")
        rows.append((f"{number}.png", label, "train", "right" if number >= 9 else "left"))
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def world(photos, workdir, small_model, monkeypatch, sketched, short_validation):
    """A folder with the data that README speaks of."""
    for number in range(3, 6):
        for name, colour in (("cat", (220, 40, 40)), ("toy train", (50, 60, 230))):
            draw_photo(photos / "train" / name / f"{number}.png", colour, 1000 + number)
    write_coco(workdir / "data/coco2017")
    write_mvip(workdir / "data/mvip")
    write_welds(workdir / "data/welds")
    example = next(block for block in blocks("python") if "class WeldDataset" in block)
    (workdir / "welds.py").write_text(example)
    monkeypatch.syspath_prepend(str(workdir))
    monkeypatch.delitem(sys.modules, "welds", raising=False)
    build_backbone(workdir / "backbone")
    build_clip(workdir / "clip")
    return workdir


def small(command: list[str], model: str) -> list[str]:
    """A command's arguments with small models, few steps, and few variants."""
    script = command[1]
    replaced = {
        "fine_tune": [f"--pretrained_model_name_or_path={model}", "--max_train_steps=1",
                      "--resolution=32", "--initializer_token=motor"],
        "generate_augmentations": [f"--model_path={model}", "--num_inference_steps=4",
                                   "--resolution=32"],
        "train_classifier": ["--classifier_backbone=backbone", "--num_epochs=1",
                             "--iterations_per_epoch=2", "--image_size=32"],
    }  # fmt: skip
    key = script.removesuffix(".py").removesuffix("_upstream")
    if "--filter" in command:
        replaced[key].append("--filter_model=clip")
    few = ["2" if word == "10" else word for word in command[2:]]  # variants of each photo
    return [*few, *replaced.get(key, [])]


def test_every_command_runs_in_order(world, small_model, monkeypatch):
    for command in commands():
        name = command[1].removesuffix(".py")
        if name == "semantic_aug.report":
            name += ".__main__"  # what python -m runs
        importlib.import_module(name).main(small(command, small_model))
    output = world / "output"
    results = {p.relative_to(output).as_posix() for p in output.rglob("results_*.csv")}
    assert results == {
        "demo/results/aug/results_0_4.csv",
        "demo/results/aug-append/results_0_4.csv",
        "demo/results/real-randaugment-cutmix/results_0_4.csv",
        "demo/results/real/results_0_4.csv",
        "demo/results/real-guidance/results_0_4.csv",
        "mvip-test/results/aug/results_0_1.csv",
        *(f"coco/results/aug/results_{seed}_{k}.csv" for seed in (0, 1) for k in (1, 2, 4, 8)),
    }
    assert (output / "demo/report/seed=0_ex=4.html").is_file()
    welds = (output / "welds/aug/seed=0_ex=2/metadata.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in welds]
    assert len(records) == 3 * 2 * 4
    left = {f"{number}.png" for number in range(9)}
    assert {record["source"] for record in records} <= left


def test_the_layout_of_output_is_what_readme_says(world, small_model):
    for command in commands()[:4]:
        importlib.import_module(command[1].removesuffix(".py")).main(small(command, small_model))
    found = {p.relative_to(world / "output/demo").parts[0] for p in world.rglob("output/demo/*")}
    assert found == {
        "fine-tuned", "fine-tuned-merged", "aug", "results", "logs", "cache", "timing",
        "timing.json", "processes",
    }  # fmt: skip
    assert (world / "output/demo/fine-tuned/seed=0_ex=4/cat/learned_embeds.safetensors").is_file()
    assert (world / "output/demo/aug/seed=0_ex=4/000000-000.png").is_file()
    assert (world / "output/demo/results/aug/summary.csv").is_file()


def test_python_example_runs(world, small_model):
    example = next(block for block in blocks("python") if "augment = RealGuidance" in block)
    names = {}
    exec(example.replace("CompVis/stable-diffusion-v1-4", small_model), names)
    assert names["image"].size == (48, 40)
    assert names["label"] == 0


def test_the_python_of_the_page_of_methods_runs(world, small_model):
    (example,) = blocks("python", METHODS)
    quick = {"CompVis/stable-diffusion-v1-4": small_model, "steps=30": "steps=2",
             "num_synthetic=3": "num_synthetic=1"}  # fmt: skip
    for written, small in quick.items():
        assert written in example
        example = example.replace(written, small)
    names = {}
    exec(example, names)
    assert names["image"].size == (48, 40) and names["label"] == 0
    for name, methods in {"paste": {"paste"}, "both": {"paste", "background"}}.items():
        lines = (world / f"output/demo/{name}/seed=0_ex=2/metadata.jsonl").read_text().splitlines()
        assert len(lines) == 3 * 2
        assert {json.loads(line)["aug"][0] for line in lines} == methods


def test_own_dataset_says_what_is_missing(world, small_model, capsys):
    import generate_augmentations

    (world / "data/welds/labels.csv").unlink()
    command = next(c for c in commands() if "welds:WeldDataset" in c)
    with pytest.raises(SystemExit) as ending:
        generate_augmentations.main(small(command, small_model))
    assert ending.value.code == 2
    assert "labels.csv is missing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        generate_augmentations.main([*small(command, small_model), "--dataset_args", "kamera=left"])
    assert "unknown key 'kamera'; WeldDataset has: camera" in capsys.readouterr().err


def flags() -> set[str]:
    """Every flag of the commands."""
    known = set()
    for settings in (Run, FineTuning, Merging, Generation, Previewing, Remade, Reproduction,
                     Classification, Reporting, Showing, Predicting, Exporting,
                     Fitting, Masking, Predicting, Exporting):  # fmt: skip
        for name, field in fields_of(settings).items():
            known |= {*(field.metadata["flags"] or (f"--{name}",))}
            known |= {*(field.metadata["shorthand"] or ())}
    for name in ("cluster/chain", "datasets/__main__"):  # which have flags beside their settings
        known |= set(re.findall(r'"(--\w+)"', (ROOT / f"semantic_aug/{name}.py").read_text()))
    return known


def test_readme_names_every_script_and_no_flag_that_does_not_exist():
    scripts = {command[1] for command in commands()}
    assert scripts == {
        "fine_tune.py", "fine_tune_upstream.py", "aggregate_embeddings.py",
        "generate_augmentations.py", "train_classifier.py", "semantic_aug.report",
    }  # fmt: skip
    used = set(re.findall(r"`?(--\w+)", README)) - {"--help", "--help_all", "--logdir", "--fast"}
    of_others = {"--gpus", "--partition", "--time"} | {"--multi_gpu", "--num_processes"}
    assert used - of_others <= flags()  # sbatch's, and those of accelerate launch


def test_the_page_of_methods_names_no_flag_and_no_picture_that_does_not_exist():
    assert set(re.findall(r"--\w+", METHODS)) - {"--output", "--out"} <= flags()  # of its pictures
    pictures = set(re.findall(r"\]\((methods/\w+\.webp)\)", METHODS))
    assert pictures == {f"methods/{path.name}" for path in (ROOT / "docs/methods").iterdir()}
