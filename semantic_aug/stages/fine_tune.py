"""Which words a command is to learn, and with what settings."""

import logging
import math
from pathlib import Path

from semantic_aug import UserError
from semantic_aug.experiment.config import check_config, config_id
from semantic_aug.experiment.names import EMBEDDINGS_FILE, Trial, fine_tuned_dir, folder_names
from semantic_aug.stages.common import dataset_of
from semantic_aug.words.checkpoints import list_checkpoints
from semantic_aug.words.embeddings import placeholder_token, placeholder_tokens, read_header
from semantic_aug.words.resuming import Lesson
from semantic_aug.words.rows import initializer_id
from semantic_aug.words.session import photos_per_step
from semantic_aug.words.templates import TEMPLATES

log = logging.getLogger(__name__)


def wanted_of(lessons: list[Lesson], args) -> dict[Trial, tuple[int, int]]:
    """By trial, how many words there are to be in the end, and how many photos that shows."""
    wanted: dict[Trial, tuple[int, int]] = {}
    for lesson in lessons:
        words, photos = wanted.get(lesson.trial, (0, 0))
        wanted[lesson.trial] = words + 1, photos + lesson.steps * photos_per_step(args)
    return wanted


def plan(args, info, settings, tokenizer, experiment: Path, trial: Trial) -> list[Lesson]:
    """The words of one trial, one per class with photos."""
    dataset = dataset_of(args, "train", trial)
    dataset.indices(args.classes)  # names unknown classes
    empty = dataset.empty_classes()
    if empty:
        log.warning("classes without a training photo, left out: %s", ", ".join(empty))
    classes = tuple(name for name in dataset.class_names if name not in empty)
    chosen = [name for name in classes if args.classes is None or name in args.classes]
    if not chosen:
        raise UserError(f"none of the classes chosen has a photo in {trial.name}")
    tokens = placeholder_tokens(dataset.class_names)
    if args.placeholder_token:
        token = own_token(args.placeholder_token, chosen)
        if token in (text for name, text in tokens.items() if name != chosen[0]):
            raise UserError(f"--placeholder_token: {token} is the token of another class")
        tokens[chosen[0]] = token
    folder, folders = fine_tuned_dir(experiment, trial), folder_names(dataset.class_names)
    files = [folder / name / EMBEDDINGS_FILE for name in folders.values()]
    begun = any(file.exists() or list_checkpoints(file.parent) for file in files)
    settings = check_config(folder, settings, begun, args.overwrite, ids=lambda: ids_of(files))
    lessons = []
    for name in chosen:
        if tokens[name] in tokenizer.get_vocab():
            raise UserError(
                f"token {tokens[name]} exists already in {args.model}; choose another with "
                "--placeholder_token"
            )
        initializer = initializer_id(tokenizer, args.initializer_token, name)
        start = tokenizer.convert_ids_to_tokens(initializer)
        photos = dataset.indices([name])
        if args.crop_to_object:
            for idx in photos:
                dataset.get_mask_by_idx(idx)  # found wrong here, not after the model is loaded
        header = {
            "model": args.model,
            "dataset": args.dataset,
            "class": name,
            "token": tokens[name],
            "seed": trial.seed,
            "examples_per_class": trial.examples_per_class,
            "num_vectors": args.num_vectors,
            "initializer": start.removesuffix("</w>"),
            "steps": steps_of(args, len(photos)),
            "photos": dataset.photo_digest(photos),
            "config_id": config_id(settings),
        }
        path = folder / folders[name] / EMBEDDINGS_FILE
        lessons.append(Lesson(dataset, name, path, start, tokens[name], header, classes, settings))
    return lessons


def ids_of(files: list[Path]) -> set[str]:
    """The `config_id` of each finished word; one that was learned elsewhere has none.

    What a checkpoint was made with is compared when it is read.
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


def fit_of(args) -> str:
    """How photos get into the square; UserError where two flags disagree."""
    if args.center_crop and args.fit not in (None, "crop"):
        raise UserError(f"--center_crop means --fit crop, and --fit {args.fit} is given too")
    return args.fit or ("crop" if args.center_crop else "squash")


def settings_of(args, info, templates) -> dict:
    """What changes a learned word, apart from its own start and name."""
    keys = (
        "dataset", "dataset_args", "crop_to_object", "num_vectors", "resolution", "center_crop",
        "max_train_steps", "num_train_epochs", "repeats", "train_batch_size",
        "gradient_accumulation_steps", "learning_rate", "scale_lr", "lr_scheduler",
        "lr_warmup_steps", "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon",
    )  # fmt: skip
    settings = {key: getattr(args, key) for key in keys}
    settings["dataset_args"] = sorted(args.dataset_args)
    if args.fit == "pad":  # older folders, which know of two ways, have center_crop alone
        settings["fit"] = args.fit
    settings["templates"] = args.templates if args.templates in TEMPLATES else list(templates)
    return {"model": info.identity, **settings}


def steps_of(args, num_photos: int) -> int:
    """Optimiser steps for one class."""
    if args.max_train_steps is not None or args.num_train_epochs is None:
        return args.max_train_steps or 1000
    per_step = args.train_batch_size * args.gradient_accumulation_steps
    return args.num_train_epochs * math.ceil(num_photos * args.repeats / per_step)
