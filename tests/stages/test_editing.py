"""Settings of edits through the command: config.json, records, resumption, one image again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import images_of
from PIL import Image
from scipy import ndimage

import generate_augmentations
from semantic_aug.experiment.config import read_config

FOLDER = Path("output/e/aug/seed=0_ex=1")


def again(capsys, name="000000-001.png") -> str:
    """What --reproduce says of an image."""
    capsys.readouterr()
    generate_augmentations.main([f"--reproduce={FOLDER / name}", "--device=cpu"])
    return capsys.readouterr().out.removeprefix(f"{FOLDER / name}: ").strip()


def records() -> list[dict]:
    return [json.loads(line) for line in (FOLDER / "metadata.jsonl").read_text().splitlines()]


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
    warned = "--mask_grow_radius -11 leaves nothing of the edited region of 1 photo, such as train"
    assert (warned in err) is (not inverted)
    for record in records() if not inverted else ():
        photo = np.asarray(Image.open(photos / record["source"])).astype(int)
        assert (images_of()[record["file_name"]] == photo).all()
