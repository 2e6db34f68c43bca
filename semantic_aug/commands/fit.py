"""From a folder of photos to a classifier that works, in the minutes that you have.

    semantic-aug fit photos --minutes 60

Photos lie in a folder for each class. Candidates, from cheap to expensive, are compared on photos
that they have not seen. The command ends with a classifier in output/NAME/fit/, the accuracy to
expect, and the command that uses the classifier. docs/fit.md explains the numbers.
"""

from collections.abc import Iterator

import semantic_aug
from semantic_aug.cli.command import Parser, command
from semantic_aug.settings import add_flags, build
from semantic_aug.settings.fitting import Fitting

PROG = "fit"


def parse_args(argv=None):
    parser = Parser(__doc__, usage="%(prog)s PHOTOS --flag value ...", intermixed=True)
    parser.add_argument("photos", metavar="PHOTOS", help="a folder with a folder for each class")
    add_flags(parser, Fitting)
    return parser.parse_args(argv)


@command
def main(argv=None) -> None:
    found = vars(parse_args(argv))
    result = semantic_aug.fit(found.pop("photos"), build(Fitting, found))
    for line in lines_of(result):
        print(line)


def lines_of(result) -> Iterator[str]:
    """All candidates with their gains, the candidates left out and why, and the next command."""
    from semantic_aug.stages.fitting_result import predict_line

    heads = ["candidate", "right", "elsewhere", "over photos alone", "95 % interval", ""]
    rows = [heads]
    for row in result.table.to_dict(orient="records"):
        first = row["over_real"] != row["over_real"]  # nan for the simplest candidate
        interval = f"{100 * row['over_real_low']:+.1f} to {100 * row['over_real_high']:+.1f}"
        rows.append(
            [
                row["candidate"],
                f"{row['accuracy']:.1%}",
                "" if row["elsewhere"] != row["elsewhere"] else f"{row['elsewhere']:.1%}",
                "" if first else f"{100 * row['over_real']:+.1f}",
                "" if first else interval,
                "<- chosen" if row["chosen"] else "",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    yield ""
    for cells in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip()
    by_reason: dict[str, list[str]] = {}
    for name, reason in result.left_out.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        yield f"left out: {', '.join(names)}: {reason}"
    yield ""
    yield result.why
    yield ""
    yield f"page: {result.folder / 'fit.html'}"
    yield predict_line(result)


if __name__ == "__main__":
    main()
