"""The embedded sample: what is in the repository is complete, small, disjoint and loads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

SAMPLE = Path(__file__).resolve().parents[1] / "sample"
MVIP, MODEL, BACKBONE = SAMPLE / "mvip", SAMPLE / "model", SAMPLE / "backbone"
CONTROLNET = SAMPLE / "controlnet"
PSNR_FLOOR = 22.0  # dB, mean over photos of novel classes
COUNTS = {"train": 16, "valid": 20, "test": 30}

needs_mvip = pytest.mark.skipif(not MVIP.exists(), reason="sample/mvip is absent")
needs_model = pytest.mark.skipif(
    not (MODEL / "unet" / "diffusion_pytorch_model.safetensors").exists(),
    reason="sample/model has no weights: run sample/build/all.sh",
)
needs_backbone = pytest.mark.skipif(
    not (BACKBONE / "model.safetensors").exists(),
    reason="sample/backbone has no weights: run sample/build/all.sh",
)
needs_controlnet = pytest.mark.skipif(
    not (CONTROLNET / "diffusion_pytorch_model.safetensors").exists(),
    reason="sample/controlnet has no weights: run sample/build/all.sh",
)


def class_lists():
    return json.loads((SAMPLE / "classes.json").read_text())


def folder_size(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def photos(split):
    """Every (class, path) of a split, in a fixed order."""
    return [
        (c.name, p)
        for c in sorted(MVIP.iterdir())
        if c.is_dir()
        for p in sorted((c / f"{split}_data").rglob("*_rgb.png"))
    ]


def small(path):
    """A photo at the sample's working size, float tensor [1, 3, 64, 64] in [-1, 1]."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@needs_mvip
def test_the_mvip_reader_takes_it_as_it_is():
    from semantic_aug.datasets import build_dataset

    train = build_dataset("mvip", "train", data_dir=MVIP, examples_per_class=4)
    assert len(train) == 4 * 12 and train.num_classes == 12
    assert train.get_image_by_idx(0).size == (128, 128)
    mask = train.get_mask_by_idx(0)
    assert mask.shape == (128, 128) and set(np.unique(mask)) == {0, 255}
    assert len(build_dataset("mvip", "test", data_dir=MVIP)) == 30 * 12


# --- class lists -----------------------------------------------------------------------------


@needs_mvip
def test_base_and_novel_share_no_class_name_or_geometry():
    lists = class_lists()
    base, novel = lists["base"], lists["novel"]
    assert len(base) >= 12 and len(novel) == 12
    assert not set(base) & set(novel)
    captions = {v["caption"] for v in base.values()}
    assert not captions & {name.replace("_", " ") for name in novel}
    base_geometries = {g for v in base.values() for g in v["geometries"]}
    novel_geometries = {g for v in novel.values() for s in v["geometries"].values() for g in s}
    assert len(novel_geometries) >= 6 * len(novel)
    assert not base_geometries & novel_geometries


@needs_mvip
def test_geometries_do_not_cross_splits():
    for name, entry in class_lists()["novel"].items():
        splits = entry["geometries"]
        flat = [g for geometries in splits.values() for g in geometries]
        assert set(splits) == {"train", "val", "test"}
        assert len(flat) == len(set(flat)), name
        sets = {s: {p.name for p in (MVIP / name / f"{s}_data").iterdir()} for s in COUNTS}
        assert not sets["train"] & sets["test"] and not sets["valid"] & sets["test"], name
        assert not sets["train"] & sets["valid"], name
        assert len(sets["test"]) == len(splits["test"]), name


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(MODEL, marks=needs_model),
        pytest.param(BACKBONE, marks=needs_backbone),
        pytest.param(CONTROLNET, marks=needs_controlnet),
    ],
)
def test_pretraining_recorded_base_classes_only(folder):
    trained = json.loads((folder / "classes.json").read_text())
    assert set(trained) == {"base"}
    assert trained["base"] == class_lists()["base"]


@needs_backbone
def test_backbone_labels_are_the_base_classes():
    config = json.loads((BACKBONE / "config.json").read_text())
    assert set(config["label2id"]) == set(class_lists()["base"])


# --- sample/mvip -----------------------------------------------------------------------------


@needs_mvip
def test_mvip_layout_and_counts():
    classes = sorted(p.name for p in MVIP.iterdir() if p.is_dir())
    assert classes == sorted(class_lists()["novel"])
    for name in classes:
        meta = json.loads((MVIP / name / "meta.json").read_text())
        assert "CarComponent" in meta["super_class"]
        assert isinstance(meta["description"], str) and meta["description"]
        for split, count in COUNTS.items():
            root = MVIP / name / f"{split}_data"
            found = sorted(root.rglob("*_rgb.png"))
            assert len(found) == count, (name, split)
            depth = 4 if split == "train" else 3  # SET/ORIENTATION/CAM/NAME or SET/CAM/NAME
            assert {len(p.relative_to(root).parts) for p in found} == {depth}


@needs_mvip
@pytest.mark.parametrize("split", COUNTS)
def test_every_photo_has_a_sensible_mask(split):
    for name, path in photos(split)[::3]:
        with Image.open(path) as image:
            assert image.size == (128, 128) and image.mode == "RGB", path
        with Image.open(path.with_name(path.stem + "_mask_gen.png")) as image:
            mask = np.asarray(image.convert("L"))
        assert mask.shape == (128, 128)
        assert set(np.unique(mask)) == {0, 255}, path
        assert 0.01 < (mask > 0).mean() < 0.9, (name, path)


@needs_mvip
def test_training_conditions_are_narrower_than_test_conditions():
    """Colours of the table (the pixels outside the mask) spread far wider in the test split."""

    def spread(split):
        means = []
        for _, path in photos(split)[::4]:
            with Image.open(path) as image:
                pixels = np.asarray(image).reshape(-1, 3)
            with Image.open(path.with_name(path.stem + "_mask_gen.png")) as image:
                table = np.asarray(image.convert("L")).reshape(-1) == 0
            means.append(pixels[table].mean(0))
        return np.std(means, axis=0).mean()

    assert spread("test") > 1.5 * spread("train")


# --- sizes -----------------------------------------------------------------------------------


@needs_mvip
def test_sizes_stay_small():
    limits = {MVIP: 12e6, MODEL: 30e6, CONTROLNET: 10e6, BACKBONE: 10e6}
    for folder, limit in limits.items():
        if folder.exists():
            assert folder_size(folder) <= limit, folder
    build = [p for p in (SAMPLE / "build").rglob("*") if p.is_file() and "cache" not in p.parts]
    assert all(p.stat().st_size < 1e6 for p in build)


# --- sample/model ----------------------------------------------------------------------------


@needs_model
def test_weights_are_float16_on_disk():
    from safetensors import safe_open

    for path in MODEL.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as weights:
            kinds = {weights.get_slice(k).get_dtype() for k in weights.keys()}  # noqa: SIM118
        assert "F32" not in kinds, path


@needs_model
def test_model_has_the_promised_shape(pipeline):
    assert pipeline.unet.config.sample_size == 16 and pipeline.vae_scale_factor == 4
    assert pipeline.vae.config.latent_channels == pipeline.unet.config.in_channels == 4
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.safety_checker is None
    size = pipeline.text_encoder.config.hidden_size
    assert pipeline.unet.config.cross_attention_dim == size
    assert pipeline.text_encoder.get_input_embeddings().weight.shape[0] == len(pipeline.tokenizer)


@needs_model
def test_tokenizer_knows_its_words_and_takes_a_placeholder(pipeline):
    tokenizer = pipeline.tokenizer
    for word in ("nut", "gear", "screw", "bearing", "flange", "washer", "shaft", "rusty", "photo"):
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1, word
    upper = tokenizer("A Photo of a RUSTY nut").input_ids
    assert upper == tokenizer("a photo of a rusty nut").input_ids
    assert len(tokenizer("naïve café 42", add_special_tokens=False).input_ids) > 3
    assert tokenizer.model_max_length == 77
    from transformers import CLIPTokenizer

    fresh = CLIPTokenizer.from_pretrained(MODEL, subfolder="tokenizer")
    assert fresh.add_tokens("<wing_nut>") == 1
    ids = fresh("a photo of a <wing_nut>", add_special_tokens=False).input_ids
    assert ids[-1] == len(tokenizer)


@needs_model
@needs_mvip
def test_latents_have_unit_scale_and_decode_to_the_photo(pipeline):
    chosen = torch.cat([small(p) for _, p in photos("test")[::30]])
    with torch.no_grad():
        latents = pipeline.vae.encode(chosen).latent_dist.mean
        decoded = pipeline.vae.decode(latents).sample.clamp(-1, 1)
    assert latents.shape[1:] == (4, 16, 16)
    assert 0.7 < (latents * pipeline.vae.config.scaling_factor).std() < 1.4
    psnr = 10 * torch.log10(4 / (decoded - chosen).square().mean((1, 2, 3)))
    assert psnr.mean() > PSNR_FLOOR


@needs_model
@needs_mvip
def test_strength_moves_the_picture_further(pipeline):
    images = [small(p) for _, p in photos("train")[::96]]
    moved = []
    for strength in (0.25, 0.75):
        rngs = [torch.Generator().manual_seed(i) for i in range(len(images))]
        out = pipeline(
            ["a photo of a nut"] * len(images),
            image=torch.cat(images) * 0.5 + 0.5,
            strength=strength,
            guidance_scale=3.0,
            num_inference_steps=12,
            generator=rngs,
            output_type="np",
        ).images
        assert out.shape == (len(images), 64, 64, 3) and np.isfinite(out).all()
        target = torch.cat(images).permute(0, 2, 3, 1).numpy() * 0.5 + 0.5
        moved.append(float(np.abs(out - target).mean()))
    assert moved[0] < moved[1]
    assert moved[0] < 0.12


@needs_model
def test_the_prompt_says_where_the_part_lies(pipeline):
    """From one noise, `on a green mat` is greener than `on white paper`, which is brighter."""
    gray = torch.full((4, 3, 64, 64), 0.5)
    means = {}
    for place in ("on a green mat", "on white paper"):
        rngs = [torch.Generator().manual_seed(i) for i in range(4)]
        out = pipeline(
            [f"a photo of a steel washer {place}"] * 4,
            image=gray,
            strength=1.0,
            guidance_scale=4.0,
            num_inference_steps=10,
            generator=rngs,
            output_type="np",
        ).images
        means[place] = out.mean((0, 1, 2))
    green, white = means["on a green mat"], means["on white paper"]
    assert green[1] - green[0] > white[1] - white[0] + 0.05
    assert white.mean() > green.mean() + 0.1


@needs_model
@needs_mvip
def test_stock_inpainting_keeps_what_the_mask_keeps():
    from diffusers import StableDiffusionInpaintPipeline

    pipe = StableDiffusionInpaintPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    _, path = photos("train")[0]
    with Image.open(path) as image:
        photo = image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
    mask = Image.fromarray(np.repeat([[255] * 32 + [0] * 32], 64, axis=0).astype(np.uint8))
    out = pipe(
        "a photo of a gear",
        image=photo,
        mask_image=mask,
        height=64,
        width=64,
        strength=0.9,
        num_inference_steps=6,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    change = np.abs(np.asarray(out, float) - np.asarray(photo, float)).mean(2)
    assert out.size == (64, 64)
    assert change[:, 40:].mean() < change[:, :24].mean()


# --- sample/controlnet -----------------------------------------------------------------------


@needs_model
@needs_controlnet
@needs_mvip
def test_edges_survive_full_strength_and_prompts_are_obeyed(pipeline):
    from diffusers import ControlNetModel, StableDiffusionControlNetImg2ImgPipeline

    from semantic_aug.adapters import canny_edges

    controlnet = ControlNetModel.from_pretrained(CONTROLNET, torch_dtype=torch.float32)
    parts = {**pipeline.components, "controlnet": controlnet}
    pipe = StableDiffusionControlNetImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    sources = []
    for _, path in photos("train")[::48]:
        with Image.open(path) as image:
            sources.append(image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC))
    lines = canny_edges(sources)

    def edit(place, scale):
        return pipe(
            [f"a photo of a red nut {place}"] * len(sources),
            image=sources,
            control_image=lines,
            controlnet_conditioning_scale=scale,
            strength=1.0,
            guidance_scale=4.0,
            num_inference_steps=8,
            generator=[torch.Generator().manual_seed(i) for i in range(len(sources))],
        ).images

    def found_again(images):
        """Share of the photos' edges that lie within a pixel of an edge of the images."""
        wanted = np.stack([np.asarray(each)[:, :, 0] > 0 for each in lines])
        drawn = np.stack([np.asarray(each)[:, :, 0] > 0 for each in canny_edges(images)])
        near = ndimage.binary_dilation(drawn, np.ones((1, 3, 3)))
        return (wanted & near).sum() / wanted.sum()

    green, without = edit("on a green mat", 1.0), edit("on a green mat", 0.0)
    assert found_again(green) > found_again(without) + 0.15
    means = [np.mean([np.asarray(i, float) / 255 for i in each], (0, 1, 2))
             for each in (green, edit("on white paper", 1.0))]  # fmt: skip
    assert means[1].mean() > means[0].mean() + 0.1


# --- sample/backbone -------------------------------------------------------------------------


@needs_backbone
def test_backbone_loads_and_sees():
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(BACKBONE, dtype=torch.float32).eval()
    parameters = sum(p.numel() for p in model.parameters())
    assert 1e6 <= parameters <= 5e6
    processor = json.loads((BACKBONE / "preprocessor_config.json").read_text())
    assert len(processor["image_mean"]) == len(processor["image_std"]) == 3
    assert processor["size"] == {"shortest_edge": 64}
    with torch.no_grad():
        logits = model(torch.zeros(2, 3, 64, 64)).logits
    assert logits.shape == (2, len(class_lists()["base"]))


@needs_backbone
@needs_mvip
def test_backbone_features_tell_novel_classes_apart():
    """Nearest class mean over training photos is right far more often than chance (1 in 12)."""
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(BACKBONE, dtype=torch.float32).eval()

    def features(split, every):
        rows = photos(split)[::every]
        with torch.no_grad():
            pooled = model.resnet(torch.cat([small(p) for _, p in rows])).pooler_output.flatten(1)
        return [name for name, _ in rows], torch.nn.functional.normalize(pooled, dim=1)

    train_names, train = features("train", 4)
    test_names, test = features("test", 10)
    names = sorted(set(train_names))
    means = torch.stack([train[[n == m for m in train_names]].mean(0) for n in names])
    guess = (test @ means.T).argmax(1)
    right = np.mean([names[g] == n for g, n in zip(guess, test_names, strict=True)])
    assert right > 0.3
