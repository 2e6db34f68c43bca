"""LoRA, other UNets, ControlNets, safety checkers, and models of few steps."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, build_pipeline, build_xl_pipeline, images_of
from diffusers import (
    ControlNetModel,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelImg2ImgPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import generate_augmentations
from semantic_aug import UserError
from semantic_aug.augmentations.real_guidance import RealGuidance
from semantic_aug.datasets import build_dataset
from semantic_aug.diffusion.adapters import canny_edges, load_safety_checker
from semantic_aug.diffusion.inspecting import inspect_model
from semantic_aug.diffusion.loading import load_pipeline
from semantic_aug.diffusion.lora import check_lora
from semantic_aug.experiment.config import read_config
from semantic_aug.images.framing import frame_of, from_square, to_square
from semantic_aug.stages import editing
from semantic_aug.synthesis.jobs import job_generator
from semantic_aug.synthesis.records import read_records
from semantic_aug.synthesis.variants import read_variants

CPU = torch.device("cpu")
NAMES = ("cat", "stop sign", "toy train")


def largest_difference(one: dict, other: dict) -> int:
    assert one.keys() == other.keys() and one
    return max(np.abs(one[name] - other[name]).max() for name in one)


def lack_a_tensor(folder: Path, key: str) -> None:
    """Take a tensor out of the weights in a folder."""
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    del weights[key]
    save_file(weights, file, {"format": "pt"})


def folder_of(name: str) -> Path:
    return Path(f"output/e/{name}/seed=0_ex=1")


@pytest.fixture
def again(capsys):
    """Reproduce an image of `make`; returns exit status, stdout and stderr."""

    def again(name: str, file="000001-001.png", *flags):
        capsys.readouterr()
        try:
            generate_augmentations.main(
                [f"--reproduce={folder_of(name) / file}", "--device=cpu", *flags]
            )
            status = 0
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    return again


@pytest.fixture
def no_pipeline(monkeypatch):
    def loaded(*_):
        raise AssertionError("the diffusion model was loaded")

    monkeypatch.setattr(editing, "load_pipeline", loaded)


# --- UNets -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_unet_in_each_format_is_that_of_a_whole_model(make, again, tmp_path):
    other = build_pipeline()
    other.unet = build_pipeline(seed=7).unet
    other.save_pretrained(tmp_path / "whole")
    other.unet.save_pretrained(tmp_path / "alone")
    torch.save(other.unet.state_dict(), tmp_path / "unet.pt")
    save_file(other.unet.state_dict(), tmp_path / "unet.safetensors")
    make(name="plain")
    make(f"--model_path={tmp_path / 'whole'}", name="whole")
    assert largest_difference(images_of("whole"), images_of("plain")) > 8
    flags = {
        "alone": f"--unet_path={tmp_path / 'alone'}",
        "inside": f"--unet_path={tmp_path / 'whole'}",
        "tensors": f"--unet_path={tmp_path / 'unet.safetensors'}",
        "pickle": f"--erasure_ckpt_path={tmp_path / 'unet.pt'}",
    }
    for name, flag in flags.items():
        status, err = make(flag, name=name)
        assert status == 0, err
        assert largest_difference(images_of(name), images_of("whole")) == 0
    assert again("pickle")[0] == 0
    torch.save(build_pipeline(seed=8).unet.state_dict(), tmp_path / "unet.pt")
    status, _, err = again("pickle")
    assert status == 2 and "was made with other weights of the UNet: then sha256:" in err
    assert "--unet_path: there " in make(flags["alone"], name="plain")[1]


@pytest.mark.slow
def test_every_class_has_its_own_unet(make, again, tmp_path):
    for seed, name in enumerate(NAMES, 10):
        folder = tmp_path / "unets" / name.replace(" ", "_" if seed == 11 else " ")
        build_pipeline(seed=seed).unet.save_pretrained(folder)
        make(f"--unet_path={folder}", "--classes", name, "--batch_size=1", name=f"only-{seed}")
    path = f"{tmp_path}/unets/{{name}}"
    status, err = make(f"--unet_path={path}", "--batch_size=4", name="each")
    assert status == 0, err
    apart = images_of("only-10") | images_of("only-11") | images_of("only-12")
    assert largest_difference(images_of("each"), apart) <= 2
    assert len({record["unet"] for record in read_records(folder_of("each"))}) == 3
    assert again("each")[0] == 0
    # Another UNet for one class: its images alone are out of date.
    build_pipeline(seed=20).unet.save_pretrained(tmp_path / "unets" / "cat")
    status, err = make(f"--unet_path={path}", "--batch_size=4", name="each")
    assert status == 2 and "holds images made with other weights for: cat; choose" in err
    before = images_of("each")
    assert make(f"--unet_path={path}", "--batch_size=2", "--overwrite", name="each")[0] == 0
    changed = {n for n, image in images_of("each").items() if (image != before[n]).any()}
    assert changed == {"000000-000.png", "000000-001.png"}
    shutil.rmtree(tmp_path / "unets" / "toy train")
    status, err = make(f"--unet_path={path}", name="other")
    assert status == 2 and "unets/toy train does not exist, expected a UNet's folder in" in err


def test_unets_that_do_not_fit_are_refused(make, no_pipeline, tmp_path):
    build_pipeline(hidden_size=48).unet.save_pretrained(tmp_path / "wide")
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.safetensors").write_bytes(b"\x99" * 40)
    torch.save({"weights": [1, 2]}, tmp_path / "list.pt")
    torch.save(Malicious(tmp_path / "ran"), tmp_path / "code.pt")
    for name, expected in (
        ("wide", "has another architecture than the UNet of"),
        ("empty", "holds no diffusion_pytorch_model.safetensors"),
        ("torn.safetensors", "cannot read"),
        ("list.pt", "holds no state dict of a UNet"),
        ("code.pt", "cannot read"),
        ("absent", "does not exist, expected a UNet's folder"),
    ):
        status, err = make(f"--unet_path={tmp_path / name}")
        assert (status, err.splitlines()[-1].count(expected)) == (2, 1), err
    assert not (tmp_path / "ran").exists()
    assert not folder_of("aug").exists()


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


# --- LoRA ------------------------------------------------------------------------------------


def save_lora(folder: Path, pipeline, with_text: bool = False) -> Path:
    """A LoRA with random weights that change images visibly."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    layers = {}
    config = LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        pipeline.unet.add_adapter(config)
        layers["unet_lora_layers"] = get_peft_model_state_dict(pipeline.unet)
        if with_text:
            config = LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
            pipeline.text_encoder.add_adapter(config)
            layers["text_encoder_lora_layers"] = get_peft_model_state_dict(pipeline.text_encoder)
    layers = {key: {k: 3 * v for k, v in each.items()} for key, each in layers.items()}
    type(pipeline).save_lora_weights(folder, **layers)
    return folder


def test_lora_edits_as_the_stock_pipeline_does(make, again, tmp_path, small_model):
    folder = save_lora(tmp_path / "lora", build_pipeline(), with_text=True)
    make(name="plain")
    assert make(f"--lora={folder}", name="lora")[0] == 0
    assert make(f"--lora={folder}", "--lora_scale=0", name="none")[0] == 0
    assert largest_difference(images_of("lora"), images_of("plain")) > 8
    assert largest_difference(images_of("none"), images_of("plain")) <= 1
    pipeline = load_pipeline(inspect_model(small_model), CPU, torch.float32)
    pipeline.load_lora_weights(folder)  # not fused
    stock = RealGuidance(pipeline, num_inference_steps=4, strength=0.5)
    dataset = build_dataset("folder", "train", data_dir="photos", examples_per_class=1, seed=0)
    image, _ = stock(
        dataset.get_image_by_idx(1), 1, dataset.get_metadata_by_idx(1),
        job_generator(0, dataset.sources()[1], 1),
    )  # fmt: skip
    there = images_of("lora")["000001-001.png"]
    assert np.abs(np.asarray(image).astype(int) - there).max() <= 2
    file = folder / "pytorch_lora_weights.safetensors"
    assert make(f"--lora={file}", name="file")[0] == 0
    assert largest_difference(images_of("file"), images_of("lora")) == 0
    assert again("lora")[0] == 0
    moved = folder.rename(tmp_path / "moved")
    assert again("lora", "000000-000.png", f"--lora={moved}")[0] == 0
    assert "--lora: there " in make(f"--lora={moved}", name="plain")[1]


def test_lora_of_sdxl(xl_model, make, tmp_path):
    folder = save_lora(tmp_path / "lora", build_xl_pipeline())
    make(f"--model_path={xl_model}", name="plain")
    status, err = make(f"--model_path={xl_model}", f"--lora={folder}", name="lora")
    assert status == 0, err
    assert largest_difference(images_of("lora"), images_of("plain")) > 8


def test_loras_that_do_not_fit_are_refused(make, no_pipeline, tmp_path, xl_model):
    (tmp_path / "empty").mkdir()
    wide = save_lora(tmp_path / "wide", build_pipeline(hidden_size=48))
    xl = save_lora(tmp_path / "xl", build_xl_pipeline())
    fits = save_lora(tmp_path / "fits", build_pipeline())
    (tmp_path / "torn.safetensors").write_bytes(b"\x99" * 40)
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    for flags, expected in (
        ([f"--lora={wide}"], "it was made for another architecture than"),
        ([f"--lora={xl}"], "it was made for another architecture than"),
        ([f"--lora={fits}", f"--model_path={xl_model}"], "made for another architecture"),
        ([f"--lora={tmp_path / 'torn.safetensors'}"], "--lora: cannot use"),
        ([f"--lora={tmp_path / 'other.safetensors'}"], "--lora: cannot use"),
        ([f"--lora={tmp_path / 'absent'}"], "absent does not exist"),
        (["--lora=no/such"], "cannot use no/such: it is no file, no folder, and no hub id"),
        ([f"--lora={tmp_path / 'empty'}"], "this folder holds no pytorch_lora_weights.safetensors"),
        ([f"--lora={fits}", "--unet_path={name}.pt"], "--lora needs one UNet for all classes"),
    ):
        status, err = make(*flags)
        assert (status, err.splitlines()[-1].count(expected)) == (2, 1), err
        assert err.count("\n") <= 2, err
    assert not folder_of("aug").exists()


def test_checking_a_lora_reads_no_weights_of_the_model(tmp_path, small_model):
    folder = save_lora(tmp_path / "lora", build_pipeline())
    bare = tmp_path / "bare"
    shutil.copytree(small_model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    assert check_lora(inspect_model(str(bare)), str(folder)).startswith("sha256:")


# --- ControlNets -----------------------------------------------------------------------------


def save_controlnet(folder: Path, pipeline=None, **options) -> Path:
    """A ControlNet with random weights that change what the UNet says."""
    pipeline = pipeline or build_pipeline()
    halvings = len(pipeline.vae.config.block_out_channels) - 1
    options = {"conditioning_embedding_out_channels": (8,) * (halvings + 1)} | options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        controlnet = ControlNetModel.from_unet(pipeline.unet, **options)
        for name, weights in controlnet.named_parameters():
            if name.startswith("controlnet_"):  # zeros, before training
                torch.nn.init.normal_(weights, std=0.3)
    controlnet.save_pretrained(folder)
    return folder


def test_controlnet_edits_as_the_stock_pipeline_does(make, again, tmp_path, small_model):
    folder = save_controlnet(tmp_path / "controlnet")
    make(name="plain")
    status, err = make(f"--controlnet={folder}", name="edges")
    assert status == 0, err
    assert make(f"--controlnet={folder}", "--controlnet_scale=0", name="none")[0] == 0
    assert largest_difference(images_of("edges"), images_of("plain")) > 8
    assert largest_difference(images_of("none"), images_of("plain")) <= 1
    pipeline = StableDiffusionControlNetImg2ImgPipeline.from_pretrained(
        small_model, controlnet=ControlNetModel.from_pretrained(folder), safety_checker=None
    )
    dataset = build_dataset("folder", "train", data_dir="photos", examples_per_class=1, seed=0)
    photo = dataset.get_image_by_idx(1)
    frame = frame_of(photo.size, 32, "pad")
    square = to_square(photo, frame)
    image = pipeline(
        f"a photo of a {dataset.get_metadata_by_idx(1)['name']}", square,
        control_image=canny_edges([square]), strength=0.5, num_inference_steps=4,
        guidance_scale=7.5, controlnet_conditioning_scale=1.0,
        generator=job_generator(0, dataset.sources()[1], 1),
    ).images[0]  # fmt: skip
    there = images_of("edges")["000001-001.png"]
    image = np.asarray(from_square(image, photo, frame)).astype(int)
    assert np.abs(image - there).max() <= 2
    assert again("edges")[0] == 0
    moved = folder.rename(tmp_path / "moved")
    assert again("edges", "000000-000.png", f"--controlnet={moved}")[0] == 0
    assert "--controlnet: there " in make(f"--controlnet={moved}", name="plain")[1]
    save_controlnet(moved, build_pipeline(seed=5))
    status, _, err = again("edges", "000000-000.png", f"--controlnet={moved}")
    assert status == 2 and "other weights of the ControlNet" in err


@pytest.mark.parametrize("kind", ["xl", "inpainting"])
def test_controlnet_of_other_models(
    kind, xl_model, inpainting_model, make, again, photos, tmp_path
):
    model, pipeline, flags = xl_model, build_xl_pipeline(), []
    if kind == "inpainting":
        model, pipeline = inpainting_model, build_pipeline()
        flags = ["--mask=1", "--dataset_args", f"masks={photos.parent / 'masks'}"]
    folder = save_controlnet(tmp_path / "controlnet", pipeline)
    make(f"--model_path={model}", *flags, name="plain")
    status, err = make(f"--model_path={model}", f"--controlnet={folder}", *flags, name="edges")
    assert status == 0, err
    assert largest_difference(images_of("edges"), images_of("plain")) > 8
    assert again("edges")[0] == 0


def test_controlnets_that_do_not_fit_are_refused(make, no_pipeline, tmp_path, xl_model):
    status, err = make("--controlnet_scale=2")
    assert status == 2 and "--controlnet_scale means nothing without --controlnet" in err
    (tmp_path / "empty").mkdir()
    build_pipeline().unet.save_pretrained(tmp_path / "unet")
    shallow = save_controlnet(tmp_path / "shallow", conditioning_embedding_out_channels=(8,) * 4)
    refused = {
        tmp_path / "absent": "--controlnet: model folder",
        tmp_path / "empty": "it has no config.json",
        tmp_path / "unet": "holds UNet2DConditionModel, expected ControlNetModel",
        tmp_path / "unet/config.json": "it has no config.json",
        ROOT / "sample/backbone": "holds ResNet",
        save_controlnet(tmp_path / "xl", build_xl_pipeline()): "another architecture",
        shallow: "needs images 8 times as large as the latents",
    }
    for folder, reason in refused.items():
        status, err = make(f"--controlnet={folder}")
        assert status == 2 and reason in err.splitlines()[-1], err
    assert not folder_of("aug").exists()


def test_controlnet_with_damaged_weights(make, tmp_path):
    folder = save_controlnet(tmp_path / "controlnet")
    next(folder.glob("*.safetensors")).write_bytes(b"no weights")
    status, err = make(f"--controlnet={folder}")
    assert status == 2 and "--controlnet: cannot load" in err.splitlines()[-1]
    assert not list(Path("output").rglob("*.png"))
    lack_a_tensor(save_controlnet(folder), "controlnet_mid_block.bias")
    status, err = make(f"--controlnet={folder}")
    assert status == 2
    assert "its weights lack 1 tensor, such as controlnet_mid_block.bias" in err.splitlines()[-1]
    assert not list(Path("output").rglob("*.png"))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_model_whose_weights_lack_a_tensor(tmp_path, small_model, part):
    """diffusers leaves it without numbers, transformers fills it at random."""
    shutil.copytree(small_model, tmp_path / "model")
    with safe_open(next((tmp_path / "model" / part).glob("*.safetensors")), "pt") as weights:
        key = max(weights.keys())
    lack_a_tensor(tmp_path / "model" / part, key)
    lack = f"model/{part}: its weights lack 1 tensor, such as .*weight"
    with pytest.raises(UserError, match=lack):
        load_pipeline(inspect_model(str(tmp_path / "model")), CPU, torch.float32)


@pytest.mark.parametrize("way", ["guidance_scale", "controlnet_scale"])
def test_overflows_become_no_black_images(make, tmp_path, way):
    folder = save_controlnet(tmp_path / "controlnet")
    status, err = make(f"--controlnet={folder}", f"--{way}=1e38")
    assert status == 2
    assert "the model gave no numbers (NaN) for an image" in err.splitlines()[-1]
    assert f"a {way} below 1e+38" in err.splitlines()[-1]
    assert not list(Path("output").rglob("*.png"))


def test_edges_are_where_brightness_changes():
    photo = np.zeros((40, 60, 3), np.uint8)
    photo[10:30, 20:50] = 200
    photo[12, 22] = 180  # too weak to be an edge
    edges = np.asarray(canny_edges([Image.fromarray(photo)])[0])
    assert edges.shape == photo.shape and set(np.unique(edges)) == {0, 255}
    rows, columns = np.nonzero(edges[:, :, 0])
    from_border = np.minimum(
        np.minimum(abs(rows - 9.5), abs(rows - 29.5)),
        np.minimum(abs(columns - 19.5), abs(columns - 49.5)),
    )
    assert from_border.max() <= 1 and len(rows) >= 2 * (20 + 30) - 8
    assert not np.asarray(canny_edges([Image.new("RGB", (8, 9), "gray")])[0]).any()


# --- safety checker --------------------------------------------------------------------------


def save_checker(folder: Path, threshold: float, seed: int = 0) -> Path:
    """A small checker: it flags images whose similarity with some concept is above `threshold`."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 16, "patch_size": 8}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
        checker.concept_embeds.data.normal_()
        checker.special_care_embeds_weights.data.fill_(2)
        checker.concept_embeds_weights.data.fill_(threshold)
    checker.save_pretrained(folder)
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPImageProcessor(**size).save_pretrained(folder)
    return folder


def test_flagged_images_are_made_again_and_in_the_end_black(make, again, photos, tmp_path):
    make(name="plain")
    never, always = (save_checker(tmp_path / n, t) for n, t in (("never", 2), ("always", -2)))
    assert make(f"--safety_checker={never}", name="never")[0] == 0
    assert largest_difference(images_of("never"), images_of("plain")) == 0
    for record in read_records(folder_of("never")):
        assert (record["attempts"], record["flagged"]) == ([1], False)
    assert make(f"--safety_checker={always}", "--safety_retries=2", name="always")[0] == 0
    for record in read_records(folder_of("always")):
        assert (record["attempts"], record["flagged"]) == ([3], True)
    assert all((image == 0).all() for image in images_of("always").values())
    dataset = build_dataset("folder", "train", data_dir=photos, examples_per_class=1, seed=0)
    assert len(read_variants(folder_of("never"), dataset)[0]) == 2
    with pytest.raises(ValueError, match="every synthetic image"):
        read_variants(folder_of("always"), dataset)
    assert again("always")[1].endswith(": equal\n")


@pytest.mark.slow
def test_some_flagged_images_pass_when_made_again(make, again, tmp_path):
    """Which are flagged depends on the image alone: shards and batches agree."""
    make(name="plain")
    images = [Image.fromarray(i.astype(np.uint8)) for i in images_of("plain").values()]
    low, high, flags = -1.0, 1.0, []
    while not 1 <= sum(flags) <= 3:
        folder = save_checker(tmp_path / "some", (low + high) / 2)
        flags = load_safety_checker(None, str(folder), CPU)(images)
        low, high = (low, (low + high) / 2) if sum(flags) < 1 else ((low + high) / 2, high)
    flag = f"--safety_checker={folder}"
    assert make(flag, "--batch_size=2", "--safety_retries=20", name="some")[0] == 0
    made = images_of("some")
    for record, image, was in zip(
        read_records(folder_of("some")), images_of("plain").values(), flags
    ):
        assert (record["attempts"] != [1]) == was
        assert not record["flagged"]
        assert (np.abs(made[record["file_name"]] - image).max() > 2) == was
    for index in (1, 0):
        make(flag, "--batch_size=2", "--safety_retries=20", f"--shard_index={index}",
             "--num_shards=2", name="shared")  # fmt: skip
    assert largest_difference(images_of("shared"), made) == 0
    retried = next(r for r in read_records(folder_of("some")) if r["attempts"] != [1])
    assert again("some", retried["file_name"])[0] == 0


def test_the_model_s_own_checker(make, tmp_path, small_model):
    own, checker = tmp_path / "own", save_checker(tmp_path / "checker", -2)
    shutil.copytree(small_model, own)
    pipeline = StableDiffusionPipeline.from_pretrained(small_model)
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    StableDiffusionPipeline(
        **{k: v for k, v in pipeline.components.items()
           if k not in ("safety_checker", "feature_extractor")},
        safety_checker=StableDiffusionSafetyChecker.from_pretrained(checker),
        feature_extractor=CLIPImageProcessor.from_pretrained(checker),
    ).save_pretrained(own)  # fmt: skip
    make(f"--model_path={own}", name="without")
    assert any(image.any() for image in images_of("without").values())
    make(f"--model_path={own}", "--safety_checker", "--safety_retries=0", name="with")
    assert not any(image.any() for image in images_of("with").values())
    assert read_config(folder_of("with"))["settings"]["safety_checker"] == "the model's own"


def test_safety_checker_whose_weights_lack_a_tensor(tmp_path):
    folder = save_checker(tmp_path / "checker", 0)
    lack_a_tensor(folder, "special_care_embeds")
    lack = "checker: its weights lack 1 tensor, such as special_care_em"
    with pytest.raises(UserError, match=lack):
        load_safety_checker(None, str(folder), CPU)


def test_safety_checkers_that_are_none(make, no_pipeline, small_model, tmp_path):
    for flag, expected in (
        ("--safety_checker", "has no safety checker; name one"),
        (f"--safety_checker={small_model}", "it has no config.json"),
        (f"--safety_checker={small_model}/unet", "is no StableDiffusionSafetyChecker"),
    ):
        status, err = make(flag)
        assert (status, err.splitlines()[-1].count(expected)) == (2, 1), err
    assert not folder_of("aug").exists()


# --- models of few steps ---------------------------------------------------------------------


def save_turbo(folder: Path, xl: bool) -> Path:
    """What SD-Turbo and SDXL-Turbo are: the usual parts with a sampler for one to four steps."""
    pipeline = build_xl_pipeline() if xl else build_pipeline()
    kind = EulerAncestralDiscreteScheduler if xl else EulerDiscreteScheduler
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.save_pretrained(folder)
    return folder


def save_lcm(folder: Path) -> Path:
    """A latent consistency model: its UNet is told the guidance scale."""
    parts = build_pipeline().components
    config = {k: v for k, v in parts["unet"].config.items() if not k.startswith("_")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        parts["unet"] = UNet2DConditionModel(**{**config, "time_cond_proj_dim": 16})
    parts["scheduler"] = LCMScheduler.from_config(parts["scheduler"].config)
    LatentConsistencyModelPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Batch sizes of all passes of a UNet."""
    found, forward = [], UNet2DConditionModel.forward

    def spy(self, sample, *rest, **options):
        found.append(len(sample))
        return forward(self, sample, *rest, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", spy)
    return found


@pytest.mark.parametrize("model", ["turbo", "xl-turbo", "lcm"])
@pytest.mark.parametrize("masked", [False, True])
def test_models_of_few_steps(make, again, photos, passes, tmp_path, model, masked):
    folder = tmp_path / model
    save_lcm(folder) if model == "lcm" else save_turbo(folder, xl=model == "xl-turbo")
    flags = [f"--model_path={folder}", "--num_inference_steps=2", "--guidance_scale",
             8 if model == "lcm" else 0, "--batch_size=6"]  # fmt: skip
    if masked:
        flags += ["--mask=1", "--dataset_args", f"masks={photos.parent / 'masks'}"]
    status, err = make(*flags)
    assert status == 0, err
    assert passes == [6]  # one step of two, without a pass for the empty prompt
    assert all(image.std() > 1 for image in images_of().values())
    assert again("aug")[0] == 0
    status, err = make(*flags, "--strength=0.4", name="other")
    assert status == 2 and "0.4 of 2 steps is no step at all; use --num_inference_steps 3" in err


@pytest.mark.parametrize("guidance_scale", [1.0, 8.0])
def test_lcm_at_full_strength_is_that_of_its_own_pipeline(tmp_path, guidance_scale):
    folder = save_lcm(tmp_path / "lcm")
    ours = load_pipeline(inspect_model(str(folder)), CPU, torch.float32)
    options = {"num_inference_steps": 4, "strength": 1.0, "guidance_scale": guidance_scale}
    photo = Image.effect_noise((32, 32), 50).convert("RGB")
    stream = torch.Generator().manual_seed(5)
    image, _ = RealGuidance(ours, **options)(photo, 0, {"name": "cat"}, stream)
    stock = LatentConsistencyModelImg2ImgPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        "a photo of a cat", image=photo, generator=torch.Generator().manual_seed(5), **options
    ).images[0]
    difference = np.asarray(image).astype(int) - np.asarray(expected).astype(int)
    assert np.abs(difference).max() <= 1


def test_steps_that_a_sampler_cannot_do_are_refused(make, no_pipeline, tmp_path):
    folder = save_lcm(tmp_path / "lcm")
    for flags in ([f"--model_path={folder}"], ["--scheduler=lcm"]):
        status, err = make(*flags, "--num_inference_steps=60")
        line = err.splitlines()[-1]
        assert status == 2 and "--num_inference_steps: LCMScheduler cannot do 60" in line, err
    assert inspect_model(str(folder)).few_steps
    assert inspect_model(str(save_turbo(tmp_path / "turbo", xl=False))).few_steps
