"""On a GPU, in each precision, the commands do what they do on the CPU, within a stated bound.

The streams of random numbers are the CPU's, so that the same image and the same word come out but
for rounding. With TEST_DEVICE=cpu they run, and are equal, without a GPU.
"""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import images_of

import fine_tune
import train_classifier
from semantic_aug import stable_hash
from semantic_aug.diffusion.inspecting import inspect_model
from semantic_aug.diffusion.loading import load_pipeline, pick_dtype
from semantic_aug.evaluation.backbone import load_backbone
from semantic_aug.words.embeddings import read_embeddings
from semantic_aug.words.rows import initial_rows, initializer_id

DEVICE = os.environ.get("TEST_DEVICE", "cuda")
HERE = DEVICE != "cuda" or torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason="no CUDA device")]

CPU = torch.device("cpu")
# Mean difference from the CPU's pixels, of 255. TensorFloat-32 rounds to 10 bits, as float16 does;
# bfloat16 rounds to 7 bits.
PIXELS = {"no": 2, "fp16": 3, "bf16": 10}
# Cosine between the ways that a word's rows go in two steps of AdamW, which depend on the signs of
# gradients, also where a gradient is all rounding.
COSINES = {"no": 0.95, "fp16": 0.95, "bf16": 0.8}


@pytest.fixture(autouse=True)
def noise_in_float32(monkeypatch):
    """As torch 2.13 draws noise in half precision: 2.11 gives other numbers, without large ones."""
    randn = torch.randn

    def drawn(*size, dtype=None, **options):
        if dtype in (torch.float16, torch.bfloat16):
            return randn(*size, **options).to(dtype)
        return randn(*size, dtype=dtype, **options)

    monkeypatch.setattr(torch, "randn", drawn)


def edited(make, *flags, name="aug"):
    status, err = make(*flags, name=name)
    assert status == 0, err
    return images_of(name)


def mean_difference(one, other) -> float:
    assert one.keys() == other.keys() and one
    return float(np.mean([np.abs(one[name] - other[name]).mean() for name in one]))


@pytest.mark.parametrize("precision", PIXELS)
def test_an_edit(make, precision):
    expected = edited(make, name="expected")
    found = edited(make, f"--device={DEVICE}", f"--mixed_precision={precision}")
    assert len(found) == 6
    assert mean_difference(found, expected) < PIXELS[precision]


def half_like_half(make, flag) -> None:
    # All six images at once: a UNet is compiled again for a batch of another size.
    flags = [f"--device={DEVICE}", "--mixed_precision=fp16", "--batch_size=6"]
    expected = edited(make, *flags, name="expected")
    assert mean_difference(edited(make, *flags, flag), expected) < PIXELS["fp16"]


def test_an_edit_with_less_memory(make):
    half_like_half(make, "--low_memory")


def test_an_edit_of_a_region(make, photos):
    """What lies outside the region is the photo's own, in half precision as well."""
    flags = ["--mask=1", "--dataset_args", f"masks={photos.parent / 'masks'}"]
    expected = edited(make, *flags, name="expected")
    found = edited(make, *flags, f"--device={DEVICE}", "--mixed_precision=fp16")
    assert mean_difference(found, expected) < PIXELS["fp16"]


def learned(photos, model, name, *flags) -> torch.Tensor:
    fine_tune.main([
        "--dataset=folder", f"--data_dir={photos}", f"--experiment_name={name}",
        f"--model_path={model}", "--max_train_steps=2", "--train_batch_size=4", "--classes", "cat",
        "--learning_rate=1e-2", "--num_vectors=2", "--report_to=none", *flags,
    ])  # fmt: skip
    path = Path(f"output/{name}/fine-tuned/seed=0_ex=1/cat/learned_embeds.safetensors")
    (rows,) = read_embeddings(path).values()
    return rows


@pytest.mark.parametrize("precision", COSINES)
def test_a_word(photos, small_model, workdir, precision):
    pipeline = load_pipeline(inspect_model(small_model), CPU, torch.float32)
    table = pipeline.text_encoder.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(stable_hash("textual-inversion", 0, 1, "cat"))
    start = initial_rows(table[initializer_id(pipeline.tokenizer, None, "cat")], 2, generator)
    on_cpu = learned(photos, small_model, "cpu", "--device=cpu")
    flags = [f"--device={DEVICE}", f"--mixed_precision={precision}"]
    found = learned(photos, small_model, "gpu", *flags)
    assert found.dtype == torch.float32
    ways = [(rows - start).flatten() for rows in (found, on_cpu)]
    assert ways[1].abs().mean() > 5e-3
    assert torch.cosine_similarity(*ways, dim=0) > COSINES[precision]


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_a_pipeline_has_the_precision_that_was_asked_for(small_model, precision):
    device = torch.device(DEVICE)
    dtype = pick_dtype(device, precision)
    if DEVICE != "cpu":
        assert dtype == {"no": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
    pipeline = load_pipeline(inspect_model(small_model), device, dtype)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert {p.dtype for p in part.parameters()} == {dtype}
        assert {p.device.type for p in part.parameters()} == {device.type}


def test_a_frozen_backbone_gives_the_cpu_s_features(resnet):
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    on_cpu = load_backbone(resnet, CPU).features(images)
    features = load_backbone(resnet, torch.device(DEVICE)).features(images).float().cpu()
    assert torch.allclose(features, on_cpu, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("finetune", ["none", "all"])
@pytest.mark.parametrize("augmentation", ["none", "randaugment"])
def test_a_classifier(photos, resnet, workdir, sketched, finetune, augmentation):
    """The same losses within 5 %: images are drawn and changed by the CPU's random numbers."""
    losses = {}
    for device in ("cpu", DEVICE):
        train_classifier.main([
            "--dataset=folder", f"--data_dir={photos}", f"--experiment_name={device}",
            f"--classifier_backbone={resnet}", "--num_synthetic=0", "--num_epochs=2",
            "--iterations_per_epoch=4", "--batch_size=6", "--examples_per_class=2",
            f"--finetune={finetune}", f"--augmentation={augmentation}", f"--device={device}",
        ])  # fmt: skip
        with open(f"output/{device}/results/real/results_0_2.csv", newline="") as file:
            losses[device] = {
                (row["split"], row["epoch"]): float(row["value"])
                for row in csv.DictReader(file) if row["metric"] == "Loss"
            }  # fmt: skip
    assert len(losses["cpu"]) == 5  # two epochs of training and validation, one test
    assert losses[DEVICE] == pytest.approx(losses["cpu"], rel=0.05)


def test_a_compiled_edit(make):  # the last, as compiling takes a minute
    half_like_half(make, "--compile")
