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

import functools
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from semantic_aug import UserError, counted, stable_hash
from semantic_aug.cli.command import Parser, command
from semantic_aug.diffusion.inspecting import check_resolution, inspect_model
from semantic_aug.diffusion.loading import (
    load_pipeline,
    load_tokenizer,
    make_scheduler,
    pick_device,
    pick_dtype,
    text_encoders,
)
from semantic_aug.experiment.config import check_config, config_id, read_config, write_config
from semantic_aug.experiment.files import atomic_path, remove_leftovers, write_text
from semantic_aug.experiment.interrupts import stop_deferred
from semantic_aug.experiment.names import EMBEDDINGS_FILE, Trial, fine_tuned_dir, folder_names
from semantic_aug.experiment.processes import Reporter, at_work
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.experiment.sharding import shard_blocks, shard_of
from semantic_aug.experiment.timing import FINE_TUNE, timed
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.images.framing import FITS, frame_of, share_of_photo, to_square
from semantic_aug.images.reading import image_to_tensor
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
from semantic_aug.stages.common import dataset_of, experiment_of, trials_of
from semantic_aug.words.checkpoints import (
    checkpoint_path,
    differing_keys,
    list_checkpoints,
    read_checkpoint,
    remove_checkpoints,
    write_checkpoint,
)
from semantic_aug.words.embeddings import (
    embedding_files,
    placeholder_token,
    placeholder_tokens,
    read_header,
    write_embeddings,
)
from semantic_aug.words.losses import latent_posterior
from semantic_aug.words.prompts import Prompts, check_num_vectors, tokenise
from semantic_aug.words.rows import initial_rows, initializer_id, words_in_place
from semantic_aug.words.templates import TEMPLATES, load_templates
from semantic_aug.words.tracking import Track, check_tracker, tracker
from semantic_aug.words.training import TrainingSettings, Word, train_words, validation_losses

log = logging.getLogger("semantic_aug.fine_tune")

# Stands for every word in training, and takes the class's own token's place when it is written.
TRAINING_TOKEN = "<word-in-training>"
# Photos whose posteriors are kept: half a gigabyte at 512 pixels.
CACHED_PHOTOS = 2048
# Denoising steps of an image of --validation_prompt.
VALIDATION_IMAGE_STEPS = 25


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


@dataclass(frozen=True, eq=False)
class Job:
    """One word to be learned: one class of one trial."""

    dataset: FewShotDataset
    class_name: str
    path: Path  # of its embedding file
    start: str  # the token that it starts from
    token: str
    header: dict  # of the file
    trial_classes: tuple[str, ...]
    settings: dict  # of the trial's folder, where weights may have an older name

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def where(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def trial(self) -> Trial:
        return Trial(self.dataset.seed, self.header["examples_per_class"])

    @property
    def steps(self) -> int:
        return self.header["steps"]


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
    jobs = [
        job
        for trial in trials_of(args)
        for job in plan(args, info, settings, tokenizer, experiment, trial)
    ]
    if args.resume_from_checkpoint != "latest":
        check_checkpoint(Path(args.resume_from_checkpoint), jobs)
    if args.num_train_epochs is not None and args.max_train_steps is not None:
        log.warning("--num_train_epochs is not used: --max_train_steps goes first")
    runs = [
        run
        for group in groups_of(jobs, args.classes_per_step, shard)
        for run in runs_of(group, settings, args)
    ]

    def say_how(job: Job) -> None:
        arguments = {**vars(args), "class_names": job.trial_classes}
        write_config(job.folder.parent, job.settings, arguments)

    for job in jobs:
        finished = job.path.exists() and not args.overwrite  # so it has these settings: see `plan`
        if finished and read_config(job.folder.parent) is None:
            say_how(job)
    if not runs:
        log.info("nothing left to do for shard %d of %d", *shard)
        return

    pipeline = load_pipeline(info, device, pick_dtype(device, args.mixed_precision))
    with at_work(experiment, FINE_TUNE, wanted_of(jobs, args), shard=shard) as reporter:
        for job in (job for run in runs for job in run):
            say_how(job)
            for folder in (job.folder.parent, job.folder, job.folder / "validation"):
                remove_leftovers(folder)
        failed = train_all(args, pipeline, templates, settings, runs, experiment, shard, reporter)
        if failed:
            log.error("not trained: %s", ", ".join(failed))
            raise SystemExit(1)


def wanted_of(jobs: list[Job], args) -> dict[Trial, tuple[int, int]]:
    """By trial, how many words there are to be in the end, and how many photos that shows."""
    wanted: dict[Trial, tuple[int, int]] = {}
    for job in jobs:
        words, photos = wanted.get(job.trial, (0, 0))
        wanted[job.trial] = words + 1, photos + job.steps * photos_per_step(args)
    return wanted


def photos_per_step(args) -> int:
    """Photos of each class that an optimiser step shows."""
    return args.train_batch_size * args.gradient_accumulation_steps


def plan(args, info, settings, tokenizer, experiment: Path, trial: Trial) -> list[Job]:
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
    jobs = []
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
        jobs.append(Job(dataset, name, path, start, tokens[name], header, classes, settings))
    return jobs


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


def is_finished(job: Job, overwrite: bool) -> bool:
    """Whether a class's file was made with these settings, of these photos, from the same word."""
    if not job.path.exists():
        return False
    found = read_header(job.path)
    if "config_id" not in found and not overwrite:
        raise UserError(
            f"{job.path} is a word that fine_tune.py has not made: leave its class out, with "
            "--classes, or pass --overwrite to train it"
        )
    differing = [
        f"{key} (there {found.get(key)}, now {job.header[key]})"
        for key in ("config_id", "initializer", "token", "steps", "photos")
        if found.get(key) != str(job.header[key])
    ]
    if differing and not overwrite:
        raise UserError(
            f"{job.path} was made with other settings: {', '.join(differing)}; pass --overwrite "
            "to train it again"
        )
    return not differing


def steps_of(args, num_photos: int) -> int:
    """Optimiser steps for one class."""
    if args.max_train_steps is not None or args.num_train_epochs is None:
        return args.max_train_steps or 1000
    per_step = args.train_batch_size * args.gradient_accumulation_steps
    return args.num_train_epochs * math.ceil(num_photos * args.repeats / per_step)


def groups_of(jobs: list[Job], classes_per_step: int, shard) -> list[list[Job]]:
    """This shard's groups of words that are trained together.

    They follow from the order of trials and classes alone, so that a word's bits do not depend on
    who trains it. Which are this shard's is drawn once for all; it trains them in their order.
    """
    starts = range(0, len(jobs), classes_per_step)
    groups = [jobs[start : start + classes_per_step] for start in starts]
    if len(groups) < shard[1] and len(groups) < len(jobs):
        log.warning(
            "%s in steps of %d are work for %d of %d processes; --classes_per_step %d would employ "
            "more", counted(len(jobs), "class"), classes_per_step, len(groups), shard[1],
            max(1, len(jobs) // shard[1]),
        )  # fmt: skip
    return [groups[number] for number in sorted(shard_blocks(len(groups), *shard))]


def runs_of(group: list[Job], settings: dict, args) -> list[dict[Job, Path | None]]:
    """What is left of a group: words that go on together, each with its checkpoint.

    All go on from the latest step of which all have a checkpoint, or start again where some have
    only just got their first: so they keep each other company as without an interruption, to the
    last bit. Else those that stand at the same step go on together.
    """
    found: dict[Job, dict[int, Path]] = {}
    for job in group:
        if is_finished(job, args.overwrite):
            log.info("%s: finished already, skipped", job.where)
            remove_checkpoints(job.folder)
        else:
            found[job] = usable_checkpoints(job, settings, args)
    if not found:
        return []
    common = set.intersection(*(set(steps) for steps in found.values()))
    if max(max(steps, default=0) for steps in found.values()) <= args.checkpointing_steps:
        common |= {0}
    by_step: dict[int, dict[Job, Path | None]] = {}
    for job, steps in found.items():
        step = max(common or steps, default=0)
        by_step.setdefault(step, {})[job] = steps.get(step)
        if step:
            log.info("%s: goes on from step %d of %d", job.where, step, job.steps)
    return list(by_step.values())


def usable_checkpoints(job: Job, settings: dict, args) -> dict[int, Path]:
    """The checkpoints that a word can go on from, by step.

    Raises:
        UserError: the latest, or the one asked for, was made with other settings.
    """
    checkpoints = list_checkpoints(job.folder)
    if args.resume_from_checkpoint != "latest":
        path = Path(args.resume_from_checkpoint)
        if is_of(asked := read_checkpoint(path), job):
            checkpoints = {asked["step"]: path}
    while checkpoints:
        latest = checkpoints[max(checkpoints)]
        try:
            differing = differing_keys(read_checkpoint(latest), job.header, settings)
            break
        except UserError as error:
            log.warning("%s; it is left out", error)
            del checkpoints[max(checkpoints)]
    if not checkpoints:
        return {}
    if not differing:
        return checkpoints
    if args.overwrite:
        remove_checkpoints(job.folder)
        return {}
    raise UserError(
        f"{latest} was made with other settings: {', '.join(differing)}; pass --overwrite to "
        "start this class again"
    )


def check_checkpoint(path: Path, jobs: list[Job]) -> None:
    """Raise UserError unless the checkpoint is one of a class that is to be trained."""
    checkpoint = read_checkpoint(path)
    if not any(is_of(checkpoint, job) for job in jobs):
        header = checkpoint["header"]
        raise UserError(
            f"--resume_from_checkpoint: {path} is of class {header['class']!r} with seed "
            f"{header.get('seed')} and {header.get('examples_per_class')} examples per class, "
            "which is not to be trained; choose it with --classes, --seed, --examples_per_class"
        )


def is_of(checkpoint: dict, job: Job) -> bool:
    """Whether a checkpoint is one of this class and trial."""
    keys = ("class", "seed", "examples_per_class")
    return all(checkpoint["header"].get(key) == str(job.header[key]) for key in keys)


def train_all(
    args, pipeline, templates, settings: dict, runs, experiment: Path, shard, reporter: Reporter
) -> list[str]:
    """Train one run of words after the other; returns those that failed."""
    from diffusers import DDPMScheduler

    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    prompts = tokenise(pipeline, templates, TRAINING_TOKEN, args.num_vectors)
    encode = functools.lru_cache(CACHED_PHOTOS)(functools.partial(encode_photo, args, pipeline))
    if args.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
        for _, encoder in text_encoders(pipeline):
            encoder.activation_checkpointing_enable()
    if args.attention_slicing:
        pipeline.enable_attention_slicing()
    if args.compile:
        pipeline.unet.compile()
    images = photos_per_step(args)
    total = images * sum(job.steps for run in runs for job in run)
    failed = []
    with (
        tracker(
            args.report_to, experiment / "logs", f"fine_tune-shard{shard[0]}of{shard[1]}"
        ) as track,
        progress_bar(total=total, desc="fine-tune", unit=" photos") as progress,
    ):
        for run in runs:
            trials = [job.trial for job in run]
            reporter.works_on(trials)
            with timed(experiment, FINE_TUNE, trials=trials, device=pipeline.device) as work:
                words = {job: build_word(args, pipeline, encode, job) for job in run}
                for job, path in run.items():
                    if path is not None:
                        words[job].load_state_dict(read_checkpoint(path)["state"])
                progress.initial += images * sum(word.step for word in words.values())
                progress.update(images * sum(word.step for word in words.values()))
                before = sum(word.step for word in words.values())
                try:
                    train_run(
                        args, pipeline, noise_scheduler, prompts, settings, words, track,
                        progress, reporter,
                    )  # fmt: skip
                finally:
                    work.images = images * (sum(word.step for word in words.values()) - before)
            failed += [job.where for job, word in words.items() if word.diverged]
    return failed


def train_run(
    args, pipeline, noise_scheduler, prompts: Prompts, settings, words: dict[Job, Word],
    track: Track, progress, reporter: Reporter,
) -> None:  # fmt: skip
    """Train the words of a run together, and write what becomes of each.

    Asked to end, it leaves a checkpoint of each word first.
    """
    job_of = {word: job for job, word in words.items()}
    images = photos_per_step(args)
    validate = functools.partial(validation, args, pipeline, noise_scheduler, prompts, track)
    set_training(pipeline, args.gradient_checkpointing)
    # Before the first step; and once more where a run goes on, whose images may be missing.
    step = next(iter(words.values())).step
    if args.validation_steps and step % args.validation_steps == 0:
        running = {job: word for job, word in words.items() if word.is_running}
        validate(running, with_images=step > 0)
    # Those that were interrupted after their last step, and before they were written.
    finish({job: word for job, word in words.items() if word.is_done}, validate, settings)
    with stop_deferred() as asked_to_end:
        validate = functools.partial(validate, asked_to_end=asked_to_end)
        for took_part in train_words(pipeline, noise_scheduler, list(words.values()), prompts):
            losses = [word.loss for word in took_part]
            progress.update(images * len(took_part))
            reporter.count(images * len(took_part))
            progress.set_postfix(loss=f"{sum(losses) / len(losses):.4f}", refresh=False)
            for word in took_part:
                where = job_of[word].where
                track.log({f"loss/{where}": word.loss, f"lr/{where}": word.rate}, word.step)
                if word.diverged:
                    last = max(list_checkpoints(job_of[word].folder), default=None)
                    kept = f"the checkpoint of step {last} is kept" if last else "no checkpoint yet"
                    precision = str(pipeline.unet.dtype).removeprefix("torch.")
                    log.error(
                        "%s: %s in %s; this class is left out, %s; try a lower --learning_rate "
                        "with --overwrite",
                        where, word.diverged, precision, kept,
                    )  # fmt: skip
            going_on = {job_of[word]: word for word in took_part if word.is_running}
            ended = {job_of[word]: word for word in took_part if word.is_done and not word.diverged}
            step = max(word.step for word in took_part)
            if args.save_steps and step % args.save_steps == 0:
                for job, word in (going_on | ended).items():
                    earlier = job.path.with_name(f"learned_embeds-steps-{step}.safetensors")
                    write_word(earlier, job, word, step)
            if args.validation_steps and step % args.validation_steps == 0:
                validate(going_on, with_images=True)
            # Last, so that what comes before is made again.
            if step % args.checkpointing_steps == 0 or asked_to_end():
                save(going_on, settings, keep=args.checkpoints_total_limit)
            finish(ended, validate, settings)
            if asked_to_end():
                break


def finish(words: dict[Job, Word], validate, settings: dict) -> None:
    """Validate and write words that have done all their steps.

    Their last checkpoints come first: a process killed among the files that follow, which mark
    their classes as finished, writes the rest of them again from there. So does the next run of a
    process that is asked to end among the images.
    """
    save(words, settings)
    if not validate(words, with_images=True):
        return
    for job, word in words.items():
        write_word(job.path, job, word, job.steps)
    for job in words:
        remove_checkpoints(job.folder)


def save(words: dict[Job, Word], settings: dict, keep: int | None = None) -> None:
    """Write a checkpoint of each word; then remove all but the latest `keep`."""
    for job, word in words.items():
        path = checkpoint_path(job.folder, word.step)
        write_checkpoint(path, word.state_dict(), job.header, settings)
    for job in words:  # not before all are written: the words go on from one step together
        if keep is not None:
            remove_checkpoints(job.folder, keep)


def write_word(path: Path, job: Job, word: Word, steps: int) -> None:
    """Write a word's embedding file, and the one of its second text encoder before it."""
    files = list(zip(embedding_files(path, len(word.rows)), word.trained_rows()))
    for file, rows in reversed(files):
        write_embeddings(file, {job.token: rows}, {**job.header, "steps": steps})


def build_word(args, pipeline, encode, job: Job) -> Word:
    """A word at its start."""
    generator = torch.Generator().manual_seed(
        stable_hash(
            "textual-inversion", job.dataset.seed, job.header["examples_per_class"], job.class_name
        )
    )
    rows = []
    for tokenizer, encoder in text_encoders(pipeline):
        start = encoder.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(job.start)]
        rows.append(initial_rows(start, args.num_vectors, generator))
    photos = [encode(PhotoKey(job.dataset, i)) for i in job.dataset.indices([job.class_name])]
    means, deviations, weights = (torch.stack(parts) for parts in zip(*photos))
    scale = args.train_batch_size * args.gradient_accumulation_steps if args.scale_lr else 1
    settings = TrainingSettings(
        max_train_steps=job.steps,
        train_batch_size=args.train_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        learning_rate=args.learning_rate * scale,
        lr_scheduler=args.lr_scheduler,
        lr_warmup_steps=args.lr_warmup_steps,
        adam_beta1=args.adam_beta1,
        adam_beta2=args.adam_beta2,
        adam_weight_decay=args.adam_weight_decay,
        adam_epsilon=args.adam_epsilon,
    )
    in_half = pipeline.unet.dtype == torch.float16
    return Word(rows, (means, deviations), settings, generator, pipeline.device, in_half, weights)


class PhotoKey:
    """A photo of a trial; equal for one file in several trials, so that it is encoded once."""

    def __init__(self, dataset: FewShotDataset, index: int):
        self.dataset, self.index = dataset, index
        records = getattr(dataset, "records", None)  # absent where a subclass makes its images
        self.key = records[index].path if records else (id(dataset), index)

    def __eq__(self, other):
        return self.key == other.key

    def __hash__(self):
        return hash(self.key)


def encode_photo(args, pipeline, photo: PhotoKey) -> tuple[torch.Tensor, ...]:
    """The VAE's posterior of a photo in the square, and how much each place of it counts.

    Returns:
        Mean and deviation of `latent_posterior`, [2, C, h, w], and the weights of the loss,
        [2, 1, h, w] of mean 1: 0 where the photo is mirrored beyond its edges.
    """
    image = photo.dataset.get_image_by_idx(photo.index)
    frame = frame_of(image.size, args.resolution, args.fit)
    pixels = image_to_tensor(to_square(image, frame), args.resolution)
    mean, deviation = latent_posterior(pipeline.vae, pixels)
    share = torch.from_numpy(share_of_photo(frame, mean.shape[-1])).unsqueeze(0)
    return mean, deviation, torch.stack([share, share.flip(-1)]) / share.mean()


def set_training(pipeline, training: bool) -> None:
    """Checkpointed activations want training mode; neither part has anything else that it moves."""
    pipeline.unet.train(training)
    for _, encoder in text_encoders(pipeline):
        encoder.train(training)


def validation(
    args, pipeline, noise_scheduler, prompts, track, words: dict[Job, Word], with_images,
    asked_to_end=lambda: False,
) -> bool:  # fmt: skip
    """A comparable loss of each word, and images of `--validation_prompt`.

    They go to `validation/` beside the word, and to the tracker.

    Args:
        asked_to_end: whether no more images shall be made, which is asked after each step of one.

    Returns:
        Whether all of it is there.
    """
    whole = True
    if not words:
        return whole
    set_training(pipeline, False)
    if args.validation_steps:
        seeds = [stable_hash("validation", job.dataset.seed, job.class_name) for job in words]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        losses = validation_losses(
            pipeline, noise_scheduler, list(words.values()), generators, prompts
        )
        for (job, word), loss in zip(words.items(), losses):
            track.log({f"validation_loss/{job.where}": loss}, word.step)
            note_loss(job.folder / "validation" / "loss.csv", word.step, loss)
        mean, step = sum(losses) / len(losses), max(word.step for word in words.values())
        of = counted(len(words), "class")
        log.info("step %d: validation loss %.4f, mean of %s", step, mean, of)
    if with_images and args.validation_prompt:
        for job, word in words.items():
            images = show(args, pipeline, prompts, word, job, asked_to_end)
            whole = len(images) == args.num_validation_images
            if not whole:
                break
            track.log_images({f"validation/{job.where}": images}, word.step)
    set_training(pipeline, args.gradient_checkpointing)
    return whole


def note_loss(path: Path, step: int, loss: float) -> None:
    """Add a line to a word's validation losses, in place of one of the same or a later step."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    rows = [re.fullmatch(r"(\d{1,15}),[^,]+", line) for line in lines]  # None for damaged ones
    earlier = [row[0] for row in rows if row and int(row[1]) < step]
    write_text(path, "\n".join(["step,loss", *earlier, f"{step},{loss:.6f}"]) + "\n")


@torch.no_grad()
def show(args, pipeline, prompts: Prompts, word: Word, job: Job, asked_to_end) -> list:
    """Write images of `--validation_prompt`, in which * is the word.

    Returns:
        The images; asked to end, those that are whole by then.
    """

    def skip_the_rest(pipeline, step, timestep, values):
        pipeline._interrupt = asked_to_end()  # what diffusers offers for it
        return values

    images = []
    with words_in_place(pipeline, [word.rows], prompts.first_ids):
        for number in range(args.num_validation_images):
            if asked_to_end():
                break
            seed = stable_hash("validation", job.dataset.seed, job.class_name, number)
            image = pipeline(
                args.validation_prompt.replace("*", TRAINING_TOKEN),
                height=args.resolution,
                width=args.resolution,
                num_inference_steps=VALIDATION_IMAGE_STEPS,
                generator=torch.Generator().manual_seed(seed),
                callback_on_step_end=skip_the_rest,
            ).images[0]
            if asked_to_end():
                break  # this image may not be whole
            path = job.folder / "validation" / f"{word.step:06d}-{number:03d}.png"
            with atomic_path(path) as temporary:
                image.save(temporary, format="PNG")
            images.append(image)
    return images


if __name__ == "__main__":
    main()
