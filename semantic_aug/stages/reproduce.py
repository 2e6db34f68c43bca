"""One image again, from its record and its folder's config.json."""

import argparse
import functools
from pathlib import Path

from PIL import ImageChops

from semantic_aug import UserError
from semantic_aug.cli.command import Parser
from semantic_aug.diffusion.inspecting import inspect_model
from semantic_aug.diffusion.loading import pick_device
from semantic_aug.experiment.config import is_called, read_config
from semantic_aug.experiment.names import CONFIG_FILE, Trial
from semantic_aug.images.reading import read_image
from semantic_aug.stages.choosing_words import details_of_classes, find_embeddings
from semantic_aug.stages.common import dataset_of
from semantic_aug.stages.editing import (
    EDIT_FLAGS,
    build_augmentation,
    build_pipeline,
    class_unets,
    list_edits,
    load_extras,
    uses_masks,
    weights_of,
)
from semantic_aug.synthesis.jobs import Job
from semantic_aug.synthesis.making import compute
from semantic_aug.synthesis.records import older_precision, read_records

MADE_WITH = {
    "model": "weights of the model",
    "photos": "photos of the trial",
    "embeddings": "rows of the learned word",
    "lora": "weights of the LoRA",
    "unet": "weights of the UNet",
    "controlnet": "weights of the ControlNet",
    "masks": "masks of its class",
    "safety_checker": "weights of the safety checker",
}


def check_arguments(folder: Path, arguments: dict, parser: Parser) -> None:
    """Raise UserError for arguments in a folder's config.json that no flags give."""
    for action in parser._actions:
        value = arguments.get(action.dest)
        kind = str if action.type is None else int | float
        values = value if action.nargs == "+" else [value]
        if action.nargs == 0:
            kind = bool
        if value is None and not action.required:
            continue
        if not isinstance(values, list) or not all(isinstance(each, kind) for each in values):
            raise UserError(
                f"--reproduce: {folder / CONFIG_FILE} is damaged: {action.dest} is {value!r}"
            )


def flags_of_edits(folder: Path, edits: object) -> dict[str, list]:
    """The flags from which `list_edits` makes the edits in a folder's config.json."""
    try:
        flags = {key: [edit[key] for edit in edits] for key in EDIT_FLAGS}
    except (KeyError, TypeError):
        flags = {}
    if not any(flags.values()):
        raise UserError(f"--reproduce: {folder / CONFIG_FILE} is damaged: edits is {edits!r}")
    return flags


def reproduce(given: argparse.Namespace, parser: Parser) -> None:
    """Make one image again from its record and its folder's config.json, and compare.

    Args:
        given: the image, and what lies elsewhere now.
        parser: of the command that made it.
    """
    path, config = given.reproduce, read_config(given.reproduce.parent)
    records = {record["file_name"]: record for record in read_records(path.parent)}
    if config is None or path.name not in records:
        raise UserError(
            f"--reproduce: {path} is no image of generate_augmentations.py with a record"
        )
    record, settings = records[path.name], config.get("settings", {})
    try:
        there = read_image(path)
    except UserError as error:
        raise UserError(
            f"--reproduce: {error}; delete it, and the command that made it makes it again"
        ) from error
    arguments = config.get("arguments", {})
    arguments = {**arguments, **flags_of_edits(path.parent, settings.get("edits"))}
    check_arguments(path.parent, arguments, parser)
    defaults = vars(parser.parse_args(["--dataset=-", "--experiment_name=-"]))  # for newer flags
    # A folder whose config.json says nothing of older_list was made by an earlier version.
    args = argparse.Namespace(**{**defaults, "older_list": True, **arguments})
    args.model, args.device = given.model_path or args.model, given.device
    precision = record.get("precision") or older_precision(path.parent)
    args.mixed_precision = precision or args.mixed_precision
    for key in ("data_dir", "lora", "unet_path", "controlnet"):
        setattr(args, key, getattr(given, key) or getattr(args, key))
    trial, name = Trial(record["seed"], record["examples_per_class"]), record["class_name"]
    edits = list_edits(args)
    info = inspect_model(args.model, args.revision, args.variant)
    dataset = dataset_of(args, "train", trial)
    sources = dataset.sources()
    if record["source"] not in sources:
        raise UserError(
            f"--reproduce: {path} was made from {record['source']}, which is not among the "
            f"training photos of seed={trial.seed}, examples_per_class={trial.examples_per_class}"
        )
    embed_path = None
    if "textual-inversion" in args.aug:
        embed_path = find_embeddings(args, path.parent.parent.parent, trial)
    unets = class_unets(args, [name])
    masked = dataset.indices([name]) if uses_masks(args, edits) else []
    details = details_of_classes(dataset, embed_path, info, unets, masked)
    own = {"embeddings": None, **details.get(name, {})}
    own = {key: value for key, value in own.items() if key in record}  # older ones say less
    common = {**weights_of(args, info), "photos": dataset.photo_digest()}
    for stored, now in ((settings, common), (record, own)):
        for key, value in now.items():
            if not is_called(value, stored.get(key)):
                raise UserError(
                    f"--reproduce: {path} was made with other {MADE_WITH.get(key, key)}: "
                    f"then {stored.get(key)}, now {value}"
                )
    device = pick_device(args.device)
    job = Job(sources.index(record["source"]), record["repeat"])
    augmentation = build_augmentation(
        args,
        edits,
        info,
        embed_path,
        unets,
        functools.cache(lambda: build_pipeline(args, info, device)),
        load_extras(args, info, device),
    )
    ((_, image, _),) = compute(dataset, augmentation, [job], sources, trial.seed)
    if image.size != there.size:
        print(f"{path}: its size is {there.size}, not {image.size}")
        raise SystemExit(1)
    difference = ImageChops.difference(image, there)
    largest = max(high for _, high in difference.getextrema())
    if largest == 0:
        print(f"{path}: equal")
    elif largest <= 2:
        print(f"{path}: at most {largest} of 255 apart, as images of another batch size are")
    else:
        print(f"{path}: differs by up to {largest} of 255")
        raise SystemExit(1)
