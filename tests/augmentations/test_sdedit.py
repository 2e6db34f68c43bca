"""What an edit is told: a negative prompt."""

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image
from PIL import Image

from semantic_aug.augmentations.real_guidance import RealGuidance
from semantic_aug.diffusion.inspecting import inspect_model
from semantic_aug.diffusion.loading import load_pipeline

FAST = {"num_inference_steps": 4, "strength": 0.5, "guidance_scale": 9.0}


def picture(seed=0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    return Image.fromarray(noise)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("family", ["small_model", "xl_model"])
def test_a_negative_prompt_is_that_of_the_stock_pipeline(family, request):
    folder = request.getfixturevalue(family)
    ours = load_pipeline(inspect_model(folder), torch.device("cpu"), torch.float32)

    def edited(**options):
        aug = RealGuidance(ours, **FAST, **options)
        streams = [torch.Generator().manual_seed(n) for n in range(2)]
        names = [{"name": "cat"}, {"name": "dog"}]
        images, _ = aug.augment([picture(n) for n in range(2)], [0, 1], names, streams)
        return [pixels(image) for image in images]

    stock = AutoPipelineForImage2Image.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        ["a photo of a cat", "a photo of a dog"],
        negative_prompt=["a toy train"] * 2,
        image=[picture(n) for n in range(2)],
        generator=[torch.Generator().manual_seed(n) for n in range(2)],
        **FAST,
    ).images
    found, without = edited(negative_prompt="a toy train"), edited()
    assert all(np.abs(x - pixels(y)).max() <= 1 for x, y in zip(found, expected))
    assert all(np.abs(x - y).max() > 1 for x, y in zip(found, without))
    assert np.array_equal(edited(negative_prompt=""), without)
