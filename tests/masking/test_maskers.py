"""The ways to find objects: small models of each kind, and what is said of wrong ones."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from finders import build_clipseg, build_grounding_dino, build_owlv2, build_sam
from hypothesis import given, settings, strategies
from PIL import Image

from semantic_aug import UserError
from semantic_aug.masking import make_masker, named
from semantic_aug.masking.named import place_of_heat
from semantic_aug.settings import build
from semantic_aug.settings.masking import Masking

CPU = torch.device("cpu")
SIZES = [(48, 40), (30, 90), (64, 64)]


def noise(size, seed=0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), np.uint8))


PHOTOS = [noise(size, number) for number, size in enumerate(SIZES)]
WORDS = ["cat", "stop sign", "toy train"]


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory) -> str:
    return build_clipseg(tmp_path_factory.mktemp("clipseg"))


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory) -> str:
    return build_owlv2(tmp_path_factory.mktemp("owlv2"))


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory) -> str:
    return build_grounding_dino(tmp_path_factory.mktemp("grounding_dino"))


@pytest.fixture(scope="module")
def sam(tmp_path_factory) -> str:
    return build_sam(tmp_path_factory.mktemp("sam"))


def masker(**given):
    return make_masker(build(Masking, given))


@pytest.mark.parametrize("finder", ["clipseg", "owlv2", "grounding_dino"])
def test_a_finder_and_sam_paint_every_photo(finder, sam, request):
    found = masker(masker_models=(request.getfixturevalue(finder), sam))
    assert list(found.identity) == [finder.replace("_", "-"), "sam"]
    assert all(each.startswith("sha256:") for each in found.identity.values())
    found.check(WORDS)
    paint = found.load(CPU)
    together = paint(PHOTOS, WORDS)
    alone = [paint([photo], [word])[0] for photo, word in zip(PHOTOS, WORDS)]
    for each, other, (width, height) in zip(together, alone, SIZES):
        assert each.shares.dtype == np.float32 and 0 <= each.shares.min() <= each.shares.max() <= 1
        # on the 64 pixels of the small SAM, without its padding
        assert each.shares.shape == tuple(
            round(64 * n / max(width, height)) for n in (height, width)
        )
        assert max(each.grid) == 32
        assert np.abs(each.shares - other.shares).max() < 1e-4
        assert each.doubts == other.doubts


def test_what_is_hardly_found_is_doubtful(clipseg, sam, monkeypatch):
    for least, expected in ((0.0, 0), (1.1, 3)):
        finder = dataclasses.replace(named.FINDERS["clipseg"], least=least)
        monkeypatch.setitem(named.FINDERS, "clipseg", finder)
        found = masker(masker_models=(clipseg, sam)).load(CPU)(PHOTOS, WORDS)
        doubts = [doubt for each in found for doubt in each.doubts]
        assert len(doubts) == expected
        assert all("it is hardly found, with a score of " in each for each in doubts)


def test_words_matter_to_a_finder(clipseg, sam):
    import transformers

    from semantic_aug.masking.named import FINDERS, load_model, load_processor

    finder = FINDERS["clipseg"]
    model = load_model("", getattr(transformers, finder.model), clipseg, CPU)
    find = finder.load(model, load_processor("", transformers.AutoProcessor, clipseg), CPU)
    one, other = find([PHOTOS[0]] * 2, ["a cat", "a stop sign"])
    assert one != other
    assert find([PHOTOS[0]], ["a stop sign"])[0].score == pytest.approx(other.score, abs=1e-5)


@settings(max_examples=50)
@given(strategies.integers(0, 31), strategies.integers(0, 31), strategies.integers(1, 400),
       strategies.integers(1, 400))  # fmt: skip
def test_a_place_holds_its_peak(x, y, width, height):
    heat = np.full((32, 32), 0.1, np.float32)
    heat[y, max(0, x - 2) : x + 1] = 0.7
    heat[y, x] = 0.9
    place = place_of_heat(heat, (width, height))
    left, top, right, bottom = place.box
    assert 0 <= left < place.peak[0] < right <= width + 1e-6
    assert 0 <= top < place.peak[1] < bottom <= height + 1e-6
    assert place.score == pytest.approx(0.9)
    assert right - left == pytest.approx(width / 32 * min(3, x + 1))


def test_a_far_spot_that_is_as_hot_is_no_part_of_the_box():
    heat = np.zeros((10, 10), np.float32)
    heat[1:3, 1:3], heat[2, 2], heat[8, 8] = 0.8, 0.9, 0.85
    assert place_of_heat(heat, (100, 50)).box == (10, 5, 30, 15)


# --- segmentation ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segformer(tmp_path_factory) -> str:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    folder = tmp_path_factory.mktemp("segformer")
    config = SegformerConfig(
        num_labels=3, depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], decoder_hidden_size=8,
        num_attention_heads=[1, 1, 2, 2],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        SegformerForSemanticSegmentation(config).save_pretrained(folder)
    processor = {"image_processor_type": "SegformerImageProcessor",
                 "size": {"height": 32, "width": 32}}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


def test_what_is_not_ground_is_object(segformer):
    from transformers import AutoModelForSemanticSegmentation

    found = masker(masker=segformer)
    found.check(["whatever"])
    (one, *_) = found.load(CPU)(PHOTOS, WORDS)
    assert one.shares.shape == (8, 8)
    pixels = np.asarray(PHOTOS[0].resize((32, 32), Image.Resampling.BILINEAR), np.float32) / 255
    pixels = (pixels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    model = AutoModelForSemanticSegmentation.from_pretrained(segformer)
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels).float().permute(2, 0, 1)[None]).logits
    assert np.allclose(one.shares, logits.softmax(1)[0, 1:].sum(0), atol=1e-4)


# --- what cannot be --------------------------------------------------------------------------


def refused(match, **given):
    with pytest.raises(UserError, match=match) as error:
        masker(**given)
    assert "\n" not in str(error.value)


def test_models_of_other_kinds_are_refused(clipseg, sam, resnet, tmp_path, monkeypatch):
    refused(r"--masker: .* is a resnet, expected a semantic-segmentation model", masker=resnet)
    refused(r"--masker: 'no/such' is no folder, and no hub model", masker="no/such")
    refused(r"--masker: the folder .* holds no model", masker=str(tmp_path))
    kinds = "clipseg, owlvit, owlv2, grounding-dino and then a sam, or a sam3 alone"
    refused(rf"got .*\(sam\).*\(clipseg\), expected one of {kinds}", masker_models=(sam, clipseg))
    refused(r"--masker_models: got .*\(clipseg\), expected", masker_models=clipseg)
    refused("--masker_models goes with named and salient", masker=segmented(tmp_path / "s"),
            masker_models=sam)  # fmt: skip
    (tmp_path / "model.onnx").write_bytes(b"")
    refused("an ONNX file goes with --masker salient", masker=str(tmp_path / "model.onnx"))


def segmented(folder: Path) -> str:
    from transformers import SegformerConfig

    SegformerConfig(num_labels=2).save_pretrained(folder)
    return str(folder)


def test_packages_that_are_missing_come_with_the_line_that_installs_them(tmp_path, monkeypatch):
    import importlib.util

    there = importlib.util.find_spec
    missing = ("rembg", "onnxruntime", "torchvision")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else there(name)
    )
    line = r"--masker salient: the model isnet-general-use needs the package rembg: pip install "
    refused(line + r"semantic-aug\[masks\]", masker="salient")
    (tmp_path / "some.onnx").write_bytes(b"onnx")
    refused("needs the package onnxruntime: pip install", masker="salient",
            masker_models=str(tmp_path / "some.onnx"))  # fmt: skip
    (tmp_path / "config.json").write_text('{"model_type": "sam3"}')
    refused("a SAM 3, needs the package torchvision: pip install torchvision",
            masker_models=str(tmp_path))  # fmt: skip


def test_a_model_without_its_weights_is_named(sam, tmp_path):
    found = masker(masker=segmented_with_processor(tmp_path / "s"))
    with pytest.raises(UserError, match=r"--masker: cannot load .*/s: "):
        found.load(CPU)


def segmented_with_processor(folder: Path) -> str:
    name = segmented(folder)
    processor = {"image_processor_type": "SegformerImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return name


def test_words_that_a_model_cannot_read(clipseg, owlv2, grounding_dino, sam):
    found = masker(masker_models=(clipseg, sam))
    found.check(["cat", "T-shirt", "Zahnrad Größe 3"])
    with pytest.raises(
        UserError, match=r"has no token for ' ': say what the object is by --prompt"
    ):
        found.check(["cat", " "])
    with pytest.raises(UserError, match=r"--prompt: 'a (gear ?){40}' has \d+ tokens, .* reads 16"):
        masker(masker_models=(owlv2, sam)).check([" ".join(["gear"] * 40)])
    with pytest.raises(UserError, match="has no token for 'gear': say what the object is by --pro"):
        masker(masker_models=(grounding_dino, sam)).check(["stop sign", "gear"])
    masker(masker_models=(clipseg, sam), prompt="the gear").check(["cat", " "])
    with pytest.raises(UserError, match="--prompt: got ' ', expected words"):
        masker(masker_models=(clipseg, sam), prompt=" ").check(["cat"])


# --- salient ---------------------------------------------------------------------------------


def brighter_than(path: Path, shape=(1, 3, 24, 32), inputs=1) -> str:
    """An ONNX model that finds what is brighter than the mean of ImageNet, as logits."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    photos = [helper.make_tensor_value_info(f"photo{n}", real, shape) for n in range(inputs)]
    mask = helper.make_tensor_value_info("mask", real, None)
    nodes = [helper.make_node("ReduceMean", ["photo0", "axes"], ["mask"], keepdims=1)]
    axes = [helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1])]
    graph = helper.make_graph(nodes, "brighter", photos, [mask], axes)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return str(path)


def test_a_local_file_finds_what_stands_out(tmp_path):
    photo = np.full((48, 64, 3), 20, np.uint8)
    photo[12:36, 20:60] = 220
    found = masker(masker="salient", masker_models=brighter_than(tmp_path / "b.onnx"))
    (each,) = found.load(CPU)([Image.fromarray(photo)], ["whatever"])
    expected = np.zeros((24, 32), bool)
    expected[6:18, 10:30] = True
    assert np.array_equal(each.shares > 0.5, expected)
    assert each.shares[12, 20] == pytest.approx(1 / (1 + np.exp(-1.8347)), abs=1e-3)
    open_sides = brighter_than(tmp_path / "o.onnx", (1, 3, "height", "width"))
    (each,) = masker(masker="salient", masker_models=open_sides).load(CPU)([PHOTOS[0]], ["it"])
    assert each.shares.shape == (320, 320)


def test_files_that_are_no_model_of_this_kind(tmp_path):
    refused(
        "there is no file .*none.onnx", masker="salient", masker_models=str(tmp_path / "none.onnx")
    )
    refused("got 2 models, expected one with --masker salient", masker="salient",
            masker_models=("a", "b"))  # fmt: skip
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    for name, match in {
        "broken.onnx": "is no ONNX model: ",
        "flat.onnx": r"takes photo0 of shape \[1, 300\], expected one photo, \[1, 3, h",
        "two.onnx": "takes photo0 of shape",
    }.items():
        if name != "broken.onnx":
            shape, inputs = ((1, 300), 1) if name == "flat.onnx" else ((1, 3, 8, 8), 2)
            brighter_than(tmp_path / name, shape, inputs)
        with pytest.raises(UserError, match=match) as error:
            masker(masker="salient", masker_models=str(tmp_path / name)).load(CPU)
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_rembg_works_with_a_file_of_its_own_kind(tmp_path, monkeypatch):
    rembg = pytest.importorskip("rembg")
    path = brighter_than(tmp_path / "u2netp.onnx", (1, 3, 320, 320))
    sessions = {each.name(): each for each in vars(rembg.sessions)["sessions_class"]}
    monkeypatch.setattr(sessions["u2netp"], "download_models", classmethod(lambda *_, **__: path))
    photo = np.full((60, 80, 3), 20, np.uint8)
    photo[15:45, 20:60] = 220
    found = masker(masker="salient", masker_models="u2netp").load(CPU)
    (each,) = found([Image.fromarray(photo)], ["it"])
    expected = photo[:, :, 0] > 100
    inside = each.shares > 0.5
    assert (inside & expected).sum() / (inside | expected).sum() > 0.9 and each.grid == (320, 320)
    match = "--masker_models: got 'u3net', expected a file.onnx, or one of .*u2net"
    refused(match, masker="salient", masker_models="u3net")
