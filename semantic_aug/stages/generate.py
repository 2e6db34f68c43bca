"""What is to be made of a trial's photos, making this process's share of it, and judging it."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.augmentations.compose import check_probs
from semantic_aug.cli.notices import RESULT
from semantic_aug.diffusion.inspecting import ModelInfo, check_resolution
from semantic_aug.diffusion.loading import pick_device, warn_if_slow
from semantic_aug.experiment.config import Newer, config_id
from semantic_aug.experiment.names import CACHE, Trial, aug_dir
from semantic_aug.experiment.processes import at_work
from semantic_aug.experiment.sharding import shard_of
from semantic_aug.experiment.timing import GENERATE, timed
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.gate import (
    Filter,
    check_trial,
    load_scorer,
    make_filter,
    mark_worst,
    score_images,
    unscored,
)
from semantic_aug.settings import compared
from semantic_aug.settings.common import Run
from semantic_aug.settings.generation import PARALLEL, Generation
from semantic_aug.stages.checking_photos import (
    check_fields,
    check_masks,
    check_photos,
    suggest_save_size,
)
from semantic_aug.stages.choosing_words import choose_words, details_of_classes, words_note
from semantic_aug.stages.common import (
    arguments_of,
    command_line,
    dataset_of,
    experiment_of,
    nothing_to_do,
    prepared,
    stage,
    trials_of,
)
from semantic_aug.stages.editing import (
    build_augmentation,
    build_pipeline,
    check_given,
    check_model,
    class_unets,
    list_edits,
    load_extras,
    named_model,
    precision_of,
    split_objects,
    uses_masks,
    weights_of,
)
from semantic_aug.synthesis.jobs import Job, make_jobs, share_of
from semantic_aug.synthesis.making import generate as make_all
from semantic_aug.synthesis.records import (
    check_settings,
    differing_keys,
    find_images,
    read_records,
    write_metadata,
)
from semantic_aug.words.class_names import say_classes

log = logging.getLogger(__name__)
MOST_IMAGES = 10_000_000  # of a trial: the list of them must fit into memory


@dataclasses.dataclass(frozen=True)
class Images:
    """What there is of a trial's images.

    Attributes:
        made: how many this process has made now.
        there: how many there are.
        wanted: how many there are to be, whoever makes them.
        kept: how many the quality gate keeps, of the classes that are complete; None without one.
    """

    folder: Path
    made: int
    there: int
    wanted: int
    kept: int | None = None

    @property
    def paths(self) -> list[Path]:
        """All images that have a record, in their order."""
        return [self.folder / record["file_name"] for record in read_records(self.folder)]


@stage(Generation)
def generate(
    run: Run, settings: Generation, *, pipeline=None, command: str | None = None
) -> dict[Trial, Images]:
    """Turn each photo of the trials into varied photos of its class, by image-to-image edits.

    Args:
        pipeline: the model of the settings with its own weights, if it is loaded already; it stays
            as it is. Where no model is named, it is the one that this was loaded from.
        command: what made the images, for `config.json` (default: the same in flags).

    Returns:
        By trial, what there is of its images.

    Raises:
        UserError: whatever a person can mend; before the model is loaded.
    """
    run, experiment, trials = prepared(run), experiment_of(run), trials_of(run)
    shard = shard_of(settings.shard_index, settings.num_shards)
    settings, objects = split_objects(named_model(settings, pipeline))
    command = command or command_line("generate", run, settings)  # which names no object
    settings, embed_paths = choose_words(settings, experiment, trials)
    edits = list_edits(settings, objects)
    info = check_model(settings, edits)
    device = pick_device(settings.device)
    warn_if_slow(device, precision_of(settings, device))
    if pipeline is not None:
        check_given(settings, pipeline, device)
    weights = weights_of(settings, info)
    plans: list[Plan] = []
    for trial, path in embed_paths.items():
        already = sum(plan.num_blocks for plan in plans)
        plans.append(
            plan_trial(run, settings, trial, path, info, weights, edits, objects, device, already)
        )
    if settings.save_size is None:
        fresh = [(plan.dataset, plan.indices) for plan in plans if not plan.there]
        suggest_save_size(fresh, check_resolution(info, settings.resolution), settings)
    quality = None
    if settings.filter:
        quality = make_filter(settings.filter, settings.filter_model, settings.filter_quantile)
        for plan in plans:
            check_trial(quality, plan.dataset)
    blocks = sum(plan.num_blocks for plan in plans)
    if shard[0] >= blocks:
        log.log(RESULT, "%s", nothing_to_do(shard, counted(blocks, "block")))
        return {}
    load_judge = functools.cache(lambda: load_scorer(quality, device)) if quality else None
    if quality and load_judge and any(lacks_scores(plan, quality, shard) for plan in plans):
        load_judge()

    # Once for all trials, and only if an image is missing.
    load = functools.cache(functools.partial(build_pipeline, settings, info, device, pipeline))
    extras = functools.cache(functools.partial(load_extras, settings, info, device))
    found = {}
    wanted = {plan.trial: (len(plan.jobs),) * 2 for plan in plans}
    with at_work(experiment, GENERATE, wanted, settings.aug_name, shard) as reporter:
        for plan in plans:
            trial, kept = plan.trial, None
            reporter.works_on([trial])
            with timed(
                experiment, GENERATE, settings.aug_name, trial, device, settings.overwrite
            ) as work:
                made = make_images(
                    run, settings, command, plan, load, extras, shard, reporter.count
                )
                work.images = made
                if quality:
                    scored, kept = judge_images(
                        plan, quality, load_judge, shard, experiment / CACHE
                    )
                    work.images = made or (None if scored else 0)
            there = plan.there
            if made:  # to read 100,000 records takes seconds
                there, _ = find_images(plan.folder, config_id(plan.compared))
            found[trial] = Images(plan.folder, made, len(there), len(plan.jobs), kept)
            log.log(RESULT, "%s: %s made now; %d there, %d wanted", plan.folder,
                    counted(made, "image"), len(there), len(plan.jobs))  # fmt: skip
    return found


# --- what is to be done ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be made of one trial.

    Attributes:
        indices: the photos to be edited.
        there: names of the images that were there when this began.
        jobs: all images that are wanted of them, whoever makes them.
        batch_size: images per block.
        already: how many blocks were dealt out before those of this trial.
        compared: whatever changes an image, for config.json.
        of_class: what may change while that stays, by class and by its key in records.
        constants: what all records share.
        notes: for config.json, beside that.
        words: what prompts say for each class.
        make_augmentation: gives the augmentation, from a function that gives the pipeline, and
            what `load_extras` gives.
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
    words: dict[str, str]
    make_augmentation: Callable

    @property
    def num_blocks(self) -> int:
        return math.ceil(len(self.jobs) / self.batch_size)

    def share_of(self, shard: tuple[int, int]) -> list[list[Job]]:
        """The blocks of one process."""
        return share_of(self.jobs, self.batch_size, shard, self.already)


def plan_trial(
    run: Run, settings: Generation, trial, embed_path, info, weights, edits, objects, device,
    already: int,
) -> Plan:  # fmt: skip
    """What is to be made of a trial, where nothing stands in its way.

    Raises:
        UserError: a photo lacks what its edits need, weights do not fit the model, or the folder
            holds images that were made with other settings.
    """
    folder = aug_dir(experiment_of(run), settings.aug_name, trial)
    dataset = dataset_of(run, "train", trial)
    indices = dataset.indices(settings.classes)
    if len(indices) * settings.num_synthetic > MOST_IMAGES:
        raise UserError(
            f"--num_synthetic: got {settings.num_synthetic} for {counted(len(indices), 'photo')}, "
            f"expected {MOST_IMAGES:,} images of a trial at most"
        )
    check_photos(dataset, indices, embed_path, info)
    check_masks(dataset, indices, edits, settings)
    check_fields(settings.prompt, edits, dataset, indices)
    names = [dataset.class_names[dataset.get_label_by_idx(idx)] for idx in indices]
    unets = class_unets(settings, names)
    common = compared_of(run, settings, dataset, info, weights, edits)
    styles = [say_classes(dataset.class_names, style) for style in (settings.name_style, None)]
    if settings.name_style == "words" and styles[0] != styles[1]:
        common["name_style"] = Newer("words")
    common = check_settings(folder, common, settings.overwrite)
    words = say_classes(dataset.class_names, common.get("name_style"))
    if words != styles[0]:
        log.info("%s: prompts name the classes as those of the images there do", folder)
    masked = indices if uses_masks(run, edits) else []
    details = details_of_classes(dataset, embed_path, info, unets, masked)
    precision = precision_of(settings, device)
    of_class = {name: details[name] | {"precision": precision} for name in dict.fromkeys(names)}
    there, stale = find_images(folder, config_id(common), of_class)
    if stale and not settings.overwrite:
        raise UserError(
            f"{folder} holds images made {what_differs(stale, of_class, embed_path)}; choose "
            "another --aug_name or pass --overwrite to make them again"
        )
    # Augmentations of which one is drawn per image get their images from more jobs, so that each
    # has a full batch all the same.
    alternatives = len(edits) if settings.compose == PARALLEL else 1
    constants = {
        "seed": trial.seed,
        "examples_per_class": trial.examples_per_class,
        "num_inference_steps": settings.num_inference_steps,
        "resolution": check_resolution(info, settings.resolution),
        "model": settings.model,
    }
    for key in ("negative_prompt", "lora", "unet_path", "controlnet", "safety_checker"):
        if getattr(settings, key):
            constants[key] = getattr(settings, key)
            if hasattr(settings, f"{key}_scale"):
                constants[f"{key}_scale"] = getattr(settings, f"{key}_scale")
    return Plan(
        trial,
        folder,
        dataset,
        indices,
        there,
        make_jobs(indices, settings.num_synthetic),
        settings.batch_size * alternatives,
        already,
        common,
        of_class,
        constants,
        words_note(embed_path, trial),
        words,
        functools.partial(build_augmentation, settings, edits, objects, info, embed_path, unets),
    )


def compared_of(
    run: Run, settings: Generation, dataset, info: ModelInfo, weights: dict, edits: list[dict]
) -> dict:
    """Whatever changes an image, for config.json."""
    masked = any(edit["mask"] for edit in edits)
    facts = {
        "dataset": run.dataset,
        "dataset_args": sorted(run.dataset_args),
        "crop_to_object": run.crop_to_object,
        "photos": dataset.photo_digest(),
        **weights,
        "resolution": check_resolution(info, settings.resolution),
        "num_inference_steps": settings.num_inference_steps,
        "scheduler": settings.scheduler,
        "fit": settings.fit,
        "mask_grow_radius": settings.mask_grow_radius if masked else 0,
        "mask_feather": settings.mask_feather if masked else 0,
        "prompt": list(settings.prompt),
        "edits": edits,
        "compose": settings.compose if len(edits) > 1 else None,
        "probs": check_probs(settings.probs, len(edits), settings.compose),
    }
    return compared(facts, run, settings)


def what_differs(stale: dict[str, dict], of_class: dict[str, dict], embed_path) -> str:
    """With what images that are out of date were made, and of which classes they are."""
    what = {
        "embeddings": f"with other words than those in {embed_path}",
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


# --- doing it --------------------------------------------------------------------------------


def make_images(run, settings, command, plan: Plan, pipeline, extras, shard, count) -> int:
    """This process's share of the images that are missing; how many were made."""
    return make_all(
        plan.dataset,
        lambda: plan.make_augmentation(pipeline, extras()),
        plan.folder,
        plan.compared,
        num_synthetic=settings.num_synthetic,
        batch_size=plan.batch_size,
        seed=plan.trial.seed,
        indices=plan.indices,
        shard=shard,
        already=plan.already,
        constants=plan.constants,
        arguments={**arguments_of(run, settings), "command": command},
        notes=plan.notes,
        of_class=plan.of_class,
        save_size=settings.save_size,
        words=plan.words,
        count=count,
    )


def judge_images(plan: Plan, quality: Filter, load_judge, shard, cache: Path) -> tuple[int, int]:
    """Score this process's share, and mark the worst of every class that is complete.

    Returns:
        How many images were scored, and how many of all are kept.
    """
    folder, identity = plan.folder, config_id(plan.compared)
    names = plan.dataset.class_names
    of_class: dict[str, list[Job]] = {}
    for job in plan.jobs:
        of_class.setdefault(names[plan.dataset.get_label_by_idx(job.index)], []).append(job)
    try:
        scored = score_images(
            folder,
            identity,
            quality,
            lambda: load_judge()(plan.dataset, plan.trial, cache, plan.words),
            plan.dataset,
            names_to_score(plan, quality, shard),
            shard,
        )
        judged = mark_worst(folder, identity, quality, of_class, shard)
    finally:
        write_metadata(folder, identity)  # which has the scores too
    kept, total = (sum(column) for column in zip((0, 0), *judged.values()))
    line = (
        f"{folder}: {counted(scored, 'image')} scored now; "
        f"{kept} of {total} kept by --filter {quality.kind}"
    )
    if len(judged) < len(of_class):
        line += "; images of other processes are still lacking in "
        line += counted(len(of_class) - len(judged), "class")
    log.log(RESULT, "%s", line)
    return scored, kept


def names_to_score(plan: Plan, quality: Filter, shard: tuple[int, int]) -> set[str]:
    """This process's share of the images, and, of the first one, those beyond what is wanted."""
    names = {job.file_name for block in plan.share_of(shard) for job in block}
    if shard[0] == 0:
        labels = {plan.dataset.get_label_by_idx(idx) for idx in plan.indices}
        there = unscored(plan.folder, config_id(plan.compared), quality)
        wanted = {job.file_name for job in plan.jobs}
        names |= {r["file_name"] for r in there if r["label"] in labels} - wanted
    return names


def lacks_scores(plan: Plan, quality: Filter, shard: tuple[int, int]) -> bool:
    """Whether an image of this process's share is yet to be made, or to be scored."""
    identity = config_id(plan.compared)
    there, _ = find_images(plan.folder, identity, plan.of_class)
    todo = {record["file_name"] for record in unscored(plan.folder, identity, quality)}
    names = names_to_score(plan, quality, shard)
    return bool(names & todo or names - there)
