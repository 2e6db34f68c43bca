"""Teach a frozen Stable Diffusion one new word per class (textual inversion, arXiv 2208.01618).

    python fine_tune.py --dataset=folder --data_dir=photos --experiment_name=demo \\
        --examples_per_class 4 --num_vectors 4 --max_train_steps 1000 --mixed_precision fp16

Writes output/EXP/fine-tuned/seed=S_ex=N/CLASS/learned_embeds.safetensors for every class and
trial. Several classes are trained in each batch, each exactly as if alone. Finished classes are
skipped and begun ones go on from their last checkpoint, so that the same command goes on after an
interruption. Next: aggregate_embeddings.py.
"""

if __name__ == "__main__":
    from semantic_aug.experiment.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

import logging
from pathlib import Path

from semantic_aug import UserError
from semantic_aug.cli.command import Parser, command
from semantic_aug.diffusion.inspecting import check_resolution, inspect_model
from semantic_aug.diffusion.loading import (
    load_pipeline,
    load_tokenizer,
    make_scheduler,
    pick_device,
    pick_dtype,
)
from semantic_aug.experiment.config import read_config, write_config
from semantic_aug.experiment.files import remove_leftovers
from semantic_aug.experiment.processes import at_work
from semantic_aug.experiment.sharding import shard_of
from semantic_aug.experiment.timing import FINE_TUNE
from semantic_aug.images.framing import FITS
from semantic_aug.settings import (
    add_classes_flag,
    add_dataset_flags,
    add_experiment_flags,
    add_model_flags,
    add_shard_flags,
    fraction_below_one,
    non_negative,
    non_negative_int,
    positive,
    positive_int,
    whole_number,
)
from semantic_aug.stages.common import experiment_of, trials_of
from semantic_aug.stages.fine_tune import fit_of, plan, settings_of, wanted_of
from semantic_aug.words.prompts import check_num_vectors
from semantic_aug.words.resuming import Lesson, check_checkpoint, groups_of, runs_of
from semantic_aug.words.session import train_all
from semantic_aug.words.templates import load_templates
from semantic_aug.words.tracking import check_tracker

log = logging.getLogger("semantic_aug.fine_tune")


def parse_args(argv=None):
    return build_parser().parse_args(argv)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add_experiment_flags(parser)
    add_dataset_flags(parser)
    add_classes_flag(parser)
    add_model_flags(parser, "--pretrained_model_name_or_path", "--model_path")
    add_shard_flags(parser)

    words = parser.add_argument_group("the new words")
    words.add_argument(
        "--initializer_token",
        help="word that the new ones start from, a single token "
        "(default: the last such word of the class name)",
    )
    words.add_argument("--placeholder_token", help="name of the new word, with one class")
    words.add_argument("--num_vectors", type=int, default=1, help="vectors per word")
    words.add_argument(
        "--templates",
        help="sentences that the word is trained in: object, style, mvip (machine parts), or a "
        "text file with one per line, {} for the word (default: --learnable_property)",
    )
    words.add_argument(
        "--learnable_property",
        choices=("object", "style"),
        default="object",
        help="sentences for a thing or for a style",
    )

    training = parser.add_argument_group("training")
    training.add_argument(
        "--max_train_steps", type=positive_int, help="optimiser steps per class (default 1000)"
    )
    training.add_argument(
        "--num_train_epochs",
        type=positive_int,
        help="in place of --max_train_steps: passes over a class's photos, each counted "
        "--repeats times",
    )
    training.add_argument(
        "--repeats", type=positive_int, default=100, help="how often an epoch shows each photo"
    )
    training.add_argument(
        "--train_batch_size",
        type=whole_number(1, 4096),
        default=4,
        help="photos of each class at once",
    )
    training.add_argument(
        "--classes_per_step",
        type=positive_int,
        default=8,
        help="classes that are trained together; fewer need less memory, and give the same words "
        "but for rounding",
    )
    training.add_argument(
        "--gradient_accumulation_steps",
        type=positive_int,
        default=1,
        help="batches whose gradients make one step",
    )
    training.add_argument("--learning_rate", type=positive, default=5e-4, help="of AdamW")
    training.add_argument(
        "--scale_lr",
        action="store_true",
        help="multiply the learning rate by batch size and accumulation steps",
    )
    training.add_argument(
        "--lr_scheduler",
        choices=(
            "linear",
            "cosine",
            "cosine_with_restarts",
            "polynomial",
            "constant",
            "constant_with_warmup",
        ),
        default="constant",
        help="how the learning rate changes over the steps",
    )
    training.add_argument(
        "--lr_warmup_steps",
        type=non_negative_int,
        default=0,
        help="first steps, in which the learning rate rises from 0",
    )
    training.add_argument(
        "--adam_beta1", type=fraction_below_one, default=0.9, help="decay of AdamW's mean gradient"
    )
    training.add_argument(
        "--adam_beta2", type=fraction_below_one, default=0.999, help="decay of its mean square"
    )
    training.add_argument(
        "--adam_weight_decay", type=non_negative, default=1e-2, help="pull of AdamW towards 0"
    )
    training.add_argument(
        "--adam_epsilon",
        type=non_negative,
        default=1e-8,
        help="what keeps AdamW from dividing by 0",
    )
    training.add_argument(
        "--fit",
        choices=FITS,
        help="how a photo gets into the model's square: mirrored at its edges, where no loss is "
        "taken, its middle alone, or squeezed (default squash)",
    )
    training.add_argument("--center_crop", action="store_true", help="means --fit crop")
    training.add_argument(
        "--mixed_precision",
        choices=("no", "fp16", "bf16"),
        default="no",
        help="precision of the frozen model; the new words are always float32",
    )
    training.add_argument("--gradient_checkpointing", action="store_true", help="less memory")
    training.add_argument("--attention_slicing", action="store_true", help="less memory, slower")
    training.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the UNet: faster after some minutes, and rounded differently",
    )

    interruptions = parser.add_argument_group("interruptions")
    interruptions.add_argument(
        "--checkpointing_steps",
        type=positive_int,
        default=100,
        help="steps between checkpoints, which are removed when a class is finished",
    )
    interruptions.add_argument(
        "--checkpoints_total_limit",
        type=positive_int,
        default=2,
        help="latest checkpoints kept of each class",
    )
    interruptions.add_argument(
        "--resume_from_checkpoint",
        default="latest",
        help="latest, or the path of one checkpoint file, from whose step its class goes on, and "
        "those that are trained together with it",
    )

    watching = parser.add_argument_group("watching")
    watching.add_argument(
        "--validation_prompt", help='makes images with each word, *: "a photo of a *"'
    )
    watching.add_argument(
        "--validation_steps",
        type=positive_int,
        help="steps between validations: a loss that is comparable between steps, and images of "
        "--validation_prompt (default: no such loss, and images at a class's end)",
    )
    watching.add_argument(
        "--num_validation_images",
        type=whole_number(1, 1000),
        default=4,
        help="images at each validation",
    )
    watching.add_argument(
        "--save_steps", type=positive_int, help="keep the word after every so many steps as well"
    )
    watching.add_argument(
        "--report_to",
        default="tensorboard",
        help="tensorboard, wandb or another tracker of accelerate, all, or none",
    )
    return parser


@command
def main(argv=None):
    args = parse_args(argv)
    experiment, shard = experiment_of(args), shard_of(args)
    if args.num_train_epochs is None and args.max_train_steps is None:
        args.max_train_steps = 1000

    # Whatever can be wrong is found before the model is loaded.
    args.fit = fit_of(args)
    args.center_crop = args.fit == "crop"
    check_tracker(args.report_to)
    args.templates = args.templates or args.learnable_property
    templates = load_templates(args.templates)
    info = inspect_model(args.model, args.revision, args.variant)
    if info.for_inpainting:
        raise UserError(f"{args.model} is for inpainting alone; expected the model that it is of")
    args.resolution = check_resolution(info, args.resolution)
    device = pick_device(args.device)
    make_scheduler(info, "DDPMScheduler")  # found wrong here, not after the model is loaded
    tokenizer = load_tokenizer(info)
    check_num_vectors(tokenizer, args.num_vectors, templates)
    if args.validation_prompt and "*" not in args.validation_prompt:
        log.warning("--validation_prompt has no *: its images will not show the learned words")
    settings = settings_of(args, info, templates)
    lessons = [
        lesson
        for trial in trials_of(args)
        for lesson in plan(args, info, settings, tokenizer, experiment, trial)
    ]
    if args.resume_from_checkpoint != "latest":
        check_checkpoint(Path(args.resume_from_checkpoint), lessons)
    if args.num_train_epochs is not None and args.max_train_steps is not None:
        log.warning("--num_train_epochs is not used: --max_train_steps goes first")
    runs = [
        run
        for group in groups_of(lessons, args.classes_per_step, shard)
        for run in runs_of(group, settings, args)
    ]

    def say_how(lesson: Lesson) -> None:
        arguments = {**vars(args), "class_names": lesson.trial_classes}
        write_config(lesson.folder.parent, lesson.settings, arguments)

    for lesson in lessons:
        # What is finished has these settings: see `plan`.
        finished = lesson.path.exists() and not args.overwrite
        if finished and read_config(lesson.folder.parent) is None:
            say_how(lesson)
    if not runs:
        log.info("nothing left to do for shard %d of %d", *shard)
        return

    pipeline = load_pipeline(info, device, pick_dtype(device, args.mixed_precision))
    with at_work(experiment, FINE_TUNE, wanted_of(lessons, args), shard=shard) as reporter:
        for lesson in (lesson for run in runs for lesson in run):
            say_how(lesson)
            for folder in (lesson.folder.parent, lesson.folder, lesson.folder / "validation"):
                remove_leftovers(folder)
        failed = train_all(args, pipeline, templates, settings, runs, experiment, shard, reporter)
        if failed:
            log.error("not trained: %s", ", ".join(failed))
            raise SystemExit(1)


if __name__ == "__main__":
    main()
