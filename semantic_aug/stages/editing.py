"""From flags to edits: what these ask of a model, the model set up for them, the augmentation."""

import inspect
import logging
from collections.abc import Iterable
from pathlib import Path

import torch

from semantic_aug import UserError
from semantic_aug.augmentations import augmentation_class
from semantic_aug.augmentations.compose import (
    ComposeParallel,
    ComposeSequential,
    PerClass,
    check_probs,
)
from semantic_aug.augmentations.sdedit import check_guidance_scale, check_prompt, check_strength
from semantic_aug.diffusion.adapters import (
    add_lora,
    check_controlnet,
    check_lora,
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

log = logging.getLogger(__name__)
OWN = "own"  # the safety checker that the model comes with
EDIT_FLAGS = ("aug", "strength", "guidance_scale", "mask", "inverted")


def check_model(args, edits: list[dict]) -> ModelInfo:
    """What the model's configuration tells, where it can do these edits.

    Raises:
        UserError: it cannot.
    """
    info = inspect_model(args.model, args.revision, args.variant)
    if info.for_inpainting and not all(edit["mask"] for edit in edits):
        raise UserError(f"{args.model} is for inpainting alone: it needs --mask 1")
    check_resolution(info, args.resolution)
    check_steps(info, args.scheduler, args.num_inference_steps)
    if info.few_steps and args.num_inference_steps > 10:
        log.warning(
            "%s looks like a model for few steps: --num_inference_steps 2 to 8 are enough, and "
            "Turbo models want --guidance_scale 0",
            args.model,
        )
    return info


def weights_of(args, info: ModelInfo) -> dict:
    """Which weights make the images of all classes, as settings; what is not used is not there.

    Raises:
        UserError: they do not fit the model.
    """
    weights = {"model": info.identity}
    of_each = bool(args.unet_path) and "{name}" in args.unet_path
    if args.lora and of_each:
        raise UserError("--lora needs one UNet for all classes: leave {name} out of --unet_path")
    if args.lora:
        weights |= {"lora": check_lora(info, args.lora), "lora_scale": args.lora_scale}
    if args.unet_path:
        path = args.unet_path
        weights["unet"] = "of each class" if of_each else check_unet(info, find_unet(path))
    if args.controlnet:
        weights["controlnet"] = check_controlnet(info, args.controlnet)
        weights["controlnet_scale"] = args.controlnet_scale
    if args.safety_checker:
        weights["safety_checker"] = check_safety_checker(info, safety_checker_name(args))
        weights["safety_retries"] = args.safety_retries
    return weights


def safety_checker_name(args) -> str | None:
    """None for the model's own."""
    return None if args.safety_checker == OWN else args.safety_checker


def class_unets(args, class_names: Iterable[str]) -> dict[str, Path]:
    """The weights of each class's own UNet; empty where classes share one."""
    if not args.unet_path or "{name}" not in args.unet_path:
        return {}
    return find_unets(args.unet_path, list(dict.fromkeys(class_names)))


def uses_masks(args, edits: list[dict]) -> bool:
    """Whether an image would be another one if its photo had another mask."""
    by_edit = (edit["mask"] or augmentation_class(edit["aug"]).needs_mask for edit in edits)
    return args.crop_to_object or any(by_edit)


def precision_of(args, device) -> str:
    """In which precision the model works, as records say it."""
    return "no" if device.type == "cpu" else args.mixed_precision or "fp16"


def dtype_of(args, device):
    """In which precision the model works."""
    return pick_dtype(device, args.mixed_precision or precision_of(args, device))


def offloads(args, device) -> bool:
    """Whether parts of the model wait in the CPU's memory."""
    return args.low_memory and device.type == "cuda"


def home_of(args, device) -> torch.device:
    """Where what is loaded waits."""
    return torch.device("cpu") if offloads(args, device) else device


def build_pipeline(args, info: ModelInfo, device):
    """The model, loaded and set up as the flags say, but for `offload`."""
    pipeline = load_pipeline(info, home_of(args, device), dtype_of(args, device))
    if args.unet_path and "{name}" not in args.unet_path:
        put_unet(pipeline, Path(args.unet_path))
    if args.lora:
        add_lora(pipeline, info, args.lora, args.lora_scale)
    set_scheduler(pipeline, args.scheduler)
    if args.low_memory:
        tune_for_memory(pipeline)
    tune_for_speed(pipeline, args.compile)
    return pipeline


def read_prompts(prompts: list[str]) -> list[str]:
    """The prompts given, with the lines of a text file in place of its name."""
    found = []
    for prompt in prompts:
        if not prompt.endswith(".txt"):
            found.append(prompt)
            continue
        try:
            lines = Path(prompt).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UserError(f"--prompt: cannot read {prompt}: {reason}") from None
        found += [line.strip() for line in lines if line.strip()]
        if not any(line.strip() for line in lines):
            raise UserError(f"--prompt: {prompt} is empty, expected a prompt per line")
    return found


def check_prompts(prompts: list[str]) -> None:
    """Raise UserError for a prompt that cannot be filled in; say where one names no class."""
    for prompt in prompts:
        check_prompt(prompt)
        if not any(field in prompt for field in ("{name}", "{token}", "{description}")):
            log.warning("--prompt %r has no {name}: it says nothing about the class", prompt)


def list_edits(args) -> list[dict]:
    """One mapping per augmentation from the lists of flags; a list of one counts for all.

    Raises:
        UserError: lists of different lengths, or values that no edit can have.
    """
    lists = {key: getattr(args, key) for key in EDIT_FLAGS}
    count = max(map(len, lists.values()))
    for key, values in lists.items():
        if len(values) not in (1, count):
            longest = next(k for k, v in lists.items() if len(v) == count)
            raise UserError(
                f"--{key} has {len(values)} values, --{longest} has {count}: give one value for "
                "all augmentations or one for each"
            )
    rows = [
        {key: values[number % len(values)] for key, values in lists.items()}
        for number in range(count)
    ]
    for row in rows:
        augmentation_class(row["aug"])
        check_strength(row["strength"], args.num_inference_steps)
        check_guidance_scale(row["guidance_scale"])
        if row["inverted"] and not row["mask"]:
            raise UserError("--inverted 1 needs --mask 1: there is no mask to invert")
    check_probs(args.probs, count, args.compose)
    return rows


def load_extras(args, info: ModelInfo, device) -> dict:
    """What works beside the model, loaded, as options of an edit; what is not used is not there."""
    extras = {}
    if args.controlnet:
        extras["controlnet"] = load_controlnet(
            args.controlnet, home_of(args, device), dtype_of(args, device)
        )
        extras["controlnet_scale"] = args.controlnet_scale
    if args.safety_checker:
        name = safety_checker_name(args)
        extras["safety_checker"] = load_safety_checker(info, name, device)
        extras["safety_retries"] = args.safety_retries
    return extras


def build_augmentation(args, edits, info, embed_path, unets, pipeline, extras):
    """The augmentation that the flags describe; `pipeline()` loads the model."""
    device, wanted = pick_device(args.device), []
    if offloads(args, device):
        pipeline().remove_all_hooks()  # of the trial before
    for edit in edits:
        options = {key: value for key, value in edit.items() if key != "aug"}
        options |= {
            "prompt": args.prompt,
            "num_inference_steps": args.num_inference_steps,
            "resolution": check_resolution(info, args.resolution),
            "batch_size": args.batch_size,
            "fit": args.fit,
            "mask_grow_radius": args.mask_grow_radius,
            "mask_feather": args.mask_feather,
            **extras,
        }
        if edit["aug"] == "textual-inversion":
            options["embed_path"] = embed_path
        made = augmentation_class(edit["aug"])
        try:
            inspect.signature(made).bind(pipeline=None, **options)
        except TypeError as error:
            raise UserError(
                f"--aug: {edit['aug']} cannot be made: {error}; its __init__ is given pipeline and "
                "the options of an edit by name, of which **options takes all"
            ) from None
        wanted.append((made, options))
    augs = [made(pipeline=pipeline(), **options) for made, options in wanted]
    if offloads(args, device):
        edited = [aug.edit.pipeline for aug in augs if hasattr(aug, "edit")]
        offload([pipeline(), *edited], device)
    augmentation = augs[0]
    if len(augs) > 1 or args.probs not in (None, [1.0]):
        compose = ComposeParallel if args.compose == "parallel" else ComposeSequential
        augmentation = compose(augs, args.probs)
    if not unets:
        return augmentation
    return PerClass(augmentation, lambda name: put_unet(pipeline(), unets[name]))
