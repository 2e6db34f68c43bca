"""Classify photos with classifiers that train_classifier.py has kept.

    semantic-aug predict output/EXP/results/METHOD/classifier_0_4 photo.jpg more_photos/ 'new/*.png'
    semantic-aug predict output/EXP/results/METHOD/classifier_0_4 photos/test --labelled

The first arguments are folders of classifiers, whose probabilities are averaged; then follow image
files, folders and globs. Prints the likeliest classes of each photo. Their probabilities are
calibrated on the val split: on similar photos, they match the share of right answers.
"""

from collections.abc import Iterator
from pathlib import Path

import semantic_aug
from semantic_aug import counted
from semantic_aug.cli.command import Parser, command
from semantic_aug.settings import add_flags, build
from semantic_aug.settings.using import Predicting

PROG = "predict"


def parse_args(argv=None):
    parser = Parser(__doc__, usage="%(prog)s CLASSIFIER ... PHOTO ... --flag value ...",
                    intermixed=True)  # fmt: skip
    parser.add_argument("words", nargs="+", metavar="CLASSIFIER ... PHOTO ...",
                        help="classifiers, then image files, folders and globs")  # fmt: skip
    add_flags(parser, Predicting)
    return parser.parse_args(argv)


@command
def main(argv=None) -> None:
    found = vars(parse_args(argv))
    # Imported late: --help needs no torch.
    from semantic_aug.evaluation.classifiers import is_classifier

    classifier, *words = found.pop("words")
    classifiers = [classifier]
    while words and is_classifier(Path(words[0])):
        classifiers.append(words.pop(0))
    table = semantic_aug.predict(classifiers, build(Predicting, found), photos=words)
    for line in lines_of(table):
        print(line)
    if "evaluation" in table.attrs:
        for line in lines_of_scores(table.attrs["evaluation"], table.attrs["class_names"]):
            print(line)


def lines_of(table) -> Iterator[str]:
    """The table as text: a column for the photo, and columns for its classes and probabilities."""
    ranks = ["", *(f"_{n}" for n in range(2, 1 + sum(c.startswith("class") for c in table)))]
    heads = ["photo", *(["true"] if "true" in table else []), "class", "probability"]
    heads += {1: [], 2: ["second class"]}.get(len(ranks), ["next classes"])
    rows = [heads]
    for row in table.to_dict(orient="records"):
        others = (f"{row[f'class{n}']} {row[f'probability{n}']:.3f}" for n in ranks[1:])
        if row["class"] != row.get("likeliest", row["class"]):
            row["class"] += f" ({row['likeliest']}?)"
        cells = [row["photo"], *([row["true"]] if "true" in row else []), row["class"]]
        rows.append([*cells, f"{row['probability']:.3f}", ", ".join(others)][: len(heads)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    for cells in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip()


def lines_of_scores(found, class_names) -> Iterator[str]:
    """Accuracy, macro F1, and the answers for the photos of each class."""
    total = int(found.confusion.sum())
    yield (
        f"Accuracy {found.mean_accuracy:.7g} (mean over classes), Top-1 {found.top1:.7g} (of all "
        f"photos), Macro F1 {found.macro_f1:.7g}; {counted(total, 'photo')}"
    )
    yield "of the photos of each class, as many were taken for:"
    for name, row in zip(class_names, found.confusion.tolist()):
        if any(row):
            order = sorted(range(len(row)), key=lambda n: (class_names[n] != name, -row[n]))
            told = (f"{class_names[n]} {row[n]}" for n in order if row[n])
            yield f"  {name}: {', '.join(told)}"


if __name__ == "__main__":
    main()
