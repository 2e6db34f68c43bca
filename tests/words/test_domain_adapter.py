"""The LoRA of a trial: training it beside its words, merging it, and edits with it."""

import collections
import copy
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_pipeline, build_xl_pipeline, images_of
from diffusers import DDPMScheduler, StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import aggregate_embeddings
import fine_tune
import generate_augmentations
import semantic_aug
from semantic_aug import UserError
from semantic_aug.augmentations.real_guidance import RealGuidance
from semantic_aug.cluster.status import status_of
from semantic_aug.datasets import build_dataset
from semantic_aug.diffusion.inspecting import inspect_model
from semantic_aug.diffusion.loading import load_pipeline, text_encoders
from semantic_aug.diffusion.lora import new_lora, switch_lora
from semantic_aug.experiment.config import read_config
from semantic_aug.experiment.names import LORA as LORA_METHOD
from semantic_aug.experiment.names import Trial
from semantic_aug.settings.common import Run
from semantic_aug.settings.fine_tuning import FineTuning
from semantic_aug.stages import editing
from semantic_aug.stages import fine_tune as stage
from semantic_aug.stages.made_alike import differing_settings
from semantic_aug.synthesis.jobs import job_generator
from semantic_aug.synthesis.records import read_records
from semantic_aug.words import domain_session, prior
from semantic_aug.words.domain_adapter import (
    ClassPhotos,
    Deck,
    DomainAdapter,
    Latents,
    train_adapter,
)
from semantic_aug.words.prior import told_of_class
from semantic_aug.words.prompts import tokenise

CPU = torch.device("cpu")
FILE = "pytorch_lora_weights.safetensors"
# Strong enough that images change visibly.
SLOW = pytest.mark.slow
LORA = ["--lora_rank=2", "--lora_steps=4", "--lora_learning_rate=0.1"]


def fail(*_, **__):
    raise AssertionError("this should not be called")


@pytest.fixture(autouse=True)
def quick_prior(monkeypatch):
    monkeypatch.setattr(prior, "STEPS", 2)


@pytest.fixture
def tune(workdir, photos, small_model, called):
    """Run fine_tune.py on the small photos; returns exit status and what it says on stderr."""

    def tune(*flags, name="e", model=small_model):
        argv = [
            "--dataset=folder", f"--data_dir={photos}", f"--experiment_name={name}",
            f"--pretrained_model_name_or_path={model}", "--max_train_steps=1", "--device=cpu",
            "--train_batch_size=1", "--report_to=none", *flags,
        ]  # fmt: skip
        status, _, err = called(fine_tune.main, *argv)
        return status, err

    return tune


@pytest.fixture
def merge(called):
    def merge(*flags, name="e"):
        return called(aggregate_embeddings.main, f"--experiment_name={name}", *flags)

    return merge


def lora_of(name="e", seed=0) -> Path:
    return Path(f"output/{name}/fine-tuned/seed={seed}_ex=1/{FILE}")


def merged_of(seed=0) -> Path:
    return Path(f"output/e/fine-tuned-merged/seed={seed}_ex=1_lora/{FILE}")


def bytes_in(folder: str) -> dict[str, bytes]:
    paths = sorted(Path(folder).glob("*.png"))
    assert paths
    return {path.name: path.read_bytes() for path in paths}


def without_lora(pipeline) -> dict[str, torch.Tensor]:
    """All weights of a model but a LoRA's, by names that do not tell whether it holds one."""
    parts = {"unet": pipeline.unet, "vae": pipeline.vae}
    parts |= {f"text{n}": encoder for n, (_, encoder) in enumerate(text_encoders(pipeline))}
    return {
        f"{part}.{name.replace('.base_layer', '')}": weight.detach().clone()
        for part, module in parts.items()
        for name, weight in module.named_parameters()
        if "lora_" not in name
    }


# --- training --------------------------------------------------------------------------------


@given(count=st.integers(1, 9), passes=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_deck_shows_each_number_once_per_pass(count, passes, seed):
    deck = Deck(count, torch.Generator().manual_seed(seed))
    drawn = [deck.draw() for _ in range(count * passes)]
    for start in range(0, len(drawn), count):
        assert sorted(drawn[start : start + count]) == list(range(count))


def latents(count: int, seed: int) -> Latents:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, 2, 4, 16, 16, generator=generator)
    return Latents(mean, 0.1 * torch.ones_like(mean), torch.ones_like(mean[:, :, :1]))


def adapter_in(pipeline, counts=(1, 3), names=0, seed=0, **changes) -> DomainAdapter:
    """A LoRA in a pipeline, to be trained on random latents of classes with so many photos."""
    generator = torch.Generator().manual_seed(seed)
    widths = [enc.get_input_embeddings().weight.shape[1] for _, enc in text_encoders(pipeline)]
    classes = []
    for number, count in enumerate(counts):
        rows = [torch.randn(2, width, generator=generator) for width in widths]
        more = (latents(names, 50 + number), told_of_class(pipeline, "cat", (16, 16)))
        classes.append(ClassPhotos(rows, latents(count, number), *(more if names else ())))
    made = FineTuning(**{"lora_rank": 3, "lora_steps": 4, "lora_learning_rate": 0.01,
                         "train_batch_size": 2} | changes)  # fmt: skip
    weights = new_lora(pipeline.unet, made.lora_rank, generator)
    in_half = pipeline.unet.dtype == torch.float16
    return DomainAdapter(weights, classes, made, generator, in_half)


def train(pipeline, adapter, on_step=lambda: None) -> dict[str, torch.Tensor]:
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    parts = pipeline.components
    parts |= {name: copy.deepcopy(parts[name]) for name in parts if name.startswith("tokenizer")}
    pipeline = type(pipeline)(**parts)  # whose tokenizers may learn a word
    prompts = tokenise(pipeline, ["a {}", "the {} here"], "<w>", 2)
    for _ in train_adapter(pipeline, scheduler, adapter, prompts):
        on_step()
    assert adapter.step == adapter.settings.lora_steps and adapter.diverged is None
    return {name: weight.detach().clone() for name, weight in adapter.weights.items()}


@pytest.fixture(scope="module")
def model(small_model):
    return load_pipeline(inspect_model(small_model), CPU, torch.float32)


def test_classes_are_drawn_evenly_and_each_photo_under_its_own(model):
    adapter = adapter_in(model, counts=(1, 3))
    model.unet.unload_lora()
    drawn = collections.Counter()
    for _ in range(12):
        number, draw = adapter.photos.draw(5, 1000)
        own = adapter.classes[number].photos.mean
        distances = (own - draw.latents).flatten(2).norm(dim=2)
        drawn[number, int(distances.min(dim=1).values.argmin())] += 1
        assert distances.min() < 0.2 * distances[distances > distances.min()].min()
    assert drawn == {(0, 0): 6, (1, 0): 2, (1, 1): 2, (1, 2): 2}


@pytest.mark.parametrize(
    "build, dtype",
    [
        (build_pipeline, torch.bfloat16),
        (build_pipeline, torch.float16),
        (build_xl_pipeline, torch.float32),
    ],
)
def test_gradients_reach_the_lora_alone(build, dtype):
    pipeline = build().to(dtype)
    for part in (pipeline.unet, pipeline.vae, *(each for _, each in text_encoders(pipeline))):
        part.requires_grad_(False).eval()
    before = without_lora(pipeline)
    adapter = adapter_in(pipeline, names=1, lora_steps=2, train_batch_size=1)
    rows = [[each.clone() for each in shown.rows] for shown in adapter.classes]
    start = {name: weight.detach().clone() for name, weight in adapter.weights.items()}
    assert all(not weight.any() for name, weight in start.items() if "lora_B" in name)
    trained = train(pipeline, adapter)
    attended = [name for name, _ in pipeline.unet.named_modules() if name.endswith((
        "to_q.base_layer", "to_k.base_layer", "to_v.base_layer", "to_out.0.base_layer"
    ))]  # fmt: skip
    assert len(trained) == 2 * len(attended) > 0
    for name, weight in trained.items():
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, start[name]), name
    asking = [name for name, each in pipeline.unet.named_parameters() if each.requires_grad]
    assert len(asking) == len(trained) and all("lora_" in name for name in asking)
    after = without_lora(pipeline)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for shown, were in zip(adapter.classes, rows):
        assert all(map(torch.equal, shown.rows, were))


@SLOW
def test_training_lowers_the_loss_and_the_names_are_shown_too(model):
    def losses(rate, **options):
        found = []
        made = {"lora_steps": 20} | options
        adapter = adapter_in(model, **made, lora_learning_rate=rate)
        train(model, adapter, lambda: found.append(adapter.loss))
        model.unet.unload_lora()
        return found

    alone, still = losses(0.03), losses(1e-9)
    assert np.mean(alone[-8:]) < np.mean(still[-8:]) - 0.02
    beside = losses(0.03, names=1, lora_steps=2)
    assert beside[0] == alone[0] and beside[1] != alone[1]


@pytest.mark.parametrize(
    "stop, names, accumulation", [pytest.param(1, 0, 2, marks=SLOW), (2, 2, 1)]
)
def test_state_goes_on_bit_for_bit(model, stop, names, accumulation):
    options = {"names": names, "gradient_accumulation_steps": accumulation}
    whole = train(model, adapter_in(model, **options, lora_steps=3))
    model.unet.unload_lora()
    first = adapter_in(model, **options, lora_steps=stop)
    train(model, first)
    state = copy.deepcopy(first.state_dict())
    model.unet.unload_lora()
    second = adapter_in(model, **options, lora_steps=3)
    second.load_state_dict(state)
    again = train(model, second)
    model.unet.unload_lora()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_loss_that_is_not_finite_is_named(tune, monkeypatch):
    status, err = tune(*LORA[:2], "--lora_learning_rate=1e20")
    assert status == 1
    assert "seed=0_ex=1: the LoRA's " in err and "try a lower --lora_learning_rate" in err
    assert "not trained: seed=0_ex=1" in err and not lora_of().exists()


# --- fine_tune.py ----------------------------------------------------------------------------


def test_the_file_is_what_diffusers_writes(tune, model, tmp_path, small_model):
    assert tune(*LORA)[0] == 0
    words = list(Path("output/e/fine-tuned").glob("*/*/learned_embeds.safetensors"))
    assert len(words) == 3
    found = load_file(lora_of())
    model.load_lora_weights(str(lora_of().parent))
    (config,) = model.unet.peft_config.values()
    assert (config.r, config.lora_alpha) == (2, 2)
    from peft.utils import get_peft_model_state_dict

    layers = get_peft_model_state_dict(model.unet, adapter_name=next(iter(model.unet.peft_config)))
    StableDiffusionPipeline.save_lora_weights(tmp_path / "stock", unet_lora_layers=layers)
    model.unet.unload_lora()
    stock = load_file(tmp_path / "stock" / FILE)
    assert found.keys() == stock.keys()
    assert all(torch.equal(found[name], stock[name]) for name in stock)
    with safe_open(lora_of(), "pt") as file:
        header = file.metadata()
    assert (header["model"], header["seed"], header["examples_per_class"]) == (
        small_model,
        "0",
        "1",
    )
    made = json.loads(header["settings"])
    assert (made["lora_rank"], made["lora_steps"], made["lora_learning_rate"]) == (2, 4, 0.1)
    assert json.loads(header["classes"]) == ["cat", "stop sign", "toy train"]


def test_words_do_not_know_of_a_lora(tune):
    assert tune(*LORA)[0] == 0
    assert tune(name="plain")[0] == 0
    for path in Path("output/plain/fine-tuned").glob("*/*/*.safetensors"):
        other = Path("output/e", path.relative_to("output/plain"))
        assert path.read_bytes() == other.read_bytes()
    folders = [Path(f"output/{name}/fine-tuned/seed=0_ex=1") for name in ("e", "plain")]
    assert read_config(folders[0])["id"] == read_config(folders[1])["id"]
    assert "lora_steps" not in read_config(folders[1])["arguments"]
    before = lora_of().stat().st_mtime_ns
    assert tune() == (0, "")  # without the flag it stays
    assert lora_of().stat().st_mtime_ns == before


@SLOW
def test_other_settings_are_refused_by_name(tune, monkeypatch):
    assert tune(*LORA)[0] == 0
    before = lora_of().read_bytes()
    monkeypatch.setattr(stage, "load_pipeline", fail)
    assert tune(*LORA)[0] == 0
    status, err = tune("--lora_rank=3", *LORA[1:])
    assert (status, err.count("\n")) == (2, 1)
    assert "made with other settings: --lora_rank: there 2, now 3; delete this file" in err
    monkeypatch.undo()
    assert tune("--lora_rank=3", *LORA[1:], "--overwrite")[0] == 0
    assert next(iter(load_file(lora_of()).values())).shape[0] == 3
    assert lora_of().read_bytes() != before
    assert tune(*LORA, "--overwrite")[0] == 0 and lora_of().read_bytes() == before


@pytest.mark.parametrize("moment", [2, *(pytest.param(n, marks=SLOW) for n in (0, 1, 3, 4))])
def test_interrupted_run_goes_on_where_it_was(tune, monkeypatch, moment):
    """Whichever file was being written: the rerun ends with the same bytes and leaves no other."""
    assert tune()[0] == 0
    flags = [*LORA, "--checkpointing_steps=1", "--checkpoints_total_limit=1"]
    writes, replace = [], os.replace

    def interrupting(source, path):
        if "fine-tuned" in Path(path).parts:
            writes.append(path)
            if len(writes) == moment + 1:
                raise KeyboardInterrupt
        replace(source, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupting)
        assert tune(*flags)[0] == 130
    assert lora_pieces() == (0, 1)
    status, err = tune(*flags)
    assert (status, lora_pieces()) == (0, (1, 1))
    assert (f"its LoRA goes on from step {moment} of 4" in err) == (moment > 0)
    assert lora_of().read_bytes() == whole_run(tune)
    assert not [p for p in Path("output/e").rglob("*") if p.suffix in (".pt", ".tmp")]


def lora_pieces() -> tuple:
    """How many LoRAs the status counts as done and as wanted."""
    (line,) = [each for each in status_of(Path("output/e")).sums if each.method == LORA_METHOD]
    return line.done, line.wanted


whole: list[bytes] = []


def whole_run(tune) -> bytes:
    if not whole:
        assert tune(*LORA, name="whole")[0] == 0
        whole.append(lora_of("whole").read_bytes())
    return whole[0]


@SLOW
def test_damaged_and_other_checkpoints(tune, monkeypatch):
    flags = [*LORA, "--checkpointing_steps=1", "--checkpoints_total_limit=3"]

    def stopping(*args):
        for number, _ in enumerate(train_adapter(*args)):
            yield
            if number == 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(domain_session, "train_adapter", stopping)
        assert tune(*flags)[0] == 130
    last = lora_of().with_name("checkpoint-3.pt")
    status, err = tune("--lora_rank=2", "--lora_steps=5", "--lora_learning_rate=0.1")
    assert status == 2 and "--lora_steps: there 4, now 5; delete this file to start this" in err
    last.write_bytes(last.read_bytes()[:-1])
    status, err = tune(*flags)
    assert (
        status == 0
        and f"cannot read checkpoint {last}: it is damaged; this checkpoint is not used" in err
    )
    assert "goes on from step 2 of 4" in err
    assert lora_of().read_bytes() == whole_run(tune)


def test_shards_take_trials_and_leave_out_what_others_owe(tune):
    flags = [*LORA, "--num_trials=2", "--classes_per_step=1"]
    assert tune(*flags, name="alone")[0] == 0
    said, shares = (
        [],
        [["--shard_index=0", "--num_shards=2"], ["--shard_index=1", "--num_shards=2"]],
    )
    for share in shares:
        status, err = tune(*flags, *share)
        assert status == 0
        said.append(err)
    assert said[0].count("no LoRA yet, because words are still to be learned (") == 1
    assert "owe" not in said[1] and "no LoRA yet" not in said[1]
    assert lora_of(seed=0).exists() + lora_of(seed=1).exists() == 1
    sums = {(line.stage, line.method): line.done for line in status_of(Path("output/e")).sums}
    assert sums == {("fine_tune", ""): 6, ("fine_tune", "LoRA"): 1}
    assert tune(*flags, *shares[0])[0] == 0
    for seed in (0, 1):
        assert lora_of(seed=seed).read_bytes() == lora_of("alone", seed).read_bytes()
    assert lora_of(seed=0).read_bytes() != lora_of(seed=1).read_bytes()


def test_images_of_names_are_made_once_and_again_where_missing(tune, monkeypatch):
    flags = [*LORA, "--prior_preservation=1"]
    assert tune(*flags)[0] == 0
    (folder,) = Path("output/e/fine-tuned/prior").iterdir()
    images = {path: path.read_bytes() for path in folder.glob("*/*.png")}
    assert sorted(path.parent.name for path in images) == ["cat", "stop_sign", "toy_train"]
    assert len(set(images.values())) == 3
    assert lora_of().read_bytes() != whole_run(tune)
    before = lora_of().read_bytes()
    (folder / "cat/000000.png").unlink()
    lora_of().unlink()
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.png")}
    assert tune(*flags)[0] == 0
    assert {path: path.read_bytes() for path in folder.glob("*/*.png")} == images
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert lora_of().read_bytes() == before


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--lora_rank=0"], "--lora_rank: expected a whole number from 1, got '0'"),
        (["--lora_steps=5"], "--lora_steps means nothing without --lora_rank"),
        (["--prior_preservation=5"], "--prior_preservation means nothing without --lora_rank"),
        ([*LORA, "--prior_preservation=1"], "output/e/fine-tuned/prior is a file"),
    ],
)
def test_wrong_input_is_one_line_before_the_model_is_loaded(tune, monkeypatch, flags, message):
    Path("output/e/fine-tuned").mkdir(parents=True)
    Path("output/e/fine-tuned/prior").touch()
    monkeypatch.setattr(stage, "load_pipeline", fail)
    status, err = tune(*flags)
    assert status == 2 and message in err and err.count("\n") == 1, err


def test_a_lora_of_somebody_else_is_not_overwritten(tune):
    assert tune()[0] == 0
    save_file({"unet.a.lora_A.weight": torch.zeros(1, 1)}, lora_of())
    status, err = tune(*LORA)
    assert status == 2 and "is a LoRA that fine_tune.py has not made: move it away" in err


# --- edits -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """An experiment with LoRAs, once it has been made."""
    return tmp_path_factory.mktemp("kept") / "output"


@pytest.fixture
def trained(kept, tune, merge):
    """Two trials with words and LoRAs."""
    if not kept.exists():
        assert tune(*LORA, "--num_trials=2")[0] == 0
        status, out, _ = merge("--num_trials=2")
        assert status == 0 and f"{merged_of()}: the LoRA of seed=0_ex=1" in out
        assert merged_of().read_bytes() == lora_of().read_bytes()
        shutil.copytree("output", kept)
    shutil.copytree(kept, "output", dirs_exist_ok=True)


def folders_of(name: str) -> dict[Trial, Path]:
    return {Trial(seed, 1): Path(f"output/e/{name}/seed={seed}_ex=1") for seed in (0, 1)}


def settings_of(name: str, seed=0) -> dict:
    return read_config(Path(f"output/e/{name}/seed={seed}_ex=1"))["settings"]


def test_a_stock_pipeline_makes_the_same_image(trained, make, small_model):
    assert make()[0] == 0
    stock = StableDiffusionPipeline.from_pretrained(small_model, safety_checker=None)
    stock.load_textual_inversion("output/e/fine-tuned/seed=0_ex=1/stop_sign")
    stock.load_lora_weights(lora_of().parent)
    edit = RealGuidance(stock, prompt="a photo of a <stop_sign>", num_inference_steps=4)
    dataset = build_dataset("folder", "train", data_dir="photos", examples_per_class=1, seed=0)
    image, _ = edit(
        dataset.get_image_by_idx(1), 1, dataset.get_metadata_by_idx(1),
        job_generator(0, dataset.sources()[1], 1),
    )  # fmt: skip
    there = images_of()["000001-001.png"]
    assert np.abs(np.asarray(image).astype(int) - there).max() == 0
    assert make("--lora=none", name="none")[0] == 0
    assert np.abs(images_of("none")["000001-001.png"] - there).max() > 8


def test_each_trial_works_with_its_own_and_leaves_nothing_behind(trained, make, capsys):
    assert make("--num_trials=2")[0] == 0
    assert make("--seed=1", name="alone")[0] == 0
    after, alone = bytes_in("output/e/aug/seed=1_ex=1"), bytes_in("output/e/alone/seed=1_ex=1")
    assert after == alone
    assert settings_of("aug", 1) == settings_of("alone", 1)
    found = [settings_of("aug", seed)["lora"] for seed in (0, 1)]
    assert found[0] != found[1] and all(each.startswith("sha256:") for each in found)
    assert differing_settings(folders_of("aug")) == {}
    record = read_records(Path("output/e/aug/seed=1_ex=1"))[0]
    assert (record["lora"], record["lora_scale"]) == (found[1], 1.0)
    # A trial without one, after one with one, is as it is without any.
    shutil.rmtree(merged_of(1).parent)
    assert make("--num_trials=2", name="one")[0] == 0
    assert differing_settings(folders_of("one")) == {
        "lora": {"seed=0_ex=1": "own", "seed=1_ex=1": None},
        "lora_scale": {"seed=0_ex=1": 1.0, "seed=1_ex=1": None},
    }
    assert make("--seed=1", "--lora=none", name="none")[0] == 0
    assert bytes_in("output/e/one/seed=1_ex=1") == bytes_in("output/e/none/seed=1_ex=1") != alone
    assert bytes_in("output/e/one/seed=0_ex=1") == bytes_in("output/e/aug/seed=0_ex=1")


@SLOW
def test_loras_of_trials_have_the_same_settings(trained, tune, merge, make):
    assert tune("--lora_rank=3", *LORA[1:], "--seed=1", "--overwrite")[0] == 0
    assert merge("--num_trials=2")[0] == 0 and make("--num_trials=2")[0] == 0
    assert differing_settings(folders_of("aug")) == {
        "LoRA: lora_rank": {"seed=0_ex=1": 2, "seed=1_ex=1": 3}
    }


def test_where_there_is_none_nothing_changes(tune, merge, make, called):
    assert tune()[0] == 0 and merge()[0] == 0
    assert make(name="before")[0] == 0
    assert tune(*LORA)[0] == 0 and merge()[0] == 0
    assert make("--lora=none", name="none")[0] == 0
    assert bytes_in("output/e/before/seed=0_ex=1") == bytes_in("output/e/none/seed=0_ex=1")
    assert settings_of("before") == settings_of("none") and "lora" not in settings_of("none")
    records = [read_records(Path(f"output/e/{n}/seed=0_ex=1")) for n in ("before", "none")]
    assert [[each.keys() for each in r] for r in records] == [[each.keys() for each in r] for r in
                                                             records[::-1]]  # fmt: skip
    image = "output/e/before/seed=0_ex=1/000000-000.png"  # made before there was one
    status, out, err = called(generate_augmentations.main, f"--reproduce={image}", "--device=cpu")
    assert status == 0 and "equal" in out, err
    status, err = make(name="before")
    assert status == 2 and "--lora: there none, now sha256:" in err


@SLOW
def test_what_uses_it(trained, make, called):
    """By default what uses learned words; other edits where it is asked for."""
    assert make("--aug=real-guidance", name="plain")[0] == 0
    assert "lora" not in settings_of("plain")
    assert make("--aug=real-guidance", "--lora=own", name="own")[0] == 0
    assert settings_of("own")["lora"].startswith("sha256:")
    assert bytes_in("output/e/plain/seed=0_ex=1") != bytes_in("output/e/own/seed=0_ex=1")
    assert make("--lora=own", "--lora_scale=0.5", name="half")[0] == 0
    assert settings_of("half")["lora_scale"] == 0.5
    assert make(name="whole")[0] == 0
    assert make(f"--lora={merged_of()}", name="path")[0] == 0  # fused: the same but for rounding
    assert settings_of("path")["lora"] == settings_of("whole")["lora"]
    whole, path = images_of("whole"), images_of("path")
    assert max(np.abs(whole[name] - path[name]).max() for name in whole) <= 2
    moved = Path("elsewhere")
    shutil.move(merged_of().parent, moved)
    image = "output/e/whole/seed=0_ex=1/000000-000.png"
    status, out, err = called(
        generate_augmentations.main, f"--reproduce={image}", "--device=cpu", f"--lora={moved}"
    )
    assert status == 0 and "equal" in out, err
    status, _, err = called(generate_augmentations.main, f"--reproduce={image}", "--device=cpu")
    assert status == 2 and "--lora own: there is no " in err


def test_a_model_that_is_given_stays_as_it_is(trained, make, model, small_model):
    run = Run("e", dataset="folder", data_dir="photos")
    options = {"num_synthetic": 2, "num_inference_steps": 4, "device": "cpu"}
    before = {name: weight.clone() for name, weight in model.unet.state_dict().items()}
    semantic_aug.generate(run, aug_name="given", model=small_model, pipeline=model, **options)
    after = model.unet.state_dict()
    assert before.keys() == after.keys() and not hasattr(model.unet, "peft_config")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert make()[0] == 0
    assert bytes_in("output/e/given/seed=0_ex=1") == bytes_in("output/e/aug/seed=0_ex=1")
    model.load_lora_weights(lora_of(), adapter_name="mine")
    with pytest.raises(UserError, match=r"it already holds a LoRA \(mine\)"):
        switch_lora(model, merged_of())
    model.unet.unload_lora()


def test_a_lora_that_does_not_fit_is_refused(trained, make, monkeypatch, velocity_model, tune):
    assert tune(*LORA, name="other", model=velocity_model)[0] == 0
    shutil.copy(lora_of("other"), merged_of())
    monkeypatch.setattr(editing, "load_pipeline", fail)
    status, err = make()
    assert status == 2 and "it was made for another architecture than " in err
    assert err.splitlines()[-1].endswith("--lora none leaves it out")
    merged_of().unlink()
    status, err = make("--lora=own")
    assert status == 2 and f"--lora own: there is no {merged_of()}; fine_tune.py" in err
    status, err = make("--lora=own", "--unet_path={name}.pt")
    assert status == 2 and "--lora needs one UNet for all classes" in err


@SLOW
def test_other_words_than_it_was_trained_beside(trained, make, tune, merge):
    assert "beside other words" not in make()[1]
    assert tune("--max_train_steps=2", "--overwrite")[0] == 0
    assert merge()[0] == 0
    status, err = make(name="other")
    assert status == 0 and f"{merged_of()} was trained beside other words than" in err


@SLOW
def test_xl(xl_model, tune, merge, make):
    assert tune(*LORA, "--prior_preservation=1", model=xl_model)[0] == 0
    assert merge()[0] == 0
    for name, flags in {"own": [], "none": ["--lora=none"]}.items():
        assert make(f"--model_path={xl_model}", *flags, name=name)[0] == 0
    own, none = images_of("own"), images_of("none")
    assert max(np.abs(own[name] - none[name]).max() for name in own) > 8
