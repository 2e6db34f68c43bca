"""The plan of each trial's images, after all checks."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.augmentations.compose import check_probs
from semantic_aug.diffusion.inspecting import ModelInfo, check_resolution
from semantic_aug.diffusion.loading import pick_device
from semantic_aug.experiment.config import Newer, OtherSettings, config_id
from semantic_aug.experiment.names import Trial, aug_dir
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.settings import compared
from semantic_aug.settings.common import Run
from semantic_aug.settings.generation import NONE, OWN, PARALLEL, Generation
from semantic_aug.stages.checking_photos import (
    check_fields,
    check_masks,
    check_objects,
    check_photos,
    say_left_out,
)
from semantic_aug.stages.choosing_lora import lora_for_all, own_lora, weights_of_own
from semantic_aug.stages.choosing_words import details_of_classes, words_note
from semantic_aug.stages.common import dataset_of, experiment_of
from semantic_aug.stages.editing import (
    build_augmentation,
    check_given,
    check_model,
    class_unets,
    precision_of,
    weights_of,
)
from semantic_aug.stages.edits import classes_of, facts_of_places, uses_masks, uses_model
from semantic_aug.synthesis.jobs import Job, make_jobs, share_of
from semantic_aug.synthesis.records import check_settings, differing_keys, find_images
from semantic_aug.words.class_names import say_classes

log = logging.getLogger(__name__)

MOST_IMAGES = 10_000_000  # of a trial: their list must fit into memory


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a trial's images.

    Attributes:
        indices: the photos to be edited.
        there: names of the images that existed at the start.
        jobs: all wanted images of these photos, for all processes together.
        batch_size: images per block.
        already: number of blocks that were dealt out before this trial's blocks.
        compared: everything that changes an image, for config.json.
        of_class: everything that changes images of one class, by class and by its key in records.
        constants: fields that all records share.
        notes: further entries of config.json.
        left_out: why a photo gets no images, by source; None where no photo can be left out.
        words: what prompts say for each class.
        save_size: longer side to which larger photos are reduced before they are edited, in pixels.
        make_augmentation: gives the augmentation, from the folder of the images, a function that
            gives the pipeline, and what `load_extras` gives.
    """

    trial: Trial
    folder: Path
    dataset: FewShotDataset
    indices: list[int]
    there: set[str]
    jobs: list[Job]
    batch_size: int
    already: int
    compared: dict
    of_class: dict[str, dict]
    constants: dict
    notes: dict
    left_out: dict[str, str] | None
    words: dict[str, str]
    save_size: int | None
    make_augmentation: Callable

    @property
    def num_blocks(self) -> int:
        return math.ceil(len(self.jobs) / self.batch_size)

    def share_of(self, shard: tuple[int, int]) -> list[list[Job]]:
        """The blocks of one process."""
        return share_of(self.jobs, self.batch_size, shard, self.already)


def plan_trials(
    run: Run, settings: Generation, embed_paths: Mapping[Trial, Path | None], edits, objects,
    pipeline=None, datasets: Mapping[Trial, FewShotDataset] | None = None,
) -> tuple[ModelInfo | None, list[Plan]]:  # fmt: skip
    """The plans of some trials, and the facts of their model, if they need a model.

    Args:
        pipeline: the model, if it is already loaded.
        datasets: the datasets of the trials, if they are already built.

    Raises:
        UserError: a plan is impossible.
    """
    datasets, left_out = dict(datasets or {}), dict[Trial, dict[str, str] | None]()
    if any(each.needs_object for each, _ in classes_of(settings, edits, objects)):
        for trial in embed_paths:  # before a model is fetched for photos that it cannot edit
            datasets[trial] = datasets.get(trial) or dataset_of(run, "train", trial)
            left_out[trial] = check_objects(run, settings, edits, datasets[trial], objects)
        say_left_out(
            datasets.values(), [each or {} for each in left_out.values()], settings.classes
        )
    info = check_model(settings, edits) if uses_model(settings, edits, objects) else None
    device = pick_device(settings.device)
    if pipeline is not None:
        check_given(settings, pipeline, device)
    weights = weights_of(settings, info) if info else {}
    plans: list[Plan] = []
    for trial, path in embed_paths.items():
        dataset = datasets.get(trial) or dataset_of(run, "train", trial)
        already = sum(plan.num_blocks for plan in plans)
        plans.append(
            plan_trial(
                run,
                settings,
                trial,
                dataset,
                left_out.get(trial),
                path,
                info,
                weights,
                edits,
                objects,
                device,
                already,
            )
        )
    return info, plans


def images_to_make(plans: Iterable[Plan], shard: tuple[int, int]) -> int:
    """How many images a process will compute; incomplete blocks are computed whole."""
    return sum(
        len(block)
        for plan in plans
        for block in plan.share_of(shard)
        if any(job.file_name not in plan.there for job in block)
    )


def plan_trial(
    run: Run, settings: Generation, trial, dataset, left_out: dict[str, str] | None, embed_path,
    info, weights, edits, objects, device, already: int,
) -> Plan:  # fmt: skip
    """The plan of a trial's images.

    Raises:
        UserError: a photo lacks what its edits need, weights do not fit the model, or the folder
            holds images that were made with other settings.
    """
    folder = aug_dir(experiment_of(run), settings.aug_name, trial)
    indices = dataset.indices(settings.classes)
    if len(indices) * settings.num_synthetic > MOST_IMAGES:
        raise UserError(
            f"--num_synthetic: got {settings.num_synthetic} for {counted(len(indices), 'photo')}, "
            f"expected {MOST_IMAGES:,} images of a trial at most"
        )
    sources = dataset.sources()
    edited = [idx for idx in indices if sources[idx] not in (left_out or ())]
    check_photos(dataset, edited, embed_path, info)
    check_masks(run, dataset, edited, edits, settings, objects)
    check_fields(settings.prompt, edits, dataset, edited)
    names = [dataset.class_names[dataset.get_label_by_idx(idx)] for idx in indices]
    unets = class_unets(settings, names)
    lora = None
    if info:
        lora = own_lora(settings, embed_path, experiment_of(run), trial, objects)
    weights = weights | weights_of_own(settings, info, lora) if info else {}
    common = compared_of(run, settings, dataset, info, weights, edits, objects)
    styles = [say_classes(dataset.class_names, style) for style in (settings.name_style, None)]
    if settings.name_style == "words" and styles[0] != styles[1]:
        common["name_style"] = Newer("words")
    common = check_settings(folder, common, settings.overwrite)
    words = say_classes(dataset.class_names, common.get("name_style"))
    if words != styles[0]:
        log.info("%s: prompts name classes as the prompts of the images there do", folder)
    masked = indices if uses_masks(run, edits, objects) else []
    details = details_of_classes(dataset, embed_path, info, unets, masked)
    precision = precision_of(settings, device) if info else "no"
    of_class = {name: details[name] | {"precision": precision} for name in dict.fromkeys(names)}
    there, stale = find_images(folder, config_id(common), of_class)
    if stale and not settings.overwrite:
        raise OtherSettings(
            f"{folder} holds images made {what_differs(stale, of_class, embed_path)}; choose "
            "another --aug_name or pass --overwrite to make them again"
        )
    # Where an augmentation is drawn for each image, blocks have more jobs, so that every
    # augmentation still has a full batch.
    alternatives = len(edits) if settings.compose == PARALLEL else 1
    constants = {
        "seed": trial.seed,
        "examples_per_class": trial.examples_per_class,
    }
    if info:
        constants |= {
            "num_inference_steps": settings.num_inference_steps,
            "resolution": check_resolution(info, settings.resolution),
            "model": settings.model,
        }
    if settings.negative_prompt and info:
        constants["negative_prompt"] = settings.negative_prompt
    if "lora" in weights:
        constants |= {"lora": lora_for_all(settings) or weights["lora"]}
        constants |= {"lora_scale": settings.lora_scale}
    for key in ("unet_path", "controlnet", "safety_checker") if info else ():
        if getattr(settings, key):
            constants[key] = getattr(settings, key)
            if hasattr(settings, f"{key}_scale"):
                constants[f"{key}_scale"] = getattr(settings, f"{key}_scale")
    return Plan(
        trial,
        folder,
        dataset,
        edited,
        there,
        make_jobs(edited, settings.num_synthetic),
        settings.batch_size * alternatives,
        already,
        common,
        of_class,
        constants,
        words_note(embed_path, trial),
        left_out,
        words,
        settings.save_size,
        functools.partial(
            build_augmentation, settings, edits, objects, info, embed_path, unets, lora
        ),
    )


def compared_of(
    run: Run, settings: Generation, dataset, info: ModelInfo | None, weights: dict,
    edits: list[dict], objects=None,
) -> dict:  # fmt: skip
    """Everything that changes an image, for config.json."""
    masked = any(edit["mask"] for edit in edits)
    facts = {
        "dataset": run.dataset,
        "dataset_args": sorted(run.dataset_args),
        "crop_to_object": run.crop_to_object,
        "photos": dataset.photo_digest(),
        **weights,
        "resolution": check_resolution(info, settings.resolution) if info else None,
        "num_inference_steps": settings.num_inference_steps,
        "scheduler": settings.scheduler,
        "fit": settings.fit,
        "mask_grow_radius": settings.mask_grow_radius if masked else 0,
        "mask_feather": settings.mask_feather if masked else 0,
        "prompt": list(settings.prompt),
        "edits": edits,
        "compose": settings.compose if len(edits) > 1 else None,
        "probs": check_probs(settings.probs, len(edits), settings.compose),
        **facts_of_places(settings, edits, dataset, objects),
    }
    if settings.lora in (NONE, OWN):  # the weights tell this trial's LoRA
        settings = dataclasses.replace(settings, lora=None, lora_scale=1.0)
    return compared(facts, run, settings)


def what_differs(stale: dict[str, dict], of_class: dict[str, dict], embed_path) -> str:
    """The settings and classes of outdated images."""
    what = {
        "embeddings": f"with other words than {embed_path} holds",
        "unet": "with other weights",
        "masks": "with other masks",
    }
    names: dict[str, set[str]] = {}
    for record in stale.values():
        name = record["class_name"]
        for key in differing_keys(record, of_class[name]):
            now = f"in another precision (there {record[key]}, now {of_class[name][key]})"
            names.setdefault(what.get(key, now), set()).add(name)
    return ", and ".join(
        f"{text} for: {', '.join(name for name in of_class if name in each)}"
        for text, each in names.items()
    )
