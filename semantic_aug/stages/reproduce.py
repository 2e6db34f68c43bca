"""Making an image again from its record and its folder's config.json."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from semantic_aug import UserError
from semantic_aug.diffusion.inspecting import inspect_model
from semantic_aug.diffusion.loading import pick_device, warn_if_slow
from semantic_aug.diffusion.lora import no_lora_left
from semantic_aug.experiment.config import as_stored, is_called, read_config
from semantic_aug.experiment.names import CONFIG_FILE, Trial
from semantic_aug.images.reading import read_image
from semantic_aug.settings import build_all, fields_of
from semantic_aug.settings.common import Run
from semantic_aug.settings.generation import NONE, OWN, TEXTUAL_INVERSION, Generation
from semantic_aug.settings.reproducing import Reproduction
from semantic_aug.stages.choosing_lora import lora_for_all, own_lora, weights_of_own
from semantic_aug.stages.choosing_words import details_of_classes, find_embeddings
from semantic_aug.stages.common import dataset_of, stage
from semantic_aug.stages.editing import (
    build_augmentation,
    build_pipeline,
    class_unets,
    load_extras,
    precision_of,
    weights_of,
)
from semantic_aug.stages.edits import (
    EDIT_FLAGS,
    facts_of_places,
    list_edits,
    uses_masks,
    uses_model,
)
from semantic_aug.synthesis.jobs import Job
from semantic_aug.synthesis.making import compute
from semantic_aug.synthesis.records import older_precision, read_records
from semantic_aug.words.class_names import say_classes

MADE_WITH = {
    "model": "weights of the model",
    "photos": "photos of the trial",
    "embeddings": "rows of the learned word",
    "lora": "weights of the LoRA",
    "unet": "weights of the UNet",
    "controlnet": "weights of the ControlNet",
    "masks": "masks of its class",
    "place_lines": "lines of --places",
    "place_masks": "masks of the photos that lend their places",
    "backgrounds": "images of --backgrounds",
    "safety_checker": "weights of the safety checker",
}


def settings_of(folder: Path, config: dict) -> tuple[Run, Generation]:
    """The settings that a folder's config.json holds.

    Raises:
        UserError: config.json holds invalid settings.
    """
    arguments = config.get("arguments", {})
    given = {**arguments, **flags_of_edits(folder, config.get("settings", {}).get("edits"))}
    known = fields_of(Run) | fields_of(Generation)  # other versions have other settings
    try:
        run, settings = build_all({k: v for k, v in given.items() if k in known}, Run, Generation)
        for name, value in (
            ("dataset", run.dataset),
            *(("aug", aug) for aug in settings.aug or ()),
        ):
            if not isinstance(value, str):  # Python also accepts objects
                raise UserError(f"{name}: got {value!r}, expected text")
    except UserError as error:
        raise UserError(f"--reproduce: {folder / CONFIG_FILE} is damaged: {error}") from error
    # A config.json without older_list comes from an earlier version.
    older = bool(arguments.get("older_list", True))
    return dataclasses.replace(run, older_list=older), settings


def flags_of_edits(folder: Path, edits: Any) -> dict[str, list]:
    """The settings from which `list_edits` makes the edits in a folder's config.json."""
    try:
        flags = {key: [edit[key] for edit in edits] for key in EDIT_FLAGS}
        if None in flags["strength"]:  # an edit without strength
            strengths = {each for each in flags["strength"] if each is not None}
            flags["strength"] = [1.0 if s is None else s for s in flags["strength"]]
            if not strengths:
                del flags["strength"]
    except (KeyError, TypeError):
        flags = {}
    if flags and any("options" in edit for edit in edits):
        raise UserError(
            f"--reproduce: {folder} was made with an object of Python, which its {CONFIG_FILE} "
            "does not hold: generate() makes it again with the same object and overwrite=True"
        )
    if not any(flags.values()):
        raise UserError(f"--reproduce: {folder / CONFIG_FILE} is damaged: edits is {edits!r}")
    return flags


@stage(Reproduction)
def reproduce(
    image: str | Path, settings: Reproduction, *, pipeline=None
) -> tuple[Image.Image, int | None]:
    """Make an image again from its record and its folder's config.json, and compare.

    Args:
        image: the image's file.
        settings: the new places of moved files.
        pipeline: the model, if it is already loaded.

    Returns:
        The image, and its largest difference from the file, of 255; None if the sizes differ.

    Raises:
        UserError: the image cannot be made again.
    """
    path = Path(image)
    config = read_config(path.parent)
    records = {record["file_name"]: record for record in read_records(path.parent)}
    if config is None or path.name not in records:
        raise UserError(
            f"--reproduce: {path} is no image of generate_augmentations.py with a record"
        )
    record, compared = records[path.name], config.get("settings", {})
    try:
        there = read_image(path)
    except UserError as error:
        raise UserError(
            f"--reproduce: {error}; delete it, and the command that made it makes it again"
        ) from error
    run, made_by = settings_of(path.parent, config)
    now = {name: getattr(settings, name) for name in ("model", "unet_path", "controlnet")}
    now["lora"] = settings.lora if lora_for_all(made_by) else OWN if "lora" in compared else NONE
    now["mixed_precision"] = record.get("precision") or older_precision(path.parent)
    now = {name: value for name, value in now.items() if value}
    made_by = dataclasses.replace(made_by, **now, device=settings.device)
    run = dataclasses.replace(
        run,
        data_dir=settings.data_dir or run.data_dir,
        mask_dir=settings.mask_dir or run.mask_dir,
    )
    trial, name = Trial(record["seed"], record["examples_per_class"]), record["class_name"]
    edits = list_edits(made_by)
    info = None
    if uses_model(made_by, edits):
        info = inspect_model(made_by.model, made_by.revision, made_by.variant)
    dataset = dataset_of(run, "train", trial)
    sources = dataset.sources()
    if record["source"] not in sources:
        raise UserError(
            f"--reproduce: {path} was made from {record['source']}, which is not among the "
            f"training photos of seed={trial.seed}, examples_per_class={trial.examples_per_class}"
        )
    embed_path = None
    if TEXTUAL_INVERSION in (edit["aug"] for edit in edits):
        embed_path = find_embeddings(made_by, path.parent.parent.parent, trial)
    experiment = path.parent.parent.parent
    lora = own_lora(made_by, embed_path, experiment, trial, moved=settings.lora) if info else None
    unets = class_unets(made_by, [name])
    masked = dataset.indices([name]) if uses_masks(run, edits) else []
    details = details_of_classes(dataset, embed_path, info, unets, masked)
    own = {"embeddings": None, **details.get(name, {})}
    own = {key: value for key, value in own.items() if key in record}  # older records say less
    weights = weights_of(made_by, info) | weights_of_own(made_by, info, lora) if info else {}
    common = {**weights, "photos": dataset.photo_digest()}
    common = as_stored(common | facts_of_places(made_by, edits, dataset), compared)
    for stored, found in ((compared, common), (record, own)):
        for key, value in found.items():
            if not is_called(value, stored.get(key)):
                raise UserError(
                    f"--reproduce: {path} was made with other {MADE_WITH.get(key, key)}: "
                    f"then {stored.get(key)}, now {value}"
                )
    words = say_classes(dataset.class_names, compared.get("name_style"))
    device = pick_device(made_by.device)
    warn_if_slow(device, precision_of(made_by, device))
    job = Job(sources.index(record["source"]), record["repeat"])
    augmentation = build_augmentation(
        made_by,
        edits,
        {},
        info,
        embed_path,
        unets,
        lora,
        path.parent,
        functools.cache(lambda: build_pipeline(made_by, info, device, pipeline)),
        load_extras(made_by, info, device) if info else {},
    )
    augmentation.bind(dataset)
    with no_lora_left(pipeline):
        ((_, again, _),) = compute(
            dataset, augmentation, [job], sources, trial.seed, made_by.save_size, words
        )
    if again.size != there.size:
        return again, None
    difference = ImageChops.difference(again, there)
    return again, int(np.asarray(difference).max())
