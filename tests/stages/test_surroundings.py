"""`--aug background` and `--aug paste` by the command: records, shards, photos left out, errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import build_backbone, images_of
from PIL import Image

import train_classifier
from semantic_aug import Run, UserError, generate
from semantic_aug.augmentations.background import Background
from semantic_aug.augmentations.compose import ComposeParallel, ComposeSequential
from semantic_aug.augmentations.paste import Paste
from semantic_aug.augmentations.real_guidance import RealGuidance
from semantic_aug.datasets.folder import FolderDataset
from semantic_aug.experiment.config import config_id
from semantic_aug.synthesis.records import read_left_out
from semantic_aug.synthesis.variants import read_variants

LAYOUT = ["--layout_scale", "0.6", "1.2", "--layout_rotate=30", "--layout_shift=0.2",
          "--layout_mirror", "--layout_colour=0.4"]  # fmt: skip
METHODS = {
    "background": ["--aug=background", *LAYOUT],
    "paste": ["--aug=paste", *LAYOUT],
    "generated": ["--aug=paste", "--backgrounds=generated", "--num_places=5", *LAYOUT],
    "drawn": ["--aug=paste", "--backgrounds=generated", "--num_places=2", "--places_from=photos"],
    "both": ["--aug", "real-guidance", "paste", "background", "--probs", "0.4", "0.3", "0.3"],
}


@pytest.fixture
def masked(make, photos):
    def masked(*flags, name="aug"):
        return make(f"--dataset_args=masks={photos.parent / 'masks'}", *flags, name=name)

    return masked


def records_of(name="aug"):
    with open(f"output/e/{name}/seed=0_ex=2/metadata.jsonl") as file:
        return [json.loads(line) for line in file]


def pixels(name):
    folder = f"output/e/{name}/seed=0_ex=2"
    return {r["file_name"]: np.asarray(Image.open(f"{folder}/{r['file_name']}"), int)
            for r in records_of(name)}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_shards_order_and_batches(masked, method, capsys):
    flags = [*METHODS[method], "--examples_per_class=2", "--classes", "cat", "toy train",
             "--num_inference_steps=2", "--batch_size=3"]  # fmt: skip
    assert masked(*flags, name="whole")[0] == 0
    for shard in (1, 0):
        shared = [f"--shard_index={shard}", "--num_shards=2"]
        assert masked(*flags, *shared, name="shared")[0] == 0
    whole = pixels("whole")
    assert len(whole) == 8
    for name, image in pixels("shared").items():
        assert (image == whole[name]).all()
    if method != "drawn":  # whose places are 2 of 255 apart, and what was painted out is not
        assert masked(*flags[:-1], "--batch_size=4", name="other")[0] == 0
        for name, image in pixels("other").items():
            assert abs(image - whole[name]).max() <= 2
    import generate_augmentations

    image = f"output/e/whole/seed=0_ex=2/{records_of('whole')[3]['file_name']}"
    generate_augmentations.main(["--reproduce", image, "--device=cpu"])
    assert "0" in capsys.readouterr().out


def test_records_say_what_was_done(masked):
    assert masked(*METHODS["both"], *LAYOUT, "--examples_per_class=2")[0] == 0
    keys = ["scale", "angle", "shift", "mirror", "colour"]
    seen = set()
    for record in records_of():
        (aug,) = record["aug"]
        seen.add(aug)
        for key in (*keys, "place", "place_sha256", "other_photo"):
            assert len(record[key]) == 1, key
        assert (record["scale"] == [None]) == (aug == "real-guidance")
        assert (record["place"] == [None]) == (aug != "background")
        assert (record["other_photo"] == [None]) == (aug != "paste")
        assert record["strength"] == [{"real-guidance": 0.5, "paste": None, "background": 1.0}[aug]]
        assert record["other_photo"][0] != record["source"]
    assert seen == {"real-guidance", "paste", "background"}
    assert masked("--aug=real-guidance", "--examples_per_class=2", name="plain")[0] == 0
    assert not {"scale", "place"} & records_of("plain")[0].keys()


def test_a_given_strength_counts_for_every_edit(masked):
    flags = ["--aug", "real-guidance", "background", "--strength=0.5"]
    assert masked(*flags, "--examples_per_class=2")[0] == 0
    assert {record["strength"][0] for record in records_of()} == {0.5}


def test_pasting_loads_no_model_and_takes_photos_of_the_whole_trial(masked):
    flags = ["--aug=paste", "--model_path=no/such/model", "--classes", "cat", "--num_synthetic=12"]
    assert masked(*flags, "--examples_per_class=2")[0] == 0
    others = {record["other_photo"][0].split("/")[-2] for record in records_of()}
    assert others == {"cat", "stop sign", "toy train"}
    assert {record["class_name"] for record in records_of()} == {"cat"}
    assert {record["precision"] for record in records_of()} == {"no"}


def test_photos_without_an_object_are_left_out(masked, photos, resnet, capsys):
    masks = photos.parent / "masks" / "train"
    (masks / "cat" / "0.png").unlink()
    Image.new("L", (48, 40), 0).save(masks / "cat" / "1.png")
    Image.new("L", (48, 40), 255).save(masks / "stop sign" / "0.png")
    status, said = masked("--aug=paste", "--examples_per_class=3")
    assert status == 0 and "3 photos of 9, in 2 classes, get no variants, as train/cat/" in said
    folder = Path("output/e/aug/seed=0_ex=3").absolute()
    assert sorted(read_left_out(folder).values()) == [
        "it has no mask", "its mask is empty", "its mask is the whole photo",
    ]  # fmt: skip
    dataset = FolderDataset(split="train", data_dir=photos, masks=photos.parent / "masks",
                            seed=0, examples_per_class=3)  # fmt: skip
    found = read_variants(folder, dataset)
    assert len(found) == 6 and all(len(each) == 2 for each in found.values())
    capsys.readouterr()
    train_classifier.main([
        "--dataset=folder", f"--data_dir={photos}", "--experiment_name=e", "--device=cpu",
        f"--dataset_args=masks={photos.parent / 'masks'}", f"--classifier_backbone={resnet}",
        "--num_epochs=1", "--iterations_per_epoch=1", "--examples_per_class=3",
    ])  # fmt: skip
    assert "3 photos without variants, as " in capsys.readouterr().err

    flags = ["--aug=paste", "--examples_per_class", "3", "4", "--num_trials=3", "--classes"]
    status, said = masked(*flags, "cat", name="more")
    assert status == 0 and said.count("get no variants") == 1
    assert "2 photos of 3, in 1 class, get no variants" in said
    assert "no variants" not in masked(*flags, "toy train", name="more")[1]

    # A photo whose mask has come since is wanted again.
    Image.open(masks / "cat" / "2.png").save(masks / "cat" / "0.png")
    with pytest.raises(UserError):
        read_variants(folder, FolderDataset(split="train", data_dir=photos,
                      masks=photos.parent / "masks", seed=0, examples_per_class=3))  # fmt: skip
    assert masked("--aug=paste", "--examples_per_class=3", "--overwrite")[0] == 0
    assert len(read_left_out(folder)) == 2


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--aug=background", "--layout_scale", "5", "6"], "in 6 of 6 photos, such as train/cat/"),
        (
            ["--aug=paste", "--layout_scale", "5", "6", "--classes", "toy train"],
            "the object does not fit into its photo in 2 of 2 photos, such as train/toy train/",
        ),
        (["--aug=paste", "--layout_scale", "2", "1"], "--layout_scale"),
        (["--aug=paste", "--layout_scale", "1"], "got 1 numbers"),
        (["--aug=background", "--places=none.txt"], "--places: cannot read none.txt"),
        (["--aug=background", "--harmonize=0.1"], "--harmonize: 0.1 of 4 steps is no step"),
        (["--aug=paste", "--backgrounds=nowhere"], "expected photos, generated or a folder"),
        (["--aug=paste", "--strength=0.5"], "--strength means nothing to --aug paste"),
        (["--aug=paste", "--places=x.txt"], "--places means nothing without --backgrounds gen"),
        (["--aug=paste", "--num_places=3"], "--num_places means nothing without --backgrounds"),
        (["--aug=background", "--prompt=a {name}"], "--prompt means nothing to --aug background"),
        (["--aug=real-guidance", "--places=x.txt"], "it belongs to background and paste"),
        (["--aug=real-guidance", "--shadow=0.1"], "it belongs to paste"),
        (["--aug=background", "--classes=cat", "--aug_name=places"], "is the folder of generated"),
    ],
)
def test_bad_input(masked, flags, message):
    status, said = masked("--examples_per_class=2", *flags)
    assert status == 2 and message in said
    assert len(said.strip().splitlines()) <= 2


def test_an_inpainting_model_makes_surroundings_alone(masked, inpainting_model):
    model = [f"--model_path={inpainting_model}", "--classes=cat"]
    assert masked("--aug=background", *model)[0] == 0
    drawn = ["--aug=paste", "--backgrounds=generated", "--num_places=2", *model]
    assert masked(*drawn, "--places_from=photos", "--classes=cat", name="drawn")[0] == 0
    for flags, message in (
        (["--aug=background", "--harmonize=0.5", *model], "--harmonize edits whole images"),
        (drawn, "generated places need --places_from photos"),
    ):
        status, said = masked(*flags, name="refused")
        assert status == 2 and message in said


def test_no_photo_has_a_mask(make, photos):
    status, said = make("--aug=background", "--model_path=no/such/model")  # not asked for yet
    assert status == 2 and "needs masks that show the objects" in said
    assert said.rstrip().endswith(
        f"python -m semantic_aug.masking --dataset=folder --data_dir={photos}"
    )
    status, said = make("--mask=1", "--mask_dir=nowhere")
    assert status == 2 and "--mask_dir: nowhere is no folder" in said
    status, said = make("--mask=1")
    assert status == 2 and "--mask: 3 photos of 3 without a mask, such as train/cat/" in said


def test_no_photo_of_the_classes_chosen_has_a_mask(masked, photos):
    for path in (photos.parent / "masks" / "train" / "cat").glob("*.png"):
        path.unlink()
    status, said = masked("--aug=paste", "--examples_per_class=2", "--classes=cat")
    assert status == 2 and "and none of 2 photos has a usable mask (train/cat/" in said


def test_one_photo_has_no_other_place(masked, photos):
    for path in (photos.parent / "masks" / "train").rglob("*.png"):
        if (path.parent.name, path.name) != ("cat", "1.png"):
            path.unlink()
    status, said = masked("--aug=paste", "--examples_per_class=3")
    assert status == 2 and "no object is pasted on its own photo" in said


def test_other_places_are_other_images(masked, workdir):
    (workdir / "places.txt").write_text("a beach\n")
    flags = ["--aug=background", "--places=places.txt", "--examples_per_class=2"]
    assert masked(*flags)[0] == 0
    before = pixels("aug")
    (workdir / "places.txt").write_text("a beach\n\na wood\n")
    status, said = masked(*flags)
    assert status == 2 and "place_lines" in said
    assert all((image == before[name]).all() for name, image in pixels("aug").items())
    (workdir / "places.txt").rename(workdir / "elsewhere.txt")
    (workdir / "elsewhere.txt").write_text("\na beach")
    assert masked(*flags[:1], "--places=elsewhere.txt", flags[2])[0] == 0


def test_other_masks_of_lending_photos_are_other_images(masked, photos, called):
    import generate_augmentations

    flags = ["--aug=paste", "--examples_per_class=2", "--classes=cat"]
    assert masked(*flags)[0] == 0
    for path in (photos.parent / "masks" / "train" / "toy train").glob("*.png"):
        mask = np.asarray(Image.open(path)).copy()
        mask[:9] = 255
        Image.fromarray(mask).save(path)
    status, said = masked(*flags)
    assert status == 2 and "place_masks: there" in said
    image = f"output/e/aug/seed=0_ex=2/{records_of()[0]['file_name']}"
    status, _, said = called(generate_augmentations.main, "--reproduce", image, "--device=cpu")
    assert status == 2 and "other masks of the photos that lend their places" in said

    config = Path("output/e/aug/seed=0_ex=2/config.json")
    content = json.loads(config.read_text())
    older = {k: v for k, v in content["settings"].items() if k != "place_masks"}
    name = config_id(older)
    config.write_text(json.dumps(content | {"settings": older, "id": name}))
    for path in (config.parent / "records").glob("*.jsonl"):
        path.rename(path.with_name(path.name.replace(content["id"], name)))
    assert masked(*flags)[0] == 0  # a set of before goes on without
    assert json.loads(config.read_text())["id"] == name


def test_pasted_images_of_several_trials_are_alike(make, photos, workdir, called, sketched):
    """Each trial has masks of its own; a classifier that is given other masks says which."""
    shutil.copytree(photos.parent / "masks", workdir / "elsewhere")
    for path in (photos.parent / "masks").rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    flags = ["--examples_per_class=2", "--num_trials=2", f"--mask_dir={workdir / 'elsewhere'}"]
    status, said = make("--aug=paste", *flags)
    assert status == 0, said
    build_backbone(workdir / "backbone")
    train = ["--dataset=folder", f"--data_dir={photos}", "--experiment_name=e", "--device=cpu",
             "--classifier_backbone=backbone", "--num_epochs=1", "--iterations_per_epoch=1",
             "--image_size=32"]  # fmt: skip
    status, _, said = called(train_classifier.main, *train, *flags)
    assert status == 0, said
    status, _, said = called(
        train_classifier.main,
        *train,
        *flags[:2],
        f"--dataset_args=masks={photos.parent / 'masks'}",
        "--method=again",
    )
    assert status == 2 and f"it has the masks of --mask_dir {workdir / 'elsewhere'}" in said


def test_images_of(masked):
    assert masked("--aug=paste", "--examples_per_class=1", name="one")[0] == 0
    assert len(images_of("one")) == 6


def test_an_object_s_layout_is_compared_and_no_setting_stands_beside_it(masked, photos, workdir):
    run = Run("e", dataset="folder", data_dir=photos, dataset_args={"masks": "masks"})
    generate(run, aug=Paste(layout_colour=0.4), aug_name="o", num_synthetic=1)
    with pytest.raises(UserError, match="options"):
        generate(run, aug=Paste(layout_colour=0.9), aug_name="o", num_synthetic=1)
    with pytest.raises(UserError, match="give it to its class"):
        generate(run, aug=Paste(), layout_colour=0.9, aug_name="other", num_synthetic=1)
    assert not Path("output/e/other").exists()


def test_an_object_that_vanishes_when_reduced_gets_no_variants(masked, photos):
    mask = np.zeros((40, 48), np.uint8)
    mask[23, 23] = 255
    Image.fromarray(mask).save(photos.parent / "masks" / "train" / "cat" / "0.png")
    assert masked("--aug=paste", "--save_size=6", "--examples_per_class=3")[0] == 0
    folder = Path("output/e/aug/seed=0_ex=3").absolute()
    assert read_left_out(folder) == {"train/cat/0.png": "its mask is empty"}


def test_the_model_of_an_object_is_that_of_its_images(masked, photos, small_model, velocity_model):
    run = Run("e", dataset="folder", data_dir=photos, dataset_args={"masks": "masks"})
    own = {"model_path": small_model, "num_inference_steps": 4}

    def made(aug, name, **more):
        more |= {"aug_name": name, "num_synthetic": 1, "classes": ("cat",)}
        (found,) = generate(run, aug=aug, **more).values()
        with open(found.folder / "config.json") as file:
            return found.made, json.load(file)["settings"]

    assert masked("--aug=background", "--num_synthetic=1", "--classes=cat", name="flags")[0] == 0
    with open("output/e/flags/seed=0_ex=1/config.json") as file:
        by_flags = json.load(file)["settings"]
    for name, aug in {
        "b": Background(**own),
        "p": Paste(backgrounds="generated", num_places=1, **own),
        "m": ComposeParallel([RealGuidance(**own), Paste()]),
    }.items():
        found = made(aug, name)
        assert found[0] == 1 and found[1]["model"] == by_flags["model"]
        assert made(aug, name)[0] == 0  # the same object, though it is bound now
    assert made(Background(**own), "b")[1]["num_inference_steps"] == 4
    for name, other in {
        "b": Background(**own, strength=0.5),
        "p": Paste(backgrounds="generated", num_places=2, **own),
        "m": ComposeParallel([RealGuidance(**own, guidance_scale=2.0), Paste()]),
    }.items():
        with pytest.raises(UserError, match="options: there"):
            made(other, name)
    with pytest.raises(UserError, match=r"got an object with the model .*, expected .* in all"):
        made(Background(**own), "x", model=velocity_model)
    with pytest.raises(UserError, match=r"expected .* in all images of a set"):
        made((Background(**own), RealGuidance(**own | {"model_path": velocity_model})), "x")
    assert not Path("output/e/x").exists()


def test_a_composition_of_objects_leaves_out_what_its_parts_cannot_edit(photos, sketched, workdir):
    masks = photos.parent / "masks" / "train"
    (masks / "cat" / "1.png").unlink()
    empty = masks / "stop sign" / "0.png"
    Image.new("L", Image.open(empty).size).save(empty)
    for name, grey in (("walls", 60), ("floors", 200)):
        (workdir / name).mkdir()
        Image.new("RGB", (9, 9), (grey,) * 3).save(workdir / name / "0.png")
    run = Run("e", dataset="folder", data_dir=photos, dataset_args={"masks": "masks"},
              examples_per_class=2)  # fmt: skip

    def both(kind=ComposeParallel):
        inner = ComposeParallel([Paste(backgrounds="floors")])  # also one within another
        return kind([Paste(backgrounds="walls"), inner])

    (found,) = generate(run, aug=both(), num_synthetic=6).values()
    dataset = FolderDataset(data_dir=photos, masks="masks", examples_per_class=2)
    without = read_left_out(found.folder)
    assert without == {
        source: reason
        for source, reason in (
            ("train/cat/1.png", "it has no mask"), ("train/stop sign/0.png", "its mask is empty"),
        ) if source in dataset.sources()
    } != {}  # fmt: skip
    assert found.made == found.there == 6 * (6 - len(without))
    shas = {record["place_sha256"][0] for record in records_of()}
    assert len(shas) == 2  # places of both folders
    (again,) = generate(run, aug=both(ComposeSequential), num_synthetic=1, aug_name="s").values()
    assert again.made == 6 - len(without)
    assert all(len(record["place"]) == 2 for record in records_of("s"))
    for name in ("walls", "floors"):  # each counts
        before = (workdir / name / "0.png").read_bytes()
        Image.new("RGB", (9, 9), (3, 2, 1)).save(workdir / name / "0.png")
        with pytest.raises(UserError, match="backgrounds: there"):
            generate(run, aug=both(), num_synthetic=6)
        (workdir / name / "0.png").write_bytes(before)
    assert next(iter(generate(run, aug=both(), num_synthetic=6).values())).made == 0
    shutil.rmtree(masks)
    with pytest.raises(UserError, match=r"^aug paste needs masks that show the objects, and none"):
        generate(run, aug=both(), num_synthetic=6, aug_name="none")


def test_a_composition_with_a_masked_edit_refuses_photos_without_masks(
    photos, sketched, workdir, small_model
):
    (photos.parent / "masks" / "train" / "cat" / "1.png").unlink()
    run = Run("e", dataset="folder", data_dir=photos, dataset_args={"masks": "masks"},
              examples_per_class=3)  # fmt: skip
    edit = RealGuidance(model_path=small_model, mask=True, num_inference_steps=2)
    with pytest.raises(UserError, match=r"^mask: 1 photo of 9 without a mask, such as train/cat/1"):
        generate(run, aug=ComposeParallel([edit]), num_synthetic=1)


def test_an_object_s_own_backgrounds_count(masked, photos, workdir):
    for path in (photos.parent / "masks" / "train").rglob("*.png"):
        if (path.parent.name, path.name) != ("cat", "1.png"):
            path.unlink()
    (workdir / "walls").mkdir()
    wall = workdir / "walls" / "0.png"
    Image.new("RGB", (9, 9), (1, 2, 3)).save(wall)
    run = Run("e", dataset="folder", data_dir=photos, dataset_args={"masks": "masks"},
              examples_per_class=3)  # fmt: skip
    generate(run, aug=Paste(backgrounds="walls"), num_synthetic=1)  # which one photo suffices for
    Image.new("RGB", (9, 9), (3, 2, 1)).save(wall)
    with pytest.raises(UserError, match="backgrounds: there"):
        generate(run, aug=Paste(backgrounds="walls"), num_synthetic=1)
