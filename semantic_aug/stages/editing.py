"""From flags to edits: what edits require of a model, loading the model, the augmentation."""

import copy
import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch

from semantic_aug import UserError
from semantic_aug.augmentations import augmentation_class
from semantic_aug.augmentations.compose import (
    ComposeParallel,
    ComposeSequential,
    PerClass,
)
from semantic_aug.diffusion.adapters import (
    check_controlnet,
    check_safety_checker,
    check_unet,
    find_unet,
    find_unets,
    load_controlnet,
    load_safety_checker,
    put_unet,
)
from semantic_aug.diffusion.inspecting import ModelInfo, check_resolution, inspect_model
from semantic_aug.diffusion.loading import (
    check_steps,
    load_pipeline,
    offload,
    pick_device,
    pick_dtype,
    set_scheduler,
    tune_for_memory,
    tune_for_speed,
)
from semantic_aug.diffusion.lora import add_lora, check_lora, switch_lora
from semantic_aug.experiment.names import places_dir
from semantic_aug.generative_augmentation import GenerativeAugmentation
from semantic_aug.settings import fields_of
from semantic_aug.settings.fine_tuning import FineTuning
from semantic_aug.settings.generation import (
    GENERATED,
    NONE,
    OWN,
    PARALLEL,
    PROMPTS,
    TEXTUAL_INVERSION,
    Generation,
)
from semantic_aug.stages.choosing_lora import lora_for_all, weights_of_own
from semantic_aug.stages.edits import edits_of, objects_of, options_taken

log = logging.getLogger(__name__)
CHANGING = ("lora", "unet_path", "low_memory", "compile")  # these change a loaded model
Settings = TypeVar("Settings", FineTuning, Generation)


def check_model(settings: Generation, edits: list[dict]) -> ModelInfo:
    """The facts in the model's configuration.

    Raises:
        UserError: the model cannot do these edits.
    """
    info = inspect_model(settings.model, settings.revision, settings.variant)
    if info.for_inpainting and not all(edit["mask"] for edit in edits):
        raise UserError(f"{settings.model} only inpaints: it needs --mask 1")
    if info.for_inpainting and settings.harmonize:
        raise UserError(f"--harmonize edits whole images, which {settings.model} cannot do")
    text_alone = settings.backgrounds == GENERATED and settings.places_from == PROMPTS
    if info.for_inpainting and text_alone:
        raise UserError(
            f"{settings.model} only inpaints: generated places need --places_from photos"
        )
    if settings.negative_prompt and info.is_told_guidance:
        raise UserError(
            f"--negative_prompt: {settings.model} works without classifier-free guidance, which "
            "it needs: leave it out"
        )
    check_resolution(info, settings.resolution)
    check_steps(info, settings.scheduler, settings.num_inference_steps)
    if info.few_steps and settings.num_inference_steps > 10:
        log.warning(
            "%s looks like a model for few steps: --num_inference_steps 2 to 8 are enough, and "
            "Turbo models need --guidance_scale 0",
            settings.model,
        )
    return info


def weights_of(settings: Generation, info: ModelInfo) -> dict:
    """The weights that make the images of all trials, as settings without unused entries.

    Raises:
        UserError: the weights do not fit the model.
    """
    weights: dict[str, Any] = {"model": info.identity}
    of_each = "{name}" in (settings.unet_path or "")
    if settings.lora not in (None, NONE) and of_each:
        raise UserError("--lora needs one UNet for all classes: leave {name} out of --unet_path")
    if (lora := lora_for_all(settings)) is not None:
        weights |= {"lora": check_lora(info, lora), "lora_scale": settings.lora_scale}
    if settings.unet_path:
        path = settings.unet_path
        weights["unet"] = "of each class" if of_each else check_unet(info, find_unet(path))
    if settings.controlnet:
        weights["controlnet"] = check_controlnet(info, settings.controlnet)
        weights["controlnet_scale"] = settings.controlnet_scale
    if settings.safety_checker:
        weights["safety_checker"] = check_safety_checker(info, safety_checker_name(settings))
        weights["safety_retries"] = settings.safety_retries
    return weights


def safety_checker_name(settings: Generation) -> str | None:
    """The safety checker's name; None for the model's own."""
    return None if settings.safety_checker == OWN else settings.safety_checker


def class_unets(settings: Generation, class_names: Iterable[str]) -> dict[str, Path]:
    """The weights of each class's own UNet; empty where classes share a UNet."""
    if not settings.unet_path or "{name}" not in settings.unet_path:
        return {}
    return find_unets(settings.unet_path, list(dict.fromkeys(class_names)))


def precision_of(settings: Generation, device) -> str:
    """The model's precision, by its name in records."""
    if device.type == "cpu":
        return "bf16" if settings.mixed_precision == "bf16" else "no"
    return settings.mixed_precision or "fp16"


def dtype_of(settings: Generation, device):
    """The model's precision, as a torch dtype."""
    return pick_dtype(device, settings.mixed_precision or precision_of(settings, device))


def offloads(settings: Generation, device) -> bool:
    """Whether idle parts of the model stay in the CPU's memory."""
    return settings.low_memory and device.type == "cuda"


def home_of(settings: Generation, device) -> torch.device:
    """The device that loaded parts are kept on."""
    return torch.device("cpu") if offloads(settings, device) else device


def build_pipeline(settings: Generation, info: ModelInfo | None, device, given=None):
    """The model, loaded and set up by the settings, except for `offload`.

    Args:
        info: None where no edit needs the model.
        given: the model, if it is already loaded; it does not change.
    """
    assert info is not None
    if given is None:
        pipeline = load_pipeline(info, home_of(settings, device), dtype_of(settings, device))
    else:
        pipeline = copy.copy(given)  # shares the parts
    if settings.unet_path and "{name}" not in settings.unet_path:
        put_unet(pipeline, Path(settings.unet_path))
    if (lora := lora_for_all(settings)) is not None:
        add_lora(pipeline, info, lora, settings.lora_scale)
    set_scheduler(pipeline, settings.scheduler)
    if settings.low_memory:
        tune_for_memory(pipeline)
    tune_for_speed(pipeline, settings.compile)
    return pipeline


def named_model(settings: Settings, pipeline) -> Settings:
    """The settings; where they name no model, with the model that a pipeline was loaded from."""
    source = getattr(pipeline, "name_or_path", None)
    if not source or settings.model != fields_of(type(settings))["model"].default:
        return settings
    return dataclasses.replace(settings, model=str(source))


def model_of_objects(
    settings: Generation, objects: Mapping[int, GenerativeAugmentation]
) -> Generation:
    """The settings with the model, steps and resolution of augmentations given as objects.

    Raises:
        UserError: the objects use several models, or a model that the settings do not name.
    """
    for name in dict.fromkeys(name for aug in objects.values() for name in models_of(aug)):
        settings = named_model(settings, SimpleNamespace(name_or_path=name))
        wanted = settings.model
        if name != wanted and inspect_model(name).identity != inspect_model(wanted).identity:
            raise UserError(
                f"--aug: got an object with the model {name}, expected {wanted} in all images of a "
                "set: make all objects with one model, and leave --model_path out"
            )
    own = [edit for aug in objects.values() for edit in edits_of(aug)]
    alike = {(edit.num_inference_steps, edit.resolution) for edit in own}
    if len(alike) == 1 and len(objects) == len(settings.aug or ()):  # each record has these values
        ((steps, side),) = alike
        settings = dataclasses.replace(settings, num_inference_steps=steps, resolution=side)
    return settings


def models_of(aug: GenerativeAugmentation) -> list[str]:
    """The names of the models that an object was made with, where the models have names."""
    inner: Iterable[GenerativeAugmentation] = getattr(aug, "augs", ())
    pipelines = [getattr(aug, "pipeline", None), *(edit.pipeline for edit in edits_of(aug))]
    names = [getattr(each, "name_or_path", None) for each in pipelines]
    names += [getattr(aug, "model_path", None), *(n for each in inner for n in models_of(each))]
    return [str(name) for name in names if name]


def check_given(settings: Generation, pipeline, device) -> None:
    """Raise UserError where the settings would change a loaded model, or mean another model."""
    changing = [name for name in CHANGING if getattr(settings, name)]
    if lora_for_all(settings) is None and "lora" in changing:
        changing.remove("lora")  # a trial's own LoRA is removed again
    if changing:
        raise UserError(
            f"--{changing[0]} changes the model: leave pipeline out, and it is loaded with it"
        )
    dtype, parts = dtype_of(settings, device), getattr(pipeline, "components", {})
    if "unet" not in parts:
        raise UserError(f"pipeline: got {pipeline!r:.80}, expected a loaded Stable Diffusion")
    for name in ("unet", "text_encoder", "vae"):
        part = parts[name]
        if part.dtype != dtype or part.device.type != device.type:
            raise UserError(
                f"pipeline: its {name} is {part.dtype} on {part.device}, expected {dtype} on "
                f"{device}, which --device and --mixed_precision mean"
            )


def load_extras(settings: Generation, info: ModelInfo, device) -> dict:
    """The models in use other than the diffusion model, loaded, as options of an edit."""
    extras = {}
    if settings.controlnet:
        extras["controlnet"] = load_controlnet(
            settings.controlnet, home_of(settings, device), dtype_of(settings, device)
        )
        extras["controlnet_scale"] = settings.controlnet_scale
    if settings.safety_checker:
        name = safety_checker_name(settings)
        extras["safety_checker"] = load_safety_checker(info, name, device)
        extras["safety_retries"] = settings.safety_retries
    return extras


def _itself(given: GenerativeAugmentation) -> GenerativeAugmentation:
    return given


def _made(
    cls: type[GenerativeAugmentation], pipeline: Callable, options: Mapping
) -> GenerativeAugmentation:
    make: Callable = cls
    return make(pipeline=pipeline() if cls.needs_model else pipeline, **options)


def _with_own_lora(settings: Generation, pipeline: Callable, lora: Path | None):
    """The model that trials share, with this trial's LoRA and without the previous trial's."""
    loaded = pipeline()
    if offloads(settings, pick_device(settings.device)):
        loaded.remove_all_hooks()
    switch_lora(loaded, lora, settings.lora_scale)
    return loaded


def build_augmentation(
    settings: Generation, edits, objects, info: ModelInfo | None, embed_path, unets,
    lora: Path | None, folder: Path, pipeline, extras,
):  # fmt: skip
    """The augmentation that the flags describe; `pipeline()` loads the model.

    Args:
        lora: the trial's own LoRA.
        folder: the folder of the trial's images.
    """
    device = pick_device(settings.device)
    pipeline = functools.cache(functools.partial(_with_own_lora, settings, pipeline, lora))
    wanted: list[Callable[[], GenerativeAugmentation]] = []  # each loads its model
    loads = any(augmentation_class(edit["aug"]).needs_model for edit in edits)
    for number, edit in enumerate(edits):
        if (given := objects_of(number, objects, settings)) is not None:
            wanted.append(functools.partial(_itself, given))
            continue
        options = {key: value for key, value in edit.items() if key != "aug"}
        options |= {
            "prompt": list(settings.prompt),
            "num_inference_steps": settings.num_inference_steps,
            "resolution": check_resolution(info, settings.resolution) if info else None,
            "batch_size": settings.batch_size,
            "fit": settings.fit,
            "mask_grow_radius": settings.mask_grow_radius,
            "mask_feather": settings.mask_feather,
            **extras,
        }
        if settings.negative_prompt:  # external classes may lack it
            options["negative_prompt"] = settings.negative_prompt
        if edit["aug"] == TEXTUAL_INVERSION:
            options["embed_path"] = embed_path
        made = augmentation_class(edit["aug"])
        options |= options_taken(settings, made)
        if "places_dir" in made.takes:
            options["places_dir"] = places_dir(folder)
            weights = {}
            if info:
                weights = weights_of(settings, info) | weights_of_own(settings, info, lora)
            options["made_with"] = weights | {"scheduler": settings.scheduler}
            options["offload_to"] = device if offloads(settings, device) else None
        try:
            inspect.signature(made).bind(pipeline=None, **options)
        except TypeError as error:
            raise UserError(
                f"--aug: {edit['aug']} cannot be made: {error}; its __init__ is given pipeline and "
                "the options of an edit by name, of which **options takes all"
            ) from None
        wanted.append(functools.partial(_made, made, pipeline, options))
    augs = [make() for make in wanted]
    if loads and offloads(settings, device):
        edited = [aug.edit.pipeline for aug in augs if hasattr(aug, "edit")]
        offload([pipeline(), *edited], device)
    augmentation = augs[0]
    if len(augs) > 1 or settings.probs not in (None, (1.0,)):
        compose = ComposeParallel if settings.compose == PARALLEL else ComposeSequential
        augmentation = compose(augs, settings.probs)
    if not unets:
        return augmentation
    return PerClass(augmentation, lambda name: put_unet(pipeline(), unets[name]))
