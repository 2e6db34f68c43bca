"""Teach a frozen Stable Diffusion one new word per class (textual inversion, arXiv 2208.01618).

    python fine_tune.py --dataset=folder --data_dir=photos --experiment_name=demo \\
        --examples_per_class 4 --num_vectors 4 --max_train_steps 1000 --mixed_precision fp16

Writes output/EXP/fine-tuned/seed=S_ex=N/CLASS/learned_embeds.safetensors for every class and
trial. Finished classes are skipped, so that the same command goes on after an interruption.
Next: aggregate_embeddings.py.
"""

import contextlib
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from semantic_aug import UserError, stable_hash
from semantic_aug.cli import (
    Parser,
    add_classes_flag,
    add_dataset_flags,
    add_experiment_flags,
    add_model_flags,
    add_shard_flags,
    command,
    dataset_of,
    experiment_of,
    fraction_below_one,
    non_negative,
    non_negative_int,
    positive_int,
    progress_bar,
    shard_of,
    trials_of,
)
from semantic_aug.diffusion import (
    check_resolution,
    inspect_model,
    load_pipeline,
    load_tokenizer,
    pick_device,
    pick_dtype,
)
from semantic_aug.embeddings import (
    placeholder_token,
    placeholder_tokens,
    read_header,
    write_embeddings,
)
from semantic_aug.experiment import (
    EMBEDDINGS_FILE,
    Trial,
    atomic_path,
    check_config,
    config_id,
    fine_tuned_dir,
    folder_names,
    remove_leftovers,
    write_config,
)
from semantic_aug.few_shot_dataset import FewShotDataset, image_to_tensor
from semantic_aug.textual_inversion import (
    TEMPLATES,
    TrainingDiverged,
    TrainingSettings,
    add_tokens,
    check_num_vectors,
    initial_rows,
    initializer_id,
    latent_posteriors,
    rows_in_place,
    template_ids,
    train_rows,
)

log = logging.getLogger("semantic_aug.fine_tune")


def parse_args(argv=None):
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
        "--learnable_property",
        choices=("object", "style"),
        default="object",
        help="which sentences the word is trained in",
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
    training.add_argument("--train_batch_size", type=positive_int, default=4, help="photos")
    training.add_argument("--gradient_accumulation_steps", type=positive_int, default=1)
    training.add_argument("--learning_rate", type=non_negative, default=5e-4)
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
    )
    training.add_argument("--lr_warmup_steps", type=non_negative_int, default=0)
    training.add_argument("--adam_beta1", type=fraction_below_one, default=0.9)
    training.add_argument("--adam_beta2", type=fraction_below_one, default=0.999)
    training.add_argument("--adam_weight_decay", type=non_negative, default=1e-2)
    training.add_argument("--adam_epsilon", type=non_negative, default=1e-8)
    training.add_argument(
        "--center_crop",
        action="store_true",
        help="cut photos to the square in their middle instead of squeezing them",
    )
    training.add_argument(
        "--mixed_precision",
        choices=("no", "fp16", "bf16"),
        default="no",
        help="precision of the frozen model; the new words are always float32",
    )
    training.add_argument("--gradient_checkpointing", action="store_true", help="less memory")

    watching = parser.add_argument_group("watching")
    watching.add_argument(
        "--validation_prompt", help='shows each word at its end; * is the word: "a photo of a *"'
    )
    watching.add_argument("--num_validation_images", type=positive_int, default=4)
    watching.add_argument(
        "--save_steps", type=positive_int, help="keep the word after every so many steps as well"
    )
    watching.add_argument("--report_to", choices=("tensorboard", "none"), default="tensorboard")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Job:
    """One word to be learned: one class of one trial."""

    dataset: FewShotDataset
    class_name: str
    path: Path  # of its embedding file
    initializer: int  # token id
    token: str
    header: dict  # of the file
    trial_classes: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.path.parent.parent.name}/{self.path.parent.name}"


@command
def main(argv=None):
    args = parse_args(argv)
    experiment, shard = experiment_of(args), shard_of(args)
    if args.num_train_epochs is None and args.max_train_steps is None:
        args.max_train_steps = 1000

    # Whatever can be wrong is found before the model is loaded.
    info = inspect_model(args.model, args.revision, args.variant)
    if info.is_xl:
        raise UserError(f"{args.model} is an SDXL, with two text encoders; expected SD 1.x or 2.x")
    args.resolution = check_resolution(info, args.resolution)
    device = pick_device(args.device)
    tokenizer = load_tokenizer(info)
    check_num_vectors(tokenizer, args.num_vectors, TEMPLATES[args.learnable_property])
    if args.validation_prompt and "*" not in args.validation_prompt:
        log.warning("--validation_prompt has no *: its images will not show the learned words")
    jobs = [
        job for trial in trials_of(args) for job in plan(args, info, tokenizer, experiment, trial)
    ]

    todo = []
    for job in jobs[shard[0] :: shard[1]]:
        if is_finished(job, args.overwrite):
            log.info("%s: finished already, skipped", job.where)
        else:
            todo.append(job)
    if not todo:
        log.info("nothing left to do for shard %d of %d", *shard)
        return
    pipeline = load_pipeline(info, device, pick_dtype(device, args.mixed_precision))
    for job in todo:
        arguments = {**vars(args), "class_names": job.trial_classes}
        write_config(job.path.parent.parent, settings_of(args, info), arguments)
        for folder in (job.path.parent.parent, job.path.parent, job.path.parent / "validation"):
            remove_leftovers(folder)
    failed = train_all(args, pipeline, todo, experiment, shard)
    if failed:
        log.error("not trained: %s", ", ".join(failed))
        raise SystemExit(1)


def plan(args, info, tokenizer, experiment: Path, trial: Trial) -> list[Job]:
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
    settings = settings_of(args, info)
    done = any((folder / name / EMBEDDINGS_FILE).exists() for name in folders.values())
    check_config(folder, settings, done, args.overwrite)
    jobs = []
    for name in chosen:
        if tokens[name] in tokenizer.get_vocab():
            raise UserError(
                f"token {tokens[name]} exists already in {args.model}; choose another with "
                "--placeholder_token"
            )
        initializer = initializer_id(tokenizer, args.initializer_token, name)
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
            "initializer": tokenizer.convert_ids_to_tokens(initializer).removesuffix("</w>"),
            "steps": steps_of(args, len(photos)),
            "photos": dataset.photo_digest(photos),
            "config_id": config_id(settings),
        }
        path = folder / folders[name] / EMBEDDINGS_FILE
        jobs.append(Job(dataset, name, path, initializer, tokens[name], header, classes))
    return jobs


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


def settings_of(args, info) -> dict:
    """What changes a learned word, apart from its own start and name."""
    keys = (
        "dataset", "dataset_args", "crop_to_object", "num_vectors", "learnable_property",
        "resolution", "center_crop", "max_train_steps", "num_train_epochs", "repeats",
        "train_batch_size", "gradient_accumulation_steps", "learning_rate", "scale_lr",
        "lr_scheduler", "lr_warmup_steps", "adam_beta1", "adam_beta2", "adam_weight_decay",
        "adam_epsilon",
    )  # fmt: skip
    settings = {key: getattr(args, key) for key in keys}
    settings["dataset_args"] = sorted(args.dataset_args)
    return {"model": info.identity, **settings}


def is_finished(job: Job, overwrite: bool) -> bool:
    """Whether a class's file was made with these settings, of these photos, from the same word."""
    if not job.path.exists():
        return False
    found = read_header(job.path)
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


def train_all(args, pipeline, jobs: list[Job], experiment: Path, shard) -> list[str]:
    """Train one class after the other; returns those that failed."""
    from diffusers import DDPMScheduler

    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    if args.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
        pipeline.text_encoder.activation_checkpointing_enable()
    token_ids, failed = {}, []
    steps = sum(job.header["steps"] for job in jobs)
    with (
        tracker(args.report_to, experiment, shard) as track,
        progress_bar(total=steps, desc="fine-tune", unit="step") as progress,
    ):
        for job in jobs:
            progress.set_description(f"fine-tune {job.where}")
            if job.token not in token_ids:
                ids = add_tokens(pipeline.tokenizer, job.token, args.num_vectors)
                token_ids[job.token] = ids[0]

            def on_step(step, loss, rate, rows, job=job):
                progress.update()
                if step % 10 == 0 or step == 1:
                    progress.set_postfix(loss=f"{loss:.4f}", lr=f"{rate:.1e}")
                track({f"loss/{job.where}": loss, f"lr/{job.where}": rate}, step)
                if args.save_steps and step % args.save_steps == 0:
                    earlier = job.path.with_name(f"learned_embeds-steps-{step}.safetensors")
                    write_embeddings(earlier, {job.token: rows}, {**job.header, "steps": step})

            # Both checkpoint activations in training mode only, and neither has dropout or
            # running statistics that this mode would touch.
            pipeline.unet.train(args.gradient_checkpointing)
            pipeline.text_encoder.train(args.gradient_checkpointing)
            first_id = token_ids[job.token]
            try:
                rows = train_class(args, pipeline, noise_scheduler, job, first_id, on_step)
            except TrainingDiverged as error:
                log.error("%s: %s; this class is left out", job.where, error)
                failed.append(job.where)
                continue
            if args.validation_prompt:
                show(args, pipeline, rows, first_id, job)
            # Last, because this file marks the class as finished.
            write_embeddings(job.path, {job.token: rows}, job.header)
    return failed


def train_class(args, pipeline, noise_scheduler, job: Job, first_id: int, on_step) -> torch.Tensor:
    """The trained rows of one class, [num_vectors, dim]."""
    generator = torch.Generator().manual_seed(
        stable_hash(
            "textual-inversion", job.dataset.seed, job.header["examples_per_class"], job.class_name
        )
    )
    images = [job.dataset.get_image_by_idx(i) for i in job.dataset.indices([job.class_name])]
    if args.center_crop:
        images = [central_square(image) for image in images]
    photos = torch.stack([image_to_tensor(image, args.resolution) for image in images])
    table = pipeline.text_encoder.get_input_embeddings().weight
    templates = TEMPLATES[args.learnable_property]
    scale = args.train_batch_size * args.gradient_accumulation_steps if args.scale_lr else 1
    settings = TrainingSettings(
        max_train_steps=job.header["steps"],
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
    return train_rows(
        pipeline,
        noise_scheduler,
        initial_rows(table[job.initializer], args.num_vectors, generator),
        first_id,
        template_ids(pipeline.tokenizer, templates, job.token, args.num_vectors),
        latent_posteriors(pipeline.vae, photos),
        settings,
        generator,
        on_step,
    )


def central_square(image):
    """The largest square in the middle of a PIL image."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


@torch.no_grad()
def show(args, pipeline, rows: torch.Tensor, first_id: int, job: Job) -> None:
    """Write images of `--validation_prompt`, in which * is the learned word."""
    pipeline.unet.eval()
    pipeline.text_encoder.eval()
    with rows_in_place(pipeline.text_encoder, rows.to(pipeline.device), first_id):
        for number in range(args.num_validation_images):
            seed = stable_hash("validation", job.dataset.seed, job.class_name, number)
            image = pipeline(
                args.validation_prompt.replace("*", job.token),
                height=args.resolution,
                width=args.resolution,
                num_inference_steps=25,
                generator=torch.Generator().manual_seed(seed),
            ).images[0]
            with atomic_path(job.path.parent / "validation" / f"{number:03d}.png") as temporary:
                image.save(temporary, format="PNG")


@contextlib.contextmanager
def tracker(report_to: str, experiment: Path, shard: tuple[int, int]):
    """A function (values, step) that writes to TensorBoard under output/EXP/logs, or nowhere."""
    if report_to == "none":
        yield lambda values, step: None
        return
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker
    from accelerate.utils import clear_environment

    with clear_environment():  # processes of one launch share files alone, so none waits here
        PartialState(cpu=True)
    writer = TensorBoardTracker(f"fine_tune-shard{shard[0]}of{shard[1]}", experiment / "logs")
    writer.main_process_only = False  # each process trains classes of its own
    writer.start()
    try:
        yield writer.log
    finally:
        writer.finish()


if __name__ == "__main__":
    main()
