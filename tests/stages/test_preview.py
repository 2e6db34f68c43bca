"""A preview: images of the full command, nothing beside its sheet, and what all would cost."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import images_of
from PIL import Image

from semantic_aug import Run, UserError, preview
from semantic_aug.experiment.names import Trial
from semantic_aug.generative_augmentation import Edit, GenerativeAugmentation
from semantic_aug.settings import build
from semantic_aug.settings.generation import Generation
from semantic_aug.stages import estimating
from semantic_aug.stages import preview as stage
from semantic_aug.stages.edits import list_edits
from semantic_aug.stages.estimating import Cost, cost_teller, quicker_ways, warm_up_blocks

CPU, GPU = torch.device("cpu"), torch.device("cuda")
WHOLE = [f"real-guidance {strength:g}" for strength in stage.STRENGTHS]


class Darker(GenerativeAugmentation):
    """Photos with a part of their light."""

    needs_model = False

    def __init__(self, pipeline=None, strength=0.5, **options):
        self.strength = strength

    def augment(self, images, labels, metadata, generators):
        made = [Image.eval(image, lambda value: int(value * self.strength)) for image in images]
        return made, [[Edit("darker", "", self.strength, None, False, False)] for _ in images]


@pytest.fixture
def run(photos, workdir) -> Run:
    return Run("e", dataset="folder", data_dir=photos)


@pytest.fixture
def masked(run, photos) -> Run:
    return dataclasses.replace(run, dataset_args={"masks": photos.parent / "masks"})


def files() -> set[str]:
    return {str(path.relative_to("output")) for path in Path("output").rglob("*.*")}


def pixels(images: dict) -> list[np.ndarray]:
    return [np.asarray(images[source]).astype(int) for source in sorted(images)]


def test_a_preview_shows_what_the_command_makes_and_leaves_one_sheet(
    make, masked, small_model, monkeypatch
):
    masks = f"--dataset_args=masks={masked.dataset_args[0].partition('=')[2]}"
    monkeypatch.setattr(stage, "STRENGTHS", (0.75,))
    status, err = make(masks, "--preview", "--num_trials=2")
    assert status == 0, err
    assert files() == {"e/report/preview_seed=0_ex=1.png"}
    fast = {"model": small_model, "num_inference_steps": 4, "device": "cpu"}
    alone = preview(masked, batch_size=1, strength=0.75, **fast)
    together = preview(masked, batch_size=4, strength=0.6, **fast)
    assert list(alone.columns) == ["real-guidance 0.75", "background 1", "paste"]
    assert list(together.columns) == [*alone.columns, "real-guidance 0.6"]
    for title, flags in {
        "real-guidance 0.75": ("--strength=0.75",),
        "background 1": ("--aug=background",),
        "paste": ("--aug=paste",),
    }.items():
        assert make(masks, "--batch_size=1", *flags, "--num_synthetic=1", name=title)[0] == 0
        expected = [image for _, image in sorted(images_of(title).items())]
        shown = pixels(alone.columns[title].images)
        assert len(shown) == 3 and all(map(np.array_equal, shown, expected))
        others = zip(pixels(together.columns[title].images), expected)
        assert max(np.abs(one - other).max() for one, other in others) <= 2
    sheet = Image.open(alone.sheet)
    assert sheet.width > 4 * stage.CELL and sheet.height > 3 * stage.CELL


def test_what_is_asked_for_is_a_column_and_counts_by_its_share(masked, small_model, monkeypatch):
    costs = {"real-guidance": Cost(8, 1000), "paste": Cost(2, 500)}

    def make(plan, shown, load, extras, warm_up):
        (edit,) = plan.compared["edits"]
        return stage.Made({}, costs.get(edit["aug"], Cost(1e9, 1e9)), Cost(5, 7))

    monkeypatch.setattr(stage, "make", make)
    monkeypatch.setattr(stage, "build_pipeline", lambda *_: None)
    run = dataclasses.replace(masked, num_trials=2, examples_per_class=(1, 2))
    found = preview(
        run, aug=("real-guidance", "paste"), probs=(0.75, 0.25), model=small_model, device="cpu"
    )
    assert found.wanted == 2 * (3 + 6) * 10
    assert found.cost.seconds == pytest.approx(180 * (0.75 * 8 + 0.25 * 2) + 4 * (5 + 5))
    assert found.cost.size == pytest.approx(180 * (0.75 * 1000 + 0.25 * 500) + 4 * (7 + 7))
    assert list(found.columns) == [*WHOLE, "background 1", "paste"]


def columns(has_words=False, objects=None, **given):
    settings = build(Generation, given)
    edits = list_edits(settings, objects)
    return {c.title: c for c in stage.columns_of(settings, edits, objects, has_words, 5)}


def test_columns_of_settings():
    assert "textual-inversion 0.25" in columns(has_words=True, aug=("paste",))
    assert WHOLE[0] in columns(has_words=True, aug=("real-guidance",))
    found = columns(aug=("real-guidance",), strength=0.3, mask=(0, 1), guidance_scale=4.0)
    asked = {title: column.share for title, column in found.items() if column.share}
    assert asked == {"real-guidance 0.3": 0.5, "real-guidance 0.3 of object": 0.5}
    assert {column.settings.guidance_scale for column in found.values()} == {(4.0,)}
    found = columns(aug=("real-guidance", "paste"), compose="sequential", layout_shift=0.1)
    assert found["real-guidance 0.5, then paste"].share == 1
    assert found["background 1"].settings.layout_shift == 0.1
    assert found["real-guidance 0.5"].settings.layout_shift == 0
    found = columns(aug=("paste",), backgrounds="generated", num_places=9)
    assert found["paste"].settings.num_places == 5
    assert found["background 1"].settings.backgrounds == "photos"
    found = columns(aug=("real-guidance",) * 2, guidance_scale=(3.0, 5.0))
    assert [found[t].settings.guidance_scale for t in ("real-guidance 0.5", "real-guidance 0.5 #2")
            ] == [(3.0,), (5.0,)]  # fmt: skip


def test_an_object_of_python_is_shown_without_a_model(masked, caplog):
    found = preview(masked, aug=Darker(strength=0.25))
    assert list(found.columns) == ["paste", "test_preview:Darker 0.25"]
    assert max(each.max() for each in pixels(found.columns["test_preview:Darker 0.25"].images)) < 64
    assert f"left out: {', '.join(WHOLE)}, background 1: no model is named" in caplog.text


def test_what_cannot_be_is_left_out(run, small_model, inpainting_model, caplog):
    found = preview(run, model=small_model, num_inference_steps=2, device="cpu")
    assert list(found.columns) == WHOLE[1:]
    assert "left out: real-guidance 0.25: --strength: 0.25 of 2 steps is no step" in caplog.text
    assert "left out: background 1: --aug background needs masks that show" in caplog.text
    with pytest.raises(UserError, match=r"^strength: 0.2 of 2 steps"):
        preview(run, model=small_model, num_inference_steps=2, strength=0.2)
    with pytest.raises(UserError, match="only inpaints"):
        preview(run, model=inpainting_model)
    assert preview(run, shard_index=1, num_shards=2, model=small_model) is None


def test_an_inpainting_model_edits_objects_alone(masked, inpainting_model, caplog):
    found = preview(masked, model=inpainting_model, mask=1, num_inference_steps=4, device="cpu")
    assert list(found.columns) == ["background 1", "paste", "real-guidance 0.5 of object"]
    assert f"left out: {', '.join(WHOLE)}: {inpainting_model} only inpaints" in caplog.text


def test_places_are_drawn_for_the_photos_shown_alone(masked, make, small_model, monkeypatch):
    monkeypatch.setattr(stage, "STRENGTHS", ())
    found = preview(
        masked, model=small_model, aug="paste", backgrounds="generated", num_places=30,
        num_inference_steps=1, batch_size=1, device="cpu",
    )  # fmt: skip
    assert files() == {"e/report/preview_seed=0_ex=1.png"}
    masks = f"--dataset_args=masks={masked.dataset_args[0].partition('=')[2]}"
    flags = ("--aug=paste", "--backgrounds=generated", "--num_places=3", "--batch_size=1")
    assert make(masks, *flags, "--num_inference_steps=1")[0] == 0
    expected = [image for name, image in images_of().items() if name.endswith("-000.png")]
    made = found.columns["paste"]
    assert all(map(np.array_equal, pixels(made.images), expected))
    on_disk = sum(path.stat().st_size for path in Path("output/e/places").rglob("*.*"))
    assert made.once.size == pytest.approx(10 * on_disk, rel=0.01)  # 30 places, of which 3 drawn


def test_of_many_classes_the_seed_draws_some():
    names = [f"class {number}" for number in range(12)]
    dataset = SimpleNamespace(class_names=names, get_label_by_idx=lambda idx: idx // 5)
    plans = [
        SimpleNamespace(dataset=dataset, indices=range(1, 60), trial=Trial(seed, 5))
        for seed in range(3)
    ]
    shown = [stage.photos_shown(plan) for plan in plans]
    for each in shown:
        labels = [idx // 5 for idx in each]
        assert labels == sorted(labels) and len(each) == 30 and len(set(labels)) == 10
        assert all(idx % 5 < 3 + (idx < 5) for idx in each)  # the first three of their class
    assert len(set(map(tuple, shown))) > 1


# --- what the full command will cost ---------------------------------------------------------


@pytest.mark.parametrize("warm_up", [0, 1])
def test_a_cost_is_told_once_from_the_first_block_that_counts(warm_up, caplog):
    caplog.set_level("INFO")
    noise = torch.rand(64, 64, 3).mul(255).byte().numpy()
    block, asked = [Image.fromarray(noise)] * 4, []
    tell = cost_teller(lambda: 400, asked.append, warm_up)
    for seconds in (8.0, 2.0, 4.0):
        tell(seconds, block)
    (cost,) = asked
    assert cost.seconds == pytest.approx((8.0, 2.0)[warm_up] * 100)
    assert cost.size == pytest.approx(400 * 64 * 64 * 3, rel=0.05)  # noise is not made smaller
    expected = ("13 minutes", "3 minutes")[warm_up]
    assert caplog.messages == [f"400 images: about {expected} and 5 MB"]
    short = cost_teller(lambda: 4, asked.append, 0)
    short(50.0, block)
    assert len(asked) == 1 and len(caplog.messages) == 1


@pytest.mark.slow
def test_generate_tells_the_cost_of_its_share(make, monkeypatch):
    monkeypatch.setattr(estimating, "MINUTE", 1e-9)
    monkeypatch.setattr(estimating, "HOUR", 1e-9)
    status, err = make("--batch_size=1", "--num_inference_steps=24")
    assert status == 0 and err.count(" images: about ") == 1
    assert "6 images: about " in err and "quicker: --scheduler dpm++ --num_inf" in err
    status, err = make("--batch_size=1", "--num_inference_steps=24", "--num_synthetic=4",
                       "--shard_index=0", "--num_shards=2")  # fmt: skip
    assert status == 0 and "3 images: about " in err  # of 6 that are missing
    assert "images: about" not in make("--num_inference_steps=24")[1]  # nothing to make


def test_blocks_that_say_nothing():
    assert warm_up_blocks(build(Generation, {}), CPU) == 0
    assert warm_up_blocks(build(Generation, {"compile": True}), CPU) == 1
    assert warm_up_blocks(build(Generation, {}), GPU) == 1


class Photos:
    """As many photos as masks; None is a photo without one."""

    def __init__(self, *masks):
        self.masks = masks

    def __len__(self):
        return len(self.masks)

    def mask_digests(self, indices):
        return ["" if self.masks[idx] is None else "digest" for idx in indices]

    def get_mask_by_idx(self, idx):
        return self.masks[idx]


def test_what_would_be_quicker():
    info, mask = SimpleNamespace(few_steps=False), np.eye(4, dtype=np.uint8)
    masks, none = Photos(None, mask), Photos(None, 0 * mask)
    distilled = SimpleNamespace(few_steps=True)

    def ways(info, dataset, **given):
        settings = build(Generation, {"aug": ("real-guidance",)} | given)
        found = quicker_ways(settings, list_edits(settings), info, dataset)
        return [each.partition(" (")[0].partition(",")[0] for each in found]

    turbo, paste = "a model distilled to few steps", "--aug paste"
    sampler = "--scheduler dpm++ --num_inference_steps 20"
    assert ways(info, masks) == [sampler, turbo, paste]
    assert ways(info, none) == [sampler, turbo]
    assert ways(info, none, scheduler="dpm++") == ["--num_inference_steps 20", turbo]
    assert ways(info, none, num_inference_steps=20) == [turbo]
    assert ways(info, masks, scheduler="lcm") == ways(distilled, masks) == [paste]
    assert ways(info, masks, aug="paste", backgrounds="generated") == [sampler, turbo]
    assert ways(None, masks, aug="paste") == []


def test_how_a_cost_is_said():
    said = [str(Cost(seconds, 0)) for seconds in (1, 89, 91, 5399, 5401, 172000, 173000)]
    assert [each.removeprefix("about ").partition(" and")[0] for each in said] == [
        "1 second", "89 seconds", "2 minutes", "90 minutes", "1.5 hours", "47.8 hours", "2.0 days",
    ]  # fmt: skip
    sizes = [str(Cost(0, size)).partition("and ")[2] for size in (5900, 3.14e6, 31e6, 1.4e9)]
    assert sizes == ["0.0059 MB", "3.1 MB", "31 MB", "1,400 MB"]
