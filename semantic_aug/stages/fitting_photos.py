"""The photos of `fit`: usable photos, groups of related photos, and folds."""

import contextlib
import csv
import dataclasses
import io
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from semantic_aug import UserError, counted, few_shot_dataset
from semantic_aug.cli.notices import RESULT
from semantic_aug.datasets import split_table
from semantic_aug.datasets.folder import FolderDataset
from semantic_aug.evaluation.folds import Fold, folds_of_val, make_folds, units_of
from semantic_aug.experiment.files import write_text
from semantic_aug.experiment.names import FIT, Trial, experiment_dir, folder_names
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.few_shot_dataset import FewShotDataset, NoPhotos, Record
from semantic_aug.images.contents import photo_digests
from semantic_aug.images.likeness import reduced, similar_pairs
from semantic_aug.images.reading import read_image
from semantic_aug.settings.classification import Classification
from semantic_aug.settings.common import Run
from semantic_aug.settings.fitting import Fitting
from semantic_aug.settings.reporting import NEAR_DUPLICATE
from semantic_aug.stages.common import command_line, dataset_of

log = logging.getLogger(__name__)

TABLE = "photos.csv"
RESULT_FILE = "fit.json"
MASKS = "masks"
NAMED = 3  # photos or classes in a notice


@contextlib.contextmanager
def fewer_notices():
    """Suppress notices that a class has fewer photos than the largest class, and that the tables
    of `fit` do not name a photo, such as photos of the split test."""

    def is_wanted(record: logging.LogRecord) -> bool:
        if record.msg == split_table.OTHERS and isinstance(record.args, tuple):
            return FIT not in Path(str(record.args[1])).parent.parts
        return record.msg != few_shot_dataset.FEWER

    loggers = [logging.getLogger(each.__name__) for each in (few_shot_dataset, split_table)]
    for logger in loggers:
        logger.addFilter(is_wanted)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_wanted)


class WholeFolder(FolderDataset):
    """A folder that is not cut into splits: without folders of splits, all photos are `train`."""

    def completed(self, records: dict[str, list[Record]]) -> dict[str, list[Record]]:
        return records


@dataclasses.dataclass(frozen=True, eq=False)
class Photos:
    """All photos that can be used.

    Attributes:
        run: an experiment whose split `train` has these photos.
        dataset: this split, as every stage sees it.
        trial: the trial that has all photos.
        labels, units: the class of each photo, and its group of related photos.
        folds: the training photos and the held-out photos of each fold.
        val: whether a split `val` of the user is held out, in place of folds.
        contents: the content digest of every photo in the folder, by source.
        notes: what the user should know about the photos, a sentence each.
    """

    run: Run
    dataset: FewShotDataset
    trial: Trial
    labels: list[int]
    units: list[int]
    folds: list[Fold]
    val: bool
    contents: dict[str, str]
    notes: list[str]

    @property
    def ratio(self) -> float:
        """Held-out photos per training photo, on average over the folds."""
        return float(np.mean([len(fold.held_out) / len(fold.trained) for fold in self.folds]))


def run_of(photos: str | Path, settings: Fitting) -> Run:
    """The experiment, with its folder; a folder of masks that does not exist yet comes later.

    Raises:
        UserError: the folder does not exist, or masks or the experiment would lie among its
            classes.
    """
    root = Path(photos).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(
            f"{photos} {what}: expected a folder with a folder of photos for each class"
        )
    own = root.resolve().name or "photos"
    masks = Path(settings.mask_dir).expanduser().resolve() if settings.mask_dir else None
    if masks and masks != root.resolve() / MASKS and masks.is_relative_to(root.resolve()):
        raise UserError(
            f"--mask_dir: {settings.mask_dir} lies among the classes: call it {root / MASKS}, or "
            "move it elsewhere"
        )
    name = settings.experiment_name or folder_names([own])[own]
    # Generated images there would be taken for photos.
    if experiment_dir(settings.output_dir, name).resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"--output_dir: got {settings.output_dir}, where {name} would lie within {photos}, "
            "expected a folder that is not among the photos"
        )
    return Run(
        name,
        dataset="folder",
        data_dir=str(root),
        mask_dir=None if settings.masker else settings.mask_dir,
        output_dir=settings.output_dir,
        seed=settings.seed,
    )


def read_photos(run: Run, settings: Fitting, experiment: Path) -> Photos:
    """Read all photos, write the table of photos for later stages, and cut the photos into folds.

    Raises:
        UserError: there are too few photos, or photos are still being written.
    """
    before = listed(run, settings)
    records = [record for each in before.values() for record in each]
    known = digests_of(records)
    small, errors = read_all(records, settings.num_workers)
    check_settled(run, settings, known)
    for error in errors.values():
        log.warning("%s; left out", error)
    records = [record for record in records if record.source not in errors]
    if not records:
        raise UserError(
            f"{run.data_dir}: {counted(len(errors), 'photo')}, and none of them can be read"
        )
    notes = []
    if errors:  # the lines above say it too, so this note is for the page
        notes.append(
            f"{counted(len(errors), 'photo')} cannot be read, such as {min(errors)}: left out."
        )
    check_classes(run, records)
    if not settings.overwrite:
        check_same_photos(experiment, known)
    write_photo_table(experiment / FIT / TABLE, records, known)
    most = max(Counter(record.class_name for record in records).values())
    run = dataclasses.replace(
        run,
        dataset_args=(f"splits={experiment / FIT / TABLE}",),
        examples_per_class=(most,),
    )
    dataset = dataset_of(run, "train", Trial(run.seed, most))
    val = {record.source for record in before["val"]}
    return cut(run, dataset, small, val, known, notes)


def listed(run: Run, settings: Fitting) -> dict[str, list[Record]]:
    """The photos of `train` and `val` in the user's splits; without splits, all are `train`."""
    found: dict[str, list[Record]] = {}
    for split in ("train", "val"):
        try:
            made = WholeFolder(split=split, data_dir=run.data_dir, splits=settings.splits or "")
            found[split] = made.records
        except NoPhotos:
            if split == "train":
                raise UserError(f"{run.data_dir} has no photo of the split train") from None
            found[split] = []
    return found


def digests_of(records: Iterable[Record]) -> dict[str, str]:
    """The content digests of photos, by source."""
    records = list(records)
    return dict(zip((r.source for r in records), photo_digests([r.path for r in records])))


def changes(run: Run, settings: Fitting, known: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """New photos, and photos that were removed or changed, since `known`."""
    now = digests_of(record for each in listed(run, settings).values() for record in each)
    other = [source for source in known if now.get(source) != known[source]]
    return sorted(now.keys() - known.keys()), sorted(other)


def check_settled(run: Run, settings: Fitting, known: Mapping[str, str]) -> None:
    """Raise UserError where photos appear or change while they are read."""
    came, other = changes(run, settings, known)
    if came or other:
        raise UserError(
            f"{run.data_dir} is being written to: {counted(len(came), 'photo')} came and "
            f"{len(other)} changed while they were read, such as {(came + other)[0]}; run this "
            "again when all are there"
        )


def read_all(
    records: Sequence[Record], workers: int | None
) -> tuple[dict[str, np.ndarray], dict[str, UserError]]:
    """Every photo as `reduced` gives it, or why the photo cannot be read, by source."""

    def read(record: Record) -> np.ndarray | UserError:
        try:
            return reduced(read_image(record.path))
        except UserError as error:
            return error
        except OSError as error:
            return UserError(f"{record.source}: {error}")

    small: dict[str, np.ndarray] = {}
    errors: dict[str, UserError] = {}
    with ThreadPoolExecutor(workers) as threads:
        done = threads.map(read, records)
        bar = progress_bar(iterable=done, total=len(records), desc="reading", unit="photo")
        for record, found in zip(records, bar):
            if isinstance(found, UserError):
                errors[record.source] = found
            else:
                small[record.source] = found
    return small, errors


def check_same_photos(experiment: Path, known: Mapping[str, str]) -> None:
    """Raise UserError where the experiment has the results of another folder."""
    try:
        with open(experiment / FIT / TABLE, encoding="utf-8", newline="") as file:
            there = {row["sha256"] for row in csv.DictReader(file)}
    except FileNotFoundError:
        return
    if (experiment / FIT / RESULT_FILE).exists() and there.isdisjoint(known.values()):
        raise UserError(
            f"{experiment / FIT} holds the results of other photos: choose another "
            "--experiment_name, or pass --overwrite to replace them"
        )


def check_classes(run: Run, records: Sequence[Record]) -> None:
    """Raise UserError where classes are too few to classify, or photos too few to hold any out."""
    number = Counter(record.class_name for record in records)
    if len(number) < 2:
        raise UserError(
            f"{run.data_dir} has photos of one class, {min(number)}: a classifier needs two "
            "classes or more, with a folder of photos each"
        )
    if max(number.values()) < 2:
        raise UserError(
            f"{run.data_dir} has a single photo of each class, so no photo can be held out to see "
            "what helps; add a second photo to some classes, or train without an expected "
            "accuracy: "
            + command_line(
                "train_classifier",
                dataclasses.replace(run, dataset_args=()),
                Classification(num_synthetic=0),
            )
        )


def write_photo_table(
    path: Path, records: Sequence[Record], contents: Mapping[str, str],
    held_out: Collection[str] = (),
) -> None:  # fmt: skip
    """Write all photos for `splits=FILE` of the dataset `folder`.

    Args:
        contents: the content digests of photos, by source.
        held_out: the photos in the split `val`; the other photos are in `train`.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["source", "split", "group", "class", "sha256"])
    for each in sorted(records, key=lambda record: record.source):
        split = "val" if each.source in held_out else "train"
        rows.writerow([each.source, split, each.group, each.class_name, contents[each.source]])
    write_text(path, text.getvalue())


def cut(
    run: Run, dataset: FewShotDataset, small: Mapping[str, np.ndarray], val: set[str],
    known: Mapping[str, str], notes: list[str],
) -> Photos:  # fmt: skip
    """Group related photos, cut the photos into folds, and collect the notes about them."""
    names, sources = dataset.class_names, dataset.sources()
    held = [idx for idx, source in enumerate(sources) if source in val]
    every, already = range(len(sources)), len(notes)
    labels = [dataset.get_label_by_idx(idx) for idx in every]
    pairs = similar_pairs([small[source] for source in sources], NEAR_DUPLICATE)
    units, few = units_of(labels, [record.group for record in dataset.records], pairs)
    if pairs:
        one, other = pairs[0]
        notes.append(
            f"{counted(len({idx for pair in pairs for idx in pair}), 'photo')} are nearly equal to "
            f"others, such as {sources[one]} and {sources[other]}: they stay in one fold"
            + (
                ", and photos of val that are nearly equal to training photos judge nothing."
                if held
                else "."
            )
        )
    across = [(a, b) for a, b in pairs if labels[a] != labels[b]]
    if across:
        a, b = (sources[idx] for idx in across[0])
        notes.append(
            f"{counted(len(across), 'pair')} of these are of two classes, such as {a} and {b}: is "
            "a photo in the wrong folder?"
        )
    if few:
        notes.append(
            f"{named(names[label] for label in few)}: fewer than three groups, so the folds are "
            "by photo there, and the expected accuracy may be too high."
        )
    folds = folds_of_val(labels, units, sources, held, run.seed) if held else []
    if held and not folds:
        notes.append("No photo of the split val can be held out, so the folds contain all photos.")
    by_val = bool(folds)
    folds = folds or make_folds(labels, units, sources, run.seed)
    if not folds:
        raise UserError(
            f"{run.data_dir}: no class has two different photos, so no photo can be held out to "
            "see what helps; add a second photo to at least one class"
        )
    absent = [name for label, name in enumerate(names) if label not in set(labels)]
    if absent:
        notes.append(
            f"{named(absent)}: no photo that can be read. The classifier never gives this answer."
        )
    judging = {labels[idx] for fold in folds for idx in fold.held_out}
    alone = sorted(set(labels) - judging)
    if alone:
        why = "no photo of val that can judge" if by_val else "too few photos to hold any out"
        notes.append(
            f"{named(names[label] for label in alone)}: {why}. The "
            "classifier learns from all of them, and its accuracy for such a class is unknown."
        )
    trial = Trial(run.seed, run.examples_per_class[0])
    for note in notes[already:]:
        log.log(RESULT, "%s", note)
    return Photos(run, dataset, trial, labels, units, folds, by_val, dict(known), notes)


def named(names: Iterable[str]) -> str:
    """`cat, dog, fox and 4 more`."""
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
