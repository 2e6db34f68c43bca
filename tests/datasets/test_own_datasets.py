"""Datasets of one's own: splits by hashes, and the examples in docs/own-data.md."""

import csv
import importlib
import pickle
import re
import sys
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from semantic_aug import UserError, stable_hash
from semantic_aug.datasets import build_dataset
from semantic_aug.datasets.__main__ import main
from semantic_aug.datasets.layout import split_by_hash
from semantic_aug.few_shot_dataset import SPLITS, Record


def records(sizes):
    return [
        Record(f"{name}/{number}.png", name, f"{name}/{number}.png")
        for name, size in sizes.items()
        for number in range(size)
    ]


def test_splits_by_hash_are_cut_class_by_class_and_fixed_for_ever():
    splits = split_by_hash(records({"a": 10, "b": 5, "c": 2, "d": 1}))
    counts = {split: Counter(record.class_name for record in splits[split]) for split in SPLITS}
    assert counts == {
        "train": {"a": 6, "b": 3, "c": 1, "d": 1},
        "val": {"a": 2, "b": 1},
        "test": {"a": 2, "b": 1, "c": 1},
    }
    ranked = sorted((f"a/{number}.png" for number in range(10)), key=stable_hash)
    found = {split: [r.source for r in splits[split] if r.class_name == "a"] for split in SPLITS}
    assert found == {"val": ranked[:2], "test": ranked[2:4], "train": ranked[4:]}
    assert split_by_hash(reversed(records({"a": 10})))["val"] == splits["val"][:2]


@given(st.integers(0, 40), st.floats(0, 0.99), st.floats(0, 0.99))
def test_splits_by_hash_of_any_shares(size, val, test):
    if val + test >= 1:
        with pytest.raises(UserError, match="expected shares from 0 to below 1"):
            split_by_hash(records({"a": size}), val, test)
        return
    splits = split_by_hash(records({"a": size}), val, test)
    assert sorted(r.source for s in SPLITS for r in splits[s]) == sorted(
        r.source for r in records({"a": size})
    )
    counts = {split: len(splits[split]) for split in SPLITS}
    assert (counts["train"] >= 1) == (size >= 1)
    if size >= 3:
        assert (counts["val"] >= 1, counts["test"] >= 1) == (val > 0, test > 0)
        assert all(abs(counts[s] - w * size) <= 2 for s, w in (("val", val), ("test", test)))


@pytest.mark.parametrize("shares", [(-0.1, 0.2), (0.5, 0.5), (float("nan"), 0)])
def test_splits_by_hash_leave_something_for_training(shares):
    with pytest.raises(UserError, match=r"split_by_hash: got val=.* and test="):
        split_by_hash([], *shares)


@pytest.fixture
def tools(workdir, monkeypatch):
    """The module of docs/own-data.md, and the photos that it speaks of."""
    text = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    _, example = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (workdir / "tools.py").write_text(example)
    monkeypatch.syspath_prepend(str(workdir))
    monkeypatch.delitem(sys.modules, "tools", raising=False)
    rows = [("file", "label", "left", "top", "right", "bottom")]
    for folder in ("tools", "new-tools"):
        (workdir / "data" / folder).mkdir(parents=True)
        for number in range(20):
            name = f"{('hammer', 'saw')[number % 2]}_{number}.jpg"
            colour = (12 * number, len(folder), 90)
            Image.new("RGB", (30, 20), colour).save(workdir / "data" / folder / name)
            if folder == "tools":
                rows.append((name, name.split("_")[0], 2, 3, 4 + number, 9))
    with open(workdir / "data/tools/boxes.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    yield importlib.import_module("tools")
    sys.modules.pop("tools", None)


def test_the_documented_dataset_without_splits(tools, capsys):
    splits = {split: build_dataset("tools:ToolDataset", split) for split in SPLITS}
    assert {split: len(dataset) for split, dataset in splits.items()} == {
        "train": 12, "val": 4, "test": 4,
    }  # fmt: skip
    trial = build_dataset("tools:ToolDataset", "train", examples_per_class=1, crop_to_object=True)
    again = pickle.loads(pickle.dumps(splits["train"]))  # as processes that read ahead get it
    for index, record in enumerate(again.records):
        mask = np.zeros((20, 30), np.uint8)
        mask[3:9, 2 : 4 + int(record.path.stem.split("_")[1])] = 255
        assert np.array_equal(again.get_mask_by_idx(index), mask)
    assert len(trial) == 2 and trial.get_image_by_idx(0).size == (20, 20)
    assert main(["check", "tools:ToolDataset"]) == 0
    assert "masks   good 20" in capsys.readouterr().out
    assert main(["tools:ToolDataset"]) == 0
    assert "Tools with a box around each" in capsys.readouterr().out


def test_the_documented_dataset_for_training_alone(tools, capsys):
    dataset = build_dataset("tools:NewToolDataset", "train", examples_per_class=4)
    assert [dataset.get_label_by_idx(index) for index in range(8)] == [0] * 4 + [1] * 4
    assert main(["check", "tools:NewToolDataset"]) == 1
    text = capsys.readouterr().out
    assert "splits that cannot be listed: 2" in text and "20 photos of 2 classes" in text
