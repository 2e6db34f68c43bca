"""List the datasets, or read a whole one and report what is wrong with it.

python -m semantic_aug.datasets
python -m semantic_aug.datasets check caltech101 --data_dir data/caltech-101

`check` exits with 1 where something is wrong: photos that are missing or cannot be read, masks
that are missing or do not fit, one photo in two splits or in two classes.
"""

import inspect
import sys

from semantic_aug import UserError, cli


def parse_args(argv=None):
    parser = cli.Parser(
        __doc__,
        prog="python -m semantic_aug.datasets",
        usage="%(prog)s [check NAME --flag value ...]",
    )
    parser.add_argument("action", nargs="?", default="list", choices=("list", "check"))
    parser.add_argument("name", nargs="?", help="for check: as --dataset takes it")
    cli.add_data_flags(parser)
    return parser.parse_args(argv)


@cli.command
def main(argv=None) -> int:
    args = parse_args(argv)
    if args.action == "list":
        if args.data_dir or args.dataset_args or args.name:
            raise UserError("list takes no flags; to read a dataset: check NAME --data_dir PATH")
        print(listing())
        return 0
    if not args.name:
        raise UserError("check needs the name of a dataset; without check, they are listed")
    from semantic_aug.datasets.check import check_dataset, report

    findings = check_dataset(args.name, args.data_dir, args.dataset_args)
    print(report(findings))
    return 1 if findings.problems() else 0


def listing() -> str:
    """What every dataset is, and what it needs: its docstring, root and options."""
    from semantic_aug.datasets import DATASETS, dataset_class, known_options

    entries = []
    for name in DATASETS:
        cls = dataset_class(name)
        text, _, meanings = inspect.getdoc(cls).partition("\nArgs:\n")
        root = ", else ".join(filter(None, ["--data_dir", cls.env, cls.default_dir]))
        options = ", ".join(option_text(each) for each in known_options(cls).values())
        lines = [*text.rstrip().splitlines(), "", f"Root: {root}", f"Options: {options or 'none'}"]
        lines += meanings.splitlines()
        entries.append(f"{name}\n" + "\n".join("    " * bool(line) + line for line in lines))
    return "\n\n".join(entries)


def option_text(option: inspect.Parameter) -> str:
    default = option.default
    return f"{option.name}={str(default).lower() if isinstance(default, bool) else default}"


if __name__ == "__main__":
    sys.exit(main())
