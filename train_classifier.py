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
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path

from semantic_aug import counted
from semantic_aug.cli.command import Parser, command
from semantic_aug.diffusion.loading import pick_device
from semantic_aug.evaluation.backbone import (
    ALL,
    FROZEN,
    PRECISIONS,
    SHORT_NAMES,
    default_precision,
    load_backbone,
)
from semantic_aug.evaluation.leaks import check_splits, photos_of
from semantic_aug.evaluation.plots import plot_results
from semantic_aug.evaluation.results import (
    ENOUGH,
    REAL,
    TEST,
    VALIDATION,
    is_finished,
    results_file,
    state_of,
    trials_with_files,
)
from semantic_aug.evaluation.sampling import UTILIZATIONS
from semantic_aug.evaluation.standard_augmentation import NAMES
from semantic_aug.evaluation.summary import EVALUATION_PHOTOS, write_comparison, write_summary
from semantic_aug.evaluation.training import BEST_VAL, LAST, TrainingOptions
from semantic_aug.experiment.files import check_writable, derive
from semantic_aug.experiment.names import RESULTS, aug_dir, check_component
from semantic_aug.experiment.processes import at_work
from semantic_aug.experiment.sharding import shard_blocks, shard_of
from semantic_aug.experiment.timing import TRAIN
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
from semantic_aug.stages.made_alike import check_alike
from semantic_aug.stages.result_settings import (
    PHOTOS_OF,
    claim,
    content_digest,
    result_settings,
    training_identity,
)
from semantic_aug.stages.train_classifier import (
    check_class_names,
    check_command,
    compared_folders,
    evaluation_splits,
    run_trials,
    training_options,
    training_photos,
    wants_synthetic,
)


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
    options, uses_synthetic = training_options(args), wants_synthetic(args)
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
    compared = compared_folders(args, folder, trials_of(args))
    device = pick_device(args.device)

    # Whatever a person may have to mend is found before the backbone is loaded.
    train = dataset_of(args, "train")
    splits = evaluation_splits(args, options)
    subset = functools.cache(functools.partial(dataset_of, args, "train"))
    train_set = functools.cache(
        lambda t: training_photos(args, t, subset(t), aug_dirs[t] if uses_synthetic else None)
    )
    finished = {trial for trial in trials if is_finished(folder, trial)}
    for trial in trials:
        if args.overwrite or trial not in finished:
            check_class_names([train_set(trial), *splits.values()])
    if uses_synthetic:
        of_results = {t: aug_dir(experiment, args.aug_name, t) for t in trials_with_files(folder)}
        mixed = args.overwrite or args.mixed_settings
        check_alike(dict(sorted((aug_dirs | of_results).items())), mixed)
    evaluated = {name: photos_of(dataset, args.classes) for name, dataset in splits.items()}
    # Of all trials, whoever has which: every process writes the same config.json.
    trained = {trial: photos_of(subset(trial), args.classes) for trial in everyones}
    left_out = {
        trial: check_splits(trial.name, photos, evaluated, check_command(args))
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
    settings = result_settings(
        args, options, backbone, train, splits, aug_dirs if uses_synthetic else {}
    )
    settings[EVALUATION_PHOTOS] = content_digest(*evaluated.values())
    for trial, photos in trained.items():
        settings[PHOTOS_OF + trial.name] = training_identity(photos, left_out[trial])
    if backbone.precision != default_precision(device, args.finetune):  # what older results mean
        settings["backbone_precision"] = backbone.precision
    claim(folder, settings, trials, args)
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
            run_trials(
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
