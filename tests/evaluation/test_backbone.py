"""Backbones of transformers: features, preprocessing, training a part of one."""

import json
import re

import pytest
import torch
from conftest import ROOT, save_resnet

from semantic_aug import UserError
from semantic_aug.evaluation import backbone
from semantic_aug.evaluation.backbone import default_precision, load_backbone, read_preprocessing

CPU = torch.device("cpu")
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
TOKENS = {"image_size": 16, "patch_size": 8, "num_hidden_layers": 3, **SMALL}


def resnet_model():
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [16, 24, 32], "depths": [1, 1, 1]}
    return ResNetForImageClassification(ResNetConfig(layer_type="basic", **sizes))


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**TOKENS))


def deit():
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    return DeiTForImageClassificationWithTeacher(DeiTConfig(**TOKENS))


def dinov2():
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(Dinov2Config(mlp_ratio=2, **TOKENS))


def convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    sizes = {"hidden_sizes": [8, 12, 16], "depths": [1, 1, 1], "num_stages": 3}
    return ConvNextForImageClassification(ConvNextConfig(**sizes))


def swin():
    from transformers import SwinConfig, SwinModel

    sizes = {"embed_dim": 4, "depths": [1, 1, 1], "num_heads": [2, 2, 2], "window_size": 2}
    return SwinModel(SwinConfig(image_size=16, patch_size=2, **sizes))


def clip():
    from transformers import CLIPConfig, CLIPModel

    text = {**SMALL, "num_hidden_layers": 1, "vocab_size": 40, "eos_token_id": 1, "bos_token_id": 0}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=TOKENS, projection_dim=8))


def clip_vision():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(**TOKENS))


FAMILIES = {
    resnet_model: 32, vit: 16, deit: 16, dinov2: 16, convnext: 16, swin: 16, clip: 16,
    clip_vision: 16,
}  # fmt: skip


def saved(make, folder, half=False, processor='{"size": {"shortest_edge": 16}}') -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    (model.half() if half else model).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(processor)
    return str(folder)


def some_images(number=3):
    stream = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 3, 16, 16), dtype=torch.uint8, generator=stream)


def test_features_are_those_of_normalised_images(resnet):
    backbone = load_backbone(resnet, CPU)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    mean = torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1)
    std = torch.tensor([0.2, 0.3, 0.25]).reshape(3, 1, 1)
    with torch.no_grad():
        maps = backbone.model(pixel_values=(images / 255 - mean) / std).last_hidden_state
    assert torch.allclose(backbone(images), maps.mean((2, 3)), atol=1e-6)
    assert torch.allclose(backbone(images / 255), backbone(images), atol=1e-6)
    assert (backbone.num_features, backbone.image_size) == (24, (16, 16))


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("half", [False, True])
def test_any_image_model_gives_features(tmp_path, make, half):
    name = saved(make, tmp_path, half)
    first, again = (load_backbone(name, CPU) for _ in range(2))
    images = some_images()
    features = first.features(images)
    assert features.shape == (3, FAMILIES[make]) and features.dtype == torch.float32
    assert torch.equal(features, again.features(images))  # nothing random, such as a new pooler
    assert first.identity == again.identity
    assert features.std(dim=0).max() > 0
    output = first.model(pixel_values=(images / 255 - first.mean) / first.std)
    expected = {
        vit: lambda: output.last_hidden_state[:, 0],
        deit: lambda: output.last_hidden_state[:, 0],
        dinov2: lambda: output.last_hidden_state[:, 0],
        swin: lambda: output.last_hidden_state.mean(dim=1),
        convnext: lambda: output.pooler_output,
        resnet_model: lambda: output.pooler_output.flatten(1),
        clip: lambda: output.pooler_output,
        clip_vision: lambda: output.pooler_output,
    }[make]
    assert torch.allclose(features, expected(), atol=1e-6)
    if make in (vit, clip):
        larger = load_backbone(name, CPU, (24, 32))
        assert larger(torch.zeros(1, 3, 24, 32)).shape == (1, FAMILIES[make])


@pytest.mark.parametrize("make", FAMILIES)
def test_the_last_blocks_alone_learn_and_come_back(tmp_path, make):
    model = load_backbone(saved(make, tmp_path), CPU, finetune="last:1")
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    optimizer = torch.optim.SGD(model.trained_parameters(), lr=0.1)
    with model.training():
        features = model(some_images(8))
        features.pow(3).sum().backward()
    optimizer.step()
    moved = {n for n, p in model.model.named_parameters() if not torch.equal(before[n], p)}
    assert moved
    # Blocks 0 and 1 of three, and what stands before them, stay.
    names = list(before)
    first = next(
        i
        for i, name in enumerate(names)
        if ".2." in name
        and "layers" in name + ".layers"
        and name.split(".2.")[0]
        in (
            "layers",
            "encoder.layer",
            "encoder.layers",
            "encoder.stages",
            "vision_model.encoder.layers",
        )
    )
    assert moved <= set(names[first:]) and len(moved) > 1
    assert not model.model.training
    learned = model.weights()
    model.reset()
    assert all(torch.equal(before[n], p) for n, p in model.model.named_parameters())
    model.restore(learned)
    assert any(not torch.equal(before[n], p) for n, p in model.model.named_parameters())


def test_all_of_a_backbone_learns_and_batch_norm_keeps_its_statistics(tmp_path):
    name = saved(resnet_model, tmp_path)
    model = load_backbone(name, CPU, finetune="all")
    before = model.weights()
    with model.training():
        model(some_images(8)).sum().backward()
    assert all(p.grad is not None for p in model.model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.weights().items())
    new = load_backbone(name, CPU, finetune="all", from_scratch=True)
    before = new.weights()
    with new.training():
        new(some_images(8))
    changed = [key for key, value in new.weights().items() if not torch.equal(before[key], value)]
    assert any("running_mean" in key for key in changed)


def test_dropout_drops_in_training_alone(tmp_path):
    from transformers import ViTConfig, ViTModel

    def with_dropout():
        return ViTModel(ViTConfig(hidden_dropout_prob=0.5, **TOKENS))

    model = load_backbone(saved(with_dropout, tmp_path), CPU, finetune="last:2")
    images = some_images()
    assert torch.equal(model(images), model(images))
    with model.training():
        assert not torch.equal(model(images), model(images))
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("make", [resnet_model, vit, dinov2, convnext, clip, clip_vision])
def test_from_scratch_only_the_configuration_counts(tmp_path, make):
    name = saved(make, tmp_path)
    trained = load_backbone(name, CPU)
    (tmp_path / "model.safetensors").unlink()
    before = torch.random.get_rng_state()
    first, again = (load_backbone(name, CPU, None, "all", True) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    images = some_images()
    assert torch.equal(first.features(images), again.features(images))
    assert first.features(images).shape == trained.features(images).shape
    assert not torch.allclose(first.features(images), trained.features(images))
    assert first.identity == again.identity != trained.identity
    with pytest.raises(UserError, match="holds no usable image model"):
        load_backbone(name, CPU)


@pytest.mark.parametrize("make, number", [(vit, 3), (resnet_model, 3), (clip, 3)])
def test_more_blocks_than_there_are_is_an_error_that_counts_them(tmp_path, make, number):
    name = saved(make, tmp_path)
    load_backbone(name, CPU, finetune=f"last:{number}")
    with pytest.raises(UserError, match=f"got last:{number + 1}, but .* has {number} blocks"):
        load_backbone(name, CPU, finetune=f"last:{number + 1}")


def test_the_sample_backbone_has_its_own_size_mean_and_blocks():
    folder = ROOT / "sample/backbone"
    config = json.loads((folder / "preprocessor_config.json").read_text())
    model = load_backbone(str(folder), CPU, finetune="last:1")
    assert model.image_size == (64, 64)
    assert model.mean.flatten().tolist() == pytest.approx(config["image_mean"])
    assert sum(p.requires_grad for p in model.model.parameters()) > 0
    assert not all(p.requires_grad for p in model.model.parameters())


@pytest.mark.gpu
def test_on_a_gpu_a_frozen_backbone_computes_in_half_precision(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    name = saved(vit, tmp_path)
    on_cpu, on_gpu = (load_backbone(name, torch.device(d)) for d in ("cpu", "cuda"))
    kinds = set()
    on_gpu.model.layers[0].register_forward_hook(lambda m, i, output: kinds.add(
        (output[0] if isinstance(output, tuple) else output).dtype))  # fmt: skip
    features = on_gpu.features(some_images())
    assert features.dtype == torch.float32
    assert torch.allclose(features.cpu(), on_cpu.features(some_images()), atol=0.02)


def test_images_that_overflow_in_half_precision_are_computed_in_float32(tmp_path, caplog):
    from safetensors.torch import load_file, save_file

    name = save_resnet(tmp_path, {"image_mean": 0.2, "image_std": 1.0, "size": 16})
    weights = load_file(tmp_path / "model.safetensors")
    (first,) = [key for key in weights if "embedder.convolution.weight" in key]
    weights[first] *= 2e5
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    whole, half = (load_backbone(name, CPU, precision=p) for p in ("float32", "float16"))
    calm = torch.full((1, 3, 16, 16), 52, dtype=torch.uint8)  # the mean is 51
    images = torch.cat([calm, some_images(2)])
    features = half.features(images)
    assert "the backbone overflows in float16: float32 is used" in caplog.text
    assert torch.equal(features[1:], whole.features(images[1:])) and features.isfinite().all()
    assert torch.equal(features[:1], half.features(calm))  # no image depends on another
    assert not torch.equal(features[:1], whole.features(calm))


def test_precision_is_the_devices_unless_it_is_said(tmp_path):
    name = saved(vit, tmp_path)
    models = {p: load_backbone(name, CPU, precision=p) for p in (None, "float32", "bfloat16")}
    features = {p: model.features(some_images()) for p, model in models.items()}
    assert models[None].precision == "float32"
    assert torch.equal(features[None], features["float32"])
    difference = (features["bfloat16"] - features["float32"]).abs().max()
    assert 0 < difference < 0.1
    cuda = torch.device("cuda")
    precisions = [default_precision(cuda), default_precision(cuda, "last:1")]
    assert precisions == ["float16", "float32"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"size": 32, "image_mean": [0.5, 0.', "preprocessor_config.json cannot be read"),
        ("", "preprocessor_config.json cannot be read"),
        ("[32]", "no attribute 'get'"),
        ('{"size": "big"}', "'b'"),
        ('{"size": -4}', "size (-4, -4)"),
        ('{"image_mean": [0.5, 0.5]}', "three channels"),
        ('{"image_std": [0.5, 0, 0.5]}', "deviation (0.5, 0.0, 0.5)"),
        ('{"image_mean": NaN}', "mean (nan"),
    ],
)
def test_a_damaged_preprocessor_does_not_count_as_absent(tmp_path, content, reason):
    name = saved(resnet_model, tmp_path, processor=content)
    with pytest.raises(UserError, match=f"^--classifier_backbone: .*{re.escape(reason)}"):
        load_backbone(name, CPU)


def test_a_damaged_preprocessor_of_a_hub_model_is_named(tmp_path, monkeypatch, caplog):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--microsoft--resnet-50"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("abc")
    files = {"config.json": "{}", "processor_config.json": '{"processor_class": "X"}'}
    for file, text in files.items():
        (cached / "snapshots/abc").mkdir(exist_ok=True, parents=True)
        (cached / "snapshots/abc" / file).write_text(text)
    assert read_preprocessing("microsoft/resnet-50")[0] == backbone.IMAGENET_MEAN
    assert "has no preprocessor_config.json" in caplog.text
    (cached / "snapshots/abc/preprocessor_config.json").write_text('{"size": 3')
    with pytest.raises(UserError, match=r"abc/preprocessor_config\.json cannot be read"):
        read_preprocessing("microsoft/resnet-50")


def test_preprocessing_is_read_or_replaced_with_a_notice(tmp_path, caplog):
    file = tmp_path / "preprocessor_config.json"
    crop = {"size": 256, "crop_size": 224, "do_center_crop": True, "image_mean": 0.5}
    file.write_text(json.dumps(crop))
    mean, std, size = read_preprocessing(str(tmp_path))
    assert (mean, std, size) == ((0.5,) * 3, backbone.IMAGENET_STD, (224, 224))
    file.write_text(json.dumps({"size": {"height": 24, "width": 32}, "do_normalize": False}))
    assert read_preprocessing(str(tmp_path)) == ((0,) * 3, (1,) * 3, (24, 32))
    assert not caplog.records
    file.unlink()
    expected = (backbone.IMAGENET_MEAN, backbone.IMAGENET_STD, None)
    assert read_preprocessing(str(tmp_path)) == expected
    assert "has no preprocessor_config.json" in caplog.text


def test_without_a_configured_size_images_are_the_models_or_224(tmp_path):
    assert load_backbone(save_resnet(tmp_path / "a"), CPU).image_size == (224, 224)
    vit().save_pretrained(tmp_path / "b")
    assert load_backbone(str(tmp_path / "b"), CPU).image_size == (16, 16)
