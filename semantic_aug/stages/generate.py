"""Planning a trial's images, making this process's share of them, and scoring the images."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from semantic_aug import UserError, counted
from semantic_aug.cli.notices import RESULT
from semantic_aug.diffusion.inspecting import check_resolution
from semantic_aug.diffusion.loading import pick_device, warn_if_slow
from semantic_aug.diffusion.lora import no_lora_left
from semantic_aug.experiment.config import config_id
from semantic_aug.experiment.names import CACHE, PLACES, Trial
from semantic_aug.experiment.processes import at_work
from semantic_aug.experiment.sharding import shard_of
from semantic_aug.experiment.timing import GENERATE, timed
from semantic_aug.gate import (
    Filter,
    check_trial,
    load_scorer,
    make_filter,
    mark_worst,
    score_images,
    unscored,
)
from semantic_aug.settings.common import Run
from semantic_aug.settings.generation import Generation
from semantic_aug.stages.checking_photos import suggest_save_size
from semantic_aug.stages.choosing_words import choose_words
from semantic_aug.stages.common import (
    arguments_of,
    command_line,
    experiment_of,
    nothing_to_do,
    prepared,
    stage,
    trials_of,
)
from semantic_aug.stages.editing import (
    build_pipeline,
    load_extras,
    model_of_objects,
    named_model,
    precision_of,
)
from semantic_aug.stages.edits import list_edits, split_objects
from semantic_aug.stages.estimating import cost_teller, say_quicker, warm_up_blocks
from semantic_aug.stages.planning import Plan, images_to_make, plan_trials
from semantic_aug.synthesis.jobs import Job
from semantic_aug.synthesis.making import generate as make_all
from semantic_aug.synthesis.records import find_images, read_records, write_metadata

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Images:
    """The counts of a trial's images.

    Attributes:
        made: images that this process has made now.
        there: existing images.
        wanted: images that all processes together will make.
        kept: images of complete classes that the quality gate keeps; None without a gate.
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
    run: Run,
    settings: Generation,
    *,
    pipeline=None,
    command: str | None = None,
    computed: Callable[[float, Sequence[Image.Image]], None] | None = None,
) -> dict[Trial, Images]:
    """Turn each photo of the trials into varied images of its class, by image-to-image edits.

    Args:
        pipeline: the model of the settings with its own weights, if it is already loaded; it does
            not change. If the settings name no model, its name comes from the pipeline.
        command: the command that made the images, for `config.json` (default: the settings in
            flags).
        computed: called after each block with the seconds and the computed images (default: logs
            once how long all will take). Its exceptions end the work, and no image is lost.

    Returns:
        The counts of images, by trial.

    Raises:
        UserError: an error that the user can fix, raised before the model is loaded.
    """
    run, experiment, trials = prepared(run), experiment_of(run), trials_of(run)
    shard = shard_of(settings.shard_index, settings.num_shards)
    if settings.aug_name == PLACES and not any((experiment / PLACES).glob("seed=*")):
        raise UserError(f"--aug_name: {PLACES} is the folder of generated places; choose another")
    settings, objects = split_objects(named_model(settings, pipeline))
    settings = model_of_objects(settings, objects)
    command = command or command_line("generate", run, settings)  # without objects
    settings, embed_paths = choose_words(settings, experiment, trials)
    edits = list_edits(settings, objects)
    device = pick_device(settings.device)
    warn_if_slow(device, precision_of(settings, device))
    info, plans = plan_trials(run, settings, embed_paths, edits, objects, pipeline)
    if settings.save_size is None and info:
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

    # The model is loaded once for all trials, and only if an image is missing.
    load = functools.cache(functools.partial(build_pipeline, settings, info, device, pipeline))
    extras = functools.cache(
        functools.partial(load_extras, settings, info, device) if info else dict
    )
    tell = computed or cost_teller(
        functools.partial(images_to_make, plans, shard),
        functools.partial(say_quicker, settings, edits, info, plans[0].dataset),
        warm_up_blocks(settings, device),
    )
    found = {}
    wanted = {plan.trial: (len(plan.jobs),) * 2 for plan in plans}
    with (
        at_work(experiment, GENERATE, wanted, settings.aug_name, shard) as reporter,
        no_lora_left(pipeline),
    ):
        for plan in plans:
            trial, kept = plan.trial, None
            reporter.works_on([trial])
            with timed(
                experiment, GENERATE, settings.aug_name, trial, device, settings.overwrite
            ) as work:
                made = make_images(
                    run, settings, command, plan, load, extras, shard, reporter.count, tell
                )
                work.images = made
                if quality:
                    scored, kept = judge_images(
                        plan, quality, load_judge, shard, experiment / CACHE
                    )
                    work.images = made or (None if scored else 0)
            there = plan.there
            if made:  # reading 100,000 records takes seconds
                there, _ = find_images(plan.folder, config_id(plan.compared))
            found[trial] = Images(plan.folder, made, len(there), len(plan.jobs), kept)
            done = sum(job.file_name in there for job in plan.jobs)  # there may be more images
            log.log(RESULT, "%s: %s made now; %d of %d exist", plan.folder,
                    counted(made, "image"), done, len(plan.jobs))  # fmt: skip
    return found


# --- doing it --------------------------------------------------------------------------------


def make_images(run, settings, command, plan: Plan, pipeline, extras, shard, count, tell) -> int:
    """Make this process's share of the missing images; return how many were made."""
    return make_all(
        plan.dataset,
        lambda: plan.make_augmentation(plan.folder, pipeline, extras()),
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
        left_out=plan.left_out,
        save_size=plan.save_size,
        words=plan.words,
        count=count,
        computed=tell,
    )


def judge_images(plan: Plan, quality: Filter, load_judge, shard, cache: Path) -> tuple[int, int]:
    """Score this process's share, and mark the worst images of every complete class.

    Returns:
        How many images were scored, and how many of all images are kept.
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
        write_metadata(folder, identity)  # metadata includes the scores
    kept, total = (sum(column) for column in zip((0, 0), *judged.values()))
    line = (
        f"{folder}: {counted(scored, 'image')} scored now; "
        f"{kept} of {total} kept by --filter {quality.kind}"
    )
    if len(judged) < len(of_class):
        line += "; images of other processes are still missing in "
        line += counted(len(of_class) - len(judged), "class")
    log.log(RESULT, "%s", line)
    return scored, kept


def names_to_score(plan: Plan, quality: Filter, shard: tuple[int, int]) -> set[str]:
    """This process's share of the images; the first process also gets images beyond the plan."""
    names = {job.file_name for block in plan.share_of(shard) for job in block}
    if shard[0] == 0:
        labels = {plan.dataset.get_label_by_idx(idx) for idx in plan.indices}
        there = unscored(plan.folder, config_id(plan.compared), quality)
        wanted = {job.file_name for job in plan.jobs}
        names |= {r["file_name"] for r in there if r["label"] in labels} - wanted
    return names


def lacks_scores(plan: Plan, quality: Filter, shard: tuple[int, int]) -> bool:
    """Whether an image of this process's share has not been made or scored yet."""
    identity = config_id(plan.compared)
    there, _ = find_images(plan.folder, identity, plan.of_class)
    todo = {record["file_name"] for record in unscored(plan.folder, identity, quality)}
    names = names_to_score(plan, quality, shard)
    return bool(names & todo or names - there)
