"""The flags that several commands have, each declared once."""

import argparse
import math
from collections.abc import Callable


def add_experiment_flags(parser: argparse.ArgumentParser) -> None:
    """--experiment_name, --output_dir, the trials, --overwrite."""
    group = parser.add_argument_group("experiment and trials")
    group.add_argument(
        "--experiment_name", required=True, help="folder under output/ that all four stages share"
    )
    group.add_argument("--output_dir", default="output", help="where experiments lie")
    # Tables hold 64 bits.
    group.add_argument("--seed", type=whole_number(0, 2**62), default=0, help="first seed")
    group.add_argument(
        "--num_trials", type=positive_int, default=1, help="seeds: seed ... seed + num_trials - 1"
    )
    group.add_argument(
        "--examples_per_class",
        type=positive_int,
        nargs="+",
        default=[1],
        help="labelled photos per class, one or several numbers",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="make results again that were made with other settings",
    )


def add_dataset_flags(parser: argparse.ArgumentParser) -> None:
    """--dataset, --data_dir, --dataset_args, --crop_to_object."""
    group = parser.add_argument_group("dataset")
    group.add_argument(
        "--dataset",
        required=True,
        help="coco, mvip, folder ... (python -m semantic_aug.datasets lists them), hf:NAME of the "
        "Hugging Face hub, or package.module:ClassName",
    )
    add_data_flags(group)
    group.add_argument(
        "--crop_to_object",
        action="store_true",
        help="cut every photo to a square around its mask, grown by 16 pixels",
    )


def add_data_flags(group) -> None:
    """--data_dir and --dataset_args, of a parser or of a group in one."""
    group.add_argument(
        "--data_dir",
        help="root of the data (default: the dataset's environment variable, then its own default)",
    )
    group.add_argument(
        "--dataset_args",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="the dataset's own options, such as super_class=CarComponent",
    )


def add_classes_flag(parser: argparse.ArgumentParser, *aliases: str) -> None:
    """--classes, a selection that never renumbers labels."""
    parser.add_argument(
        "--classes", *aliases, nargs="+", metavar="NAME", help="only these classes (default all)"
    )


def add_model_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """The model, under the names its command has been published with, and how to load it."""
    group = parser.add_argument_group("model")
    group.add_argument(
        *names,
        dest="model",
        default="CompVis/stable-diffusion-v1-4",
        help="hub id or folder of a Stable Diffusion",
    )
    group.add_argument(
        "--revision", help="git revision of the hub model; fp16 means half-precision weights"
    )
    group.add_argument("--variant", help="weight files to load, such as fp16")
    group.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    group.add_argument(
        "--resolution", type=whole_number(1, 8192), help="pixels; default the model's own"
    )


def add_shard_flags(parser: argparse.ArgumentParser) -> None:
    """--shard_index and --num_shards."""
    group = parser.add_argument_group("sharing the work among processes")
    group.add_argument("--shard_index", type=int, help="this process's share, counted from 0")
    group.add_argument(
        "--num_shards",
        type=positive_int,
        help="how many shares (default: from a SLURM array, accelerate launch, or 1)",
    )


def whole_number(least: int, most: int = 10**9) -> Callable[[str], int]:
    """An argparse type: whole numbers in [least, most], of which a machine can hold what they ask.

    By default a number that counts nothing but time: more of it is a slip of the keyboard.
    """

    def parse(text: str) -> int:
        value = _checked(int, text, lambda value: value >= least, f"a whole number from {least}")
        return _checked(int, text, lambda _: value <= most, f"{most} at most")

    return parse


positive_int = whole_number(1)
non_negative_int = whole_number(0)


def non_negative(text: str) -> float:
    """An argparse type: a finite number from 0."""
    return _checked(float, text, lambda value: 0 <= value < math.inf, "a number from 0")


def positive(text: str) -> float:
    """An argparse type: a finite number above 0."""
    return _checked(float, text, lambda value: 0 < value < math.inf, "a number above 0")


def fraction(text: str) -> float:
    """An argparse type: a number in [0, 1]."""
    return _checked(float, text, lambda value: 0 <= value <= 1, "a number in [0, 1]")


def fraction_below_one(text: str) -> float:
    """An argparse type: a number in [0, 1)."""
    return _checked(float, text, lambda value: 0 <= value < 1, "a number in [0, 1)")


def _checked(kind, text: str, is_good, expected: str):
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not is_good(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value
