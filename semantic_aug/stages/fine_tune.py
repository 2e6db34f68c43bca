"""Teaching a frozen Stable Diffusion a new word per class: planning and training."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from pathlib import Path

from semantic_aug import UserError, counted, stable_hash
from semantic_aug.diffusion.inspecting import check_resolution, inspect_model
from semantic_aug.diffusion.loading import (
    load_pipeline,
    load_tokenizer,
    make_scheduler,
    pick_device,
    pick_dtype,
    warn_if_slow,
)
from semantic_aug.experiment.config import check_config, config_id, read_config, write_config
from semantic_aug.experiment.files import remove_leftovers
from semantic_aug.experiment.names import EMBEDDINGS_FILE, LORA, Trial, fine_tuned_dir, folder_names
from semantic_aug.experiment.processes import at_work
from semantic_aug.experiment.sharding import shard_of
from semantic_aug.experiment.timing import FINE_TUNE
from semantic_aug.settings import compared
from semantic_aug.settings.common import Run
from semantic_aug.settings.fine_tuning import FineTuning
from semantic_aug.stages.common import (
    arguments_of,
    dataset_of,
    experiment_of,
    prepared,
    stage,
    trials_of,
)
from semantic_aug.stages.domain_adapters import check_domains, find_domains, train_domains
from semantic_aug.stages.editing import named_model
from semantic_aug.words.checkpoints import list_checkpoints
from semantic_aug.words.convergence import check_convergence
from semantic_aug.words.embeddings import placeholder_token, placeholder_tokens, read_header
from semantic_aug.words.prompts import check_num_vectors
from semantic_aug.words.resuming import Lesson, check_checkpoint, groups_of, runs_of
from semantic_aug.words.rows import initializer_id
from semantic_aug.words.session import photos_per_step, train_all
from semantic_aug.words.templates import TEMPLATES, load_templates
from semantic_aug.words.tracking import check_tracker

log = logging.getLogger(__name__)
DEFAULT_STEPS = 1000
# The keys of config.json in their order; newer settings follow by their declaration.
IN_THIS_ORDER = (
    "num_vectors", "resolution", "center_crop", "max_train_steps", "num_train_epochs", "repeats",
    "train_batch_size", "gradient_accumulation_steps", "learning_rate", "scale_lr", "lr_scheduler",
    "lr_warmup_steps", "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Learned:
    """The results of this process's share of words.

    Attributes:
        made, skipped: embedding files; skipped files were finished before.
        failed: `TRIAL/CLASS` of words whose training diverged, and `TRIAL` of such LoRAs.
        loras: the existing LoRA files of the share's trials.
    """

    made: list[Path]
    skipped: list[Path]
    failed: list[str]
    loras: list[Path] = dataclasses.field(default_factory=list)


@stage(FineTuning)
def fine_tune(
    run: Run,
    settings: FineTuning,
    *,
    pipeline=None,
    computed: Callable[[float, int], None] | None = None,
) -> Learned:
    """Learn a word per class and trial by textual inversion (arXiv 2208.01618).

    With `lora_rank`, a LoRA is trained for each trial whose words are complete.

    Args:
        pipeline: the model of the settings, loaded in their precision and on their device. Without
            a pipeline, the model is loaded if any work is left.
        computed: called after each step with the seconds and the number of photos of the step. Its
            exceptions end the training; written checkpoints stay.

    Raises:
        UserError: an error that the user can fix, raised before the model is loaded.
    """
    run, experiment, shard = (
        prepared(run),
        experiment_of(run),
        shard_of(settings.shard_index, settings.num_shards),
    )
    settings = completed(named_model(settings, pipeline))
    check_tracker(settings.report_to)
    check_domains(settings, experiment)
    templates = load_templates(settings.templates or "")
    info = inspect_model(settings.model, settings.revision, settings.variant)
    if info.for_inpainting:
        raise UserError(f"{settings.model} is an inpainting model; expected its base model")
    settings = dataclasses.replace(settings, resolution=check_resolution(info, settings.resolution))
    device = pick_device(settings.device)
    warn_if_slow(device, settings.mixed_precision)
    make_scheduler(info, "DDPMScheduler")  # fails before the model is loaded
    tokenizer = load_tokenizer(info)
    check_num_vectors(tokenizer, settings.num_vectors, templates)
    if settings.validation_prompt and "*" not in settings.validation_prompt:
        log.warning("--validation_prompt has no *: its images will not show the learned words")
    common = compared_of(run, settings, info, templates)
    lessons = [
        lesson
        for trial in trials_of(run)
        for lesson in plan(run, settings, info, common, tokenizer, experiment, trial)
    ]
    steps = min(lesson.steps for lesson in lessons)
    check_convergence(settings, photos_per_step(settings), steps)
    if settings.resume_from_checkpoint != "latest":
        check_checkpoint(Path(settings.resume_from_checkpoint), lessons)
    if settings.num_train_epochs is not None and settings.max_train_steps is not None:
        log.warning("--num_train_epochs is not used: --max_train_steps takes precedence")
    groups = groups_of(lessons, settings.classes_per_step, shard)
    runs = [each for group in groups for each in runs_of(group, common, settings)]

    def say_how(lesson: Lesson) -> None:
        arguments = {**arguments_of(run, settings), "class_names": lesson.trial_classes}
        write_config(lesson.folder.parent, lesson.settings, arguments)

    for lesson in lessons:
        # Finished words have these settings: see `plan`.
        finished = lesson.path.exists() and not settings.overwrite
        if finished and read_config(lesson.folder.parent) is None:
            say_how(lesson)
    mine = [lesson for group in groups for lesson in group]
    todo = [lesson for each in runs for lesson in each]
    left = set(todo)
    skipped = [lesson.path for lesson in mine if lesson not in left]
    find_loras = functools.partial(find_domains, run, settings, info, experiment, lessons, shard)
    domains = find_loras()
    if not todo and not domains.ready:
        domains.say_what_is_left()
        if shard[1] > 1 and not domains.owing:
            log.info("nothing left to do for shard %d of %d", *shard)
        return Learned([], skipped, [], domains.trained)
    if skipped:
        log.info("%s finished already: skipped", counted(len(skipped), "word"))

    if pipeline is None:
        pipeline = load_pipeline(info, device, pick_dtype(device, settings.mixed_precision))
    with at_work(experiment, FINE_TUNE, wanted_of(lessons, settings), shard=shard) as reporter:
        for lesson in todo:
            say_how(lesson)
            for folder in (lesson.folder.parent, lesson.folder, lesson.folder / "validation"):
                remove_leftovers(folder)
        failed = []
        if todo:
            failed = train_all(
                settings, pipeline, templates, common, runs, experiment, shard, reporter, computed
            )
            domains = find_loras()
    domains.say_what_is_left()
    if domains.ready:
        photos = photos_per_step(settings) * settings.lora_steps
        wanted = dict.fromkeys(domains.trials, (1, photos))
        with at_work(experiment, FINE_TUNE, wanted, LORA, shard) as reporter:
            failed += train_domains(
                run, settings, info, pipeline, templates, experiment, domains.ready, shard, reporter
            )
    if failed:
        log.error("not trained: %s", ", ".join(failed))
    made = [lesson.path for lesson in todo if lesson.where not in failed]
    loras = [each.path for each in domains.ready if each.trial.name not in failed]
    return Learned(made, skipped, failed, domains.trained + loras)


def completed(settings: FineTuning) -> FineTuning:
    """The settings with both flags filled in for steps, templates and the fit of photos.

    Raises:
        UserError: the two flags disagree.
    """
    steps = settings.max_train_steps
    if settings.num_train_epochs is None and steps is None:
        steps = DEFAULT_STEPS
    fit = fit_of(settings)
    return dataclasses.replace(
        settings,
        max_train_steps=steps,
        fit=fit,
        center_crop=fit == "crop",
        templates=settings.templates or settings.learnable_property,
    )


def wanted_of(lessons: list[Lesson], settings: FineTuning) -> dict[Trial, tuple[int, int]]:
    """By trial, the final number of words, and how many photos their training shows."""
    wanted: dict[Trial, tuple[int, int]] = {}
    for lesson in lessons:
        words, photos = wanted.get(lesson.trial, (0, 0))
        wanted[lesson.trial] = words + 1, photos + lesson.steps * photos_per_step(settings)
    return wanted


def plan(
    run: Run, settings: FineTuning, info, common: dict, tokenizer, experiment: Path, trial: Trial
) -> list[Lesson]:
    """The words of a trial: a word for each class with photos."""
    dataset = dataset_of(run, "train", trial)
    dataset.indices(settings.classes)  # raises for unknown classes
    empty = dataset.empty_classes()
    if empty:
        log.warning("classes without a training photo, left out: %s", ", ".join(empty))
    classes = tuple(name for name in dataset.class_names if name not in empty)
    chosen = [name for name in classes if settings.classes is None or name in settings.classes]
    if not chosen:
        raise UserError(f"no chosen class has a photo in {trial.name}")
    tokens = placeholder_tokens(dataset.class_names)
    if settings.placeholder_token:
        token = own_token(settings.placeholder_token, chosen)
        if token in (text for name, text in tokens.items() if name != chosen[0]):
            raise UserError(f"--placeholder_token: {token} is the token of another class")
        tokens[chosen[0]] = token
    folder, folders = fine_tuned_dir(experiment, trial), folder_names(dataset.class_names)
    files = [folder / name / EMBEDDINGS_FILE for name in folders.values()]
    begun = any(file.exists() or list_checkpoints(file.parent) for file in files)
    if run.mask_dir and run.crop_to_object:  # masks decide the crops
        masks = dataset.mask_digests(range(len(dataset)))
        common = common | {"masks": f"{stable_hash('masks', *masks):016x}"}
    common = check_config(folder, common, begun, settings.overwrite, ids=lambda: ids_of(files))
    lessons = []
    for name in chosen:
        if tokens[name] in tokenizer.get_vocab():
            raise UserError(
                f"token {tokens[name]} exists already in {settings.model}; choose another with "
                "--placeholder_token"
            )
        initializer = initializer_id(tokenizer, settings.initializer_token, name)
        start = tokenizer.convert_ids_to_tokens(initializer)
        photos = dataset.indices([name])
        if run.crop_to_object:
            for idx in photos:
                dataset.get_mask_by_idx(idx)  # fails before the model is loaded
        header = {
            "model": settings.model,
            "dataset": run.dataset,
            "class": name,
            "token": tokens[name],
            "seed": trial.seed,
            "examples_per_class": trial.examples_per_class,
            "num_vectors": settings.num_vectors,
            "initializer": start.removesuffix("</w>"),
            "steps": steps_of(settings, len(photos)),
            "photos": dataset.photo_digest(photos),
            "config_id": config_id(common),
        }
        path = folder / folders[name] / EMBEDDINGS_FILE
        lessons.append(Lesson(dataset, name, path, start, tokens[name], header, classes, common))
    return lessons


def ids_of(files: list[Path]) -> set[str]:
    """The `config_id` of each finished word; words from other tools have none.

    The settings of a checkpoint are compared when the checkpoint is read.
    """
    found = {read_header(file).get("config_id") for file in files if file.exists()}
    return {each for each in found if each}


def own_token(token: str, classes: list[str]) -> str:
    """`--placeholder_token` in the form that stock diffusers finds again in a prompt."""
    if len(classes) != 1:
        raise UserError(
            f"--placeholder_token names one word, and {len(classes)} classes are trained; choose "
            "one with --classes"
        )
    inner = token.strip().removeprefix("<").removesuffix(">")
    if not inner.strip():
        raise UserError(f"--placeholder_token: got {token!r}, expected a name such as <my-motor>")
    return placeholder_token(inner)


def fit_of(settings: FineTuning) -> str:
    """How photos are fitted into the square; raise UserError where two flags disagree."""
    if settings.center_crop and settings.fit not in (None, "crop"):
        raise UserError(f"--center_crop means --fit crop, and --fit {settings.fit} is given too")
    return settings.fit or ("crop" if settings.center_crop else "squash")


def compared_of(run: Run, settings: FineTuning, info, templates) -> dict:
    """Everything that changes a learned word, except for its own initial value and name."""
    facts = {
        "model": info.identity,
        "dataset": run.dataset,
        "dataset_args": sorted(run.dataset_args),
        "crop_to_object": run.crop_to_object,
        **{name: getattr(settings, name) for name in IN_THIS_ORDER},
    }
    if settings.fit == "pad":  # older folders know only center_crop, with two values
        facts["fit"] = settings.fit
    known = settings.templates in TEMPLATES
    facts["templates"] = settings.templates if known else list(templates)
    return compared(facts, run, settings)


def steps_of(settings: FineTuning, num_photos: int) -> int:
    """Optimiser steps for a class."""
    if settings.max_train_steps is not None or settings.num_train_epochs is None:
        return settings.max_train_steps or DEFAULT_STEPS
    per_step = settings.train_batch_size * settings.gradient_accumulation_steps
    return settings.num_train_epochs * math.ceil(num_photos * settings.repeats / per_step)
