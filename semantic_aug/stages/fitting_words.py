"""Learned words in `fit`: each fold learns its words anew, from its training photos.

output/NAME/fit/folds/N.csv lists the photos of a fold; output/NAME/fit/folds/N/ is an experiment
with their words and images. Only the folds of the first repeat have words.
"""

import dataclasses
import math
from collections import Counter

from semantic_aug import UserError
from semantic_aug.diffusion.loading import pick_device
from semantic_aug.evaluation.folds import Fold
from semantic_aug.experiment.names import EMBEDDINGS_FILE, FIT, Trial, fine_tuned_dir, folder_names
from semantic_aug.settings import build
from semantic_aug.settings.fine_tuning import FineTuning
from semantic_aug.settings.fitting import Fitting
from semantic_aug.stages.aggregate import aggregate
from semantic_aug.stages.common import dataset_of, experiment_of
from semantic_aug.stages.fine_tune import fine_tune
from semantic_aug.stages.fitting_methods import Made, Method, Time, Watch, make_images
from semantic_aug.stages.fitting_photos import Photos, write_photo_table
from semantic_aug.words.session import photos_per_step

FOLDS = "folds"


def folds_with_words(photos: Photos) -> list[Fold]:
    """The folds for which words are learned: learning words for all repeats takes too long."""
    return [fold for fold in photos.folds if fold.repeat == 0]


def make_images_by_words(
    method: Method, photos: Photos, settings: Fitting, time: Time, share: float, seen: float,
    side: int,
) -> list[Made]:  # fmt: skip
    """Images of each fold's training photos, by words that only these photos have taught.

    All photos in all folds get equally many images. Arguments and errors as `make_images`.

    Raises:
        TooLong: the words, or a single image of each photo, take too long.
    """
    until = time.clock() + share
    sets = dict.fromkeys(fold.trained for fold in folds_with_words(photos))
    parts = [part_of(photos, trained, number) for number, trained in enumerate(sets)]
    learn(parts, settings, time)
    found: list[Made] = []
    for trained, part in zip(sets, parts):
        if found:  # the first fold decides how many fit
            settings = dataclasses.replace(settings, num_synthetic=found[0].number)
            time = dataclasses.replace(time, end=math.inf)
        own_share = (until - time.clock()) / len(parts)
        made = make_images(method, part, settings, time, own_share, seen, side)
        place = {source: idx for idx, source in enumerate(photos.dataset.sources())}
        own = [place[source] for source in part.dataset.sources()]
        paths = {own[idx]: each for idx, each in made.paths.items()}
        found.append(dataclasses.replace(made, paths=paths, learned_from=trained))
    return found


def part_of(photos: Photos, trained: tuple[int, ...], number: int) -> Photos:
    """The training photos of a fold, as a separate experiment."""
    folder, records = experiment_of(photos.run) / FIT / FOLDS, photos.dataset.records
    table = folder / f"{number}.csv"
    held_out = {record.source for idx, record in enumerate(records) if idx not in trained}
    write_photo_table(table, records, photos.contents, held_out)
    most = max(Counter(photos.labels[idx] for idx in trained).values())
    run = dataclasses.replace(
        photos.run,
        experiment_name=str(number),
        output_dir=str(folder),
        dataset_args=(f"splits={table}",),
        examples_per_class=(most,),
        mask_dir=None,
    )
    trial = Trial(run.seed, most)
    dataset = dataset_of(run, "train", trial)
    labels = [dataset.get_label_by_idx(idx) for idx in range(len(dataset))]
    return dataclasses.replace(
        photos, run=run, dataset=dataset, trial=trial, labels=labels, units=[], folds=[]
    )


def learn(parts: list[Photos], settings: Fitting, time: Time) -> None:
    """Learn the missing words of every class from each part of the photos.

    Raises:
        TooLong: learning takes longer than the time that is left.
        UserError: the training of a word has diverged.
    """
    device = pick_device(settings.device)
    precision = (settings.mixed_precision or "fp16") if device.type == "cuda" else "no"
    teaching = build(
        FineTuning,
        {
            "model": settings.model,
            "revision": settings.revision,
            "variant": settings.variant,
            "resolution": settings.resolution,
            "device": settings.device,
            "overwrite": settings.overwrite,
            "max_train_steps": settings.word_steps,
            "mixed_precision": precision,
            "gradient_checkpointing": settings.low_memory,
            "classes_per_step": 1 if settings.low_memory else 8,
            "report_to": "none",
        },
    )
    shown = sum(map(missing_words, parts)) * settings.word_steps * photos_per_step(teaching)
    watch = None if math.isinf(time.end) else Watch(time, shown, unknown=device.type != "cpu")
    for part in parts:
        learned = fine_tune(part.run, teaching, computed=watch)
        if learned.failed:
            raise UserError(f"the training of a word has diverged: {learned.failed[0]}")
        aggregate(part.run)


def missing_words(part: Photos) -> int:
    """How many classes have no learned word yet."""
    folder = fine_tuned_dir(experiment_of(part.run), part.trial)
    names = folder_names(part.dataset.class_names)
    own = {names[part.dataset.class_names[label]] for label in part.labels}
    return sum(not (folder / name / EMBEDDINGS_FILE).is_file() for name in own)
