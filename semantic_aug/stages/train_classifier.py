"""What flags mean for training, the photos of each split, and one trial after the other."""

import dataclasses
import functools
import logging
import shlex
import time
from collections.abc import Iterable
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.evaluation.backbone import ALL, FLOAT32, FROZEN, Backbone
from semantic_aug.evaluation.features import LabelledFeatures, load_split, readable, split_features
from semantic_aug.evaluation.results import (
    TEST,
    TRAINING,
    VALIDATION,
    confusion_file,
    is_finished,
    metric_names,
    results_file,
    score_rows,
    selected_row,
    write_confusions,
    write_results,
)
from semantic_aug.evaluation.sampling import MIX, load_examples
from semantic_aug.evaluation.training import BEST_VAL, TrainingOptions, evaluate, train_trial
from semantic_aug.experiment.config import read_config
from semantic_aug.experiment.names import CACHE, RESULTS, Trial, check_component, experiment_dir
from semantic_aug.experiment.timing import TRAIN, timed
from semantic_aug.few_shot_dataset import FewShotDataset, NoPhotos
from semantic_aug.stages.common import dataset_of, experiment_of
from semantic_aug.synthesis.variants import MissingImages

MOST_IMAGES = 10_000_000  # of an epoch, all of which are drawn at its start

log = logging.getLogger(__name__)


# --- flags -----------------------------------------------------------------------------------


def training_options(args) -> TrainingOptions:
    """What the flags say of training.

    Raises:
        UserError: flags that do not go together.
    """
    names = args.augmentation
    if len(names) > 1 and ("none" in names or len(set(names)) < len(names)):
        raise UserError(
            f"--augmentation: got {' '.join(names)}, expected none alone, or each name once"
        )
    if args.from_scratch and args.finetune != ALL:
        raise UserError(
            "--from_scratch needs --finetune all: random weights that stay random recognise little"
        )
    if args.backbone_learning_rate is not None and args.finetune == FROZEN:
        raise UserError("--backbone_learning_rate needs --finetune all or last:N")
    if args.finetune != FROZEN and args.backbone_precision not in (None, FLOAT32):
        raise UserError(
            f"--backbone_precision: got {args.backbone_precision}, and what --finetune trains "
            f"computes in {FLOAT32}"
        )
    if args.synthetic_probability is not None and args.utilization != MIX:
        raise UserError(
            f"--synthetic_probability belongs to --utilization mix, not {args.utilization}"
        )
    if args.iterations_per_epoch * args.batch_size > MOST_IMAGES:
        raise UserError(
            f"--iterations_per_epoch {args.iterations_per_epoch} of --batch_size {args.batch_size} "
            f"are an epoch of {args.iterations_per_epoch * args.batch_size:,} images, expected "
            f"{MOST_IMAGES:,} at most; give more --num_epochs"
        )
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(TrainingOptions)}
    given["augmentation"] = tuple(name for name in names if name != "none")
    return TrainingOptions(**{key: value for key, value in given.items() if value is not None})


def wants_synthetic(args) -> bool:
    if args.utilization != MIX and args.num_synthetic == 0:
        raise UserError(
            f"--utilization {args.utilization} needs synthetic images, and --num_synthetic 0 says "
            "to use none: leave one of them away"
        )
    return args.num_synthetic != 0 and args.synthetic_probability != 0


def compared_folders(args, folder: Path, trials: list[Trial]) -> dict[str, Path]:
    """Where the results of --compare lie, by what they are called there.

    Raises:
        UserError: there are none, or none of one of these trials.
    """
    found = {}
    for name in args.compare:
        experiment, colon, method = name.rpartition(":")
        if colon:
            other = experiment_dir(args.output_dir, experiment) / RESULTS / method
        else:
            other = folder.parent / name
        check_component("--compare", method)
        if other == folder:
            raise UserError(f"--compare: {name} is the method that is to be compared with others")
        if not any(other.glob("results_*.csv")):
            there = sorted({path.parent.name for path in other.parent.glob("*/results_*.csv")})
            raise UserError(
                f"--compare: no results in {other}; there are: {', '.join(there) or 'none'}"
            )
        if not any(is_finished(other, trial) for trial in trials):
            raise UserError(
                f"--compare: {other} has no result of {trials[0].name}"
                f"{' and the other trials' if len(trials) > 1 else ''}: differences are taken "
                "within a trial, so run it with the same --seed and --examples_per_class"
            )
        found[name] = other
    return found


# --- datasets --------------------------------------------------------------------------------


def evaluation_splits(args, options: TrainingOptions) -> dict[str, FewShotDataset]:
    """The whole splits `val` and `test` by their names in the results, where they have photos.

    Raises:
        UserError: there is no `val`, and an epoch is to be chosen by it.
    """
    found, reasons = {}, {}
    for name, split in ((VALIDATION, "val"), (TEST, "test")):
        try:
            dataset = dataset_of(args, split)
            if not dataset.indices(args.classes):
                raise NoPhotos(f"no photo of the selected classes in split {split!r}")
            found[name] = dataset
        except (KeyError, ValueError, OSError) as error:  # subclasses, of a split they do not know
            if split == "val" and not isinstance(error, NoPhotos):
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"--dataset: {args.dataset} has no split 'val': {error!r}"
                ) from error
            reasons[split] = str(error) if isinstance(error, UserError) else repr(error)
    if VALIDATION not in found and options.select == BEST_VAL:
        raise UserError(f"--select {BEST_VAL} needs photos in split 'val': {reasons['val']}")
    for split, reason in reasons.items():
        reported = " and ".join((TRAINING, *found))
        log.warning("no %s split, reported: %s alone: %s", split, reported, reason)
    return found


def check_command(args) -> str:
    """What lists the photos that lie in several splits, to be pasted."""
    words = ["python", "-m", "semantic_aug.datasets", "check", args.dataset]
    words += ["--data_dir", args.data_dir] if args.data_dir else []
    words += ["--dataset_args", *args.dataset_args] if args.dataset_args else []
    return shlex.join(words)


def training_photos(
    args, trial: Trial, dataset: FewShotDataset, folder: Path | None
) -> FewShotDataset:
    """The photos of a trial, with their synthetic variants from `folder` if there is one."""
    dataset.synthetic_examples = {}
    if not dataset.indices(args.classes):
        raise UserError("no training photo of the selected classes")
    if folder is not None:
        try:
            dataset.load_synthetic(folder, args.num_synthetic, args.classes, args.ignore_filter)
        except UserError as error:
            again = "" if isinstance(error, MissingImages) else " --overwrite"
            instead = " (or pass --num_synthetic=0 for real photos only)"
            raise UserError(
                f"{error}; make them with: {generation_command(args, trial, folder)}{again}"
                + (instead if args.utilization == MIX else "")
            ) from error
    return dataset


def generation_command(args, trial: Trial, folder: Path) -> str:
    """What makes the synthetic images of a trial, to be pasted: what made some of them, if any.

    What made those of another trial does as well, with this trial's flags behind.
    """
    others = sorted(folder.parent.glob("seed=*_ex=*"))
    for each in [folder, *others]:
        made = (read_config(each) or {}).get("arguments", {})
        if not isinstance(made.get("command"), str):
            continue
        flags = {}
        if each != folder:
            flags = {"seed": trial.seed, "num_trials": 1}
            flags["examples_per_class"] = trial.examples_per_class
        number = made.get("num_synthetic")
        if isinstance(number, int) and (args.num_synthetic or 0) > number:
            flags["num_synthetic"] = args.num_synthetic
        return " ".join([made["command"], *(f"--{flag}={n}" for flag, n in flags.items())])
    flags = {
        "dataset": args.dataset,
        "experiment_name": args.experiment_name,
        "aug_name": args.aug_name,
        "seed": trial.seed,
        "examples_per_class": trial.examples_per_class,
        "num_synthetic": args.num_synthetic or 10,
        "output_dir": None if args.output_dir == "output" else args.output_dir,
        "data_dir": args.data_dir,
    }
    words = ["python", "generate_augmentations.py"]
    words += [f"--{flag}={value}" for flag, value in flags.items() if value is not None]
    words += ["--crop_to_object"] if args.crop_to_object else []
    words += ["--dataset_args", *args.dataset_args] if args.dataset_args else []
    words += ["--classes", *args.classes] if args.classes else []
    return shlex.join(words)


def check_class_names(datasets: Iterable[FewShotDataset]) -> None:
    first, *others = datasets
    for other in others:
        if list(other.class_names) != list(first.class_names):
            raise UserError(
                f"{type(first).__name__}: class_names of split {other.split!r} differ from those "
                f"of {first.split!r}, so that labels do not mean the same"
            )


# --- trials ----------------------------------------------------------------------------------


def run_trials(
    trials, train_set, splits, left_out, backbone, options, args, folder, reporter
) -> None:
    """Train, evaluate and write the result files of one trial after the other.

    Args:
        train_set: function of a trial that gives its photos.
        splits: the datasets to evaluate on, by the split's name in the results.
        left_out: by trial and split, the photos that it is not to be evaluated on.
    """
    if not trials:
        return
    experiment, method = experiment_of(args), folder.name
    cache = experiment / CACHE
    class_names = train_set(trials[0]).class_names
    check_class_names([train_set(trials[0]), *splits.values()])
    with timed(experiment, TRAIN, method, device=backbone.device) as work:  # once for all trials
        whole = _evaluated_splits(splits, backbone, args, cache)
        work.images = sum(map(len, splits.values()))
    # Half for the validation split, which is held too where the backbone changes.
    memory = args.image_memory / 2 if backbone.trained else args.image_memory
    for trial in trials:
        started = time.monotonic()
        reporter.works_on([trial])
        with timed(experiment, TRAIN, method, trial, backbone.device, again=True) as work:
            size = backbone.image_size
            features_of = {
                split: functools.partial(_without, each, left_out[trial][split])
                for split, each in whole.items()
            }
            present = {split: set(each().labels.tolist()) for split, each in features_of.items()}
            examples = load_examples(train_set(trial), size, args.classes, memory, args.num_workers)
            _describe(trial, examples, class_names, args.classes, present)
            result = train_trial(
                examples,
                features_of.get(VALIDATION),
                backbone,
                options,
                trial,
                len(class_names),
                cache,
            )
            trained = set(examples.labels.tolist())
            tested = None
            if TEST in features_of and trained & present[TEST]:
                tested = evaluate(result.head, features_of[TEST]())  # once; nothing is chosen by it
            work.images = options.num_epochs * options.iterations_per_epoch * options.batch_size
        reporter.count(work.images)
        evaluated = {split: trained & labels for split, labels in present.items()}
        rows = _result_rows(trial, metric_names(class_names), trained, evaluated, result, tested)
        scores = {VALIDATION: result.validation, TEST: tested}
        scores = {split: each for split, each in scores.items() if each is not None}
        write_confusions(confusion_file(folder, trial), scores, class_names)
        write_results(results_file(folder, trial), rows)
        names = {VALIDATION: "val", TEST: "test"}
        said = [f"{names[split]} {each.mean_accuracy:.1%}" for split, each in scores.items()]
        said += [f"epoch {result.selected}"] if options.select == BEST_VAL else []
        said = ", ".join(said) or "trained, and evaluated on nothing"
        print(f"{trial.name}: {said} ({time.monotonic() - started:.1f} s)")


def _evaluated_splits(splits, backbone: Backbone, args, cache: Path) -> dict:
    """Functions that give the features of each split by the backbone as it is.

    Those of a frozen backbone are computed here, once for all trials and epochs.
    """
    functions = {}
    for name, dataset in splits.items():
        split = load_split(dataset, backbone.image_size, args.classes, args.num_workers)
        if not backbone.trained:
            features = split_features(backbone, split, cache)
            functions[name] = functools.partial(_the_same, features)
            continue
        # The val split passes after every epoch, the test split once per trial.
        memory = args.image_memory / 2 if name == VALIDATION else 0
        split = readable(split, memory, args.num_workers)
        functions[name] = functools.partial(split_features, backbone, split)
    return functions


def _the_same(features):
    return features


def _without(features_of, left_out: set[int]) -> LabelledFeatures:
    return features_of().without(left_out)


def _describe(trial: Trial, examples, class_names, classes, present: dict) -> None:
    """Say what a trial is trained on, and which classes have no photos."""
    trained = set(examples.labels.tolist())
    everything = range(len(class_names)) if classes is None else map(class_names.index, classes)
    _name_absent(class_names, set(everything), trained, present)
    num_variants = len(examples.labels) - examples.num_photos
    print(
        f"{trial.name}: {counted(examples.num_photos, 'photo')} and "
        f"{counted(num_variants, 'synthetic image')} of {counted(len(trained), 'class')}"
    )


def _result_rows(trial, names, trained, evaluated, result, tested) -> list[tuple]:
    """Training and Validation of every epoch, and Test of the selected one, each with classes."""
    rows = []
    for epoch, (running, validated) in enumerate(result.history):
        rows += score_rows(trial, epoch, TRAINING, running, names, trained)
        if validated is not None:
            rows += score_rows(trial, epoch, VALIDATION, validated, names, evaluated[VALIDATION])
    rows.append(selected_row(trial, result.selected))
    if tested:
        rows += score_rows(trial, result.selected, TEST, tested, names, evaluated[TEST])
    return rows


def _name_absent(class_names, wanted: set[int], trained: set[int], present: dict) -> None:
    """Name the classes without a photo; the same message appears only once per run."""
    absent = [repr(class_names[label]) for label in sorted(wanted - trained)]
    if absent:
        log.warning(
            "no training photo of %s: never predicted, and left out of the mean accuracy",
            ", ".join(absent),
        )
    for split, labels in present.items():
        absent = [repr(class_names[label]) for label in sorted(trained - labels)]
        if absent:
            log.warning(
                "no %s photo of %s: left out of its mean accuracy", split.lower(), ", ".join(absent)
            )
