"""What the flags of all stages mean: the experiment, its trials, and their photos."""

import argparse
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.experiment.config import read_config
from semantic_aug.experiment.files import check_writable
from semantic_aug.experiment.names import CONFIG_FILE, Trial, experiment_dir

MOST_TRIALS = 100_000


def experiment_of(args: argparse.Namespace) -> Path:
    """The experiment's folder, which need not exist, but must be one that can be written to."""
    return check_writable(experiment_dir(args.output_dir, args.experiment_name))


def trials_of(args: argparse.Namespace) -> list[Trial]:
    """Every seed with every number of examples per class.

    Raises:
        UserError: more than `MOST_TRIALS`.
    """
    sizes = dict.fromkeys(args.examples_per_class)
    if args.num_trials * len(sizes) > MOST_TRIALS:
        raise UserError(
            f"--num_trials: got {args.num_trials} for {counted(len(sizes), 'number')} of examples "
            f"per class, expected {MOST_TRIALS} trials at most in all"
        )
    return [
        Trial(seed, examples)
        for seed in range(args.seed, args.seed + args.num_trials)
        for examples in sizes
    ]


def dataset_of(args: argparse.Namespace, split: str, trial: Trial | None = None):
    """One split of the dataset that the flags name; with a trial, that trial's subset of it."""
    # Imported late: who only asks where an experiment lies needs no torch.
    from semantic_aug.datasets import build_dataset

    subset = {}
    if trial is not None:
        subset = {"seed": trial.seed, "examples_per_class": trial.examples_per_class}
    return build_dataset(
        args.dataset,
        split,
        dataset_args=[*args.dataset_args, *_list_of_photos(args)],
        data_dir=args.data_dir,
        crop_to_object=args.crop_to_object,
        **subset,
    )


def _list_of_photos(args: argparse.Namespace) -> list[str]:
    """What keeps the list of photos of an experiment that was begun when `folder` took fewer.

    Whether it was is found out once, and noted in `args.older_list`, from where it comes into
    every config.json. One without this note was written by an earlier version.
    """
    from semantic_aug.datasets import dataset_class, known_options

    if "older_list" not in known_options(dataset_class(args.dataset)):
        return []
    if any(pair.startswith("older_list=") for pair in args.dataset_args):
        return []
    if getattr(args, "older_list", None) is None:
        logdir = getattr(args, "logdir", None)
        begun = [*experiment_dir(args.output_dir, args.experiment_name).glob("*/*/" + CONFIG_FILE)]
        begun += [] if logdir is None else Path(logdir).glob("*/" + CONFIG_FILE)
        noted = [(read_config(path.parent) or {}).get("arguments") for path in begun]
        args.older_list = any(
            each.get("older_list", True)
            for each in noted
            if isinstance(each, dict) and each.get("dataset") == args.dataset
        )
    return ["older_list=true"] if args.older_list else []
