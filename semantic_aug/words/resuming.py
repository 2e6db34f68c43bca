"""Words to be trained: which words are left, and from which checkpoints they resume together."""

import logging
from dataclasses import dataclass
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.experiment.names import Trial
from semantic_aug.experiment.sharding import shard_blocks
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.settings.fine_tuning import FineTuning
from semantic_aug.words.checkpoints import (
    differences,
    header_differences,
    list_checkpoints,
    read_checkpoint,
    remove_checkpoints,
)
from semantic_aug.words.embeddings import read_header

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Lesson:
    """A word to be trained: a class of a trial."""

    dataset: FewShotDataset
    class_name: str
    path: Path  # of its embedding file
    start: str  # the token whose row initialises the word
    token: str
    header: dict  # of the file
    trial_classes: tuple[str, ...]
    settings: dict  # of the trial's folder; weights may have an older name there

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


def is_learned(lesson: Lesson, overwrite: bool) -> bool:
    """Whether a class's file was made with these settings, photos and initial word."""
    if not lesson.path.exists():
        return False
    found = read_header(lesson.path)
    if "config_id" not in found and not overwrite:
        raise UserError(
            f"{lesson.path} is a word that fine_tune.py has not made: leave its class out, with "
            "--classes, or pass --overwrite to train it"
        )
    keys = ("config_id", "initializer", "token", "steps", "photos")
    differing = header_differences(found, lesson.header, keys)
    if differing and not overwrite:
        raise UserError(
            f"{lesson.path} was made with other settings: {'; '.join(differing)}; pass --overwrite "
            "to train it again"
        )
    return not differing


def groups_of(lessons: list[Lesson], classes_per_step: int, shard) -> list[list[Lesson]]:
    """This shard's groups of words that are trained together.

    The order of trials and classes alone determines the groups, so a word's bits do not depend on
    the process that trains it. `shard_blocks` assigns groups to shards; the order stays.
    """
    starts = range(0, len(lessons), classes_per_step)
    groups = [lessons[start : start + classes_per_step] for start in starts]
    if len(groups) < shard[1] and len(groups) < len(lessons):
        log.warning(
            "%s in groups of %d keep %d of %d processes busy; --classes_per_step %d would use more "
            "processes", counted(len(lessons), "class"), classes_per_step, len(groups), shard[1],
            max(1, len(lessons) // shard[1]),
        )  # fmt: skip
    return [groups[number] for number in sorted(shard_blocks(len(groups), *shard))]


def runs_of(
    group: list[Lesson], compared: dict, settings: FineTuning
) -> list[dict[Lesson, Path | None]]:
    """The unfinished words of a group, as sets that train together, each word with its checkpoint.

    All words continue from the latest step at which all have a checkpoint. If some words have only
    their first checkpoint and the others have no checkpoint, all words start again. So they share
    batches as without an interruption, and end with the same bytes. Otherwise words at the same
    step continue together.
    """
    found: dict[Lesson, dict[int, Path]] = {}
    for lesson in group:
        if is_learned(lesson, settings.overwrite):
            remove_checkpoints(lesson.folder)
        else:
            found[lesson] = usable_checkpoints(lesson, compared, settings)
    if not found:
        return []
    common = set.intersection(*(set(steps) for steps in found.values()))
    if max(max(steps, default=0) for steps in found.values()) <= settings.checkpointing_steps:
        common |= {0}
    by_step: dict[int, dict[Lesson, Path | None]] = {}
    for lesson, steps in found.items():
        step = max(common or steps, default=0)
        by_step.setdefault(step, {})[lesson] = steps.get(step)
        if step:
            log.info("%s: goes on from step %d of %d", lesson.where, step, lesson.steps)
    return list(by_step.values())


def usable_checkpoints(lesson: Lesson, compared: dict, settings: FineTuning) -> dict[int, Path]:
    """The checkpoints from which a word can continue, by step.

    Raises:
        UserError: the latest or the requested checkpoint was made with other settings.
    """
    checkpoints = list_checkpoints(lesson.folder)
    if settings.resume_from_checkpoint != "latest":
        path = Path(settings.resume_from_checkpoint)
        if is_of(asked := read_checkpoint(path), lesson):
            checkpoints = {asked["step"]: path}
    while checkpoints:
        latest = checkpoints[max(checkpoints)]
        try:
            differing = differences(read_checkpoint(latest), lesson.header, compared)
            break
        except UserError as error:
            log.warning("%s; this checkpoint is not used", error)
            del checkpoints[max(checkpoints)]
    if not checkpoints:
        return {}
    if not differing:
        return checkpoints
    if settings.overwrite:
        remove_checkpoints(lesson.folder)
        return {}
    raise UserError(
        f"{latest} was made with other settings: {'; '.join(differing)}; pass --overwrite to "
        "start this class again"
    )


def check_checkpoint(path: Path, lessons: list[Lesson]) -> None:
    """Raise UserError unless the checkpoint belongs to a class to train."""
    checkpoint = read_checkpoint(path)
    if not any(is_of(checkpoint, lesson) for lesson in lessons):
        header = checkpoint["header"]
        raise UserError(
            f"--resume_from_checkpoint: {path} is of class {header['class']!r} with seed "
            f"{header.get('seed')} and {header.get('examples_per_class')} examples per class, "
            "which this run does not train; choose it with --classes, --seed, --examples_per_class"
        )


def is_of(checkpoint: dict, lesson: Lesson) -> bool:
    """Whether a checkpoint belongs to this class and trial."""
    keys = ("class", "seed", "examples_per_class")
    return all(checkpoint["header"].get(key) == str(lesson.header[key]) for key in keys)
