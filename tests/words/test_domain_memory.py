"""What training takes of a GPU's memory at the size of Stable Diffusion 1.4, counted."""

import sys
import weakref
from unittest.mock import patch

import pytest
import torch
from conftest import ROOT
from diffusers import DDPMScheduler
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from semantic_aug.diffusion.lora import new_lora
from semantic_aug.words.losses import Draw, denoising_losses
from semantic_aug.words.prompts import tokenise

sys.path.insert(0, str(ROOT / "benchmarks"))
from models import build_sd14

sys.path.remove(str(ROOT / "benchmarks"))
GB = 10**9


class Counted(TorchDispatchMode):
    """Counts the bytes of all tensors that live at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = weakref.WeakKeyDictionary()

    def note(self, tensor):
        storage = tensor.untyped_storage()
        if storage not in self.known:
            size = self.known[storage] = storage.nbytes()
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.forget, size)

    def forget(self, size):
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.note, found)
        return found


def add_lora(unet) -> list:
    """A LoRA of rank 8; tensors without numbers cannot be moved or drawn."""
    moved = patch("torch.nn.Module.to", lambda module, *_, **__: module)
    with moved, patch("torch.rand", lambda shape, generator: torch.zeros(shape)):
        return list(new_lora(unet, 8, torch.Generator()).values())


@pytest.mark.slow
@pytest.mark.parametrize("of_lora, most", [(True, 7), (False, 7)], ids=["LoRA", "words"])
def test_two_steps_of_four_photos_in_float16_fit_8_gb(of_lora, most):
    """At 512 pixels and nothing saved by recomputing; words with --classes_per_step 1."""
    with FakeTensorMode(allow_non_fake_inputs=True), Counted() as counted:
        with patch("torch.manual_seed"):
            torch.set_default_dtype(torch.float16)
            try:
                pipeline = build_sd14()
            finally:
                torch.set_default_dtype(torch.float32)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False)
        assert 2.1 * GB < counted.now < 2.2 * GB  # 1,066 million numbers
        prompts = tokenise(pipeline, ["a photo of a {}"], "<w>", 4)
        scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        words, photos = (4, 1) if of_lora else (1, 4)
        rows = [[torch.nn.Parameter(torch.zeros(4, 768))] for _ in range(words)]
        weights = add_lora(pipeline.unet) if of_lora else rows[0]
        optimizer = torch.optim.AdamW(weights)
        latents, times = torch.zeros(photos, 4, 64, 64), torch.zeros(photos, dtype=torch.long)
        draw = Draw(latents, torch.ones_like(latents[:, :1]), torch.zeros_like(latents), times, 0)
        for _ in range(2):
            denoising_losses(pipeline, scheduler, rows, [draw] * words, prompts).mean().backward()
            assert all(weight.grad is not None for weight in weights)
            optimizer.step()
            optimizer.zero_grad()
    assert 3 * GB < counted.most < most * GB
