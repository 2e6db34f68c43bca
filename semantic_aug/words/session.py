"""Train all words of a command group by group, and write their files."""

import dataclasses
import functools
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch

from semantic_aug import counted, stable_hash
from semantic_aug.diffusion.loading import noise_scheduler_of, text_encoders
from semantic_aug.experiment.files import atomic_path, write_text
from semantic_aug.experiment.interrupts import stop_deferred
from semantic_aug.experiment.processes import Reporter
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.experiment.timing import FINE_TUNE, timed
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.images.framing import frame_of, share_of_photo, to_square
from semantic_aug.images.reading import image_to_tensor
from semantic_aug.settings.fine_tuning import FineTuning
from semantic_aug.words.checkpoints import (
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
    remove_checkpoints,
    write_checkpoint,
)
from semantic_aug.words.embeddings import embedding_files, write_embeddings
from semantic_aug.words.losses import latent_posterior
from semantic_aug.words.prompts import Prompts, tokenise
from semantic_aug.words.resuming import Lesson
from semantic_aug.words.rows import initial_rows, words_in_place
from semantic_aug.words.tracking import Track, tracker
from semantic_aug.words.training import TrainingSettings, Word, train_words, validation_losses

log = logging.getLogger(__name__)

# Stands for every word in training; the embedding file has the class's own token instead.
TRAINING_TOKEN = "<word-in-training>"
# Photos whose posteriors stay in memory: half a gigabyte at 512 pixels.
CACHED_PHOTOS = 2048
# Denoising steps of an image of --validation_prompt.
VALIDATION_IMAGE_STEPS = 25


def photos_per_step(settings: FineTuning) -> int:
    """Photos of each class per optimiser step."""
    return settings.train_batch_size * settings.gradient_accumulation_steps


def train_all(
    settings: FineTuning, pipeline, templates, compared: dict, runs, experiment: Path, shard,
    reporter: Reporter, computed: Callable[[float, int], None] | None = None,
) -> list[str]:  # fmt: skip
    """Train the words run by run; returns the names of failed words."""
    noise_scheduler = noise_scheduler_of(pipeline)
    prompts = tokenise(pipeline, templates, TRAINING_TOKEN, settings.num_vectors)
    encode = functools.lru_cache(CACHED_PHOTOS)(functools.partial(encode_photo, settings, pipeline))
    if settings.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
        for _, encoder in text_encoders(pipeline):
            encoder.activation_checkpointing_enable()
    if settings.attention_slicing:
        pipeline.enable_attention_slicing()
    if settings.compile:
        pipeline.unet.compile()
    images = photos_per_step(settings)
    total = images * sum(lesson.steps for run in runs for lesson in run)
    failed = []
    with (
        tracker(
            settings.report_to, experiment / "logs", f"fine_tune-shard{shard[0]}of{shard[1]}"
        ) as track,
        progress_bar(total=total, desc="fine-tune", unit=" photos") as progress,
    ):
        for run in runs:
            trials = [lesson.trial for lesson in run]
            reporter.works_on(trials)
            with timed(experiment, FINE_TUNE, trials=trials, device=pipeline.device) as work:
                words = {lesson: build_word(settings, pipeline, encode, lesson) for lesson in run}
                for lesson, path in run.items():
                    if path is not None:
                        words[lesson].load_state_dict(read_checkpoint(path)["state"])
                if not progress.disable:  # a disabled bar has no `initial`
                    progress.initial += images * sum(word.step for word in words.values())
                progress.update(images * sum(word.step for word in words.values()))
                before = sum(word.step for word in words.values())
                try:
                    train_run(
                        settings, pipeline, noise_scheduler, prompts, compared, words, track,
                        progress, reporter, computed,
                    )  # fmt: skip
                finally:
                    work.images = images * (sum(word.step for word in words.values()) - before)
            failed += [lesson.where for lesson, word in words.items() if word.diverged]
    return failed


def train_run(
    settings: FineTuning, pipeline, noise_scheduler, prompts: Prompts, compared: dict,
    words: dict[Lesson, Word], track: Track, progress, reporter: Reporter,
    computed: Callable[[float, int], None] | None = None,
) -> None:  # fmt: skip
    """Train the words of a run together, and write each word's files.

    If asked to end, it writes a checkpoint of each word first.
    """
    lesson_of = {word: lesson for lesson, word in words.items()}
    images = photos_per_step(settings)
    validate = functools.partial(validation, settings, pipeline, noise_scheduler, prompts, track)
    set_training(pipeline, settings.gradient_checkpointing)
    # Before the first step, and again when a run resumes, since its images may be missing.
    step = next(iter(words.values())).step
    if settings.validation_steps and step % settings.validation_steps == 0:
        running = {lesson: word for lesson, word in words.items() if word.is_running}
        validate(running, with_images=step > 0)
    # Words that were interrupted between their last step and the writing of their files.
    finish({lesson: word for lesson, word in words.items() if word.is_done}, validate)
    with stop_deferred() as asked_to_end:
        validate = functools.partial(validate, asked_to_end=asked_to_end)
        began = time.perf_counter()
        for took_part in train_words(pipeline, noise_scheduler, list(words.values()), prompts):
            losses = [word.loss for word in took_part]
            progress.update(images * len(took_part))
            reporter.count(images * len(took_part))
            if computed:
                computed(time.perf_counter() - began, images * len(took_part))
                began = time.perf_counter()
            progress.set_postfix(loss=f"{sum(losses) / len(losses):.4f}", refresh=False)
            for word in took_part:
                where = lesson_of[word].where
                track.log({f"loss/{where}": word.loss, f"lr/{where}": word.rate}, word.step)
                if word.diverged:
                    last = max(list_checkpoints(lesson_of[word].folder), default=None)
                    kept = f"the checkpoint of step {last} is kept" if last else "no checkpoint yet"
                    precision = str(pipeline.unet.dtype).removeprefix("torch.")
                    log.error(
                        "%s: %s in %s; this class is left out, %s; try a lower --learning_rate "
                        "with --overwrite",
                        where, word.diverged, precision, kept,
                    )  # fmt: skip
            going_on = {lesson_of[word]: word for word in took_part if word.is_running}
            ended = {
                lesson_of[word]: word for word in took_part if word.is_done and not word.diverged
            }
            for lesson, word in ended.items():
                if word.stopped:
                    log.info(
                        "%s: converged after %d of %d steps", lesson.where, word.step, lesson.steps
                    )
                    progress.total -= images * (lesson.steps - word.step)
            step = max(word.step for word in took_part)
            if settings.save_steps and step % settings.save_steps == 0:
                for lesson, word in (going_on | ended).items():
                    earlier = lesson.path.with_name(f"learned_embeds-steps-{step}.safetensors")
                    write_word(earlier, lesson, word, steps=step)
            if settings.validation_steps and step % settings.validation_steps == 0:
                validate(going_on, with_images=True)
            # The checkpoint comes last, so a resumed run repeats everything before it. When a
            # word ends, the others get a checkpoint first: a resumed run continues without it.
            if ended or step % settings.checkpointing_steps == 0 or asked_to_end():
                save(going_on | ended, compared, keep=settings.checkpoints_total_limit)
            finish(ended, validate)
            if asked_to_end():
                break


def finish(words: dict[Lesson, Word], validate) -> None:
    """Validate and write words that are done and have their last checkpoints.

    The files written here mark their classes as finished. After a process was killed or asked to
    end during this function, the next run writes the missing files from the checkpoints.
    """
    if not validate(words, with_images=True):
        return
    for lesson, word in words.items():
        write_word(lesson.path, lesson, word, **({"steps_done": word.step} if word.stopped else {}))
    for lesson in words:
        remove_checkpoints(lesson.folder)


def save(words: dict[Lesson, Word], compared: dict, keep: int | None = None) -> None:
    """Write a checkpoint of each word, then remove all but the latest `keep` checkpoints."""
    for lesson, word in words.items():
        path = checkpoint_path(lesson.folder, word.step)
        write_checkpoint(path, word.state_dict(), lesson.header, compared)
    for lesson in words:  # after all are written: the words resume from the same step
        if keep is not None:
            remove_checkpoints(lesson.folder, keep)


def write_word(path: Path, lesson: Lesson, word: Word, **in_header: int) -> None:
    """Write a word's embedding file, after the file of its second text encoder."""
    files = list(zip(embedding_files(path, len(word.rows)), word.trained_rows()))
    for file, rows in reversed(files):
        write_embeddings(file, {lesson.token: rows}, {**lesson.header, **in_header})


def build_word(settings: FineTuning, pipeline, encode, lesson: Lesson) -> Word:
    """A word before its first step."""
    of_word = lesson.dataset.seed, lesson.header["examples_per_class"], lesson.class_name
    generator = torch.Generator().manual_seed(stable_hash("textual-inversion", *of_word))
    rows = []
    for tokenizer, encoder in text_encoders(pipeline):
        start = encoder.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(lesson.start)]
        rows.append(initial_rows(start, settings.num_vectors, generator))
    photos = [
        encode(PhotoKey(lesson.dataset, i)) for i in lesson.dataset.indices([lesson.class_name])
    ]
    means, deviations, weights = (torch.stack(parts) for parts in zip(*photos))
    given = {f.name: getattr(settings, f.name) for f in dataclasses.fields(TrainingSettings)}
    given["max_train_steps"] = lesson.steps
    if settings.scale_lr:
        given["learning_rate"] *= photos_per_step(settings)
    optimisation = TrainingSettings(**given)
    return Word(
        rows,
        (means, deviations),
        optimisation,
        generator,
        pipeline.device,
        scale_loss=pipeline.unet.dtype == torch.float16,
        weights=weights,
        fixed_seed=stable_hash("convergence", *of_word),
    )


class PhotoKey:
    """A photo of a trial. Keys of the same file are equal, so each file is encoded once."""

    def __init__(self, dataset: FewShotDataset, index: int):
        self.dataset, self.index = dataset, index
        records = getattr(dataset, "records", None)  # absent if a subclass generates its images
        self.key = records[index].path if records else (id(dataset), index)

    def __eq__(self, other):
        return self.key == other.key

    def __hash__(self):
        return hash(self.key)


def encode_photo(settings: FineTuning, pipeline, photo: PhotoKey) -> tuple[torch.Tensor, ...]:
    """The VAE's posterior of a photo fitted to the square, and the weight of each place.

    Returns:
        Mean and deviation of `latent_posterior`, [2, C, h, w], and the weights of the loss,
        [2, 1, h, w] of mean 1. The weight is 0 in mirrored parts beyond the photo's edges.
    """
    image = photo.dataset.get_image_by_idx(photo.index)
    side, fit = cast(int, settings.resolution), cast(str, settings.fit)  # they are `completed`
    frame = frame_of(image.size, side, fit)
    pixels = image_to_tensor(to_square(image, frame), side)
    mean, deviation = latent_posterior(pipeline.vae, pixels)
    share = torch.from_numpy(share_of_photo(frame, mean.shape[-1])).unsqueeze(0)
    return mean, deviation, torch.stack([share, share.flip(-1)]) / share.mean()


def set_training(pipeline, training: bool) -> None:
    """Switch training mode, which gradient checkpointing needs; nothing else depends on it."""
    pipeline.unet.train(training)
    for _, encoder in text_encoders(pipeline):
        encoder.train(training)


def validation(
    settings: FineTuning, pipeline, noise_scheduler, prompts, track, words: dict[Lesson, Word],
    with_images, asked_to_end=lambda: False,
) -> bool:  # fmt: skip
    """Write each word's validation loss, and images of `--validation_prompt`.

    They go to `validation/` beside the word, and to the tracker.

    Args:
        asked_to_end: whether to stop generating images; called after each denoising step.

    Returns:
        Whether the validation is complete.
    """
    whole = True
    if not words:
        return whole
    set_training(pipeline, False)
    if settings.validation_steps:
        seeds = [
            stable_hash("validation", lesson.dataset.seed, lesson.class_name) for lesson in words
        ]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        losses = validation_losses(
            pipeline, noise_scheduler, list(words.values()), generators, prompts
        )
        for (lesson, word), loss in zip(words.items(), losses):
            track.log({f"validation_loss/{lesson.where}": loss}, word.step)
            note_loss(lesson.folder / "validation" / "loss.csv", word.step, loss)
        mean, step = sum(losses) / len(losses), max(word.step for word in words.values())
        of = counted(len(words), "class")
        log.info("step %d: validation loss %.4f, mean of %s", step, mean, of)
    if with_images and settings.validation_prompt:
        for lesson, word in words.items():
            images = show(settings, pipeline, prompts, word, lesson, asked_to_end)
            whole = len(images) == settings.num_validation_images
            if not whole:
                break
            track.log_images({f"validation/{lesson.where}": images}, word.step)
    set_training(pipeline, settings.gradient_checkpointing)
    return whole


def note_loss(path: Path, step: int, loss: float) -> None:
    """Add a line to a word's validation losses, and remove lines of the same or later steps."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    rows = [re.fullmatch(r"(\d{1,15}),[^,]+", line) for line in lines]  # None for damaged lines
    earlier = [row[0] for row in rows if row and int(row[1]) < step]
    write_text(path, "\n".join(["step,loss", *earlier, f"{step},{loss:.6f}"]) + "\n")


@torch.no_grad()
def show(
    settings: FineTuning, pipeline, prompts: Prompts, word: Word, lesson: Lesson, asked_to_end
) -> list:
    """Write images of `--validation_prompt`, in which * is the word.

    Returns:
        The images; if asked to end, the images completed so far.
    """

    def skip_the_rest(pipeline, step, timestep, values):
        pipeline._interrupt = asked_to_end()  # diffusers' way to stop
        return values

    images = []
    with words_in_place(pipeline, [word.rows], prompts.first_ids):
        for number in range(settings.num_validation_images):
            if asked_to_end():
                break
            seed = stable_hash("validation", lesson.dataset.seed, lesson.class_name, number)
            image = pipeline(
                cast(str, settings.validation_prompt).replace("*", TRAINING_TOKEN),
                height=settings.resolution,
                width=settings.resolution,
                num_inference_steps=VALIDATION_IMAGE_STEPS,
                generator=torch.Generator().manual_seed(seed),
                callback_on_step_end=skip_the_rest,
            ).images[0]
            if asked_to_end():
                break  # this image may be incomplete
            path = lesson.folder / "validation" / f"{word.step:06d}-{number:03d}.png"
            with atomic_path(path) as temporary:
                image.save(temporary, format="PNG")
            images.append(image)
    return images
