"""What the commands share: their flags, each declared once, and how they speak and end."""

import argparse
import contextlib
import errno
import functools
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.experiment.config import read_config
from semantic_aug.experiment.files import check_writable
from semantic_aug.experiment.interrupts import INTERRUPTED, TRY_AGAIN, Stopped, stoppable
from semantic_aug.experiment.names import CONFIG_FILE, Trial, experiment_dir


class Parser(argparse.ArgumentParser):
    """Flags with underscores, accepted with hyphens too; one-line errors; no abbreviations."""

    def __init__(self, doc: str, **kwargs):
        kwargs.setdefault("formatter_class", _HelpFormatter)
        kwargs.setdefault("usage", "%(prog)s --flag value ...")
        super().__init__(description=doc, allow_abbrev=False, **kwargs)

    def parse_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else [str(arg) for arg in args]
        found = super().parse_args([_underscored(arg) for arg in args], namespace)
        for name, value in vars(found).items():
            # As a variable of the shell that was never set; a prompt may be empty.
            if value == "" and "prompt" not in name:
                self.error(f"{self._as_given(name, args)} is empty: give a value, or leave the "
                           "flag out")  # fmt: skip
        return found

    def _as_given(self, name: str, args: Sequence[str]) -> str:
        """The last of the flags given that set this value, as it was spelled."""
        flags = [arg.partition("=")[0] for arg in args if arg.startswith("--")]
        actions = self._option_string_actions
        return [f for f in flags if (a := actions.get(_underscored(f))) and a.dest == name][-1]

    def knows(self, flag: str) -> bool:
        """Whether this is one of the flags, in either spelling."""
        return _underscored(flag).partition("=")[0] in self._option_string_actions

    def error(self, message):
        print(f"{self.prog}: error: {message} (--help lists the flags)", file=sys.stderr)
        raise SystemExit(2)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the docstring's lines, and names defaults."""

    def _get_help_string(self, action):
        text = action.help or ""
        default = action.default
        has_none = default is None or default is False or default in ([], argparse.SUPPRESS)
        if not has_none and "default" not in text:
            if isinstance(default, list):
                default = " ".join(map(str, default))
            text += f" (default {str(default).replace('%', '%%')})"
        return text


def _underscored(arg: str) -> str:
    match = re.match(r"--[a-zA-Z][\w-]*", arg)
    return "--" + match[0][2:].replace("-", "_") + arg[match.end() :] if match else arg


MOST_TRIALS = 100_000

# What a person can do about errors of the system; others are ours, and keep their traceback.
_REMEDIES = {
    errno.ENOSPC: "make room and run the same command again",
    errno.EDQUOT: "make room and run the same command again",
    errno.EACCES: "choose a place that you may write to, such as another --output_dir",
    errno.EPERM: "choose a place that you may write to, such as another --output_dir",
    errno.EROFS: "choose a place that can be written to, such as another --output_dir",
    errno.ENOTDIR: "a file lies where a folder is needed",
    errno.EEXIST: "a file lies where a folder is needed",
    errno.EISDIR: "a folder lies where a file is needed",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link leads to itself",
}


def command(main):
    """Turn UserError into one line on stderr and exit status 2; make notices appear on stderr.

    A command that a scheduler asked to end (see `experiment.interrupts`) ends with status 75.
    """

    @functools.wraps(main)
    def wrapper(argv=None):
        with _notices(), contextlib.suppress(BrokenPipeError):
            try:
                with stoppable():
                    return main(argv)
            except Stopped as stopped:
                print(f"ended by {stopped}; the same command goes on from here", file=sys.stderr)
                raise SystemExit(TRY_AGAIN) from None
            except UserError as error:
                line = " ".join(str(error).split())
            except KeyboardInterrupt:
                print(INTERRUPTED, file=sys.stderr)
                raise SystemExit(130) from None
            except OSError as error:
                if error.errno not in _REMEDIES:
                    raise
                where = error.filename or "the output folder"
                line = f"{where}: {error.strerror}; {_REMEDIES[error.errno]}"
            print(f"{_name_of(sys.modules[main.__module__])}: error: {line}", file=sys.stderr)
            raise SystemExit(2)

    return wrapper


def _name_of(module) -> str:
    """The script's file name, or what stands behind `python -m`."""
    name = Path(module.__file__).name
    return module.__package__ if name == "__main__.py" else name


@contextlib.contextmanager
def _notices():
    """Messages of this package go to stderr, each once; libraries speak up only for errors."""
    _quiet_libraries()
    logger = logging.getLogger("semantic_aug")
    handler, said = _AboveBars(), set()

    def is_new(record):
        message = record.getMessage()
        return not (message in said or said.add(message))

    handler.addFilter(is_new)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _AboveBars(logging.Handler):
    """Writes one line per message to stderr, and lets progress bars go on below it."""

    def emit(self, record):
        from tqdm import tqdm

        tqdm.write(" ".join(record.getMessage().split()), file=sys.stderr)


def _quiet_libraries():
    # Read when the libraries are imported, which happens later and only where they are needed.
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


# --- flags -----------------------------------------------------------------------------------


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


# --- what the flags mean ---------------------------------------------------------------------


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
