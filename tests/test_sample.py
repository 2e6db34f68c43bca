"""The embedded sample: what is in the repository is complete, small, disjoint and loads."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

SAMPLE = Path(__file__).resolve().parents[1] / "sample"
MVIP, MODEL, BACKBONE = SAMPLE / "mvip", SAMPLE / "model", SAMPLE / "backbone"
CONTROLNET, MASKER = SAMPLE / "controlnet", SAMPLE / "masker"
PSNR_FLOOR = 22.0  # dB, mean over photos of novel classes
COUNTS = {"train": 32, "valid": 20, "test": 30}
COMMON, NOVEL = "CarComponent", "NovelComponent"
APART = 0.02  # of the radius of the sphere around a part: see sample/build/individuals.py

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
@pytest.mark.parametrize(("kind", "names"), [(COMMON, "common"), (NOVEL, "novel")])
def test_the_mvip_reader_takes_it_as_it_is(kind, names):
    from semantic_aug.datasets import build_dataset

    options = {"data_dir": MVIP, "super_class": kind}
    train = build_dataset("mvip", "train", examples_per_class=4, **options)
    assert sorted(train.class_names) == sorted(class_lists()[names]) and len(train) == 4 * 12
    assert train.get_image_by_idx(0).size == (64, 64)
    mask = train.get_mask_by_idx(0)
    assert mask.shape == (64, 64) and set(np.unique(mask)) == {0, 255}
    assert len(build_dataset("mvip", "test", **options)) == 30 * 12


# --- class lists -----------------------------------------------------------------------------


def geometries(entries):
    """All geometries of rendered classes, or of photographed classes."""
    lists = []
    for entry in entries.values():
        found = entry["geometries"]
        lists += found.values() if isinstance(found, dict) else [found]
    return [g for names in lists for g in names]


def test_kinds_are_known_or_not_as_their_lists_say():
    lists = class_lists()
    generator, backbone = set(lists["generator"]), set(lists["backbone"])
    common, novel = set(lists["common"]), set(lists["novel"])
    assert len(common) == len(novel) == 12
    assert common < generator and not novel & (generator | backbone)
    assert not common & backbone and len(backbone) >= 16
    assert len(backbone - generator) >= 6
    assert all(len(lists["backbone"][name]["geometries"]) >= 6 for name in backbone - generator)
    captions = {name: entry["caption"] for name, entry in lists["generator"].items()}
    assert all(captions[name] == name.replace("_", " ") for name in common)
    assert not set(captions.values()) & {name.replace("_", " ") for name in novel}


def test_no_photo_shows_a_geometry_that_was_rendered():
    lists = class_lists()
    rendered = {*geometries(lists["generator"]), *geometries(lists["backbone"])}
    photographed = geometries(lists["common"]) + geometries(lists["novel"])
    assert len(photographed) == len(set(photographed)) >= 6 * 24  # so none crosses splits
    assert not rendered & set(photographed)


def test_individuals_of_common_kinds_are_far_from_those_that_were_rendered():
    """Parts are scaled to one size and stretched: names that differ would prove nothing."""
    measured = json.loads((SAMPLE / "individuals.json").read_text())
    assert set(measured) == set(geometries(class_lists()["common"]))
    near = {geometry: row for geometry, row in measured.items() if row["distance"] < APART}
    assert not near


@pytest.mark.slow
def test_the_distances_are_those_of_the_meshes(tmp_path):
    """Measured again from new meshes, where the packages that make meshes are installed."""
    pytest.importorskip("build123d")
    run = [
        sys.executable,
        SAMPLE / "build" / "parts.py",
        "--cache",
        tmp_path,
        "--classes",
        "washer",
    ]
    subprocess.run(run, check=True, capture_output=True)
    run = [sys.executable, SAMPLE / "build" / "individuals.py", "--cache", tmp_path]
    run += ["--classes", "washer", "--out", tmp_path / "found.json"]
    subprocess.run(run, check=True, capture_output=True)
    stored = json.loads((SAMPLE / "individuals.json").read_text())
    for geometry, row in json.loads((tmp_path / "found.json").read_text()).items():
        assert row["distance"] == pytest.approx(stored[geometry]["distance"], abs=0.004)


@needs_mvip
def test_geometries_do_not_cross_splits():
    for name, entry in (class_lists()["common"] | class_lists()["novel"]).items():
        splits = entry["geometries"]
        assert set(splits) == {"train", "val", "test"}
        for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
            sets = {p.name for p in (MVIP / name / f"{folder}_data").iterdir()}
            assert len(sets) == len(splits[split]), (name, split)


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        pytest.param(MODEL, "generator", marks=needs_model),
        pytest.param(BACKBONE, "backbone", marks=needs_backbone),
        pytest.param(CONTROLNET, "generator", marks=needs_controlnet),
        (MASKER, "generator"),
    ],
)
def test_a_model_names_what_it_has_seen(folder, kind):
    trained = json.loads((folder / "classes.json").read_text())
    assert trained == {kind: class_lists()[kind]}


@needs_backbone
def test_backbone_labels_are_the_kinds_of_the_backbone():
    config = json.loads((BACKBONE / "config.json").read_text())
    assert set(config["label2id"]) == set(class_lists()["backbone"])


# --- sample/mvip -----------------------------------------------------------------------------


@needs_mvip
def test_mvip_layout_and_counts():
    lists = class_lists()
    assert sorted(p.name for p in MVIP.iterdir()) == sorted([*lists["common"], *lists["novel"]])
    for name in [*lists["common"], *lists["novel"]]:
        meta = json.loads((MVIP / name / "meta.json").read_text())
        assert meta["super_class"][0] == (COMMON if name in lists["common"] else NOVEL)
        assert isinstance(meta["description"], str) and meta["description"]
        for split, count in COUNTS.items():
            root = MVIP / name / f"{split}_data"
            found = sorted(root.rglob("*_rgb.png"))
            assert len(found) == count, (name, split)
            depth = 4 if split == "train" else 3  # SET/ORIENTATION/CAM/NAME or SET/CAM/NAME
            assert {len(p.relative_to(root).parts) for p in found} == {depth}


@needs_mvip
def test_further_photos_from_the_training_places():
    """A plain folder of the common kinds; no photo of it is in sample/mvip."""
    from semantic_aug.datasets import build_dataset

    data = build_dataset("folder", "train", data_dir=SAMPLE / "same_places")
    assert sorted(data.class_names) == sorted(class_lists()["common"])
    further = list((SAMPLE / "same_places").rglob("*.png"))
    assert len(further) == 8 * 12
    seen = {hashlib.sha256(path.read_bytes()).digest() for _, path in photos("train")}
    for path in further:
        assert hashlib.sha256(path.read_bytes()).digest() not in seen
        with Image.open(path) as image:
            assert image.size == (64, 64) and image.mode == "RGB"


@needs_mvip
@pytest.mark.parametrize("split", COUNTS)
def test_every_photo_has_a_sensible_mask(split):
    for name, path in photos(split)[::9]:
        with Image.open(path) as image:
            assert image.size == (64, 64) and image.mode == "RGB", path
        with Image.open(path.with_name(path.stem + "_mask_gen.png")) as image:
            mask = np.asarray(image.convert("L"))
        assert mask.shape == (64, 64)
        assert set(np.unique(mask)) == {0, 255}, path
        assert 0.01 < (mask > 0).mean() < 0.9, (name, path)


@needs_mvip
def test_training_photos_of_a_class_have_one_finish_and_four_places():
    """Colours of the part and of the table spread far wider within a class in the test split."""

    def spread(split):
        """Mean deviation of mean colours within a class: of the part, of the table."""
        means = {}
        for name, path in photos(split)[::2]:
            with Image.open(path) as image:
                pixels = np.asarray(image).reshape(-1, 3)
            with Image.open(path.with_name(path.stem + "_mask_gen.png")) as image:
                part = np.asarray(image.convert("L")).reshape(-1) > 0
            rows = pixels[part].mean(0), pixels[~part].mean(0)
            means.setdefault(name, []).append(np.stack(rows))
        return np.mean([np.std(rows, axis=0).mean(1) for rows in means.values()], axis=0)

    train, test = spread("train"), spread("test")
    assert test[0] > 1.5 * train[0] and test[1] > 1.15 * train[1]


# --- sizes -----------------------------------------------------------------------------------


@needs_mvip
def test_sizes_stay_small():
    limits = {MVIP: 8e6, MODEL: 22.5e6, CONTROLNET: 8.7e6, BACKBONE: 4.7e6, MASKER: 7e5}
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
    chosen = torch.cat([small(p) for _, p in photos("test")[::60]])
    with torch.no_grad():
        latents = pipeline.vae.encode(chosen).latent_dist.mean
        decoded = pipeline.vae.decode(latents).sample.clamp(-1, 1)
    assert latents.shape[1:] == (4, 16, 16)
    assert 0.7 < (latents * pipeline.vae.config.scaling_factor).std() < 1.4
    psnr = 10 * torch.log10(4 / (decoded - chosen).square().mean((1, 2, 3)))
    assert psnr.mean() > PSNR_FLOOR


@needs_model
@needs_mvip
@pytest.mark.slow
def test_strength_moves_the_picture_further(pipeline):
    images = [small(p) for _, p in photos("train")[::192]]
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
@pytest.mark.slow
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
@pytest.mark.slow
def test_edges_survive_full_strength_and_prompts_are_obeyed(pipeline):
    from diffusers import ControlNetModel, StableDiffusionControlNetImg2ImgPipeline

    from semantic_aug.diffusion.adapters import canny_edges

    controlnet = ControlNetModel.from_pretrained(CONTROLNET, torch_dtype=torch.float32)
    components = {**pipeline.components, "controlnet": controlnet}
    pipe = StableDiffusionControlNetImg2ImgPipeline(**components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    sources, parts_of = [], []
    # The prompt says what the edges show: a bolt that is to be a nut keeps few of its edges.
    for path in [path for kind, path in photos("train") if kind in ("hex_nut", "flange_nut")][::16]:
        with Image.open(path) as image:
            sources.append(image.convert("RGB"))
        with Image.open(path.with_name(path.stem + "_mask_gen.png")) as image:
            parts_of.append(np.asarray(image.convert("L")) > 0)
    lines = canny_edges(sources)
    near_parts = ndimage.binary_dilation(np.stack(parts_of), np.ones((1, 3, 3)))

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
        """Share of the edges of parts in the photos that are within a pixel of an image's edge."""
        wanted = np.stack([np.asarray(each)[:, :, 0] > 0 for each in lines]) & near_parts
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
    assert logits.shape == (2, len(class_lists()["backbone"]))


@needs_backbone
@needs_mvip
@pytest.mark.parametrize("names", ["common", "novel"])
def test_backbone_features_tell_classes_apart(names):
    """Nearest class mean over training photos is right far more often than chance (1 in 12)."""
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(BACKBONE, dtype=torch.float32).eval()
    classes = sorted(class_lists()[names])

    def features(split, every):
        rows = [row for row in photos(split) if row[0] in classes][::every]
        with torch.no_grad():
            pooled = model.resnet(torch.cat([small(p) for _, p in rows])).pooler_output.flatten(1)
        return [name for name, _ in rows], torch.nn.functional.normalize(pooled, dim=1)

    train_names, train = features("train", 4)
    test_names, test = features("valid", 5)
    means = torch.stack([train[[n == m for m in train_names]].mean(0) for n in classes])
    guess = (test @ means.T).argmax(1)
    right = np.mean([classes[g] == n for g, n in zip(guess, test_names, strict=True)])
    assert right > 2 / 12


# --- sample/masker ---------------------------------------------------------------------------


@needs_mvip
def test_the_masker_finds_parts_that_it_has_never_seen_in_new_places():
    """Kinds of the novel half, as the command cleans what the masker says of them."""
    from semantic_aug.masking import make_masker
    from semantic_aug.masking.cleaning import cleaned
    from semantic_aug.settings.masking import Masking

    novel = set(class_lists()["novel"])
    rows = [path for split in ("valid", "test") for name, path in photos(split) if name in novel]
    find = make_masker(Masking(masker=str(MASKER))).load(torch.device("cpu"))
    overlaps = []
    for path in rows[::15]:
        image = Image.open(path).convert("RGB")
        mask, _ = cleaned(find([image], [""])[0].shares, np.asarray(image))
        true = np.asarray(Image.open(path.with_name(f"{path.stem}_mask_gen.png"))) > 0
        overlaps.append((mask & true).sum() / (mask | true).sum())
    assert len(overlaps) == 40
    assert np.mean(overlaps) > 0.9 and np.quantile(overlaps, 0.05) > 0.6
