"""Settings of edits through the command: config.json, records, resumption, one image again."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_clip, draw_photo, images_of
from PIL import Image
from safetensors.torch import load_file
from scipy import ndimage

import generate_augmentations
from semantic_aug import Run, fine_tune, gate
from semantic_aug.datasets import build_dataset
from semantic_aug.diffusion import loading
from semantic_aug.experiment.config import read_config
from semantic_aug.images.framing import photo_within
from semantic_aug.report.__main__ import main as report
from semantic_aug.stages import planning
from semantic_aug.stages.checking_photos import png_bytes
from semantic_aug.synthesis.variants import read_variants
from semantic_aug.words.class_names import say_classes

FOLDER = Path("output/e/aug/seed=0_ex=1")


def again(capsys, name="000000-001.png") -> str:
    """What --reproduce says of an image."""
    capsys.readouterr()
    generate_augmentations.main([f"--reproduce={FOLDER / name}", "--device=cpu"])
    return capsys.readouterr().out.removeprefix(f"{FOLDER / name}: ").strip()


def records(folder=FOLDER) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


# --- a negative prompt -----------------------------------------------------------------------


def test_a_negative_prompt_is_compared_recorded_and_reproduced(make, capsys):
    assert make("--batch_size=1")[0] == 0
    without = images_of()
    assert "negative_prompt" not in read_config(FOLDER)["settings"]
    status, err = make("--negative_prompt", "a dog", "--batch_size=1")
    assert status == 2 and "--negative_prompt: there none, now a dog" in err
    flags = ("--negative_prompt", "a dog", "--batch_size=1")
    assert make(*flags, "--overwrite", "--guidance_scale", 1, 7.5)[0] == 0  # of one edit, it does
    assert make(*flags, "--overwrite")[0] == 0
    assert read_config(FOLDER)["settings"]["negative_prompt"] == "a dog"
    assert {record["negative_prompt"] for record in records()} == {"a dog"}
    assert any((images_of()[name] != without[name]).any() for name in without)
    assert again(capsys) == "equal"


@pytest.mark.parametrize("scales", [[1.0], [0, 0.5]])
def test_a_negative_prompt_without_guidance_is_refused(make, scales):
    status, err = make("--negative_prompt", "a dog", "--guidance_scale", *scales)
    assert status == 2
    assert "--negative_prompt means nothing without guidance: give a --guidance_scale above" in err


def test_a_negative_prompt_for_a_model_that_is_told_the_guidance(make, small_model):
    shutil.copytree(small_model, "model", symlinks=True)
    config = Path("model/unet/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"time_cond_proj_dim": 16}))
    status, err = make("--model_path=model", "--negative_prompt", "a dog")
    assert status == 2 and "--negative_prompt: model works without classifier-free" in err


# --- a region that shrinks -------------------------------------------------------------------


@pytest.mark.parametrize("inverted", [0, 1])
def test_a_region_shrinks_and_where_it_vanishes_the_photo_stays(make, photos, capsys, inverted):
    masks = photos.parent / "masks"
    flags = ("--mask=1", f"--inverted={inverted}", "--strength=1", "--dataset_args",
             f"masks={masks}", "--classes=cat", "--batch_size=1")  # fmt: skip
    # Ellipses of 21 pixels; of the ground around them, there is always more than that.
    status, err = make(*flags, "--mask_grow_radius=-4")
    assert status == 0 and "--mask_grow_radius" not in err
    for record in records():
        photo = np.asarray(Image.open(photos / record["source"])).astype(int)
        on_object = np.asarray(Image.open(masks / record["source"])) > 0
        region = ndimage.distance_transform_edt(on_object != inverted) > 4
        changed = (images_of()[record["file_name"]] != photo).any(axis=-1)
        assert region.any() and changed[region].mean() > 0.9 and not changed[~region].any()
    assert again(capsys) == "equal"
    status, err = make(*flags, "--mask_grow_radius=-11", "--overwrite")
    assert status == 0
    warned = (
        "--mask_grow_radius -11: nothing is left of the edited region of 1 photo, such as train"
    )
    assert (warned in err) is (not inverted)
    for record in records() if not inverted else ():
        photo = np.asarray(Image.open(photos / record["source"])).astype(int)
        assert (images_of()[record["file_name"]] == photo).all()


# --- smaller images --------------------------------------------------------------------------


def test_photos_and_masks_are_reduced_before_the_edit(make, photos, small_model, capsys):
    masks = photos.parent / "masks"
    flags = ("--mask=1", "--strength=1", "--dataset_args", f"masks={masks}", "--batch_size=1")
    flags += ("--save_size=24", "--classes=cat")
    assert make(*flags, "--mask_feather=2")[0] == 0
    before = {path.name: path.read_bytes() for path in FOLDER.glob("*.png")}
    for record in records():
        image = images_of()[record["file_name"]]
        photo = Image.open(photos / record["source"]).convert("RGB").resize((24, 20), 3)
        mask = Image.open(masks / record["source"]).resize((24, 20), 0)
        on_object = np.asarray(mask) > 0
        changed = (image != np.asarray(photo)).any(axis=-1)
        assert image.shape == (20, 24, 3) and changed[on_object].mean() > 0.9
        assert not changed[ndimage.distance_transform_edt(~on_object) > 2].any()
    assert again(capsys) == "equal"
    # It is compared, and what is lost is made again.
    assert read_config(FOLDER)["settings"]["save_size"] == 24
    status, err = make(*flags, "--mask_feather=2", "--save_size=30")
    assert status == 2 and "--save_size: there 24, now 30" in err
    (FOLDER / "000000-000.png").unlink()
    assert make(*flags, "--mask_feather=2")[0] == 0
    assert {path.name: path.read_bytes() for path in FOLDER.glob("*.png")} == before
    # Who reads variants does not mind that they are smaller than their photos.
    common = ["--dataset=folder", f"--data_dir={photos}", "--experiment_name=e", "--classes=cat"]
    report([*common, "--dataset_args", f"masks={masks}"])
    assert (Path("output/e/report") / FOLDER.name / "cat.png").is_file()
    dataset = build_dataset("folder", "train", data_dir=photos, examples_per_class=1)
    assert len(read_variants(FOLDER, dataset, classes=["cat"])[0]) == 2


def test_photos_are_never_enlarged(make):
    assert make("--classes=cat")[0] == 0
    whole = images_of()
    assert make("--classes=cat", "--save_size=48", name="b")[0] == 0
    assert all((images_of("b")[name] == image).all() for name, image in whole.items())


def test_an_object_too_small_for_the_size_is_named(make, photos):
    masks = photos.parent / "masks"
    for path in (masks / "train/cat").iterdir():
        mask = Image.new("L", (48, 40))
        mask.putpixel((1, 1), 255)
        mask.save(path)
    flags = ("--mask=1", "--classes=cat", "--dataset_args", f"masks={masks}")
    status, err = make(*flags, "--save_size=9")
    assert status == 0 and "--save_size 9: nothing is left of the edited region of 1 photo" in err
    assert "nothing is left" not in make(*flags, name="whole")[1]


def test_large_photos_are_a_reason_to_save_smaller_images(make, photos):
    for path in (photos / "train/cat").iterdir():
        draw_photo(path, (220, 40, 40), 3, size=(160, 120))
    said = (
        "photos have up to 160x120 pixels, the model works at 32: --save_size 64 would save about "
        "0 MB, by an estimate of 1.5 bytes per pixel, less where an edit is enlarged"
    )
    flags = ("--classes=cat", "--num_inference_steps=2")
    assert said in make(*flags)[1]
    assert "--save_size" not in make(*flags)[1]  # which is too late: the images are there
    for more in ("--save_size=64", "--resolution=80"):
        assert "--save_size" not in make(*flags, more, name=more[2:6])[1]


def test_the_estimate_is_that_of_png(real_data):
    """Within a half of what photos take, as they are and enlarged."""
    paths = sorted((real_data / "coco2017").rglob("*.jpg"))[:6]
    for side, factor in ((256, 1), (256, 3)):
        taken = estimated = 0.0
        for path in paths:
            small = photo_within(Image.open(path).convert("RGB"), side)
            large = small.resize((small.width * factor, small.height * factor), 3)
            written = io.BytesIO()
            large.save(written, format="PNG")
            taken += len(written.getvalue())
            estimated += png_bytes(large.size, side)
        assert 0.67 < estimated / taken < 1.5


# --- names of classes ------------------------------------------------------------------------


def prompts(folder=FOLDER) -> set[str]:
    return {record["prompt"] for record in records(folder)}


def test_names_of_folders_reach_prompts_as_words(make, photos, capsys):
    for split in ("train", "val", "test"):
        (photos / split / "cat").rename(photos / split / "BevelGear")
    assert make("--batch_size=1")[0] == 0
    assert prompts() == {
        f"a photo of a {name}" for name in ("bevel gear", "stop sign", "toy train")
    }
    assert read_config(FOLDER)["settings"]["name_style"] == "words"
    assert again(capsys) == "equal"
    status, err = make("--name_style=raw")
    assert status == 2 and "--name_style: there words, now raw" in err
    assert make("--name_style=raw", "--batch_size=1", "--overwrite")[0] == 0
    assert "a photo of a BevelGear" in prompts() and again(capsys) == "equal"


def test_older_folders_keep_the_words_that_they_have(make, photos, monkeypatch, capsys):
    for split in ("train", "val", "test"):
        (photos / split / "cat").rename(photos / split / "BevelGear")
    flags = ("--classes=BevelGear", "--batch_size=1")
    with monkeypatch.context() as older:
        older.setattr(planning, "say_classes", lambda names, _: say_classes(names, None))
        assert make(*flags)[0] == 0
    config, images = (FOLDER / "config.json").read_bytes(), images_of()
    assert prompts() == {"a photo of a BevelGear"} and b'"name_style": null' not in config
    assert "name_style" not in read_config(FOLDER)["settings"]
    (FOLDER / "000000-000.png").unlink()
    status, err = make(*flags)
    assert status == 0 and "prompts name classes as the prompts of the images there do" in err
    assert (FOLDER / "config.json").read_bytes() == config
    assert all((images_of()[name] == image).all() for name, image in images.items())
    assert again(capsys) == "equal"
    assert make(*flags, "--seed=1")[0] == 0  # a trial beside it, whose images go with these
    assert prompts(FOLDER.with_name("seed=1_ex=1")) == {"a photo of a BevelGear"}
    status, err = make(*flags, "--name_style=raw")
    assert status == 2 and "--name_style: there none, now raw" in err
    (FOLDER / "config.json").unlink()
    (FOLDER.with_name("seed=1_ex=1") / "config.json").unlink()
    assert make(*flags)[0] == 0 and prompts() == {"a photo of a BevelGear"}
    assert make(*flags, name="newer")[0] == 0
    assert prompts(Path("output/e/newer/seed=0_ex=1")) == {"a photo of a bevel gear"}


def test_the_gate_names_classes_as_prompts_do(make, photos, tmp_path, monkeypatch):
    for split in ("train", "val", "test"):
        (photos / split / "cat").rename(photos / split / "BevelGear")
    named, scorer = [], gate._clip_scorer
    monkeypatch.setattr(
        gate, "_clip_scorer", lambda *given: named.append(given[-1]) or scorer(*given)
    )
    clip = build_clip(tmp_path / "clip")
    for style, words in (("words", "bevel gear"), ("raw", "BevelGear")):
        flags = ("--filter=clip", f"--filter_model={clip}", f"--name_style={style}")
        assert make(*flags, "--classes=BevelGear", name=style)[0] == 0
        assert named.pop()["BevelGear"] == words


# --- bfloat16 on the CPU ---------------------------------------------------------------------


def test_the_cpu_works_in_bfloat16_where_that_is_asked_for(make, monkeypatch, capsys):
    monkeypatch.setattr(loading, "cpu_has_bf16", lambda: False)
    flags = ("--classes=cat", "--batch_size=1")
    assert "bfloat16" not in make(*flags, name="whole")[1]
    status, err = make(*flags, "--mixed_precision=bf16")
    assert status == 0 and err.count("this CPU has no instructions for bfloat16") == 1
    assert {record["precision"] for record in records()} == {"bf16"}
    differences = [abs(images_of()[name] - image) for name, image in images_of("whole").items()]
    assert all(0 < each.mean() < 10 for each in differences)
    assert again(capsys) == "equal"
    status, err = make(*flags, "--mixed_precision=no")
    assert status == 2 and "in another precision (there bf16, now no) for: cat" in err


def test_a_word_in_bfloat16_on_the_cpu(photos, small_model, workdir, monkeypatch, caplog):
    monkeypatch.setattr(loading, "cpu_has_bf16", lambda: False)
    given = {"model": small_model, "device": "cpu", "classes": "cat", "report_to": "none",
             "max_train_steps": 2, "learning_rate": 0.05, "train_batch_size": 2}  # fmt: skip
    rows = []
    for precision in ("bf16", "no"):
        run = Run(precision, dataset="folder", data_dir=photos)
        (path,) = fine_tune(run, mixed_precision=precision, **given).made
        rows.append(load_file(path)["<cat>"])
    assert torch.isfinite(rows[0]).all() and not torch.equal(*rows)
    assert torch.cosine_similarity(*rows).min() > 0.8
    warned = [each for each in caplog.messages if "no instructions for bfloat16" in each]
    assert len(warned) == 1
