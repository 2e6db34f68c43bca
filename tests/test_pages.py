"""Every command and every piece of Python on README and in docs/ runs, with small models.

README runs in each run of the tests. Of all other pages each command is understood there, and runs
where `slow` tests do. docs/classifiers.md, contrastive.md, extending.md have tests of their own.
"""

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
from semantic_aug import load_classifier
from semantic_aug.__main__ import main as semantic_aug
from semantic_aug.cluster import chain
from semantic_aug.cluster.status import Showing
from semantic_aug.settings import build_all, fields_of
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

PAGES = {path.name if path.name != "README.md" else str(path.relative_to(ROOT)):
         path.read_text(encoding="utf-8")
         for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}  # fmt: skip
COCO_CLASSES = {1: "person", 17: "cat", 18: "dog"}
STAGES = {"fine_tune.py": "fine_tune", "fine_tune_upstream.py": "fine_tune",
          "aggregate_embeddings.py": "aggregate", "generate_augmentations.py": "generate",
          "train_classifier.py": "train_classifier"}  # fmt: skip


def blocks(language: str, page: str) -> list[str]:
    """The fenced blocks of a language on a page, also those that stand in a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", PAGES[page], re.MULTILINE | re.DOTALL)
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines())
            for indent, text in found]  # fmt: skip


def commands(page: str) -> list[list[str]]:
    """Its commands in order, as words; arrays of bash are filled in."""
    found, arrays = [], {}
    for line in (line for block in blocks("bash", page) for line in block.splitlines()):
        for name, words in arrays.items():
            line = line.replace(f'"${{{name}[@]}}"', words)
        if array := re.fullmatch(r"(\w+)=\((.*)\)", line):
            arrays[array[1]] = array[2]
        elif re.match(r"python (\w+\.py|-m semantic_aug)|semantic-aug ", line):
            found.append(shlex.split(line, comments=True))
    return found


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
    example = next(b for b in blocks("python", "own-data.md") if "class WeldDataset" in b)
    (workdir / "welds.py").write_text(example)
    monkeypatch.syspath_prepend(str(workdir))
    monkeypatch.delitem(sys.modules, "welds", raising=False)
    monkeypatch.setattr("semantic_aug.evaluation.folds.REPEATS", (2, 2))
    monkeypatch.setattr("semantic_aug.stages.fitting_scores.PHOTO_VIEWS", 2)
    build_backbone(workdir / "backbone")
    build_clip(workdir / "clip")
    return workdir


def small(command: list[str], model: str) -> list[str]:
    """A command's arguments with small models, few steps, and few variants."""
    replaced = {
        "fine_tune.py": [f"--pretrained_model_name_or_path={model}", "--max_train_steps=1",
                         "--resolution=32", "--initializer_token=motor"],
        "generate_augmentations.py": [f"--model_path={model}", "--num_inference_steps=4",
                                      "--resolution=32"],
        "train_classifier.py": ["--classifier_backbone=backbone", "--num_epochs=1",
                                "--iterations_per_epoch=2", "--image_size=32"],
        "fit": ["--classifier_backbone=backbone", "--iterations=5", "--device=cpu",
                "--candidates", "real"],
    }  # fmt: skip
    name = command[1].replace("_upstream", "")
    more = ["--filter_model=clip"] if "--filter" in command else []
    few = ["2" if word == "10" else word for word in command[2:]]  # variants of each photo
    return [*few, *replaced.get(name, []), *more]


def follow(page: str, model: str, first: int | None = None) -> None:
    """Run the commands of a page, or the first of them, in the folder that one stands in."""
    for command in commands(page)[:first]:
        if command[1] in STAGES:
            importlib.import_module(command[1].removesuffix(".py")).main(small(command, model))
        elif command[0] == "semantic-aug":
            semantic_aug([command[1], *small(command, model)])
        else:  # python -m semantic_aug.report …
            module = importlib.import_module(f"{command[2]}.__main__")
            try:
                module.main(command[3:])
            except SystemExit as ended:
                assert not ended.code, command


def test_readme_runs_from_top_to_bottom(world, small_model):
    follow("README.md", small_model)
    output = world / "output"
    results = {p.relative_to(output).as_posix() for p in output.rglob("results_*.csv")}
    assert results == {
        "demo/results/aug/results_0_4.csv",
        "demo/results/real/results_0_4.csv",
        "mvip-test/results/aug/results_0_1.csv",
    }
    assert load_classifier(output / "photos/fit/classifier").class_names[0] == "cat"
    found = {p.name for p in (output / "demo").iterdir()}
    drawn = blocks("", "output.md")[0]
    assert found == {
        "fine-tuned", "fine-tuned-merged", "aug", "results", "logs", "cache", "timing",
        "timing.json", "processes",
    }  # fmt: skip
    for path in (output / "demo").rglob("*"):
        name = re.sub(r"_\d+_\d+\b", "_S_N", path.name)
        if path.is_file() and path.parent.parent.name == "results":
            assert name in drawn, f"docs/output.md does not name {path.name}"
    (example,) = blocks("python", "README.md")
    quick = {
        "num_trials=3": "num_trials=1", 'fine_tune(run, num_vectors=4, mixed_precision="fp16")': "",
        "num_synthetic=10": f"num_synthetic=1, num_inference_steps=4, aug_name='again', "
                            f"model={small_model!r}, device='cpu'",
        "train_classifier(run)": "train_classifier(run, aug_name='again', num_epochs=1, "
                                 "iterations_per_epoch=1, classifier_backbone='backbone')",
        "demo/aug/": "demo/again/",
    }  # fmt: skip
    for written, instead in quick.items():
        assert written in example
        example = example.replace(written, instead)
    names = {}
    exec(example, names)
    assert names["difference"] is not None and len(names["table"])


@pytest.mark.slow
def test_the_other_pages_run_from_top_to_bottom(world, small_model):
    for page in ("quickstart.md", "evaluation.md", "own-data.md", "datasets.md"):
        follow(page, small_model)
    output = world / "output"
    results = {p.relative_to(output).as_posix() for p in output.rglob("results_*.csv")}
    assert results == {
        *(f"demo/results/{method}/results_0_4.csv" for method in
          ("aug", "aug-append", "real-randaugment-cutmix", "real", "real-guidance")),
        *(f"coco/results/aug/results_{seed}_{k}.csv" for seed in (0, 1) for k in (1, 2, 4, 8)),
    }  # fmt: skip
    assert (output / "demo/report/seed=0_ex=4.html").is_file()
    welds = (output / "welds/aug/seed=0_ex=2/metadata.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in welds]
    assert len(records) == 3 * 2 * 4
    left = {f"{number}.png" for number in range(9)}
    assert {record["source"] for record in records} <= left


def test_a_photo_is_edited_in_python(world, small_model):
    (example,) = blocks("python", "quickstart.md")
    names = {}
    exec(example.replace("CompVis/stable-diffusion-v1-4", small_model), names)
    assert names["image"].size == (48, 40)
    assert names["label"] == 0


def test_the_python_of_the_page_of_methods_runs(world, small_model):
    (example,) = blocks("python", "methods.md")
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
    command = next(c for c in commands("own-data.md") if "welds:WeldDataset" in c)
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


OF_OTHERS = {"--help", "--help_all", "--logdir", "--fast",  # of other programs, and of scripts
             "--gpus", "--partition", "--time", "--mem", "--account", "--signal", "--multi_gpu",
             "--num_processes", "--cpu", "--quick", "--cache", "--set", "--recipes", "--out",
             "--output", "--prompt_suffix", "--parsable"}  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_understood_and_no_flag_is_missing(page):
    for command in commands(page):
        if command[1] in STAGES:
            stage = STAGES[command[1]]
            args = chain.parser_of(stage).parse_args(command[2:])
            build_all(vars(args), *chain.SETTINGS[stage])
    used = {*re.findall(r"(?<![\w-])--\w+", PAGES[page])}
    assert used - OF_OTHERS <= flags()


def test_readme_is_short_and_names_each_page():
    readme = PAGES["README.md"]
    assert len(readme.splitlines()) <= 200 and len(readme.split()) <= 1400
    named = {name for name in PAGES if f"docs/{name}" in readme}
    assert {*PAGES} - named <= {"README.md", "docs/README.md", "sample.md"}
    index = {name for name in PAGES if f"({name})" in PAGES["docs/README.md"]}
    assert index == {*PAGES} - {"README.md", "docs/README.md"}


def test_every_flag_stands_on_a_page():
    """The reference is generated; people look for what a flag is good for on the other pages."""
    said = " ".join(text for page, text in PAGES.items() if page != "reference.md")
    assert {flag for flag in flags() - OF_OTHERS if not re.search(rf"{flag}\b", said)} == set()


def test_the_page_of_methods_names_no_picture_that_does_not_exist():
    pictures = set(re.findall(r"\]\((methods/\w+\.webp)\)", PAGES["methods.md"]))
    assert pictures == {f"methods/{path.name}" for path in (ROOT / "docs/methods").iterdir()}
