"""The four stages as functions of Python: the same bytes as the commands, and nothing printed."""

import functools
import json
import logging
from pathlib import Path

import pytest
import tqdm
from conftest import build_pipeline, draw_photo
from PIL import Image

import aggregate_embeddings
import fine_tune as fine_tune_script
import generate_augmentations
import semantic_aug
import train_classifier as train_classifier_script
from semantic_aug import (
    Run,
    UserError,
    aggregate,
    check,
    fine_tune,
    generate,
    reproduce,
    train_classifier,
)
from semantic_aug.datasets.__main__ import main
from semantic_aug.datasets.folder import FolderDataset
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.generative_augmentation import Edit, GenerativeAugmentation

STEPS = {"max_train_steps": 2, "report_to": "none"}
HEAD = {"num_epochs": 1, "iterations_per_epoch": 2, "augmentation": "none"}


class Inverted(GenerativeAugmentation):
    """Photos as negatives, without a model."""

    def __init__(self, pipeline=None, strength=1.0, **options):
        self.strength = strength

    def augment(self, images, labels, metadata, generators):
        made = [Image.eval(image, lambda value: 255 - value) for image in images]
        edit = Edit("test_api:Inverted", "", self.strength, 1.0, False, False)
        return made, [[edit] for _ in images]


class Halves(FewShotDataset):
    """Two classes, in a file of its own.

    Args:
        bright: other photos.
    """

    class_names = ("dark", "light")

    def __init__(self, *, bright: bool = False, **kwargs):
        self.bright = bright
        super().__init__(**kwargs)

    def list_records(self, split):
        for name in self.class_names:
            for path in self.images_in(self.data_dir / split / name):
                yield self.record(path, name)


@pytest.fixture
def run(photos, workdir) -> Run:
    return Run("api", dataset="folder", data_dir=photos, examples_per_class=1)


def flags(settings: dict) -> list[str]:
    found = []
    for name, value in settings.items():
        found += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return found


def files_of(experiment: str) -> dict[str, bytes]:
    """What an experiment holds, but for times, processes and what the commands were called with."""
    root, found = Path("output") / experiment, {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = str(path.relative_to(root))
        if name.startswith(("processes", "timing", "cache", "logs")) or path.name == "summary.csv":
            continue
        content = path.read_bytes()
        if path.name == "config.json":
            config = json.loads(content)
            if "arguments" in config:  # all but that of a classifier
                assert config["arguments"].pop("experiment_name") == experiment
                config["arguments"].pop("command", None)
            content = json.dumps(config).encode()
        if path.parent.name == "records":
            name = f"{path.parent.relative_to(root)}/{path.name.split('.')[0]}"
        found[name] = content
    return found


def test_functions_leave_what_the_commands_leave(run, photos, small_model, resnet, capsys):
    images = {"model": small_model, "num_synthetic": 2, "num_inference_steps": 4,
              "strength": (0.25, 0.75), "device": "cpu"}  # fmt: skip
    words = fine_tune(run, model=small_model, device="cpu", **STEPS)
    merged = aggregate(run)
    made = generate(run, **images)
    table = train_classifier(run, classifier_backbone=resnet, device="cpu", **HEAD)
    again, difference = reproduce(next(iter(made.values())).paths[3], device="cpu")
    out, err = capsys.readouterr()
    assert out == "" and "error" not in err

    assert [path.parent.name for path in words.made] == ["cat", "stop_sign", "toy_train"]
    assert words.skipped == [] and words.failed == []
    assert fine_tune(run, model=small_model, device="cpu", **STEPS).skipped == words.made
    ((trial, path),) = merged.items()
    assert trial.name == "seed=0_ex=1" and path.is_file()
    assert [(each.made, each.there, each.wanted, each.kept) for each in made.values()] == [
        (6, 6, 6, None)
    ]
    assert again.size == (48, 40) and difference <= 2
    assert list(table["split"]) == ["Training", "Validation", "Test"]
    assert table["mean_accuracy"].between(0, 1).all()
    assert Path(table.attrs["folder"]).name == "aug"

    of = ["--dataset=folder", f"--data_dir={photos}", "--device=cpu"]
    one, model = ["--experiment_name=cli"], ["--model_path", small_model]
    fine_tune_script.main([*of, *one, *model, *flags(STEPS)])
    aggregate_embeddings.main(one)
    del images["model"], images["device"]
    generate_augmentations.main([*of, *one, *model, *flags(images)])
    train_classifier_script.main([*of, *one, f"--classifier_backbone={resnet}", *flags(HEAD)])
    here, there = files_of("api"), files_of("cli")
    assert here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []


def test_errors_name_keywords_and_nothing_ends_the_program(run, small_model):
    with pytest.raises(UserError, match=r"^there is no setting 'num_synthetics'; is num_synthetic"):
        generate(run, num_synthetics=3)
    with pytest.raises(UserError, match=r"^num_vectors: got '4', expected a whole number from 1$"):
        fine_tune(run, num_vectors="4")
    with pytest.raises(
        UserError, match=r"^strength: 0.1 of 2 steps is no step at all; use num_inf"
    ):
        generate(run, model=small_model, strength=0.1, num_inference_steps=2)
    with pytest.raises(UserError, match=r"^shard_index and num_shards go together"):
        aggregate(run, num_shards=2)
    with pytest.raises(UserError, match=r"^reproduce: nothing.png is no image"):
        reproduce("nothing.png")
    with pytest.raises(UserError, match=r"^dataset: got 'none', expected coco, "):
        generate(Run("e", dataset="none"), model=small_model)
    with pytest.raises(UserError, match="pass overwrite to make them again"):
        generate(run, model=small_model, num_synthetic=1, num_inference_steps=2, strength=1)
        generate(run, model=small_model, num_synthetic=1, num_inference_steps=2, strength=0.5)


def test_two_runs_in_one_process_share_nothing(run, tmp_path):
    models = []
    for seed in (1, 2):
        build_pipeline(seed).save_pretrained(tmp_path / f"model-{seed}")
        models.append(str(tmp_path / f"model-{seed}"))
    found = []
    for number, model in enumerate([models[0], models[1], models[0]]):
        made = generate(
            run,
            aug_name=f"a{number}",
            model=model,
            num_synthetic=1,
            num_inference_steps=2,
            strength=1,
        )
        (images,) = made.values()
        found.append([path.read_bytes() for path in images.paths])
    assert found[0] == found[2] and found[0] != found[1]


def test_a_model_that_is_loaded_is_handed_on_and_stays_as_it_was(run, small_model, monkeypatch):
    from diffusers import StableDiffusionPipeline

    from semantic_aug.stages import editing
    from semantic_aug.stages import fine_tune as stage

    pipeline = StableDiffusionPipeline.from_pretrained(small_model)
    scheduler = pipeline.scheduler
    options = {"model": small_model, "num_synthetic": 1, "num_inference_steps": 4,
               "scheduler": "ddim", "device": "cpu"}  # fmt: skip
    plain = generate(run, aug_name="plain", **options)
    for module in (editing, stage):
        monkeypatch.setattr(module, "load_pipeline", None)
    given = generate(run, aug_name="given", pipeline=pipeline, **options)
    assert pipeline.scheduler is scheduler
    (one,), (two,) = plain.values(), given.values()
    assert [p.read_bytes() for p in one.paths] == [p.read_bytes() for p in two.paths]
    assert (
        len(fine_tune(run, model=small_model, pipeline=pipeline, device="cpu", **STEPS).made) == 3
    )
    with pytest.raises(UserError, match="lora changes the model: leave pipeline out"):
        generate(run, aug_name="x", pipeline=pipeline, lora="some.safetensors", **options)


def test_a_dataset_is_given_by_its_name_its_class_or_an_object(photos, workdir, small_model):
    options = {"model": small_model, "num_synthetic": 1, "num_inference_steps": 2, "strength": 1}
    object_ = FolderDataset(data_dir=photos, masks="../masks")
    runs = [
        Run("n", dataset="folder", data_dir=photos, dataset_args={"masks": "../masks"}),
        Run("c", dataset=FolderDataset, data_dir=photos, dataset_args=["masks=../masks"]),
        Run("o", dataset=object_),
    ]
    contents = []
    for each in runs:
        (images,) = generate(each, **options).values()
        config = json.loads((images.folder / "config.json").read_text())
        contents.append((config["id"], [path.read_bytes() for path in images.paths]))
    assert contents[0] == contents[1] == contents[2]
    for split in ("train", "val", "test"):
        for name in Halves.class_names:
            draw_photo(workdir / "photos" / split / name / "0.png", (9, 9, 9), 1)
    run = Run("h", dataset=Halves(data_dir=workdir / "photos", bright=True))
    (images,) = generate(run, **options).values()
    config = json.loads((images.folder / "config.json").read_text())
    assert config["settings"]["dataset"] == "test_api:Halves"
    assert config["settings"]["dataset_args"] == ["bright=true"]

    class Local(Halves):
        pass

    with pytest.raises(UserError, match=r"<locals>.Local is defined in a function"):
        generate(Run("l", dataset=Local), **options)
    with pytest.raises(UserError, match=r"dataset: got 3, expected a name or a FewShotDataset"):
        generate(Run("l", dataset=3), **options)


def test_an_augmentation_is_given_by_its_name_its_class_or_an_object(run, small_model):
    contents = []
    for number, aug in enumerate(["test_api:Inverted", Inverted, Inverted()]):
        made = generate(run, model=small_model, aug=aug, aug_name=f"a{number}", num_synthetic=1)
        (images,) = made.values()
        contents.append([path.read_bytes() for path in images.paths])
    assert contents[0] == contents[1] == contents[2]
    config = json.loads((images.folder / "config.json").read_text())
    assert config["settings"]["edits"][0]["aug"] == "test_api:Inverted"
    assert " --aug test_api:Inverted" in config["arguments"]["command"]
    with pytest.raises(UserError, match=r"options: there \{\"strength\": 1\.0\}, now"):
        generate(run, model=small_model, aug=Inverted(strength=0.5), aug_name="a2", num_synthetic=1)
    with pytest.raises(UserError, match="made with an object of Python"):
        reproduce(images.paths[0])


def test_check_reads_what_the_command_reads(run, photos, capsys):
    (photos / "val" / "cat" / "0.png").write_bytes(b"")
    found = check(run)
    assert main(["check", "folder", "--data_dir", str(photos)]) == 1
    assert str(found) == capsys.readouterr().out.rstrip("\n")
    (line,) = found.problems()["unreadable photos"]
    assert "val/cat/0.png" in line
    assert str(check(Run("c", dataset=FolderDataset(data_dir=photos)))) == str(found)
    with pytest.raises(UserError, match=r"^data root nowhere is not a folder: pass data_dir or"):
        check(Run("c", dataset="folder", data_dir="nowhere"))
    with pytest.raises(UserError, match=r"^run: got 'photos', expected Run$"):
        check("photos")


def test_tqdm_disable_leaves_out_all_bars_of_a_classifier(run, resnet, monkeypatch, capsys):
    # As TQDM_DISABLE=1 does, which tqdm reads when it is imported.
    monkeypatch.setattr("tqdm.tqdm", functools.partial(tqdm.tqdm, disable=True))
    train_classifier(run, classifier_backbone=resnet, num_synthetic=0, device="cpu", **HEAD)
    assert "%" not in capsys.readouterr().err


def test_logs_say_what_is_made(run, small_model, caplog):
    with caplog.at_level(logging.INFO, "semantic_aug"):
        generate(run, model=small_model, num_synthetic=1, num_inference_steps=2, strength=1)
    assert "3 images made now; 3 of 3 exist" in caplog.text


def test_the_face_of_the_package():
    assert {"Run", "fine_tune", "aggregate", "generate", "reproduce", "train_classifier"} <= set(
        dir(semantic_aug)
    )
    with pytest.raises(AttributeError, match="no attribute 'genrate'"):
        semantic_aug.genrate  # noqa: B018
    assert "num_synthetic" in str(__import__("inspect").signature(generate))
    assert generate.__doc__.startswith("Turn each photo")
