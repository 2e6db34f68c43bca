"""semantic-aug fit on the sample as people have photos, on random labels, and on real photos."""

import random
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from semantic_aug import fit, predict

sys.path.insert(0, str(ROOT / "sample/build"))
from plain_folder import plain_folder

SAMPLE = {"classifier_backbone": str(ROOT / "sample/backbone"), "device": "cpu"}
MODEL = {"model": str(ROOT / "sample/model"), "prompt": str(ROOT / "sample/prompts.txt"),
         "guidance_scale": 5, "num_inference_steps": 10, "batch_size": 16}  # fmt: skip


@pytest.mark.slow
def test_the_sample_in_ten_minutes(workdir):
    """Without masks and splits; further photos of the same places are told as well as promised."""
    plain_folder("photos", 4, seed=0)
    began = time.monotonic()
    found = fit("photos", minutes=10, **SAMPLE, **MODEL)
    assert time.monotonic() - began < 15 * 60
    assert len(found.table) >= 3
    told = predict(found.classifier, photos=ROOT / "sample/same_places", labelled=True)
    assert found.low <= told.attrs["evaluation"].mean_accuracy <= found.high
    assert "Photos from elsewhere may do worse" in (found.folder / "fit.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_random_labels_are_told_by_chance(workdir, seed):
    """With masks, so that pasted images and Elsewhere are there too."""
    plain_folder("all", 4, seed, "masks_of_all")
    files = sorted(path.relative_to("all") for path in Path("all").rglob("*.png"))
    random.Random(seed).shuffle(files)
    for number, file in enumerate(files):
        for root, target in (("all", "photos"), ("masks_of_all", "masks")):
            (Path(target) / f"class{number % 4}").mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(root) / file, Path(target) / f"class{number % 4}/{number:02}.png")
    candidates = ("real", "randaugment", "paste", "recoloured", "mixture")
    found = fit("photos", mask_dir="masks", candidates=candidates, num_synthetic=2, **SAMPLE)
    errors = found.table["score_error"]
    assert (found.table["score"] < 0.25 + 3 * errors).all()
    assert found.accuracy < 0.25 + 3 * errors.max() and found.low < 0.25


@pytest.mark.slow
def test_real_photos_where_no_generator_is_there(workdir, real_data):
    """Twelve classes of Caltech-101 with eight photos each."""
    classes = sorted((real_data / "caltech101/101_ObjectCategories").iterdir())
    for folder in [each for each in classes if "BACKGROUND" not in each.name][:12]:
        files = sorted(folder.glob("*.jpg"))[:8]
        (Path("photos") / folder.name).mkdir(parents=True)
        for file in files:
            shutil.copy(file, Path("photos") / folder.name / file.name)
    found = fit("photos", minutes=10, **SAMPLE)
    assert found.table["candidate"].tolist() == ["real", "randaugment"]
    assert found.accuracy > 2 / 12 and "no Stable Diffusion" in found.left_out["edits-1"]


@pytest.mark.slow
def test_a_folder_as_people_have_it(workdir):
    """Sizes, EXIF, kinds of files, one that is broken, and a class with a single photo."""
    plain_folder("photos", 3, seed=0)
    folders = sorted(Path("photos").iterdir())
    for folder in folders:
        first, second, third = sorted(folder.iterdir())
        with Image.open(first) as image:
            image.resize((500, 300)).convert("RGB").save(first.with_suffix(".jpg"))
        exif = Image.Exif()
        exif[0x0112] = 6
        with Image.open(second) as image:
            image.convert("RGB").save(second.with_suffix(".jpeg"), exif=exif)
        with Image.open(third) as image:
            Image.fromarray(np.asarray(image.convert("L"))).save(third.with_suffix(".webp"))
        for path in (first, second, third):
            path.unlink()
    for path in sorted(folders[0].iterdir())[1:]:
        path.unlink()
    broken = next(folders[1].glob("*.jpg"))
    broken.write_bytes(broken.read_bytes()[:300])
    found = fit("photos", minutes=3, **SAMPLE)
    assert found.notes[0].startswith(f"1 photo cannot be read, such as {folders[1].name}/")
    assert found.notes[-1].startswith(f"{folders[0].name}: too few photos to hold any out")
    told = predict(found.classifier, photos="photos")
    assert len(told) == 12 * 3 - 3
