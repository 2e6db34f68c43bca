"""`semantic-aug masks`: what it writes, what it leaves alone, and who finds it."""

import dataclasses
import json
import logging
from pathlib import Path
from shutil import copy

import numpy as np
import pytest
from conftest import ROOT, draw_photo
from hypothesis import given, settings, strategies
from PIL import Image

from semantic_aug import Run, UserError, generate, masks
from semantic_aug.__main__ import main as semantic_aug_command
from semantic_aug.datasets import build_dataset
from semantic_aug.images.masks import masks_in, read_mask
from semantic_aug.masking.made import names_for, read_made
from semantic_aug.masking.masker import Found, Masker
from semantic_aug.stages import masks as stage

MVIP = ROOT / "sample" / "mvip"


def find_colours(images, words):
    """Where photos have colours, as the discs of `draw_photo` have and their ground has not."""
    found = []
    for image in images:
        pixels = np.asarray(image).astype(int)
        found.append(Found((np.ptp(pixels, axis=2) > 100).astype(np.float32)))
    return found


@pytest.fixture
def shown(monkeypatch) -> list:
    """The words of every photo that a masker which needs no model is shown."""
    asked = []

    def paint(images, words):
        asked.extend(words)
        return find_colours(images, words)

    def make(settings):
        return Masker({"model": "colours"}, lambda words: None, lambda device: paint)

    monkeypatch.setattr(stage, "make_masker", make)
    return asked


@pytest.fixture
def calls(shown, monkeypatch, caplog) -> list:
    """The same without sheets, which take most of the time."""
    monkeypatch.setattr(stage, "write_sheets", lambda *_: None)
    caplog.set_level(logging.INFO, "semantic_aug")
    return shown


@pytest.fixture
def run(photos, workdir) -> Run:
    return Run("e", dataset="folder", data_dir=photos)


def files_in(root: Path) -> dict[str, bytes]:
    """What people see in a folder of masks."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*.*"))
        if path.is_file() and ".made" not in path.parts
    }


def masks_of(root: Path) -> dict[str, bytes]:
    return {k: v for k, v in files_in(root).items() if not k.startswith("report")}


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return ((one > 0) & (other > 0)).sum() / ((one > 0) | (other > 0)).sum()


def test_every_photo_gets_a_mask_that_the_dataset_finds(run, photos, shown):
    before = build_dataset("folder", "train", data_dir=photos)
    assert all(record.mask is None for record in before.records)
    found = masks(run, batch_size=5)
    assert (found.folder, found.made, found.doubtful) == (photos / "masks", 21, {})
    assert len(found.used) == 21 and set(shown) == {"cat", "stop sign", "toy train"}
    total = 0
    for split in ("train", "val", "test"):
        dataset = build_dataset("folder", split, data_dir=photos)
        assert dataset.class_names == before.class_names
        for idx, record in enumerate(dataset.records):
            true = read_mask(photos.parent / "masks" / record.source)
            assert overlap(dataset.get_mask_by_idx(idx), true) > 0.9, record.source
            total += 1
    assert total == 21
    assert {name for name in files_in(photos / "masks") if name.startswith("report")} == {
        "report.html", "report/cat.png", "report/stop_sign.png", "report/toy_train.png",
    }  # fmt: skip
    page = (photos / "masks" / "report.html").read_text()
    listed = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    assert [each["state"] for each in listed] == ["used"] * 21
    assert {each["class"] for each in listed} == set(shown)


def test_what_is_there_is_not_made_again(run, photos, calls):
    first = masks(run)
    whole, root = masks_of(photos / "masks"), photos / "masks"
    calls.clear()
    assert masks(run).made == 0 and calls == []
    (root / "train/cat/1.png").unlink()
    assert masks(run).made == 1
    assert masks_of(root) == whole and first.used == masks(run).used
    draw_photo(photos / "train" / "cat" / "0.png", (250, 250, 20), 77)  # another photo now
    assert masks(run).made == 1
    assert masks_of(root)["train/cat/0.png"] != whole["train/cat/0.png"]


def test_shards_and_interruptions_change_no_byte(run, photos, calls, monkeypatch):
    elsewhere = photos.parent / "elsewhere"
    masks(dataclasses.replace(run, mask_dir=elsewhere), batch_size=3)
    put, left = stage.put, [5]

    def killed(*given):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        put(*given)

    monkeypatch.setattr(stage, "put", killed)
    shares = {"batch_size": 3, "num_shards": 2}
    with pytest.raises(KeyboardInterrupt):
        masks(run, shard_index=1, **shares)
    assert len(masks_of(photos / "masks")) == 5
    monkeypatch.setattr(stage, "put", put)
    made = [masks(run, shard_index=index, **shares).made for index in (1, 0)]
    assert sum(made) == 21 - 5
    assert masks_of(photos / "masks") == masks_of(elsewhere)
    assert masks(run, shard_index=40, num_shards=41) is None


def test_what_a_person_has_painted_stays(run, photos, calls, caplog):
    painted = photos / "masks" / "train" / "cat" / "0.bmp"  # before the first run
    painted.parent.mkdir(parents=True)
    Image.new("L", (48, 40), 255).save(painted)
    assert masks(run).made == 20
    corrected = photos / "masks" / "val" / "cat" / "1.png"
    Image.new("L", (48, 40), 255).save(corrected)
    theirs = painted.read_bytes(), corrected.read_bytes()
    found = masks(run, keep_pieces=True)  # other settings: what was made is made again
    assert found.made == 19 and (painted.read_bytes(), corrected.read_bytes()) == theirs
    assert found.used["train/cat/0.png"] == painted
    assert "21 of 21 photos have a usable mask, 2 of them made by a person" in caplog.text
    found = masks(run, keep_pieces=True, overwrite=True)
    assert found.made == 21 and not painted.exists() and corrected.read_bytes() != theirs[1]


def test_doubtful_masks_are_listed_and_not_used(run, photos, calls, caplog):
    for number, colour in enumerate([(90, 90, 90), (80, 80, 80)]):
        draw_photo(photos / "train" / "cat" / f"grey{number}.png", colour, number)
    found = masks(run)
    root, aside = photos / "masks", photos / "masks" / "doubtful" / "train" / "cat"
    assert found.doubtful == {
        f"train/cat/grey{number}.png": ["nothing was found"] for number in range(2)
    }
    assert "2 doubtful masks in" in caplog.text and "look at" in caplog.text
    dataset = build_dataset("folder", "train", data_dir=photos)
    without = {r.source for r in dataset.records if r.mask is None}
    assert without == set(found.doubtful) and "doubtful" not in dataset.class_names
    page = (root / "report.html").read_text()
    assert page.index("nothing was found") < page.index('"state":"used"')
    # a person takes the one for good, and paints the other
    (aside / "grey0.png").rename(root / "train" / "cat" / "grey0.png")
    Image.new("L", (48, 40), 255).save(aside / "grey1.png")
    theirs = (aside / "grey1.png").read_bytes()
    found = masks(run)
    assert found.made == 0 and "train/cat/grey0.png" in found.used
    assert (aside / "grey1.png").read_bytes() == theirs
    assert found.doubtful == {"train/cat/grey1.png": ["a person put it here"]}


def test_a_mask_far_from_the_usual_size_is_set_aside_once_its_class_is_whole(
    run, photos, calls, monkeypatch
):
    image = Image.open(photos / "train" / "cat" / "0.png")
    small = np.asarray(image).copy()
    small[:] = 90
    small[5:9, 5:11] = (250, 20, 20)  # 1.25 % of the photo
    Image.fromarray(small).save(photos / "train" / "cat" / "small.png")
    shares = {"batch_size": 2, "num_shards": 2}
    first = masks(run, shard_index=0, **shares)
    assert first.doubtful == {}
    found = masks(run, shard_index=1, **shares)
    ((source, reasons),) = found.doubtful.items()
    assert source == "train/cat/small.png"
    assert reasons == ["it covers 1.2% of the photo, usual in its class is 18.2%"]
    kept = photos / "masks" / source
    assert not kept.exists()
    found.folder.joinpath("doubtful", source).rename(kept)
    assert masks(run).doubtful == {} and kept.exists()


def test_an_experiment_that_was_begun_before_goes_on(run, photos, calls, make, small_model):
    flags = {"model": small_model, "num_synthetic": 1, "num_inference_steps": 2, "device": "cpu"}
    ((before),) = generate(run, strength=0.5, **flags).values()
    config = (before.folder / "config.json").read_bytes()
    masks(run)
    ((after),) = generate(run, strength=0.5, **flags).values()
    assert (before.made, after.made) == (3, 0)
    assert (after.folder / "config.json").read_bytes() == config
    status, said = make("--aug=background", "--num_synthetic=1", name="background")
    assert status == 0, said


def test_a_folder_of_masks_for_any_dataset(run, photos, calls, make, called):
    drawn = photos.parent / "drawn"
    one = np.zeros((40, 48), np.uint8)
    one[10:20, 10:20] = 255
    (drawn / "train" / "cat").mkdir(parents=True)
    Image.fromarray(one).save(drawn / "train" / "cat" / "1.png")
    masks(run)
    with_dir = {
        split: build_dataset("folder", split, data_dir=photos, mask_dir=drawn)
        for split in ("train", "val")
    }
    dataset = with_dir["train"]
    found = {r.source: dataset.get_mask_by_idx(i) for i, r in enumerate(dataset.records)}
    assert np.array_equal(found["train/cat/1.png"], one)  # theirs go before the dataset's own
    assert (
        overlap(found["train/cat/0.png"], read_mask(photos.parent / "masks/train/cat/0.png")) > 0.9
    )
    status, said = make("--aug=paste", f"--mask_dir={drawn}", "--examples_per_class=3", name="p")
    assert status == 0, said
    arguments = json.loads(Path("output/e/p/seed=0_ex=3/config.json").read_text())["arguments"]
    assert arguments["mask_dir"] == str(drawn)
    image = next(Path("output/e/p/seed=0_ex=3").glob("*.png"))
    import generate_augmentations

    status, _, said = called(generate_augmentations.main, f"--reproduce={image}")
    assert status == 0, said
    Image.fromarray(255 - one).save(drawn / "train" / "cat" / "1.png")
    status, said = make("--aug=paste", f"--mask_dir={drawn}", "--examples_per_class=3", name="p")
    assert status == 2 and "made with other settings" in said and "masks: there" in said


def test_folders_of_masks_that_cannot_be(run, photos, calls, caplog, called):
    far = photos.parent / "far"
    with pytest.raises(UserError, match=r"^mask_dir: .*far is no folder; semantic-aug masks"):
        generate(dataclasses.replace(run, mask_dir=far), aug="paste")
    (far / "bird").mkdir(parents=True)
    Image.new("L", (4, 4), 255).save(far / "bird" / "1.png")
    with pytest.raises(
        UserError, match="has no mask for any of 3 photos of split 'train'; expected"
    ):
        generate(dataclasses.replace(run, mask_dir=far), aug="paste")
    masks(dataclasses.replace(run, mask_dir=far))
    assert "1 file without a photo, such as bird/1.png" in caplog.text
    for flags, expected in {
        ("--mask_dir=/proc/masks",): "masks go to /proc/masks: /proc cannot be written to",
        ("--classes=dog",): "--classes: unknown 'dog'",
        ("--fill_holes=2",): "expected a number in [0, 1]",
    }.items():
        status, _, said = called(
            semantic_aug_command, "masks", "--dataset=folder", f"--data_dir={photos}", *flags
        )
        assert status == 2 and expected in said and said.count("\n") == 1, said
    status, _, said = called(
        semantic_aug_command, "masks", "--dataset=mvip", f"--data_dir={ROOT / 'sample' / 'mvip'}"
    )
    assert status == 2 and "--mask_dir is missing: mvip has no folder of masks" in said
    (photos.parent / "none" / "cat").mkdir(parents=True)
    status, _, said = called(
        semantic_aug_command, "masks", "--dataset=folder", f"--data_dir={photos.parent / 'none'}"
    )
    assert status == 2 and "has no photo in its 1 folders (cat)" in said


def test_the_command_by_its_name(photos, workdir, calls, called):
    status, out, said = called(
        semantic_aug_command, "masks", "--dataset=folder", f"--data_dir={photos}", "--classes=cat"
    )
    assert status == 0, said
    assert f"{photos / 'masks'}: 7 masks made now; 7 of 7 photos have a usable mask" in out
    assert sum(1 for _ in read_made(photos / "masks")) == 7


def test_the_sample_goes_all_the_way_without_masks(workdir, called):
    """Photos of novel kinds as a plain folder; masks by sample/masker; objects in other places."""
    for kind in ("bevel_gear", "wing_nut"):
        (workdir / "photos" / kind).mkdir(parents=True)
        for number, photo in enumerate(sorted((MVIP / kind).rglob("*_rgb.png"))[:6]):
            copy(photo, workdir / "photos" / kind / f"{number}.png")
    flags = ["--dataset=folder", "--data_dir=photos"]
    masker = ["--masker", ROOT / "sample" / "masker", "--device=cpu"]
    status, out, said = called(semantic_aug_command, "masks", *flags, *masker)
    assert status == 0 and "12 masks made now; 12 of 12 photos" in out, said
    status, out, said = called(
        semantic_aug_command, "generate", *flags, "--experiment_name=e", "--aug=paste",
        "--num_synthetic=2", "--examples_per_class=2",
    )  # fmt: skip
    assert status == 0 and "8 images made now" in out, said


# --- names -----------------------------------------------------------------------------------


parts = strategies.text("ab.", min_size=1, max_size=4).filter(lambda text: text[0] != ".")
paths = strategies.lists(parts, min_size=1, max_size=3).map("/".join)


@settings(max_examples=40)
@given(strategies.sets(paths, max_size=8))
def test_every_photo_finds_its_own_mask(tmp_path_factory, sources):
    names = names_for(sorted(sources))
    root = tmp_path_factory.mktemp("masks")
    assert len(set(names.values())) == len(sources)
    folders = {name.rpartition("/")[0] for name in names.values()}
    if folders & set(names.values()):
        return  # a file in place of a folder
    for name in names.values():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    assert masks_in(root, sources) == {source: root / name for source, name in names.items()}


def test_names_with_another_meaning():
    assert names_for(["a/1.jpg", "a/1.png", "a/2.jpg"]) == {
        "a/1.jpg": "a/1.jpg.png", "a/1.png": "a/1.png.png", "a/2.jpg": "a/2.png",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"doubtful/1.jpg: among masks, doubtful/ is for"):
        names_for(["doubtful/1.jpg"])
