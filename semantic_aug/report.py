"""Contact sheets: source photos beside their synthetic variants.

    python -m semantic_aug.report --dataset=folder --data_dir=photos --experiment_name=demo \\
        --examples_per_class 4 --aug_name aug

Writes output/EXP/report/seed=S_ex=N.png: a row per class, its first photo and then variants of it,
those of each --aug_name under their name.
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from semantic_aug.cli import (
    Parser,
    add_classes_flag,
    add_dataset_flags,
    add_experiment_flags,
    command,
    dataset_of,
    experiment_of,
    positive_int,
    trials_of,
)
from semantic_aug.experiment import atomic_path, aug_dir
from semantic_aug.few_shot_dataset import read_image
from semantic_aug.generation import read_variants

GAP = 2  # pixels between pictures


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Sequence[Image.Image]]]],
    headings: Sequence[str],
    cell: int = 96,
) -> Image.Image:
    """Pictures in rows and groups of columns, with names at the left and above.

    Args:
        rows: a name, and for each heading a list of pictures; all rows have lists of the same
            lengths.
        headings: one name per group.
        cell: side of a picture in pixels; wide and tall ones are fitted in, not squeezed.
    """
    font = ImageFont.load_default(size=max(10, cell // 7))
    line = font.getbbox("Ag")[3] + 6
    margin = max(int(font.getlength(name)) for name, _ in rows) + 8
    widths = [max(1, len(group)) * (cell + GAP) + 6 for group in rows[0][1]]
    sheet = Image.new("RGB", (margin + sum(widths), line + len(rows) * (cell + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    left = margin
    for heading, width in zip(headings, widths):
        while heading and font.getlength(heading) > width:
            heading = heading[:-1]
        draw.text((left, 2), heading, "black", font)
        left += width
    for number, (name, groups) in enumerate(rows):
        top = line + number * (cell + GAP)
        draw.text((4, top + cell // 2 - line // 2), name, "black", font)
        left = margin
        for group, width in zip(groups, widths):
            for column, picture in enumerate(group):
                fitted = ImageOps.contain(picture.convert("RGB"), (cell, cell))
                x = left + column * (cell + GAP) + (cell - fitted.width) // 2
                sheet.paste(fitted, (x, top + (cell - fitted.height) // 2))
            left += width
    return sheet


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_experiment_flags(parser)
    add_dataset_flags(parser)
    add_classes_flag(parser)
    parser.add_argument("--aug_name", nargs="+", default=["aug"], help="sets of images to show")
    parser.add_argument("--variants", type=positive_int, default=4, help="pictures of each set")
    parser.add_argument("--cell", type=positive_int, default=96, help="pixels of a picture")
    return parser.parse_args(argv)


@command
def main(argv=None):
    args = parse_args(argv)
    experiment = experiment_of(args)
    for trial in trials_of(args):
        dataset = dataset_of(args, "train", trial)
        sets = [
            read_variants(aug_dir(experiment, name, trial), dataset, classes=args.classes)
            for name in args.aug_name
        ]
        first = {}
        for idx in dataset.indices(args.classes):
            first.setdefault(dataset.get_label_by_idx(idx), idx)
        shown = min(args.variants, *(len(v) for variants in sets for v in variants.values()))
        rows = []
        for label, idx in sorted(first.items()):
            variants = [[read_image(path) for path, _ in each[idx][:shown]] for each in sets]
            rows.append((dataset.class_names[label], [[dataset.get_image_by_idx(idx)], *variants]))
        path = experiment / "report" / f"{trial.name}.png"
        with atomic_path(path) as temporary:
            sheet = contact_sheet(rows, ["photo", *args.aug_name], args.cell)
            sheet.save(temporary, format="PNG")
        print(path)


if __name__ == "__main__":
    main()
