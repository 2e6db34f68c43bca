"""Train and evaluate a classifier on few photos per class and their synthetic variants.

    python train_classifier.py --dataset=coco --experiment_name=coco-demo \\
        --examples_per_class 1 2 4 --num_trials 8

For every trial, a linear head on a frozen backbone learns from the few-shot photos and the images
that generate_augmentations.py made of them; it is evaluated on the whole val split after every
epoch, and on the whole test split once, after the last. With --num_synthetic 0 it learns from the
real photos only. Results go to output/EXP/results/METHOD/: one results_SEED_EXAMPLES.csv per
trial, and summary.csv over all of them. Finished trials are skipped.
"""

import argparse
import contextlib
import dataclasses
import functools
import logging
import shlex
import time
from collections.abc import Iterable
from pathlib import Path

from semantic_aug import UserError, stable_hash
from semantic_aug.classifier import (
    SHORT_NAMES,
    Backbone,
    TrainingOptions,
    evaluate,
    load_backbone,
    load_examples,
    split_features,
    train_trial,
)
from semantic_aug.cli import (
    Parser,
    add_classes_flag,
    add_dataset_flags,
    add_experiment_flags,
    add_shard_flags,
    command,
    dataset_of,
    experiment_of,
    fraction,
    non_negative_int,
    positive_int,
    shard_of,
    trials_of,
)
from semantic_aug.diffusion import pick_device
from semantic_aug.experiment import (
    RESULTS,
    Trial,
    aug_dir,
    check_component,
    check_config,
    check_writable,
    read_config,
    remove_leftovers,
    write_config,
)
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.generation import MissingImages, read_records
from semantic_aug.results import (
    SUMMARY_FILE,
    TEST,
    TRAINING,
    VALIDATION,
    metric_names,
    results_file,
    score_rows,
    write_results,
    write_summary,
)
from semantic_aug.standard_augmentation import AUGMENTATIONS

REAL = "real"  # the method's name where no synthetic images are used
IMAGES_OF = "synthetic images of "  # keys of config.json that belong to one trial each

log = logging.getLogger("semantic_aug.train_classifier")


def parse_args(argv=None) -> argparse.Namespace:
    defaults = TrainingOptions()
    parser = Parser(__doc__)
    add_experiment_flags(parser)
    add_dataset_flags(parser)
    add_classes_flag(parser)
    group = parser.add_argument_group("synthetic images")
    group.add_argument("--aug_name", default="aug", help="which set of images of the experiment")
    group.add_argument(
        "--num_synthetic",
        type=non_negative_int,
        help="at most that many per photo; 0 means real photos only (default: all there are)",
    )
    group.add_argument(
        "--synthetic_probability",
        type=fraction,
        default=defaults.synthetic_probability,
        help="how often a photo is replaced by one of its own synthetic variants, in [0, 1]",
    )
    group = parser.add_argument_group("classifier and training")
    group.add_argument(
        "--classifier_backbone",
        default="resnet50",
        help=f"hub id or folder of an image model, or {', '.join(SHORT_NAMES)}",
    )
    group.add_argument(
        "--image_size", type=positive_int, help="side in pixels (default: the backbone's own)"
    )
    group.add_argument(
        "--num_epochs", type=positive_int, default=defaults.num_epochs, help="epochs"
    )
    group.add_argument(
        "--iterations_per_epoch",
        type=positive_int,
        default=defaults.iterations_per_epoch,
        help="batches per epoch",
    )
    group.add_argument(
        "--batch_size", type=positive_int, default=defaults.batch_size, help="photos per batch"
    )
    group.add_argument(
        "--learning_rate", type=_learning_rate, default=defaults.learning_rate, help="of Adam"
    )
    group.add_argument(
        "--augmentation",
        choices=list(AUGMENTATIONS),
        default=defaults.augmentation,
        help="random changes of every image shown: mirroring and turning by up to 15 degrees, or "
        "RandAugment; with none, every image passes the backbone once, which is much faster",
    )
    group.add_argument(
        "--use_randaugment",
        dest="augmentation",
        action="store_const",
        const="randaugment",
        help="the same as --augmentation randaugment",
    )
    group.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    group = parser.add_argument_group("results")
    group.add_argument(
        "--method",
        help=f"name of these results (default: --aug_name, or {REAL} without synthetic images)",
    )
    group.add_argument("--logdir", help="where results go (default: output/EXP/results)")
    add_shard_flags(parser)
    return parser.parse_args(argv)


def _learning_rate(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 1e37:  # ten times as much is no float32 in Adam's first step
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a positive number such as 1e-4, got {text!r}")


@command
def main(argv=None) -> None:
    args = parse_args(argv)
    uses_synthetic = args.num_synthetic != 0 and args.synthetic_probability > 0
    method = check_component("--method", args.method or (args.aug_name if uses_synthetic else REAL))
    folder = check_writable(Path(args.logdir or experiment_of(args) / RESULTS) / method)
    aug_dirs = {t: aug_dir(experiment_of(args), args.aug_name, t) for t in trials_of(args)}
    shard, num_shards = shard_of(args)
    trials = trials_of(args)[shard::num_shards]
    if not trials:
        print(f"nothing to do: shard {shard} of {num_shards} has none of {len(aug_dirs)} trials")
        return
    device = pick_device(args.device)

    # Whatever a person may have to mend is found before the backbone is loaded.
    splits = {VALIDATION: _evaluation_split(args, "val"), TEST: _evaluation_split(args, "test")}
    train_set = functools.cache(
        lambda trial: _train_set(args, trial, aug_dirs[trial] if uses_synthetic else None)
    )
    for trial in trials:
        if args.overwrite or not results_file(folder, trial).exists():
            _check_class_names([train_set(trial), *splits.values()])

    size = None if args.image_size is None else (args.image_size, args.image_size)
    backbone = load_backbone(args.classifier_backbone, device, size)
    options = TrainingOptions(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(TrainingOptions)}
    )
    settings = _settings(args, options, backbone, aug_dirs if uses_synthetic else {})
    _claim(folder, settings, trials, args)
    pending = [trial for trial in trials if not results_file(folder, trial).exists()]
    if len(pending) < len(trials):
        print(f"{len(trials) - len(pending)} of {len(trials)} trials are finished: skipped")
    try:
        _run_trials(pending, train_set, splits, backbone, options, args.classes, folder)
    finally:  # also when one of several trials fails
        summary = write_summary(folder, method)
    _print_table(summary)
    print(f"results: {folder}")


# --- datasets --------------------------------------------------------------------------------


def _evaluation_split(args, split: str) -> FewShotDataset | None:
    """A whole split, the same for all trials. None for a `test` that the dataset does not have."""
    try:
        dataset = dataset_of(args, split)
        if not dataset.indices(args.classes):
            raise UserError(f"no photo of the selected classes in split {split!r}")
    except (KeyError, ValueError, OSError) as error:  # what subclasses raise for an unknown split
        reason = str(error) if isinstance(error, UserError) else repr(error)
        if split == "test":  # flags were found right when `val` was built
            log.warning("no test split, only Training and Validation are reported: %s", reason)
            return None
        if isinstance(error, UserError):
            raise
        raise UserError(f"--dataset: {args.dataset} has no split {split!r}: {reason}") from error
    return dataset


def _train_set(args, trial: Trial, folder: Path | None) -> FewShotDataset:
    """The photos of a trial, with their synthetic variants from `folder` if there is one."""
    dataset = dataset_of(args, "train", trial)
    dataset.synthetic_examples = {}
    if not dataset.indices(args.classes):
        raise UserError("no training photo of the selected classes")
    if folder is not None:
        try:
            dataset.load_synthetic(folder, args.num_synthetic, args.classes)
        except UserError as error:
            again = "" if isinstance(error, MissingImages) else " --overwrite"
            raise UserError(
                f"{error}; make them with: {_generation_command(args, trial, folder)}{again} "
                "(or pass --num_synthetic=0 for real photos only)"
            ) from error
    return dataset


def _generation_command(args, trial: Trial, folder: Path) -> str:
    """What makes the synthetic images of a trial, to be pasted: what made some of them, if any."""
    made_by = (read_config(folder) or {}).get("arguments", {}).get("command")
    if made_by:
        return made_by
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


def _check_class_names(datasets: Iterable[FewShotDataset | None]) -> None:
    first, *others = [dataset for dataset in datasets if dataset is not None]
    for other in others:
        if list(other.class_names) != list(first.class_names):
            raise UserError(
                f"{type(first).__name__}: class_names of split {other.split!r} differ from those "
                f"of {first.split!r}, so that labels do not mean the same"
            )


# --- settings --------------------------------------------------------------------------------


def _settings(args, options: TrainingOptions, backbone: Backbone, aug_dirs) -> dict:
    """Everything that changes a result; for every trial, also which synthetic images it uses.

    Args:
        aug_dirs: folder of the synthetic images by trial; empty where none are used.
    """
    settings = {
        "dataset": args.dataset,
        "dataset_args": sorted(args.dataset_args),
        "crop_to_object": args.crop_to_object,
        "classes": None if args.classes is None else sorted(set(args.classes)),
        "backbone": backbone.identity,
        "image_size": list(backbone.image_size),
        "image_mean": backbone.mean.flatten().tolist(),
        "image_std": backbone.std.flatten().tolist(),
        **dataclasses.asdict(options),
        "aug_name": args.aug_name if aug_dirs else None,
        "num_synthetic": args.num_synthetic if aug_dirs else 0,
    }
    if not aug_dirs:
        settings["synthetic_probability"] = 0.0
    for trial, folder in aug_dirs.items():
        records = read_records(folder)
        if records:
            words = sorted({f"{r['class_name']} {r.get('embeddings')}" for r in records})
            identity = (read_config(folder) or {}).get("id", "unknown")
            identity += f", words {stable_hash(*words):x}"
            if args.num_synthetic is None:  # then how many there are changes the result
                identity += f", {1 + max(record['repeat'] for record in records)} per photo"
            settings[IMAGES_OF + trial.name] = identity
    return settings


def _claim(folder: Path, settings: dict, trials: list[Trial], args) -> None:
    """Write config.json, unless `folder` holds results of other settings.

    Those are refused or, with --overwrite, removed. Other runs may have finished other trials of
    the same method: what they noted about their images stays. Images of a trial that is not
    finished may have changed.
    """
    results = sorted(folder.glob("results_*.csv"))
    before = (read_config(folder) or {}).get("settings", {}) if results else {}
    noted = {key: value for key, value in before.items() if key.startswith(IMAGES_OF)}
    common = {key: value for key, value in settings.items() if not key.startswith(IMAGES_OF)}
    finished = {IMAGES_OF + trial.name for trial in trials if results_file(folder, trial).exists()}
    now = {key: settings[key] for key in finished & noted.keys() & settings.keys()}
    if results and before != common | noted | now:
        check_config(folder, common | noted | now, True, args.overwrite)
        if not before and not args.overwrite:
            raise UserError(
                f"{folder} holds results, but no config.json that says how they were made; "
                "choose another --method, or pass --overwrite to make them again"
            )
        for path in [*results, folder / SUMMARY_FILE]:
            path.unlink(missing_ok=True)
        print(f"{len(results)} results that were made with other settings are removed")
        noted = {}
    remove_leftovers(folder)
    write_config(folder, noted | settings, vars(args))


# --- trials ----------------------------------------------------------------------------------


def _run_trials(trials, train_set, splits, backbone, options, classes, folder) -> None:
    """Train, evaluate and write one result file after the other.

    Args:
        train_set: function of a trial that gives its photos.
        splits: the datasets to evaluate on, by the split's name in the results; None for absent.
    """
    if not trials:
        return
    class_names = train_set(trials[0]).class_names
    _check_class_names([train_set(trials[0]), *splits.values()])
    names = metric_names(class_names)
    wanted = set(range(len(names))) if classes is None else set(map(class_names.index, classes))
    whole = {  # once for all trials
        split: split_features(backbone, dataset, classes)
        for split, dataset in splits.items()
        if dataset is not None
    }
    present = {split: set(features.labels.tolist()) for split, features in whole.items()}
    for trial in trials:
        started = time.monotonic()
        examples = load_examples(train_set(trial), backbone.image_size, classes)
        trained = set(examples.labels.tolist())
        _name_absent(class_names, wanted, trained, present)
        num_variants = len(examples.images) - examples.num_photos
        print(
            f"{trial.name}: {examples.num_photos} photos and {num_variants} synthetic images "
            f"of {len(trained)} classes"
        )
        head, history = train_trial(
            examples, whole[VALIDATION], backbone, options, trial, len(names)
        )
        tested = None
        if TEST in whole and trained & present[TEST]:
            tested = evaluate(head, whole[TEST])  # once; nothing is chosen by it
        evaluated = {split: trained & labels for split, labels in present.items()}
        rows = _result_rows(trial, names, trained, evaluated, history, tested)
        write_results(results_file(folder, trial), rows)
        line = f"{trial.name}: val {history[-1][1].mean_accuracy:.1%}"
        line += f", test {tested.mean_accuracy:.1%}" if tested else ""
        print(f"{line} ({time.monotonic() - started:.1f} s)")


def _result_rows(trial, names, trained, evaluated, history, tested) -> list[tuple]:
    """Training and Validation of every epoch, and Test of the last, each with its classes."""
    rows = []
    for epoch, (running, validated) in enumerate(history):
        rows += score_rows(trial, epoch, TRAINING, running, names, trained)
        rows += score_rows(trial, epoch, VALIDATION, validated, names, evaluated[VALIDATION])
    if tested:
        rows += score_rows(trial, len(history) - 1, TEST, tested, names, evaluated[TEST])
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


def _print_table(summary: list[dict]) -> None:
    """One line per number of examples: trials, and accuracy in percent with its interval."""
    cells = {(row["examples_per_class"], row["split"]): row for row in summary}
    line = "{:>18}  {:>6}  {:>16}  {:>16}"
    if cells:
        print(line.format("examples_per_class", "trials", "val accuracy %", "test accuracy %"))
    for k in sorted({k for k, _ in cells}):
        columns = [_percent(cells.get((k, split))) for split in (VALIDATION, TEST)]
        print(
            line.format(
                k, max(row["num_trials"] for (n, _), row in cells.items() if n == k), *columns
            )
        )


def _percent(row: dict | None) -> str:
    if row is None:
        return "-"
    mean = f"{100 * row['mean_accuracy']:.1f}"
    if row["num_trials"] == 1:
        return mean
    return f"{mean} ± {100 * (row['ci95_high'] - row['mean_accuracy']):.1f}"


if __name__ == "__main__":
    main()
