"""Every command and every piece of Python on docs/classifiers.md runs."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from test_pages import flags

from semantic_aug import Run, train_classifier
from semantic_aug.__main__ import main

PAGE = (ROOT / "docs/classifiers.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_runs_from_top_to_bottom(photos, workdir, sketched, resnet, capsys):
    run = Run("demo", dataset="folder", data_dir="photos", examples_per_class=4, num_trials=2)
    train_classifier(run, method="aug", classifier_backbone=resnet, num_synthetic=0, num_epochs=1,
                     iterations_per_epoch=2, augmentation="none")  # fmt: skip
    shutil.copytree(photos / "test/cat", "new_photos")
    Path("new_photos/0.png").rename("new_photos/a.png")
    (Path("new_photos") / "1.png").rename("new_photos/b.jpg")
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "semantic-aug"
        main(words)
    assert Path("answers.csv").is_file() and Path("answers.json").is_file()
    assert Path("my-onnx-model/model.onnx").is_file()
    out = capsys.readouterr().out
    assert out.count("new_photos/a.png") == 4 and "Top-1" in out
    names: dict = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["probabilities"].shape == (1, 3)
    (name,) = names["names"]
    found = {each["label"]: each["score"] for each in names["answers"]}
    assert found[name] == pytest.approx(names["probabilities"].max().item(), abs=1e-4)


def test_the_page_names_no_flag_that_does_not_exist():
    assert set(re.findall(r"--\w+", PAGE)) <= flags()
