"""`--low_memory`: parts of the model wait in the CPU's memory, each until it is needed.

There need be no GPU here: hooks note where they would move a part, and move none.
"""

from collections import Counter

import accelerate
import pytest
import torch
from accelerate.hooks import CpuOffload, UserCpuOffloadHook, add_hook_to_module
from conftest import images_of
from test_adapters import largest_difference, save_controlnet

from semantic_aug import UserError
from semantic_aug.augmentations.textual_inversion import TextualInversion
from semantic_aug.diffusion.inspecting import inspect_model
from semantic_aug.diffusion.loading import load_pipeline, offload
from semantic_aug.stages import editing, generate
from semantic_aug.words.embeddings import write_embeddings

GPU = torch.device("cuda", 0)
WORDS = {"<cat>": 1.0, "<stop_sign>": -1.0, "<toy_train>": 0.5}


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """(kind of part, device, kinds of all parts there) of each call of a part."""
    seen, there = [], {}

    class Noting(CpuOffload):
        def __init__(self, device, before):
            super().__init__(torch.device("cpu"), before)
            self.device = device

        def init_hook(self, module):
            there.pop(id(module), None)
            return module

        def pre_forward(self, module, *args, **kwargs):
            before = self.prev_module_hook
            if before is not None and id(before.model) in there:
                before.offload()
            there[id(module)] = type(module).__name__
            seen.append((type(module).__name__, str(self.device), Counter(there.values())))
            return args, kwargs

    def with_hook(model, execution_device=None, prev_module_hook=None):
        hook = Noting(execution_device, prev_module_hook)
        add_hook_to_module(model, hook, append=True)
        return model, UserCpuOffloadHook(model, hook)

    monkeypatch.setattr(accelerate, "cpu_offload_with_hook", with_hook)
    return seen


@pytest.fixture
def words(tmp_path) -> str:
    rows = {token: torch.full((1, 32), value) for token, value in WORDS.items()}
    write_embeddings(tmp_path / "words.safetensors", rows, {})
    return str(tmp_path / "words.safetensors")


@pytest.mark.slow
def test_parts_are_on_the_gpu_when_they_compute_and_not_before(
    make, words, calls, monkeypatch, tmp_path
):
    """Two trials, each with learned words of its own beside edits that use none."""
    flags = ["--aug", "textual-inversion", "real-guidance", f"--embed_path={words}",
             f"--controlnet={save_controlnet(tmp_path / 'controlnet')}", "--num_trials=2",
             "--classes", "cat", "--num_synthetic=1", "--compose=sequential",
             "--mixed_precision=no"]  # fmt: skip
    assert make(*flags, name="plain")[0] == 0
    loaded = []

    def load(info, device, *options):
        loaded.append(device.type)
        return load_pipeline(info, device, *options)

    with monkeypatch.context() as patch:
        for module in (generate, editing):
            patch.setattr(module, "pick_device", lambda name: GPU)
        patch.setattr(editing, "load_pipeline", load)
        patch.setattr(torch.cuda, "get_device_name", lambda device: "pretended")
        status, err = make(*flags, "--low_memory", name="low")
    assert status == 0, err
    assert loaded == ["cpu"]
    assert largest_difference(images_of("low"), images_of("plain")) <= 2
    assert {device for _, device, _ in calls} == {"cuda:0"}
    parts = {"CLIPTextModel", "UNet2DConditionModel", "AutoencoderKL", "ControlNetModel"}
    assert {part for part, _, _ in calls} == parts
    for part, _, there in calls:
        if part == "CLIPTextModel":
            assert there == {part: 1}
        elif part == "UNet2DConditionModel":
            assert not there["CLIPTextModel"]


def test_words_do_not_go_into_what_is_offloaded(small_model, words, calls):
    pipeline = load_pipeline(inspect_model(small_model), torch.device("cpu"), torch.float32)
    offload([pipeline], GPU)
    with pytest.raises(UserError, match="offloaded, but learned words must be added"):
        TextualInversion(words, pipeline)
    pipeline.remove_all_hooks()
    augmentation = TextualInversion(words, pipeline)
    offload([pipeline, augmentation.edit.pipeline], GPU)
    parts = [pipeline.text_encoder, *augmentation.edit.pipeline.components.values()]
    hooks = [part._hf_hook for part in parts if isinstance(part, torch.nn.Module)]
    assert len(hooks) == 4 and {hook.device for hook in hooks} == {GPU}
