"""Settings: declared once, and then flags, keyword arguments, config.json and the reference."""

import argparse
import dataclasses
import json
import math
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from semantic_aug import UserError
from semantic_aug.cli.command import Parser
from semantic_aug.diffusion.inspecting import inspect_model
from semantic_aug.evaluation.standard_augmentation import AUGMENTATIONS, MIXES
from semantic_aug.experiment.config import config_id
from semantic_aug.experiment.names import Trial
from semantic_aug.settings import (
    FRACTION,
    add_flags,
    build,
    build_all,
    compared,
    fields_of,
    kind_of,
    setting,
    settings,
    whole,
)
from semantic_aug.settings.classification import STANDARD_AUGMENTATIONS, Classification, Contrastive
from semantic_aug.settings.common import Experiment, Run
from semantic_aug.settings.fine_tuning import LORA_SETTINGS, FineTuning
from semantic_aug.settings.generation import Generation
from semantic_aug.settings.masking import Masking
from semantic_aug.settings.merging import Merging
from semantic_aug.settings.names import differences
from semantic_aug.settings.reporting import Reporting
from semantic_aug.settings.reproducing import Reproduction
from semantic_aug.stages import (
    classifier_settings,
    editing,
    fine_tune,
    planning,
    result_settings,
)
from semantic_aug.stages import edits as edits_module
from semantic_aug.synthesis.records import read_records
from semantic_aug.words.templates import load_templates

STAGES = (
    Run, FineTuning, Merging, Generation, Classification, Reproduction, Reporting, Masking,
)  # fmt: skip
ALL = [(cls, name) for cls in STAGES for name in fields_of(cls)]
NEEDED = {"experiment_name": "e", "dataset": "folder"}


def another(field: dataclasses.Field, value):
    """Another value that the setting may have."""
    kind, several, _ = kind_of(field)
    if several and value is not None:
        return tuple(another_one(field, kind, each) for each in value) or ("other=1",)
    return another_one(field, kind, value)


def another_one(field, kind, value):
    if field.metadata["choices"]:
        return next(each for each in field.metadata["choices"] if each not in (value, None))
    if kind is bool:
        return not value
    if kind is int:
        return 7 if value is None else value + 1
    if kind is float:
        return 0.25 if value is None else value * 0.75 or 0.75
    return "last:2" if field.name == "finetune" else f"other-{value}"


# --- config.json -----------------------------------------------------------------------------


def ids_by_field(cls, base: dict, identity) -> dict[str, bool]:
    """Whether another value of each setting gives another id of the configuration."""
    made = build(cls, base)
    before, found = identity(made), {}
    for name, field in fields_of(cls).items():
        changed = dataclasses.replace(made, **{name: another(field, getattr(made, name))})
        found[name] = identity(changed) != before
    return found


def declared(cls) -> dict[str, bool]:
    return {name: bool(field.metadata["result"]) for name, field in fields_of(cls).items()}


RUN = Run("e", dataset="folder", dataset_args={"masks": "m"})


def test_other_words_exactly_where_it_is_declared():
    def identity(made):
        made = fine_tune.completed(made)
        info = SimpleNamespace(identity=f"{made.model} {made.revision} {made.variant}")
        of_words = fine_tune.compared_of(RUN, made, info, ["a photo of {}"])
        of_lora = {name: getattr(made, name) for name in LORA_SETTINGS}
        assert not of_words.keys() & of_lora.keys()  # words are the same without a LoRA
        return config_id(of_words | of_lora)

    base = {"max_train_steps": 9, "num_train_epochs": 2, "lora_rank": 4}
    found = ids_by_field(FineTuning, base | {"fit": "squash"}, lambda made: identity(
        dataclasses.replace(made, fit=None) if made.center_crop else made
    ))  # fmt: skip
    expected = declared(FineTuning)
    assert found == expected
    assert load_templates("style") != load_templates("object")


def test_other_images_exactly_where_it_is_declared(small_model, monkeypatch):
    for name in ("check_lora", "check_controlnet", "check_safety_checker", "check_unet"):
        monkeypatch.setattr(editing, name, lambda info, path: str(path))
    monkeypatch.setattr(editing, "find_unet", lambda path: path)
    monkeypatch.setattr(edits_module, "check_taken", lambda made, edits, objects: None)
    monkeypatch.setattr(planning, "facts_of_places", lambda made, *_: {"lines": made.places})
    info = inspect_model(small_model)
    dataset = SimpleNamespace(photo_digest=lambda: "x")

    def identity(made):
        mine = dataclasses.replace(info, identity=f"{made.model} {made.revision} {made.variant}")
        edits = edits_module.list_edits(dataclasses.replace(made, aug=("real-guidance",) * 2))
        for edit, aug in zip(edits, made.aug):
            edit["aug"] = aug
        weights = editing.weights_of(made, mine)
        return config_id(planning.compared_of(RUN, made, dataset, mine, weights, edits))

    base = {
        "aug": ("real-guidance", "textual-inversion"), "mask": 1, "inverted": 1, "lora": "l",
        "controlnet": "c", "unet_path": "u", "safety_checker": "s", "filter": "clip",
        "probs": (1, 0), "resolution": 16,
    }  # fmt: skip

    def changed(made):
        # Values that go with each other.
        if made.probs == (0.75, 0.75):
            made = dataclasses.replace(made, probs=(0.75, 0.25))
        if made.mask == (0,):
            made = dataclasses.replace(made, inverted=(0,))
        if made.resolution == 17:
            made = dataclasses.replace(made, resolution=32)
        return identity(made)

    assert ids_by_field(Generation, base, changed) == declared(Generation)


def test_other_results_exactly_where_it_is_declared(tmp_path):
    photos = SimpleNamespace(class_names=["a"], sources=lambda: ["a/0.png"])
    folder = tmp_path / "aug" / "seed=0_ex=1"
    (folder / "records").mkdir(parents=True)
    (folder / "000000-000.png").write_bytes(b"x")  # an empty one counts as lost
    (folder / "config.json").write_text('{"id": "x", "settings": {}, "arguments": {}}')
    image = {"file_name": "000000-000.png", "label": 0, "class_name": "a", "source": "a/0.png",
             "index": 0, "repeat": 0, "seed": 0, "examples_per_class": 1}  # fmt: skip
    score = {"file_name": "000000-000.png", "score": 0.1, "kept": False}
    lines = [json.dumps(each) + "\n" for each in (image, score)]
    (folder / "records" / "x.1.jsonl").write_text("".join(lines))
    assert len(read_records(folder)) == 1

    def identity(made):
        options = classifier_settings.training_options(
            dataclasses.replace(made, synthetic_probability=None)
            if made.utilization != "mix" else made
        )  # fmt: skip
        size = made.image_size or 224
        backbone = SimpleNamespace(
            identity=f"{made.classifier_backbone} {made.from_scratch}", image_size=(size, size),
            mean=torch.zeros(3), std=torch.ones(3),
        )  # fmt: skip
        trial = Trial(0, 1)
        near = {trial: folder} if made.negative_aug_name else {}
        found = result_settings.result_settings(
            RUN, made, options, backbone, photos, {}, {trial: {"aug": folder}}, near
        )
        return config_id(found | {"backbone_precision": made.backbone_precision})

    of_supcon = [*fields_of(Contrastive)]
    base = {"finetune": "all", "backbone_learning_rate": 1e-4, "synthetic_probability": 0.5,
            "backbone_precision": "float32"}  # fmt: skip

    def fitting(made):
        """Values that go with each other."""
        if made.backbone_precision != "float32" or made.views:
            made = dataclasses.replace(made, finetune="none", backbone_learning_rate=None)
        if made.objective == "supcon" or any(getattr(made, name) for name in of_supcon[1:]):
            made = dataclasses.replace(made, objective="supcon", backbone_learning_rate=None)
        return identity(made)

    found = ids_by_field(Classification, base, fitting)
    supcon = Classification(finetune="all", objective="supcon")
    for name in of_supcon:
        changed = another(fields_of(Classification)[name], getattr(supcon, name))
        found[name] = identity(dataclasses.replace(supcon, **{name: changed})) != identity(supcon)
    assert found | {"classes": False} == declared(Classification)


def test_the_run_changes_results_where_it_is_declared():
    def identity(run):
        info = SimpleNamespace(identity="m")
        made = fine_tune.completed(FineTuning())
        return config_id(fine_tune.compared_of(run, made, info, []))

    base = {"experiment_name": "e", "dataset": "folder", "dataset_args": ["masks=m"]}
    assert ids_by_field(Run, base, identity) == declared(Run)


def test_a_new_setting_is_compared_by_its_declaration_alone():
    @settings("new")
    class Newer(Generation):
        prompt_suffix: str = setting("", "what every prompt ends with", result=True)
        colour: tuple[float, ...] = setting((), "shares", result=True)

    facts = {"photos": "x"}
    assert compared(facts, Newer()) == facts  # folders without it mean its default
    newer = build(Newer, {"prompt_suffix": "blurred", "colour": 1})
    assert compared(facts, newer) == facts | {"prompt_suffix": "blurred", "colour": [1.0]}
    parser = Parser("")
    add_flags(parser, Run, Newer)
    args = vars(parser.parse_args(["--experiment_name=e", "--dataset=d", "--prompt-suffix=x"]))
    assert build_all(args, Run, Newer)[1].prompt_suffix == "x"


def test_differences_are_in_the_words_of_the_flags():
    edits = [{"aug": "real-guidance", "strength": 0.5}]
    before = {"model": "a", "scheduler": None, "photos": "x", "crop_to_object": False,
              "edits": edits, "prompt": ["a", "b c"]}  # fmt: skip
    now = before | {"model": "b", "scheduler": "ddim", "photos": "y", "crop_to_object": True,
                    "edits": [edits[0] | {"strength": 0.25}], "prompt": ["a"]}  # fmt: skip
    assert differences(before, now) == [
        "--crop_to_object: there false, now true",
        "--strength: there 0.5, now 0.25",
        f"{generate_model_flag()}: there a, now b",
        "photos: there x, now y",
        "--prompt: there a b c, now a",
        "--scheduler: there none, now ddim",
    ]
    assert differences(before, before) == []
    assert differences({"edits": None}, {"edits": [{}]}) == ["--aug: there none, now {}"]


def generate_model_flag() -> str:
    return fields_of(Generation)["model"].metadata["flags"][0]


# --- the reference ---------------------------------------------------------------------------


def test_the_reference_page_is_what_is_declared():
    page = runpy.run_path(str(ROOT / "scripts" / "reference.py"))["page"]()
    there = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert there == page, "run: PYTHONPATH=. python scripts/reference.py"
    assert all(f"`{name}`" in there for _, name in ALL)


def test_names_that_can_be_chosen_are_those_that_there_are():
    assert list(STANDARD_AUGMENTATIONS) == ["none", *AUGMENTATIONS, *MIXES]


# --- values ----------------------------------------------------------------------------------


def numeric():
    for cls, name in ALL:
        if kind_of(fields_of(cls)[name])[0] in (int, float):
            yield pytest.param(cls, name, id=f"{cls.__name__}.{name}")


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 0, "many", "", None, True, [], [[]]])
@pytest.mark.parametrize(("cls", "name"), numeric())
def test_numbers_that_are_none(cls, name, value):
    """Each is taken as what it is, or refused in one line that names the setting."""
    field = fields_of(cls)[name]
    needed = {key: NEEDED[key] for key in NEEDED if key in fields_of(cls)}
    of = field.metadata["of"]
    if of:
        kind, _, _ = kind_of(fields_of(cls)[of])
        needed[of] = {int: 1, float: 0.5}.get(kind, "clip" if of == "filter" else "x")
    try:
        made = getattr(build(cls, needed | {name: value}), name)
    except UserError as error:
        assert "\n" not in str(error) and name in str(error)
        assert "expected" in str(error) or "empty" in str(error)
        return
    if value is None:
        assert made is None and kind_of(field)[2]
    elif value == []:
        assert made == () == field.default
    elif value is True:
        assert made == (1,) and field.metadata["choices"] == (0, 1)
    else:
        assert made in (value, (value,))
        assert value == 0 or value == -1
        checks = field.metadata["check"]
        assert all(check.is_good(value) for check in checks)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0", "many", "1e999", "0x10", "1_0"])
@pytest.mark.parametrize(("cls", "name"), numeric())
def test_flags_refuse_what_keywords_refuse(cls, name, text, capsys):
    parser = Parser("")
    add_flags(parser, cls)
    field = fields_of(cls)[name]
    flag = (field.metadata["flags"] or (f"--{name}",))[0]
    needed = [f"--{key}={NEEDED[key]}" for key in NEEDED if key in fields_of(cls)]
    try:
        found = getattr(parser.parse_args([*needed, flag, text]), name)
    except SystemExit as ended:
        error = capsys.readouterr().err
        assert ended.code == 2 and error.count("\n") == 1
        assert name in error or flag in error
        return
    made = getattr(
        cls(**{k: NEEDED[k] for k in NEEDED if k in fields_of(cls)}, **{name: found}), name
    )
    assert made == (tuple(found) if isinstance(found, list) else found)


@given(st.floats() | st.integers() | st.text() | st.booleans() | st.none())
def test_whatever_is_given_is_a_fraction_or_is_refused(value):
    @settings()
    class One:
        share: float = setting(0.5, "a share", check=FRACTION)

    try:
        made = build(One, {"share": value}).share
    except UserError as error:
        assert str(error).startswith("share: got ") and "a number in [0, 1]" in str(error)
    else:
        assert 0 <= made <= 1 and type(made) is float


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(UserError, match="no setting 'strenght'; is strength meant"):
        build(Generation, {"strenght": 0.5})
    with pytest.raises(UserError, match="no setting 'model_paht'; is model_path meant"):
        build(Generation, {"model_paht": "m"})
    with pytest.raises(UserError, match="no setting 'zzz'; there are: overwrite, "):
        build(Merging, {"zzz": 1})
    assert build(Generation, {"erasure_ckpt_path": "u"}).unet_path == "u"  # a flag's own name


def test_values_of_python(tmp_path):
    run = Run("e", dataset="folder", data_dir=tmp_path, examples_per_class=[1, 2],
              dataset_args={"masks": "m", "nested": True}, seed=torch.tensor(3))  # fmt: skip
    assert run.data_dir == str(tmp_path) and run.examples_per_class == (1, 2) and run.seed == 3
    assert run.dataset_args == ("masks=m", "nested=true")
    made = build(
        Generation, {"strength": 1, "mask": True, "batch_size": "auto", "prompt": "a {name}"}
    )
    assert (made.strength, made.mask, made.batch_size) == ((1.0,), (1,), 32)
    assert made.prompt == ("a {name}",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.strength = (0.5,)
    with pytest.raises(UserError, match=r"data_dir: got 3, expected text"):
        Run("e", dataset="folder", data_dir=3)
    with pytest.raises(UserError, match=r"overwrite: got 1, expected True or False"):
        build(Generation, {"overwrite": 1})


def test_a_detail_without_what_it_is_of():
    with pytest.raises(UserError, match="--lora_scale means nothing without --lora"):
        build(Generation, {"lora_scale": 0.5})
    assert build(Generation, {"lora_scale": 1}).lora_scale == 1.0


def test_several_values_of_a_whole_number():
    @settings()
    class Many:
        sizes: tuple[int, ...] = setting((1,), "sizes", check=whole(1, 9))

    assert build(Many, {"sizes": range(1, 3)}).sizes == (1, 2)
    for bad, said in ((10, "9 at most"), ([1, 0], "a whole number from 1"), ([], "at least one")):
        with pytest.raises(UserError, match=said):
            build(Many, {"sizes": bad})


# --- flags -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "first"), [(Run, "dataset"), (Experiment, "experiment and trials")]
)
def test_every_setting_is_a_flag(cls, first):
    parser = argparse.ArgumentParser()
    add_flags(parser, cls, Merging if cls is Experiment else Generation)
    assert first in {group.title for group in parser._action_groups}
    dests = [action.dest for action in parser._actions if action.dest != "help"]
    assert sorted(dests) == sorted(
        [*fields_of(cls), *fields_of(Merging if cls is Experiment else Generation)]
    )


def test_help_begins_with_what_most_need_and_ends_with_what_few_do():
    parser = Parser("")
    add_flags(parser, Run, Generation)
    text = parser.format_help()
    order = ["--examples_per_class", "--dataset", "--model_path", "--strength", "--lora",
             "--safety_checker", "--num_shards", "--filter"]  # fmt: skip
    assert [text.index(f"  {flag} ") for flag in order] == sorted(
        text.index(f"  {flag} ") for flag in order
    )


HEAVY = ("torch", "transformers", "diffusers", "scipy", "kornia", "pandas", "matplotlib")


@pytest.mark.parametrize(
    "stage",
    ["fine_tune", "aggregate_embeddings", "generate_augmentations", "train_classifier",
     "semantic_aug.report.__main__", "semantic_aug.cluster.status", "semantic_aug.cluster.chain",
     "semantic_aug.datasets.__main__", "semantic_aug.__main__"],
)  # fmt: skip
def test_help_loads_no_model(stage):
    code = (
        f"import sys, importlib\nmodule = importlib.import_module({stage!r})\n"
        "try:\n    module.main(['--help'])\n"
        "except SystemExit as ended:\n    assert ended.code == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
