"""The quality gate: scores of synthetic images, marks of the worst, and who honours them."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_backbone, build_clip
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import train_classifier
from semantic_aug import gate as gate_module
from semantic_aug.datasets import build_dataset
from semantic_aug.experiment.config import read_config
from semantic_aug.gate import worst
from semantic_aug.generative_augmentation import Edit, GenerativeAugmentation
from semantic_aug.report.__main__ import main as report
from semantic_aug.stages import editing, generate
from semantic_aug.synthesis.records import read_records, read_scores

FOLDER = Path("output/e/aug/seed=0_ex=1")


class Copies(GenerativeAugmentation):
    """The photo with noise of the image's own stream."""

    def __init__(self, pipeline=None, **_):
        pass

    def augment(self, images, labels, metadata, generators):
        noisy = []
        for image, generator in zip(images, generators):
            noise = torch.randn((*image.size[::-1], 3), generator=generator).numpy()
            pixels = np.asarray(image) + 20 * noise
            noisy.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
        return noisy, [[Edit("copies", "", 0.5, 1, False, False)] for _ in noisy]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return str(build_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def gate(make, clip):
    """Make copies of the small photos and judge them; returns exit status and stderr."""

    def gate(*flags, name="aug"):
        flags = ["--aug=test_filter:Copies", "--num_synthetic=6", *flags]
        return make(*flags, name=name)

    return gate


def marks(folder=FOLDER) -> dict[str, tuple]:
    return {name: (each["score"], each["kept"]) for name, each in read_scores(folder).items()}


def lines(folder=FOLDER) -> list[dict]:
    """What filters have written."""
    found = [
        json.loads(line)
        for path in (folder / "records").iterdir()
        for line in path.read_text().splitlines()
    ]
    return [line for line in found if "label" not in line]


def rejected(folder=FOLDER) -> Counter:
    """How many of each class are not kept."""
    scores = read_scores(folder)
    return Counter(
        r["class_name"] for r in read_records(folder) if not scores[r["file_name"]]["kept"]
    )


# --- scores ----------------------------------------------------------------------------------


def test_clip_scores_are_cosines_with_the_names_of_classes(gate, clip):
    from transformers import CLIPModel, CLIPTokenizer

    assert gate("--filter=clip", f"--filter_model={clip}", "--filter_quantile=0.34")[0] == 0
    model, tokenizer = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    records, found = read_records(FOLDER), marks()
    assert len(records) == len(found) == 18
    for record in records[::5]:
        small = Image.open(FOLDER / record["file_name"]).resize((16, 16), Image.Resampling.BICUBIC)
        pixels = torch.tensor(np.asarray(small)).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in ([0.5, 0.4, 0.3], [0.2, 0.2, 0.3]))
        tokens = tokenizer(f"a photo of a {record['class_name']}", return_tensors="pt")
        with torch.no_grad():
            output = model(**tokens, pixel_values=((pixels - mean) / std)[None])
        cosine = (output.image_embeds * output.text_embeds).sum()
        assert found[record["file_name"]][0] == pytest.approx(float(cosine), abs=0.01)
    assert rejected() == {"cat": 2, "stop sign": 2, "toy train": 2}
    for name in rejected():
        own = sorted(found[r["file_name"]] for r in records if r["class_name"] == name)
        assert [kept for _, kept in own] == [False] * 2 + [True] * 4


def test_classifier_finds_images_of_another_class(gate, tmp_path):
    gate()
    backbone = build_backbone(tmp_path / "backbone")
    dataset = build_dataset("folder", "train", data_dir="photos", examples_per_class=1, seed=0)
    wrong = set()
    for idx in range(len(dataset)):  # the photo of the next class in place of one of its images
        name = f"{idx:06d}-003.png"
        dataset.get_image_by_idx((idx + 1) % len(dataset)).save(FOLDER / name)
        wrong.add(name)
    quantile = f"--filter_quantile={1 / 6}"
    assert gate("--filter=classifier", f"--filter_model={backbone}", quantile)[0] == 0
    assert {name for name, (_, kept) in marks().items() if not kept} == wrong
    assert all(0 <= score <= 1 for score, _ in marks().values())


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3]), max_size=20), st.floats(0, 0.99))
def test_worst_share_is_rounded_down_and_of_lowest_scores(values, quantile):
    scores = {f"{number:02d}": value for number, value in enumerate(values)}
    found = worst(scores, quantile)
    assert len(values) * quantile - 1 < len(found) <= len(values) * quantile + 1e-6
    if found and len(found) < len(scores):
        best = max((scores[name], name) for name in found)
        assert all((scores[name], name) > best for name in scores.keys() - found)


# --- cache, shards, classes ------------------------------------------------------------------


def test_scores_are_computed_once_and_marks_follow_the_quantile(gate, clip, monkeypatch):
    flags = ["--filter=clip", f"--filter_model={clip}"]
    assert gate(*flags, "--filter_quantile=0.5")[0] == 0
    before, written = marks(), lines()
    assert rejected() == {"cat": 3, "stop sign": 3, "toy train": 3}

    def loaded(*_):
        raise AssertionError("a model was loaded for nothing")

    with monkeypatch.context() as patch:
        patch.setattr(generate, "load_scorer", loaded)
        patch.setattr(editing, "load_pipeline", loaded)
        gate(*flags, "--filter_quantile=0.5")
        assert lines() == written
        gate(*flags, "--filter_quantile=0")
        assert not rejected()
        gate(*flags, "--filter_quantile=0.5")
    assert marks() == before
    assert gate(*flags, "--filter_quantile=0.5", "--num_synthetic=8")[0] == 0  # two more of each
    assert rejected() == {"cat": 4, "stop sign": 4, "toy train": 4}
    scored = [line["file_name"] for line in lines() if "kept" not in line]
    assert len(scored) == len(set(scored)) == 24


def test_another_filter_counts_and_going_back_costs_no_score(gate, clip, tmp_path, monkeypatch):
    flags = ["--filter=clip", f"--filter_model={clip}"]
    gate(*flags)
    by_clip = marks()
    backbone = build_backbone(tmp_path / "backbone")
    gate("--filter=classifier", f"--filter_model={backbone}")
    assert {score for score, _ in marks().values()}.isdisjoint(s for s, _ in by_clip.values())
    monkeypatch.setattr(gate_module, "_load_clip", None)
    assert gate(*flags)[0] == 0
    assert marks() == by_clip


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_last_shard_marks_and_marks_as_one_process_does(gate, clip, order):
    flags = ["--filter=clip", f"--filter_model={clip}", "--filter_quantile=0.4", "--batch_size=2"]
    gate(*flags, name="whole")
    for number, index in enumerate(order):
        status, _ = gate(*flags, f"--shard_index={index}", "--num_shards=3")
        assert status == 0
        kept = [each for each in read_scores(FOLDER).values() if "kept" in each]
        if number < 2:
            assert len(kept) < 18
    assert marks() == marks(Path("output/e/whole/seed=0_ex=1"))
    names = [line["file_name"] for line in lines() if "kept" not in line]
    assert len(names) == len(set(names)) == 18


@pytest.mark.slow
def test_classes_judged_apart_are_judged_as_together(gate, clip, tmp_path):
    backbone = build_backbone(tmp_path / "backbone")
    for kind, model in (("clip", clip), ("classifier", backbone)):
        flags = [f"--filter={kind}", f"--filter_model={model}", "--filter_quantile=0.4"]
        gate(*flags, name=f"together-{kind}")
        for name in ("toy train", "cat", "stop sign"):
            gate(*flags, "--classes", name, name=f"apart-{kind}")
        apart, together = (
            marks(Path(f"output/e/{name}-{kind}/seed=0_ex=1")) for name in ("apart", "together")
        )
        assert apart == together and len(apart) == 18


def test_interrupted_scoring_goes_on_where_it_was(gate, clip, monkeypatch):
    flags = ["--filter=clip", f"--filter_model={clip}"]
    monkeypatch.setattr(gate_module, "CHUNK", 4)
    write, written = gate_module.RecordWriter.write, []

    def dies(self, record):
        if "score" in record and len(written) == 10:
            raise KeyboardInterrupt
        written.append(record)
        write(self, record)

    gate()
    with monkeypatch.context() as patch:
        patch.setattr(gate_module.RecordWriter, "write", dies)
        assert gate(*flags)[0] == 130
    assert len(lines()) == 10
    assert gate(*flags)[0] == 0
    names = [line["file_name"] for line in lines() if "kept" not in line]
    assert len(names) == len(set(names)) == 18


def test_images_of_other_words_have_no_score(gate, clip):
    gate("--filter=clip", f"--filter_model={clip}", "--filter_quantile=0.5")
    identity, name = read_config(FOLDER)["id"], next(n for n, (_, kept) in marks().items() if kept)
    record = next(r for r in read_records(FOLDER) if r["file_name"] == name)
    with open(FOLDER / "records" / f"{identity}.99.jsonl", "w") as file:
        file.write(json.dumps(record | {"embeddings": "of other words"}) + "\n")
    assert name not in read_scores(FOLDER)
    assert len(read_scores(FOLDER)) == 17


def test_metadata_says_the_score_of_every_image_once_one_has_one(gate, clip, monkeypatch):
    def metadata():
        return [json.loads(line) for line in (FOLDER / "metadata.jsonl").read_text().splitlines()]

    flags = ["--filter=clip", f"--filter_model={clip}", "--filter_quantile=0.5"]
    gate()
    keys = list(metadata()[0])
    assert all(list(line) == keys for line in metadata()) and "score" not in keys
    write, written = gate_module.RecordWriter.write, []

    def dies(self, record):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(record)
        write(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(gate_module.RecordWriter, "write", dies)
        assert gate(*flags)[0] == 130
    assert all(list(line) == [*keys, "score", "kept"] for line in metadata())
    assert Counter(line["score"] is None for line in metadata()) == {True: 13, False: 5}
    assert {line["kept"] for line in metadata()} == {None}
    gate(*flags)
    assert {line["file_name"]: (line["score"], line["kept"]) for line in metadata()} == marks()
    assert Counter(line["kept"] for line in metadata()) == {True: 9, False: 9}
    gate("--num_synthetic=7")  # without a filter: three that nobody has scored
    assert Counter(line["kept"] for line in metadata()) == {True: 9, False: 9, None: 3}


# --- who honours the marks -------------------------------------------------------------------


def test_classifier_and_report_honour_the_marks(gate, clip, tmp_path, capsys):
    gate("--filter=clip", f"--filter_model={clip}", "--filter_quantile=0.5")
    common = ["--dataset=folder", "--data_dir=photos", "--experiment_name=e"]
    backbone = build_backbone(tmp_path / "backbone")
    quick = [f"--classifier_backbone={backbone}", "--num_epochs=1", "--iterations_per_epoch=1",
             "--augmentation=none", "--device=cpu"]  # fmt: skip
    train_classifier.main([*common, *quick])
    assert "3 photos and 9 synthetic images" in capsys.readouterr().out
    train_classifier.main([*common, *quick, "--ignore_filter", "--method=all"])
    assert "3 photos and 18 synthetic images" in capsys.readouterr().out
    report(common)
    page = Path("output/e/report/seed=0_ex=1.html").read_text()
    data = json.loads(page.split('type="application/json">')[1].split("</script>")[0])
    shown = {v["file"]: (v["score"], v["kept"]) for v in data["variants"]}
    assert shown.keys() == marks().keys()
    for name, (score, kept) in marks().items():
        assert shown[name] == (pytest.approx(score, abs=1e-3), kept)
    shutil.rmtree("output/e/report")


# --- bad input -------------------------------------------------------------------------------


def test_bad_filters_are_one_line_before_anything_is_made(gate, clip, tmp_path, monkeypatch):
    def loaded(*_):
        raise AssertionError("the diffusion model was loaded")

    monkeypatch.setattr(editing, "load_pipeline", loaded)
    backbone, empty = build_backbone(tmp_path / "backbone"), tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    shutil.copytree(clip, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    torn, torn_clip = tmp_path / "torn", tmp_path / "torn-clip"
    for good, damaged in ((backbone, torn), (clip, torn_clip)):
        shutil.copytree(good, damaged)
        (damaged / "preprocessor_config.json").write_text('{"size": 3')
    unread = "preprocessor_config.json cannot be read"
    for flags, expected in (
        (["--filter=classifier", f"--filter_model={torn}"], f"--filter_model: {torn}/{unread}"),
        (["--filter=clip", f"--filter_model={torn_clip}"], f"--filter_model: {torn_clip}/{unread}"),
        (["--filter=clip", f"--filter_model={backbone}"], "is a resnet, expected a CLIP model"),
        (["--filter=clip", f"--filter_model={empty}"], "holds no model of transformers"),
        (["--filter=clip", "--filter_model=no/such"], "'no/such' is no folder, and no hub model"),
        (["--filter=clip", f"--filter_model={broken}"], f"cannot load {broken}"),
        (["--filter=classifier", f"--filter_model={empty}"], "--filter_model: the folder"),
        (["--filter=clip", "--filter_quantile=1"], "expected a number in [0, 1), got '1'"),
        (["--filter=best"], "invalid choice: 'best'"),
        ([f"--filter_model={clip}"], "--filter_model means nothing without --filter"),
        (["--filter_quantile=0.2"], "--filter_quantile means nothing without --filter"),
        (["--safety_retries=2"], "--safety_retries means nothing without --safety_checker"),
    ):
        status, err = gate(*flags)
        assert status == 2 and expected in err.splitlines()[-1], err
        assert not FOLDER.exists()


def test_classifier_needs_two_classes(gate, photos, tmp_path):
    for split in ("train", "val", "test"):
        for name in ("cat", "toy train"):
            shutil.rmtree(photos / split / name)
    backbone = build_backbone(tmp_path / "backbone")
    status, err = gate("--filter=classifier", f"--filter_model={backbone}")
    assert status == 2 and "needs photos of two classes" in err
