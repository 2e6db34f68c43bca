"""The LoRAs that fine_tune.py trains with the words: choosing them and training them."""

import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from semantic_aug.diffusion.lora import check_peft
from semantic_aug.experiment.config import config_id, write_config
from semantic_aug.experiment.files import check_writable, remove_leftovers
from semantic_aug.experiment.names import (
    EMBEDDINGS_FILE,
    Trial,
    folder_names,
    lora_file,
    prior_dir,
    trial_named,
)
from semantic_aug.experiment.processes import Reporter
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.experiment.sharding import shard_blocks
from semantic_aug.experiment.timing import FINE_TUNE, timed
from semantic_aug.settings.common import Run
from semantic_aug.settings.fine_tuning import LORA_SETTINGS, FineTuning
from semantic_aug.stages.common import arguments_of
from semantic_aug.words.domain_adapter import DomainAdapter
from semantic_aug.words.domain_session import (
    WORD_IN_USE,
    DomainLesson,
    is_trained,
    learn_domain,
    usable_checkpoint,
)
from semantic_aug.words.embeddings import LearnedWords, read_header, words_digest
from semantic_aug.words.prior import make_prior, prior_files, prior_settings
from semantic_aug.words.prompts import tokenise
from semantic_aug.words.resuming import Lesson
from semantic_aug.words.session import PhotoKey, encode_photo, photos_per_step
from semantic_aug.words.tracking import tracker

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Domains:
    """The LoRAs of this process's share of trials.

    Attributes:
        trained: existing files.
        ready: LoRAs to train now.
        owing: by trial, the classes whose words are not learned yet.
    """

    trained: list[Path]
    ready: list[DomainLesson]
    owing: dict[Trial, list[str]]

    @property
    def trials(self) -> list[Trial]:
        trained = [cast(Trial, trial_named(path.parent.name)) for path in self.trained]
        return [*trained, *(lesson.trial for lesson in self.ready), *self.owing]

    def say_what_is_left(self) -> None:
        """A line for each trial that has to wait for words."""
        for trial, classes in self.owing.items():
            log.warning(
                "%s: no LoRA yet, because words are still to be learned (%s); the same command, "
                "without --classes, trains it after them",
                trial.name, ", ".join(classes),
            )  # fmt: skip


def check_domains(settings: FineTuning, experiment: Path) -> None:
    """Raise UserError where the settings allow no LoRA for any trial."""
    if settings.lora_rank is not None:
        check_peft("--lora_rank")
        if settings.prior_preservation:
            check_writable(prior_dir(experiment))


def find_domains(
    run: Run, settings: FineTuning, info, experiment: Path, lessons: Iterable[Lesson], shard
) -> Domains:
    """The LoRAs of a process's share of trials, both existing and still to be trained.

    Args:
        lessons: the words of all trials.

    Raises:
        UserError: a LoRA or its checkpoint was made with other settings.
    """
    found = Domains([], [], {})
    if settings.lora_rank is None:
        return found
    first_of = {lesson.trial: lesson for lesson in reversed(list(lessons))}
    trials = sorted(first_of, key=lambda trial: (trial.seed, trial.examples_per_class))
    for number in sorted(shard_blocks(len(trials), *shard)):
        trial = trials[number]
        lesson = first_of[trial]
        words = words_of(lesson)
        missing = [name for name, path in words.items() if not is_of_trial(path, lesson)]
        if missing:
            found.owing[trial] = missing
            continue
        wanted = domain_lesson(run, settings, info, experiment, lesson, words)
        if is_trained(wanted, settings.overwrite):
            found.trained.append(wanted.path)
        else:
            usable_checkpoint(wanted, settings.overwrite)  # an error comes here, not later
            found.ready.append(wanted)
    return found


def words_of(lesson: Lesson) -> dict[str, Path]:
    """The word's file for every class of a trial, also for classes that are not chosen."""
    folders, folder = folder_names(lesson.dataset.class_names), lesson.folder.parent
    return {name: folder / folders[name] / EMBEDDINGS_FILE for name in lesson.trial_classes}


def is_of_trial(path: Path, lesson: Lesson) -> bool:
    """Whether a word's file exists, and was learned with the settings of `lesson`."""
    if not path.exists():
        return False
    own = config_id(lesson.settings)
    return read_header(path).get("config_id", own) == own


def domain_lesson(
    run: Run, settings: FineTuning, info, experiment: Path, lesson: Lesson, words: dict[str, Path]
) -> DomainLesson:
    """The LoRA of a word's trial."""
    dataset, trial = lesson.dataset, lesson.trial
    rows = {name: LearnedWords.read(path).only_rows() for name, path in words.items()}
    facts = {
        **lesson.settings,
        "words": words_digest(rows),
        "photos": dataset.photo_digest(),
        **{name: getattr(settings, name) for name in LORA_SETTINGS},
    }
    prior: dict[str, list[Path]] = {}
    if settings.prior_preservation:
        folder = prior_dir(experiment) / config_id(
            prior_settings(info.identity, settings.resolution)
        )
        folders = folder_names(dataset.class_names)
        own = {name: folders[name] for name in words}
        prior = prior_files(folder, own, settings.prior_preservation)
    header = {
        "format": "pt",
        "model": settings.model,
        "model_id": info.identity,
        "dataset": run.dataset,
        "seed": trial.seed,
        "examples_per_class": trial.examples_per_class,
        "classes": json.dumps(list(words), ensure_ascii=False),
        "words": facts["words"],
        "settings": json.dumps(facts, sort_keys=True, ensure_ascii=False),
        "id": config_id(facts),
    }
    return DomainLesson(dataset, trial, lora_file(experiment, trial), words, prior, facts, header)


def train_domains(
    run: Run, settings: FineTuning, info, pipeline, templates: Sequence[str], experiment: Path,
    lessons: Sequence[DomainLesson], shard: tuple[int, int], reporter: Reporter,
) -> list[str]:  # fmt: skip
    """Train the LoRAs in turn; return the trials whose LoRAs failed."""
    if settings.attention_slicing:
        pipeline.enable_attention_slicing()
    if settings.compile:
        pipeline.unet.compile()
    make_priors(run, settings, info, pipeline, experiment, lessons, shard)
    prompts = tokenise(pipeline, templates, WORD_IN_USE, settings.num_vectors)
    images, failed = photos_per_step(settings), []
    with (
        tracker(
            settings.report_to, experiment / "logs", f"lora-shard{shard[0]}of{shard[1]}"
        ) as track,
        progress_bar(
            total=images * settings.lora_steps * len(lessons), desc="LoRA", unit=" photos"
        ) as progress,
    ):
        for lesson in lessons:
            remove_leftovers(lesson.folder)
            reporter.works_on([lesson.trial])
            steps: list[int] = []

            def count(adapter: DomainAdapter, lesson=lesson, steps=steps) -> None:
                if not steps:  # a resumed LoRA has fewer steps left
                    progress.total -= images * (adapter.step - 1)
                steps.append(adapter.step)
                progress.update(images)
                reporter.count(images)
                progress.set_postfix(loss=f"{adapter.loss:.4f}", refresh=False)
                track.log({f"lora_loss/{lesson.trial.name}": adapter.loss}, adapter.step)

            def encode(index: int, lesson=lesson):
                return encode_photo(settings, pipeline, PhotoKey(lesson.dataset, index))

            with timed(experiment, FINE_TUNE, trials=lesson.trial, device=pipeline.device) as work:
                try:
                    why = learn_domain(settings, pipeline, prompts, encode, lesson, count)
                finally:
                    work.images = images * len(steps)
            if why:
                log.error("%s: the LoRA's %s; try a lower --lora_learning_rate with --overwrite",
                          lesson.trial.name, why)  # fmt: skip
                failed.append(lesson.trial.name)
    return failed


def make_priors(
    run: Run, settings: FineTuning, info, pipeline, experiment: Path,
    lessons: Sequence[DomainLesson], shard: tuple[int, int],
) -> None:  # fmt: skip
    """Make the images of class names that LoRAs are also trained on."""
    files = {name: paths for lesson in lessons for name, paths in lesson.prior.items()}
    if files:
        facts = prior_settings(info.identity, settings.resolution)
        folder = prior_dir(experiment) / config_id(facts)
        write_config(folder, facts, arguments_of(run, settings))
        make_prior(pipeline, files, cast(int, settings.resolution), shard)
