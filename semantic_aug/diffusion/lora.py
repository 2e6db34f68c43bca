"""LoRA weights (arXiv 2106.09685): whether they fit a model, and how they join it."""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import is_offline_mode

from semantic_aug import UserError
from semantic_aug.diffusion.identity import commit_of, identity_of
from semantic_aug.diffusion.inspecting import ModelInfo, read_json
from semantic_aug.diffusion.loading import LOADING_ERRORS, quiet_loading
from semantic_aug.experiment.config import Identity
from semantic_aug.experiment.names import LORA_FILE

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # layers that a new LoRA changes
OF_TRIAL = "lora_of_trial"  # the name of our own adapter in a model


def check_peft(flag: str) -> None:
    """Raise UserError if the package that LoRAs need is missing."""
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"{flag} needs the package peft: pip install peft")


def check_lora(info: ModelInfo, name: str) -> Identity:
    """Check that a LoRA (arXiv 2106.09685) fits the model's shapes; return its identity.

    Args:
        name: a file, or a folder or hub id with `pytorch_lora_weights.safetensors`.

    Raises:
        UserError: there is no such LoRA, or it was made for another architecture.
    """
    import diffusers
    import transformers

    check_peft("--lora")
    if not Path(name).exists() and (Path(name).is_absolute() or Path(name).suffix):
        raise UserError(f"--lora: {name} does not exist")
    with torch.device("meta"):  # shapes without numbers
        parts = {"unet": diffusers.UNet2DConditionModel.from_config(_part(info, "unet"))}
        for part in ("text_encoder", "text_encoder_2")[: len(info.embedding_dims)]:
            config = transformers.CLIPTextConfig.from_dict(_part(info, part))
            second = part == "text_encoder_2"
            kind = "CLIPTextModelWithProjection" if second else "CLIPTextModel"
            parts[part] = getattr(transformers, kind)(config)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)  # avoids warnings
    absent = {"vae": None, "tokenizer": None, "scheduler": scheduler}
    if info.is_xl:
        shapes = diffusers.StableDiffusionXLPipeline(
            **parts, **absent, tokenizer_2=None, add_watermarker=False
        )
    else:
        absent |= {"safety_checker": None, "feature_extractor": None}
        shapes = diffusers.StableDiffusionPipeline(**parts, **absent, requires_safety_checker=False)
    _load_lora(shapes, info, name, None)
    if not any(getattr(part, "peft_config", None) for part in parts.values()):
        raise UserError(f"--lora: {name} changes no part of {info.name}")
    return identity_of(name)


def add_lora(pipeline, info: ModelInfo, name: str, scale: float) -> None:
    """Add a LoRA, times `scale`, to a pipeline's weights; images do not become slower."""
    _load_lora(pipeline, info, name, commit_of(name))  # the commit that was checked
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()


def switch_lora(pipeline, path: Path | None, scale: float = 1.0) -> None:
    """Put a trial's LoRA into a model, or take it out; the model's own weights stay unchanged.

    So no rounding errors stay when another LoRA replaces it, unlike with `add_lora`.

    Args:
        path: the LoRA's file, made for this model.
        scale: its weight.

    Raises:
        UserError: other code has put a LoRA into the model.
    """
    unet = pipeline.unet
    held = getattr(unet, "peft_config", {}).keys()
    if path is not None and held - {OF_TRIAL}:
        raise UserError(
            f"pipeline: it already holds a LoRA ({', '.join(held)}), and the trial has its own: "
            "unload the pipeline's LoRA, or leave out the trial's LoRA with --lora none"
        )
    if OF_TRIAL in held:
        unet.unload_lora()
    if path is not None:
        with quiet_loading():
            pipeline.load_lora_weights(str(path), adapter_name=OF_TRIAL)
        unet.set_adapters([OF_TRIAL], [scale])


@contextlib.contextmanager
def no_lora_left(pipeline) -> Iterator[None]:
    """After the block, the given model has only its own weights again."""
    try:
        yield
    finally:
        if pipeline is not None:
            switch_lora(pipeline, None)


def new_lora(unet, rank: int, generator: torch.Generator) -> dict[str, torch.nn.Parameter]:
    """Put a new LoRA, which changes nothing yet, into a frozen UNet's attention.

    `unet.unload_lora()` takes it out again.

    Args:
        generator: CPU; draws the first of each layer's two matrices. The second matrix is 0.

    Returns:
        Its weights, float32, by the names that diffusers gives them in a file.
    """
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(ATTENTION))
    with torch.random.fork_rng(devices=[]):
        unet.add_adapter(config, adapter_name=OF_TRIAL)
    found = {
        f"unet.{name.replace(f'.{OF_TRIAL}.', '.')}": weight
        for name, weight in sorted(unet.named_parameters())
        if f".{OF_TRIAL}." in name
    }
    for name, weight in found.items():
        weight.data = weight.data.float()  # peft gives them the type of the UNet
        if ".lora_A." in name:
            bound = weight.shape[1] ** -0.5  # as torch initialises a layer
            drawn = torch.rand(weight.shape, generator=generator)
            weight.data.copy_((2 * drawn - 1) * bound)
    return found


def _load_lora(pipeline, info: ModelInfo, name: str, revision: str | None) -> None:
    # Offline, diffusers cannot list a hub id's files, so it gets the usual name.
    is_path = Path(name).exists()
    file = None if is_path or not is_offline_mode() else LORA_FILE
    try:
        with quiet_loading():
            pipeline.load_lora_weights(name, weight_name=file, revision=revision)
    except LOADING_ERRORS as error:
        reason = " ".join(str(error).split())
        if not is_path:
            reason = f"it is no file, no folder, and no hub id with available weights: {reason}"
        elif "no file named" in reason:
            reason = f"this folder holds no {LORA_FILE}; name the file itself"
        if "size mismatch" in reason or "Target modules" in reason or "not found" in reason:
            reason = f"it was made for another architecture than {info.name}"
        raise UserError(f"--lora: cannot use {name}: {reason[:200]}") from error


def _part(info: ModelInfo, part: str) -> dict:
    return read_json(info.name, f"{part}/config.json", info.revision)
