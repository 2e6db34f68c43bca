"""The four commands in sequence, on real photos, and what they say to bad input."""

import csv
import json
import shlex

import numpy as np
import pytest
import torch
from conftest import build_backbone, build_pipeline, draw_photo
from PIL import Image
from safetensors.torch import load_file, save_file

import aggregate_embeddings
import fine_tune
import generate_augmentations
import train_classifier
from semantic_aug.experiment.config import read_config
from semantic_aug.stages import editing

COMMON = ["--experiment_name=exp", "--examples_per_class=1"]


def generate(photos, model, *extra):
    generate_augmentations.main(
        ["--dataset=folder", f"--data_dir={photos}", f"--model_path={model}", *COMMON,
         "--num_inference_steps=4", "--num_synthetic=1", *extra]
    )  # fmt: skip


def fine_tune_words(photos, model, *extra):
    fine_tune.main(
        ["--dataset=folder", f"--data_dir={photos}", f"--model_path={model}", *COMMON,
         "--max_train_steps=2", "--report_to=none", *extra]
    )  # fmt: skip


def records_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def error_of(capsys, command, *args) -> str:
    """The line with which a command ends, which must be its only error, with exit status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        command(*args)
    assert ending.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert "Traceback" not in lines[0]
    return lines[0]


@pytest.mark.slow
def test_coco_from_photos_to_a_classifier(real_data, small_model, workdir, capsys):
    data = ["--dataset=coco", f"--data_dir={real_data / 'coco2017'}"]
    names = ["--experiment_name=coco", "--examples_per_class=1"]
    fine_tune.main(
        [*data, *names, f"--model_path={small_model}", "--num_vectors=2", "--max_train_steps=2"]
    )
    assert capsys.readouterr().err.count("classes without a training photo") == 1
    aggregate_embeddings.main(names)
    generate_augmentations.main(
        [*data, *names, f"--model_path={small_model}", "--num_synthetic=2", "--batch_size=8",
         "--num_inference_steps=4"]
    )  # fmt: skip
    said = capsys.readouterr()
    assert "augmentation: textual-inversion" in said.err
    backbone = build_backbone(workdir / "backbone")
    train_classifier.main(
        [*data, *names, f"--classifier_backbone={backbone}", "--num_epochs=2",
         "--iterations_per_epoch=3", "--batch_size=8", "--image_size=32"]
    )  # fmt: skip

    experiment = workdir / "output/coco"
    words = sorted((experiment / "fine-tuned/seed=0_ex=1").glob("*/learned_embeds.safetensors"))
    merged = load_file(experiment / "fine-tuned-merged/seed=0_ex=1.safetensors")
    assert len(words) == len(merged) > 5
    assert all(rows.shape == (2, 32) and rows.dtype == torch.float32 for rows in merged.values())
    lines = (experiment / "aug/seed=0_ex=1/metadata.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 2 * len(merged)
    for record in records:
        token = "<" + record["class_name"].replace(" ", "_") + ">"
        assert record["prompt"] == f"a photo of a {token}"
        image = Image.open(experiment / "aug/seed=0_ex=1" / record["file_name"])
        source = Image.open(real_data / "coco2017" / record["source"])
        assert image.size == source.size
    used = f"{len(merged)} photos and {len(records)} synthetic images"
    assert used in capsys.readouterr().out  # every one of them
    with open(experiment / "results/aug/results_0_1.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"Training", "Validation", "Test"}
    assert (experiment / "results/aug/summary.csv").is_file()
    assert not list(workdir.rglob("*.tmp"))


def test_learned_words_load_into_stock_diffusers(photos, small_model, workdir):
    from diffusers import StableDiffusionPipeline

    fine_tune_words(photos, small_model, "--num_vectors=3")
    aggregate_embeddings.main(COMMON)
    single = workdir / "output/exp/fine-tuned/seed=0_ex=1/toy_train/learned_embeds.safetensors"
    merged = workdir / "output/exp/fine-tuned-merged/seed=0_ex=1.safetensors"

    def encode(load):
        pipe = StableDiffusionPipeline.from_pretrained(small_model)
        load(pipe)
        return pipe.encode_prompt("a photo of a <toy_train>", "cpu", 1, False)[0]

    one = encode(lambda pipe: pipe.load_textual_inversion(str(single)))
    words = [{token: tensor} for token, tensor in load_file(merged).items()]
    assert torch.equal(one, encode(lambda pipe: pipe.load_textual_inversion(words)))
    assert not torch.equal(one, encode(lambda pipe: None))


def test_words_of_each_trial_are_its_own(photos, small_model, workdir, capsys):
    trials = ["--num_trials=2"]
    fine_tune_words(photos, small_model, *trials)
    aggregate_embeddings.main([*COMMON, *trials])
    generate(photos, small_model, *trials)
    both = [workdir / f"output/exp/aug/seed={seed}_ex=1" for seed in (0, 1)]
    words = [records_of(folder)[0]["embeddings"] for folder in both]
    assert words[0] != words[1]
    generate(photos, small_model, "--seed=1", "--aug_name=alone")
    alone = workdir / "output/exp/alone/seed=1_ex=1"
    for path in alone.glob("*.png"):
        assert path.read_bytes() == (both[1] / path.name).read_bytes()


def test_a_word_learned_later_does_not_touch_the_other_classes(
    photos, small_model, workdir, capsys
):
    folder = workdir / "output/exp/aug/seed=0_ex=1"
    for name in ("cat", "toy train"):
        fine_tune_words(photos, small_model, "--classes", name)
        aggregate_embeddings.main(COMMON)
        generate(photos, small_model, "--classes", name)
    assert [record["class_name"] for record in records_of(folder)] == ["cat", "toy train"]
    cat, train = (folder / record["file_name"] for record in records_of(folder))
    before = cat.read_bytes(), train.read_bytes()
    fine_tune_words(photos, small_model, "--classes", "cat", "--initializer_token=dog",
                    "--overwrite")  # fmt: skip
    aggregate_embeddings.main(COMMON)
    error = error_of(capsys, generate, photos, small_model, "--classes", "cat")
    assert "made with other words" in error and error.count("cat") and "train" not in error
    assert (cat.read_bytes(), train.read_bytes()) == before
    generate(photos, small_model, "--classes", "cat", "--overwrite")
    assert cat.read_bytes() != before[0]
    assert train.read_bytes() == before[1]
    assert len(records_of(folder)) == 2


def test_changed_photos_are_noticed_by_content_and_name(photos, small_model, workdir, capsys):
    generate(photos, small_model, "--aug=real-guidance")
    fine_tune_words(photos, small_model)
    source = photos / records_of(workdir / "output/exp/aug/seed=0_ex=1")[0]["source"]
    Image.new("RGB", (48, 40), "blue").save(source)
    error = error_of(capsys, generate, photos, small_model, "--aug=real-guidance")
    assert "photos" in error
    assert "photos" in error_of(capsys, fine_tune_words, photos, small_model)


def test_results_that_have_lost_their_configuration_stay(photos, small_model, workdir, capsys):
    """It is written again by the command that made them, and others refuse."""

    def lose(folder) -> str:
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text[:99])
        return text

    def files(folder):
        return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != "config.json"}

    def refused(command, *args):
        before = files(workdir / "output")
        assert "no readable config.json" in error_of(capsys, command, *args)
        assert files(workdir / "output") == before

    words = workdir / "output/exp/fine-tuned/seed=0_ex=1"
    fine_tune_words(photos, small_model)
    config = json.loads(lose(words))
    refused(fine_tune_words, photos, small_model, "--learning_rate=0.1")
    refused(aggregate_embeddings.main, COMMON)
    fine_tune_words(photos, small_model)
    again = json.loads((words / "config.json").read_text())
    assert again["settings"] == config["settings"]
    assert again["arguments"]["class_names"] == config["arguments"]["class_names"]
    aggregate_embeddings.main(COMMON)

    images = workdir / "output/exp/aug/seed=0_ex=1"
    generate(photos, small_model)
    before, config = files(images), json.loads(lose(images))
    refused(generate, photos, small_model, "--strength=1")
    refused(train_classifier.main, ["--dataset=folder", f"--data_dir={photos}", *COMMON])
    generate(photos, small_model)
    assert json.loads((images / "config.json").read_text())["settings"] == config["settings"]
    before.pop(images / "metadata.jsonl")  # which is derived again
    assert before.items() <= files(images).items()


def test_an_output_folder_that_cannot_be_written(photos, small_model, workdir, capsys):
    (workdir / "file").write_text("")
    for command in (generate, fine_tune_words):
        error = error_of(capsys, command, photos, small_model, "--output_dir=file")
        assert "is a file" in error
    error = error_of(capsys, aggregate_embeddings.main, [*COMMON, "--output_dir=file/deeper"])
    assert "is a file" in error


def test_missing_images_are_made_by_the_command_that_is_named(
    photos, small_model, workdir, capsys, monkeypatch
):
    generate(photos, small_model, "--strength", "0.5", "1.0", "--prompt", "the {name}'s photo")
    folder = workdir / "output/exp/aug/seed=0_ex=1"
    kept = (folder / "000001-000.png").read_bytes()
    (folder / "000001-000.png").write_bytes(b"")
    arguments = ["--dataset=folder", f"--data_dir={photos}", *COMMON]
    error = error_of(capsys, train_classifier.main, arguments)
    words = shlex.split(error.partition("make them with: ")[2].partition(" (or pass")[0])
    assert words[:2] == ["python", "generate_augmentations.py"]
    generate_augmentations.main(words[2:])
    assert (folder / "000001-000.png").read_bytes() == kept
    # More images of each photo, or another trial: the same command with other numbers.
    made = " ".join(map(shlex.quote, words))
    error = error_of(capsys, train_classifier.main, [*arguments, "--num_synthetic=9"])
    assert f"make them with: {made} --num_synthetic=9 (" in error
    error = error_of(capsys, train_classifier.main, [*arguments, "--seed=1"])
    assert f"make them with: {made} --seed=1 --num_trials=1 --examples_per_class=1 (" in error


def test_words_of_another_trial_are_used_and_said_so(photos, small_model, workdir, capsys):
    fine_tune_words(photos, small_model, "--seed=3")
    generate(photos, small_model, "--aug_name=unmerged")
    assert "aggregate_embeddings.py has not merged them" in capsys.readouterr().err
    aggregate_embeddings.main([*COMMON, "--seed=3"])
    generate(photos, small_model)
    said = capsys.readouterr().err
    assert "augmentation: textual-inversion" in said
    assert "optimistic" in said
    folder = workdir / "output/exp/aug/seed=0_ex=1"
    assert read_config(folder)["borrowed_words"] == "seed=3_ex=1"
    before = (folder / "config.json").read_bytes()
    older = {k: v for k, v in read_config(folder).items() if k != "borrowed_words"}
    (folder / "config.json").write_text(json.dumps(older, indent=2) + "\n")
    generate(photos, small_model)  # what an older folder lacks is added, and nothing else
    assert (folder / "config.json").read_bytes() == before
    generate(photos, small_model, "--seed=3", "--aug_name=own")
    given = workdir / "output/exp/fine-tuned-merged/seed=3_ex=1.safetensors"
    generate(photos, small_model, f"--embed_path={given}", "--aug_name=given")
    assert "optimistic" in capsys.readouterr().err
    generate(photos, small_model, "--aug=real-guidance", "--aug_name=rg")
    names = [f"{name}/seed=0_ex=1" for name in ("given", "rg")] + ["own/seed=3_ex=1"]
    notes = [read_config(workdir / "output/exp" / name)["borrowed_words"] for name in names]
    assert notes == ["seed=3_ex=1", None, None]
    assert "learned words, and they are not used" in capsys.readouterr().err
    error = error_of(capsys, generate, photos, small_model, "--embed_path=nowhere.safetensors")
    assert "nowhere.safetensors" in error


@pytest.mark.slow
def test_several_augmentations(photos, small_model, workdir):
    def records(name, *extra):
        generate(photos, small_model, f"--aug_name={name}", "--num_synthetic=4", *extra)
        lines = (workdir / f"output/exp/{name}/seed=0_ex=1/metadata.jsonl").read_text()
        return [json.loads(line) for line in lines.splitlines()]

    drawn = records("parallel", "--strength", "0.25", "0.5", "1.0")
    assert {len(r["strength"]) for r in drawn} == {1}
    assert len({r["strength"][0] for r in drawn}) >= 2
    never = records("never", "--strength", "0.25", "0.5", "--probs", "0", "1")
    assert {r["strength"][0] for r in never} == {0.5}
    both = records("both", "--strength", "0.25", "0.5", "--compose=sequential")
    assert {tuple(r["strength"]) for r in both} == {(0.25, 0.5)}
    some = records("some", "--strength", "0.25", "0.5", "--compose=sequential", "--probs", "0", "1")
    assert {tuple(r["strength"]) for r in some} == {(0.5,)}
    masked = ["--dataset_args", f"masks={photos.parent / 'masks'}", "--mask", "1"]
    background = records("background", *masked, "--inverted", "1")
    path = workdir / "output/exp/background/seed=0_ex=1" / background[0]["file_name"]
    source = photos / background[0]["source"]
    inside = np.asarray(Image.open(photos.parent / "masks" / background[0]["source"])) > 0
    edited, original = np.asarray(Image.open(path)), np.asarray(Image.open(source))
    assert (edited[inside] == original[inside]).all()
    assert (edited[~inside] != original[~inside]).any()


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--strength=0"], "(0, 1]"),
        (["--strength=1.2"], "(0, 1]"),
        (["--strength=0.2"], "no step at all"),
        (["--guidance_scale=nan"], "finite"),
        (["--inverted=1"], "--mask 1"),
        (["--strength", "0.5", "0.6", "--guidance_scale", "1", "2", "3"], "2 values"),
        (["--strength", "0.5", "0.6", "--probs", "0.5", "0.6"], "sum to 1.1"),
        (["--strength", "0.5", "0.6", "--probs", "1"], "got 1 number for 2"),
        (["--strength", "0.5", "0.6", "--probs", "-1", "2"], "[0, 1]"),
        (["--strength", "0.5", "0.6", "--compose=sequential", "--probs", "1", "2"], "[0, 1]"),
        (["--prompt", "a {foo}"], "{foo}"),
        (["--prompt", "a {name.__class__}"], "{name}"),
        (["--prompt", "a {name"], "--prompt"),
        (["--prompt", "a {0}"], "{name}"),
        (["--prompt", "a {token}"], "only --aug textual-inversion has learned words"),
        (["--prompt", "a {description}"], "the dataset describes no photo of 'cat'"),
        (["--class_name", "zebra"], "zebra"),
        (["--aug=magic"], "magic"),
        (["--mask=1"], "mask"),
        (["--aug_name=../out"], "--aug_name"),
        (["--aug_name=results"], "another stage"),
        (["--experiment_name=../out"], "--experiment_name"),
        (["--aug=textual-inversion"], "no learned words"),
        (["--resolution=33"], "multiple of 4"),
        (["--dataset=nothing"], "expected coco, mvip, folder"),
        (["--dataset=json:JSONDecoder"], "not a FewShotDataset"),
        (["--data_dir=/nowhere"], "/nowhere"),
        (["--model_path=/nowhere"], "/nowhere"),
        (["--model_path=nobody/no-such-model"], "cannot be reached"),
        (["--num_synthetic=0"], "whole number from 1"),
        (["--num_synthetic=4000000"], "for 3 photos, expected 10,000,000 images"),
        (["--num_trials=1000000"], "100000 trials at most"),
        (["--unknown_flag=1"], "unknown_flag"),
        (["--shard_index=3", "--num_shards=2"], "expected 0 to 1"),
    ],
)
def test_bad_input_of_generation(
    photos, small_model, workdir, capsys, monkeypatch, extra, expected
):
    def loaded(*_):
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr(editing, "load_pipeline", loaded)
    assert expected in error_of(capsys, generate, photos, small_model, *extra)
    assert not (workdir / "output").exists()
    assert sorted(p.name for p in workdir.iterdir()) == ["masks", "photos"]


def test_words_of_another_model_are_refused(photos, small_model, workdir, capsys):
    save_file({"<cat>": torch.ones(1, 48)}, workdir / "wide.safetensors")
    error = error_of(
        capsys, generate, photos, small_model, "--aug=textual-inversion", "--classes=cat",
        "--embed_path=wide.safetensors",
    )  # fmt: skip
    assert "width 48" in error
    save_file({"<cat>": torch.ones(1, 32)}, workdir / "cat.safetensors")
    error = error_of(
        capsys, generate, photos, small_model, "--aug=textual-inversion",
        "--embed_path=cat.safetensors",
    )  # fmt: skip
    assert "stop sign, toy train" in error


def test_a_pipeline_with_a_missing_part_is_refused(photos, workdir, capsys):
    build_pipeline().save_pretrained(workdir / "broken")
    next((workdir / "broken/unet").glob("*.safetensors")).unlink()
    assert "broken" in error_of(capsys, generate, photos, workdir / "broken")
    assert not list((workdir / "output").rglob("*.png"))


def test_unreadable_photos_are_named_and_replaced(photos, small_model, workdir, capsys):
    for name in ("0", "1"):
        (photos / f"train/cat/{name}.png").write_bytes(b"")
    generate(photos, small_model)
    said = capsys.readouterr().err
    lines = (workdir / "output/exp/aug/seed=0_ex=1/metadata.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["source"] == "train/cat/2.png"
    (photos / "train/cat/2.png").write_text("no image")
    error = error_of(capsys, generate, photos, small_model, "--aug_name=other")
    assert "cat" in error
    assert said.count("the file is empty") == said.count("skipped")


def test_odd_class_names_stay_in_their_folders(small_model, workdir):
    names = ["v1..2", "naïve Ünit", "A.B", "a.b", "日本 語"]
    for number, name in enumerate(names):
        draw_photo(workdir / "photos" / name / "1.png", (40 * number, 99, 9), number)
    fine_tune_words(workdir / "photos", small_model)
    aggregate_embeddings.main(COMMON)
    generate(workdir / "photos", small_model)
    written = [p for p in workdir.rglob("*") if p.is_file() and "photos" not in p.parts]
    assert all("output" in p.parts or "masks" in p.parts for p in written)
    folders = {p.parent.name for p in workdir.rglob("learned_embeds.safetensors")}
    assert len({name.casefold() for name in folders}) == len(names)
    merged = load_file(workdir / "output/exp/fine-tuned-merged/seed=0_ex=1.safetensors")
    assert sorted(merged) == sorted(["<v1..2>", "<naïve_ünit>", "<a.b>", "<a.b-2>", "<日本_語>"])


def test_a_class_name_of_another_encoding_is_named(photos, small_model, workdir, capsys):
    try:
        draw_photo(photos / "train" / "caf\udce9" / "0.png", (9, 9, 9), 0)
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert "is not valid UTF-8" in error_of(capsys, generate, photos, small_model)
