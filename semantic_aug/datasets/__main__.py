"""List the datasets, or read a whole dataset and report its problems.

python -m semantic_aug.datasets
python -m semantic_aug.datasets mymodule:MyDataset
python -m semantic_aug.datasets check caltech101 --data_dir data/caltech-101

`check` exits with status 1 after problems: photos that are missing or unreadable; masks that are
missing, empty or of a wrong size; a photo in two splits or two classes; classes without training
photos.
"""

import inspect
import sys
from collections.abc import Iterable

from semantic_aug import UserError
from semantic_aug.cli.command import Parser, command
from semantic_aug.settings import add_flags
from semantic_aug.settings.common import Run


def parse_args(argv=None):
    parser = Parser(
        __doc__,
        prog="python -m semantic_aug.datasets",
        usage="%(prog)s [NAME | check NAME --flag value ...]",
    )
    parser.add_argument("action", nargs="?", default="list", metavar="check")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a dataset, as in --dataset")
    add_flags(parser, Run, only=("data_dir", "dataset_args", "mask_dir"))
    parser.add_argument("--verbose", action="store_true", help="name every case, not the first ten")
    args = parser.parse_args(argv)
    if args.action not in ("list", "check") and args.name is None:
        args.action, args.name = "list", args.action
    return args


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    if args.action not in ("list", "check"):
        raise UserError(f"got {args.action} {args.name}, expected check {args.name}, or a NAME")
    if args.action == "list":
        if args.data_dir or args.dataset_args or args.mask_dir or args.verbose:
            raise UserError("list takes no flags; to read a dataset: check NAME --data_dir PATH")
        from semantic_aug.datasets import DATASETS

        print(listing([args.name] if args.name else DATASETS))
        return 0
    if not args.name:
        raise UserError("check needs the name of a dataset; without check, all names are listed")
    from semantic_aug.datasets.check import check_dataset, report

    findings = check_dataset(args.name, args.data_dir, args.dataset_args, args.mask_dir)
    print(report(findings, args.verbose))
    return 1 if findings.problems() else 0


def listing(names: Iterable[str]) -> str:
    """The docstrings, roots and options of datasets, as text."""
    from semantic_aug.datasets import dataset_class, known_options

    entries = []
    for name in names:
        cls = dataset_class(name)
        # The docstring of the class itself, not of FewShotDataset.
        text, _, meanings = inspect.cleandoc(cls.__doc__ or cls.__name__).partition("\nArgs:\n")
        root = ", else ".join(filter(None, ["--data_dir", cls.env, cls.default_dir]))
        options = ", ".join(option_text(each) for each in known_options(cls).values())
        lines = [*text.rstrip().splitlines(), "", f"Root: {root}", f"Options: {options or 'none'}"]
        lines += meanings.splitlines()
        entries.append(f"{name}\n" + "\n".join("    " * bool(line) + line for line in lines))
    return "\n\n".join(entries)


def option_text(option: inspect.Parameter) -> str:
    default = option.default
    if default is option.empty:
        return f"{option.name} (needed)"
    return f"{option.name}={str(default).lower() if isinstance(default, bool) else default}"


if __name__ == "__main__":
    sys.exit(main())
