"""Train and evaluate a classifier on few photos per class and their synthetic variants.

    python train_classifier.py --dataset=coco --experiment_name=coco-demo \\
        --examples_per_class 1 2 4 --num_trials 8 --compare real

For every trial, a linear head on a frozen backbone (or, with --finetune, the backbone as well)
learns from the few-shot photos and the images that generate_augmentations.py made of them; it is
evaluated on the whole val split after every epoch, and on the whole test split once. With
--num_synthetic 0 it learns from the real photos only. Results go to output/EXP/results/METHOD/:
results_SEED_EXAMPLES.csv and confusion_SEED_EXAMPLES.csv per trial, and over all trials
summary.csv and pictures. Finished trials are skipped.
"""

if __name__ == "__main__":
    from semantic_aug.experiment.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

import argparse
import contextlib
import dataclasses
import functools
import json
import logging
import math
import re
import shlex
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from semantic_aug import UserError, counted, stable_hash
from semantic_aug.cli.command import Parser, command
from semantic_aug.diffusion.loading import pick_device
from semantic_aug.evaluation.backbone import (
    ALL,
    FLOAT32,
    FROZEN,
    PRECISIONS,
    SHORT_NAMES,
    Backbone,
    default_precision,
    load_backbone,
)
from semantic_aug.evaluation.features import LabelledFeatures, load_split, readable, split_features
from semantic_aug.evaluation.leaks import Photos, check_splits, photos_of
from semantic_aug.evaluation.plots import plot_results
from semantic_aug.evaluation.results import (
    COMPARISON_FILE,
    ENOUGH,
    REAL,
    SUMMARY_FILE,
    TEST,
    TRAINING,
    VALIDATION,
    confusion_file,
    is_finished,
    metric_names,
    results_file,
    score_rows,
    selected_row,
    state_of,
    trials_with_files,
    write_confusions,
    write_results,
)
from semantic_aug.evaluation.sampling import MIX, UTILIZATIONS, load_examples
from semantic_aug.evaluation.standard_augmentation import NAMES
from semantic_aug.evaluation.summary import (
    EVALUATION_PHOTOS,
    IMAGES_OF,
    write_comparison,
    write_summary,
)
from semantic_aug.evaluation.training import BEST_VAL, LAST, TrainingOptions, evaluate, train_trial
from semantic_aug.experiment.config import check_config, read_config, write_config
from semantic_aug.experiment.files import check_writable, derive, remove_leftovers
from semantic_aug.experiment.names import (
    CACHE,
    RESULTS,
    Trial,
    aug_dir,
    check_component,
    experiment_dir,
)
from semantic_aug.experiment.processes import at_work
from semantic_aug.experiment.sharding import shard_blocks, shard_of
from semantic_aug.experiment.timing import TRAIN, timed
from semantic_aug.few_shot_dataset import FewShotDataset, NoPhotos
from semantic_aug.settings import (
    add_classes_flag,
    add_dataset_flags,
    add_experiment_flags,
    add_shard_flags,
    fraction,
    non_negative_int,
    positive_int,
    whole_number,
)
from semantic_aug.stages.common import dataset_of, experiment_of, trials_of
from semantic_aug.stages.made_alike import differing_settings
from semantic_aug.synthesis.records import read_records, read_scores
from semantic_aug.synthesis.variants import MissingImages

MOST_IMAGES = 10_000_000  # of an epoch, all of which are drawn at its start
# Keys of config.json that belong to one trial each, and what all are evaluated on.
PHOTOS_OF = "photos of "
OF_TRIAL = (IMAGES_OF, PHOTOS_OF)

log = logging.getLogger("semantic_aug.train_classifier")


def parse_args(argv=None) -> argparse.Namespace:
    return build_parser().parse_args(argv)


def build_parser() -> Parser:
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
        "--utilization",
        choices=UTILIZATIONS,
        default=defaults.utilization,
        help="mix: a photo drawn is now and then replaced by one of its own synthetic variants; "
        "append: photos and variants are drawn alike; pretrain: variants in the first half of the "
        "steps, photos in the second; balance: variants bring all classes to one size",
    )
    group.add_argument(
        "--synthetic_probability",
        type=fraction,
        help="how often mix replaces a photo, in [0, 1] (default 0.5)",
    )
    group.add_argument(
        "--ignore_filter",
        action="store_true",
        help="use images too that the filter of generate_augmentations.py has rejected",
    )
    group.add_argument(
        "--mixed_settings",
        action="store_true",
        help="take trials together whose images or words were made with different settings",
    )
    group = parser.add_argument_group("classifier and training")
    group.add_argument(
        "--classifier_backbone",
        default="resnet50",
        help=f"hub id or folder of an image model, or {', '.join(SHORT_NAMES)}",
    )
    group.add_argument(
        "--from_scratch",
        action="store_true",
        help="take only the configuration of --classifier_backbone; needs --finetune all",
    )
    group.add_argument(
        "--finetune",
        type=_part_of_backbone,
        default=defaults.finetune,
        metavar="none|all|last:N",
        help="which part of the backbone is trained with the head; last:2 means its last two "
        "blocks (default none: it is frozen)",
    )
    group.add_argument(
        "--backbone_precision",
        choices=PRECISIONS,
        help="what a frozen backbone computes in (default: float16 on CUDA, else float32); images "
        "that overflow in it are computed in float32",
    )
    group.add_argument(
        "--image_size",
        type=whole_number(1, 4096),
        help="side in pixels (default: the backbone's own)",
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
        "--learning_rate",
        type=_learning_rate,
        default=defaults.learning_rate,
        help="of Adam, for the head",
    )
    group.add_argument(
        "--backbone_learning_rate",
        type=_learning_rate,
        help=f"of Adam, for what --finetune trains (default {defaults.backbone_learning_rate:g})",
    )
    group.add_argument(
        "--class_balanced",
        action="store_true",
        help="draw every class equally often, however many images it has",
    )
    group.add_argument(
        "--augmentation",
        nargs="+",
        choices=NAMES,
        default=list(defaults.augmentation),
        help="random changes of every image shown, one or several, drawn per image: mirroring and "
        "turning by up to 15 degrees; RandAugment; TrivialAugment; CutMix; mixup. With none, every "
        "image passes a frozen backbone once, which is much faster",
    )
    group.add_argument(
        "--use_randaugment",
        dest="augmentation",
        action="store_const",
        const=["randaugment"],
        help="the same as --augmentation randaugment",
    )
    group.add_argument(
        "--select",
        choices=(LAST, BEST_VAL),
        default=defaults.select,
        help="report the last epoch, or the one with the best validation accuracy",
    )
    group = parser.add_argument_group("machine")
    group.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    group.add_argument(
        "--image_memory",
        type=non_negative_int,
        default=4096,
        help="megabytes for decoded images; where they need more, they are read again each time",
    )
    group.add_argument(
        "--num_workers",
        type=whole_number(1, 1024),
        help="threads that read images (default: all cores)",
    )
    group = parser.add_argument_group("results")
    group.add_argument(
        "--method",
        help=f"name of these results (default: --aug_name, or {REAL} without synthetic images)",
    )
    group.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="METHOD",
        help="other results, METHOD or EXPERIMENT:METHOD, to be compared with trial by trial",
    )
    group.add_argument("--logdir", help="where results go (default: output/EXP/results)")
    add_shard_flags(parser)
    return parser


def _learning_rate(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 1e37:  # ten times as much is no float32 in Adam's first step
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a positive number such as 1e-4, got {text!r}")


def _part_of_backbone(text: str) -> str:
    if re.fullmatch(rf"{FROZEN}|{ALL}|last:[1-9]\d{{0,5}}", text):
        return text
    raise argparse.ArgumentTypeError(f"expected none, all, or last:2 and the like, got {text!r}")


@command
def main(argv=None) -> None:
    args = parse_args(argv)
    experiment = experiment_of(args)
    options, uses_synthetic = _training_options(args), _uses_synthetic(args)
    aug_dirs = {t: aug_dir(experiment, args.aug_name, t) for t in trials_of(args)}
    method = check_component("--method", args.method or (args.aug_name if uses_synthetic else REAL))
    folder = check_writable(Path(args.logdir or experiment / RESULTS) / method)
    shard, everyones = shard_of(args), trials_of(args)
    trials = [everyones[number] for number in sorted(shard_blocks(len(everyones), *shard))]
    if not trials:
        print(
            f"nothing to do: shard {shard[0]} of {shard[1]} has "
            f"none of {counted(len(everyones), 'trial')}"
        )
        return
    compared = _compared(args, folder, trials_of(args))
    device = pick_device(args.device)

    # Whatever a person may have to mend is found before the backbone is loaded.
    train = dataset_of(args, "train")
    splits = _evaluation_splits(args, options)
    subset = functools.cache(functools.partial(dataset_of, args, "train"))
    train_set = functools.cache(
        lambda t: _train_set(args, t, subset(t), aug_dirs[t] if uses_synthetic else None)
    )
    finished = {trial for trial in trials if is_finished(folder, trial)}
    for trial in trials:
        if args.overwrite or trial not in finished:
            _check_class_names([train_set(trial), *splits.values()])
    if uses_synthetic:
        of_results = {t: aug_dir(experiment, args.aug_name, t) for t in trials_with_files(folder)}
        mixed = args.overwrite or args.mixed_settings
        _check_alike(dict(sorted((aug_dirs | of_results).items())), mixed)
    evaluated = {name: photos_of(dataset, args.classes) for name, dataset in splits.items()}
    # Of all trials, whoever has which: every process writes the same config.json.
    trained = {trial: photos_of(subset(trial), args.classes) for trial in everyones}
    left_out = {
        trial: check_splits(trial.name, photos, evaluated, _check_command(args))
        for trial, photos in trained.items()
    }

    size = None if args.image_size is None else (args.image_size, args.image_size)
    backbone = load_backbone(
        args.classifier_backbone,
        device,
        size,
        args.finetune,
        args.from_scratch,
        args.backbone_precision,
    )
    settings = _settings(args, options, backbone, train, splits, aug_dirs if uses_synthetic else {})
    settings[EVALUATION_PHOTOS] = _digest(*evaluated.values())
    for trial, photos in trained.items():
        settings[PHOTOS_OF + trial.name] = _identity(photos, left_out[trial])
    if backbone.precision != default_precision(device, args.finetune):  # what older results mean
        settings["backbone_precision"] = backbone.precision
    _claim(folder, settings, trials, args)
    finished = {trial for trial in finished if results_file(folder, trial).exists()}
    pending = [trial for trial in trials if trial not in finished]
    if len(pending) < len(trials):
        print(f"{len(trials) - len(pending)} of {len(trials)} trials are finished: skipped")
    # Other processes finish other trials meanwhile.
    from_all = functools.partial(derive, lambda: state_of(folder))
    images = options.num_epochs * options.iterations_per_epoch * options.batch_size
    wanted = dict.fromkeys(everyones, (1, images))
    with at_work(experiment, TRAIN, wanted, method, shard) as reporter:
        try:
            _run_trials(
                pending, train_set, splits, left_out, backbone, options, args, folder, reporter
            )
        finally:  # also when one of several trials fails
            augmented = args.aug_name if uses_synthetic else None
            summary = from_all(lambda: write_summary(folder, method, experiment, augmented))
    _print_table(summary)
    if compared:
        _print_comparison(from_all(lambda: write_comparison(folder, method, compared)))
    from_all(lambda: plot_results({method: folder, **compared}, folder, train.class_names))
    print(f"results: {folder}")


# --- flags -----------------------------------------------------------------------------------


def _training_options(args) -> TrainingOptions:
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


def _uses_synthetic(args) -> bool:
    if args.utilization != MIX and args.num_synthetic == 0:
        raise UserError(
            f"--utilization {args.utilization} needs synthetic images, and --num_synthetic 0 says "
            "to use none: leave one of them away"
        )
    return args.num_synthetic != 0 and args.synthetic_probability != 0


def _compared(args, folder: Path, trials: list[Trial]) -> dict[str, Path]:
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


def _evaluation_splits(args, options: TrainingOptions) -> dict[str, FewShotDataset]:
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


def _check_command(args) -> str:
    """What lists the photos that lie in several splits, to be pasted."""
    words = ["python", "-m", "semantic_aug.datasets", "check", args.dataset]
    words += ["--data_dir", args.data_dir] if args.data_dir else []
    words += ["--dataset_args", *args.dataset_args] if args.dataset_args else []
    return shlex.join(words)


def _train_set(args, trial: Trial, dataset: FewShotDataset, folder: Path | None) -> FewShotDataset:
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
                f"{error}; make them with: {_generation_command(args, trial, folder)}{again}"
                + (instead if args.utilization == MIX else "")
            ) from error
    return dataset


def _generation_command(args, trial: Trial, folder: Path) -> str:
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


def _check_class_names(datasets: Iterable[FewShotDataset]) -> None:
    first, *others = datasets
    for other in others:
        if list(other.class_names) != list(first.class_names):
            raise UserError(
                f"{type(first).__name__}: class_names of split {other.split!r} differ from those "
                f"of {first.split!r}, so that labels do not mean the same"
            )


# --- settings --------------------------------------------------------------------------------


def _check_alike(folders: dict[Trial, Path], mixed: bool) -> None:
    """Name the settings in which the images of several trials differ.

    Raises:
        UserError: there are such settings, and they are not to be `mixed`.
    """
    differing = []
    for key, values in differing_settings(folders).items():
        edits = [value for value in values.values() if key == "edits"]
        if edits and all(isinstance(each, list) for each in edits):
            values = {trial: _edits_alone(value, edits) for trial, value in values.items()}
        shown = ", ".join(f"{trial}: {json.dumps(value)}" for trial, value in values.items())
        differing.append(f"{key} ({shown})")
    said = "the synthetic images of these trials were made with different settings: "
    said += "; ".join(differing)
    if differing and mixed:
        log.warning("%s; their results are taken together", said)
    elif differing:
        raise UserError(
            f"{said}; make them alike with generate_augmentations.py, give each set its "
            "own --aug_name, or pass --mixed_settings to take their results together"
        )


def _edits_alone(edits: list[dict], others: list[list[dict]]) -> dict[str, list]:
    """What differs in edits, by key: of each edit its value."""
    columns = {
        key: [edit.get(key) for edit in edits] for key in sorted({k for e in edits for k in e})
    }
    return {
        key: column
        for key, column in columns.items()
        if any([edit.get(key) for edit in each] != column for each in others)
    }


def _settings(
    args, options: TrainingOptions, backbone: Backbone, train: FewShotDataset, splits, aug_dirs
) -> dict:
    """Everything that changes a result; for every trial, also which synthetic images it uses.

    Args:
        aug_dirs: folder of the synthetic images by trial; empty where none are used.
    """
    settings = {
        "dataset": args.dataset,
        "dataset_args": sorted(args.dataset_args),
        "crop_to_object": args.crop_to_object,
        "classes": None if args.classes is None else sorted(set(args.classes)),
        "photos": _photos(train, splits),
        "backbone": backbone.identity,
        "image_size": list(backbone.image_size),
        "image_mean": backbone.mean.flatten().tolist(),
        "image_std": backbone.std.flatten().tolist(),
        **dataclasses.asdict(options),
        "augmentation": list(options.augmentation),
        "aug_name": args.aug_name if aug_dirs else None,
        "num_synthetic": args.num_synthetic if aug_dirs else 0,
    }
    if not aug_dirs or options.utilization != MIX:
        settings["synthetic_probability"] = 0.0 if not aug_dirs else None
    for trial, folder in aug_dirs.items():
        records = read_records(folder)
        if records:
            used = (r for r in records if r["repeat"] < (args.num_synthetic or math.inf))
            words = sorted(set(map(_made_with, used)))
            identity = (read_config(folder) or {}).get("id", "unknown")
            identity += f", words {stable_hash(*words):x}"
            if args.num_synthetic is None:  # then how many there are changes the result
                identity += f", {1 + max(record['repeat'] for record in records)} per photo"
            scores = {} if args.ignore_filter else read_scores(folder)
            rejected = sorted(name for name, each in scores.items() if each.get("kept") is False)
            if rejected:
                identity += f", {len(rejected)} rejected {stable_hash(*rejected):x}"
            settings[IMAGES_OF + trial.name] = identity
    return settings


def _made_with(record: dict) -> str:
    """What may be another for images of one class while the settings of its folder stay."""
    # Older results know images by their words alone; older records say no precision.
    keys = ("unet", "masks") if "precision" in record else ()
    others = [f"{key} {record[key]}" for key in keys if key in record]
    return " ".join([record["class_name"], str(record.get("embeddings")), *others])


def _photos(train: FewShotDataset, splits: dict[str, FewShotDataset]) -> str:
    """Sixteen hex digits of the classes, the ids of all photos, and the content of one per class.

    They are the same for every trial.
    """
    parts = []
    for split in (train, *splits.values()):
        parts += [*split.class_names, *split.sources()]
    if (validation := splits.get(VALIDATION)) is not None:
        first = {validation.get_label_by_idx(idx): idx for idx in reversed(range(len(validation)))}
        with contextlib.suppress(OSError):  # a photo that is not there is named when it is needed
            parts.append(validation.photo_digest(sorted(first.values())))
    return f"{stable_hash(*parts):016x}"


def _digest(*splits: Photos) -> str:
    """Sixteen hex digits of the content of all these photos."""
    return f"{stable_hash(*(each for photos in splits for each in photos.contents)):016x}"


def _identity(trained: Photos, left_out: dict[str, set[int]]) -> str:
    """What a trial is trained on, and how many photos it is therefore not evaluated on."""
    found = _digest(trained)
    for split, photos in left_out.items():
        found += f", {len(photos)} of {split} left out" if photos else ""
    return found


def _claim(folder: Path, settings: dict, trials: list[Trial], args) -> None:
    """Write config.json, unless `folder` holds results of other settings.

    Those are refused or, with --overwrite, removed. Other runs may have finished other trials of
    the same method: what they noted about their images and photos stays. Those of a trial that is
    not finished may have changed.

    Results of before photos were noted go on, if they are evaluated on new photos alone.
    """
    results = sorted(folder.glob("results_*.csv"))
    before = (read_config(folder) or {}).get("settings", {}) if results else {}
    noted = {key: value for key, value in before.items() if key.startswith(OF_TRIAL)}
    common = {key: value for key, value in settings.items() if not key.startswith(OF_TRIAL)}
    if EVALUATION_PHOTOS not in before:
        common.pop(EVALUATION_PHOTOS)
    finished = [trial.name for trial in trials if is_finished(folder, trial)]
    now = {
        key: settings[key]
        for key in (prefix + name for prefix in OF_TRIAL for name in finished)
        if key in settings and (key in noted or "left out" in settings[key])
    }
    if results and before != common | noted | now:
        check_config(folder, common | noted | now, True, args.overwrite)
        derived = [folder / SUMMARY_FILE, folder / COMPARISON_FILE, *folder.glob("*.png")]
        for path in [*results, *folder.glob("confusion_*.csv"), *derived]:
            path.unlink(missing_ok=True)
        print(f"{counted(len(results), 'result')} of other settings removed")
        noted = {}
    remove_leftovers(folder)
    write_config(folder, noted | settings, vars(args))


# --- trials ----------------------------------------------------------------------------------


def _run_trials(
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
    _check_class_names([train_set(trials[0]), *splits.values()])
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


def _print_table(summary: list[dict]) -> None:
    """One line per number of examples: trials, and accuracy in percent with its interval."""
    cells = {(row["examples_per_class"], row["split"]): row for row in summary}
    lines = [("examples_per_class", "trials", "val accuracy %", "test accuracy %")]
    for k in sorted({k for k, _ in cells}):
        number = max(row["num_trials"] for (n, _), row in cells.items() if n == k)
        columns = (_percent(cells.get((k, split))) for split in (VALIDATION, TEST))
        lines.append((str(k), str(number), *columns))
    wide = max(16, *(len(cell) for line in lines for cell in line[2:]))
    for line in lines if cells else []:
        print("{:>18}  {:>6}  {:>{wide}}  {:>{wide}}".format(*line, wide=wide))


def _print_comparison(rows: list[dict]) -> None:
    """One line per pair of methods, number of examples and split."""
    for row in rows:
        line = (
            f"{row['method']} - {row['other']}, {row['examples_per_class']} per class, "
            f"{row['split'].lower()}: {100 * row['difference']:+.1f} points"
        )
        if row["num_trials"] < ENOUGH:
            print(f"{line} ({_listed(row['values'], '+')})")
            continue
        low, high = 100 * row["ci95_low"], 100 * row["ci95_high"]
        line += f", 95 % interval {low:+.1f} to {high:+.1f}"
        alike = math.isnan(row["p_value"])
        line += ", no p: all trials differ alike" if alike else f", p = {row['p_value']:.2g}"
        print(f"{line} ({row['num_trials']} trials)")


def _percent(row: dict | None) -> str:
    if row is None:
        return "-"
    mean = f"{100 * row['mean_accuracy']:.1f}"
    if row["num_trials"] == 1:
        return mean
    if row["num_trials"] < ENOUGH:
        return _listed(row["values"])
    return f"{mean} ± {100 * (row['ci95_high'] - row['mean_accuracy']):.1f}"


def _listed(values: Mapping[int, float], sign: str = "") -> str:
    """The values of so few trials that no interval says more, in percent."""
    if len(values) == 1:
        return "1 trial"
    texts = ", ".join(f"{100 * value:{sign}.1f}" for value in values.values())
    return f"{len(values)} trials: {texts}"


if __name__ == "__main__":
    main()
