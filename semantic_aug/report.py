"""Something to look at: source photos beside their synthetic variants.

    python -m semantic_aug.report --dataset=folder --data_dir=photos --experiment_name=demo \\
        --examples_per_class 4 --aug_name aug

Writes output/EXP/report/seed=S_ex=N.html, a page to open in any browser, with all photos and
variants, their prompts, parameters, scores and counts; seed=S_ex=N.png, a sheet with the first
photo of every class and variants of it; and seed=S_ex=N/CLASS.png, a sheet of each class.
What is there of an unfinished generation is shown.
"""

if __name__ == "__main__":
    from semantic_aug.experiment.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.cli.command import Parser, command
from semantic_aug.experiment.files import atomic_path, remove_leftovers
from semantic_aug.experiment.names import aug_dir, folder_names
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.experiment.timing import seconds_per_image
from semantic_aug.images.reading import read_image
from semantic_aug.images.sheet import GAP, contact_sheet
from semantic_aug.report_page import EMBED, NEAR_DUPLICATE, write_page
from semantic_aug.settings import (
    add_classes_flag,
    add_dataset_flags,
    add_experiment_flags,
    non_negative,
    non_negative_int,
    positive_int,
    whole_number,
)
from semantic_aug.stages.common import dataset_of, experiment_of, trials_of
from semantic_aug.synthesis.records import read_records, read_scores
from semantic_aug.synthesis.variants import read_variants

SHEET_ROWS = 100
SHEET_SIDE = 16_384  # pixels; most viewers show no more, and a square sheet takes 800 MB

log = logging.getLogger("semantic_aug.report")


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_experiment_flags(parser)
    add_dataset_flags(parser)
    add_classes_flag(parser)
    parser.add_argument("--aug_name", nargs="+", default=["aug"], help="sets of images to show")
    parser.add_argument(
        "--embed",
        type=non_negative_int,
        default=EMBED,
        help="up to so many pictures lie within the page, which can then be sent to somebody; "
        "of more, it shows the files beside it",
    )
    parser.add_argument(
        "--near_duplicate",
        type=non_negative,
        default=NEAR_DUPLICATE,
        help="flag variants that differ from their photo by less, of 255, in the sixteenth of the "
        "picture where they differ most; both are compared at 32x32 pixels",
    )
    sheets = parser.add_argument_group("contact sheets")
    sheets.add_argument("--variants", type=positive_int, default=4, help="pictures of each set")
    sheets.add_argument(
        "--cell", type=whole_number(8, 1024), default=96, help="pixels of a picture"
    )
    return parser.parse_args(argv)


@command
def main(argv=None):
    args = parse_args(argv)
    experiment = experiment_of(args)
    for trial in trials_of(args):
        folders = {name: aug_dir(experiment, name, trial) for name in args.aug_name}
        dataset = dataset_of(args, "train", trial)
        indices = dataset.indices(args.classes)
        if not indices:
            raise UserError("none of the classes chosen has a photo")
        variants = {
            name: records_by_photo(folder, dataset, indices) for name, folder in folders.items()
        }
        check_width(variants, args.variants, args.cell)
        path = experiment / "report" / f"{trial.name}.html"
        for folder in (path.parent, path.with_suffix(""), path.with_suffix("") / "photos"):
            remove_leftovers(folder)
        title = (
            f"{args.experiment_name} · seed {trial.seed}, "
            f"{trial.examples_per_class} examples per class"
        )
        seconds = {name: seconds_per_image(experiment, name, trial) for name in folders}
        write_page(
            path,
            title,
            dataset,
            indices,
            folders,
            variants,
            args.embed,
            args.near_duplicate,
            seconds,
        )
        write_sheets(
            path.with_suffix(""), dataset, indices, folders, variants, args.variants, args.cell
        )
        print(path.with_suffix(".png"))
        print(path)


# --- records ---------------------------------------------------------------------------------


def records_by_photo(folder: Path, dataset, indices: Sequence[int]) -> dict[int, list[dict]]:
    """The records of the images there are of some photos: `{index: [record, ...]}`.

    Where a filter has scored an image, its record has `score` and `kept` too.

    Raises:
        UserError: there are none, or they do not fit the dataset.
    """
    read_variants(folder, dataset, 0)  # raises where records do not fit
    position = {source: idx for idx, source in enumerate(dataset.sources())}
    scores, found = read_scores(folder), {idx: [] for idx in indices}
    for record in read_records(folder):
        idx = position[record["source"]]
        if idx in found:
            found[idx].append(record | scores.get(record["file_name"], {}))
    return found


# --- contact sheets --------------------------------------------------------------------------


def check_width(
    variants: Mapping[str, Mapping[int, Sequence[dict]]], shown: int, cell: int
) -> None:
    """Raise UserError where a sheet of these variants would be too wide, see `write_sheets`."""
    longest = [max(map(len, of_set.values())) for of_set in variants.values()]
    pictures = 1 + sum(min(shown, each) for each in longest)
    if pictures * (cell + GAP) > SHEET_SIDE:
        raise UserError(
            f"--variants: got {shown}, so that rows have {pictures} pictures of --cell {cell}, "
            f"expected rows of {SHEET_SIDE} pixels at most: give a smaller one of the two"
        )


def write_sheets(
    folder: Path,
    dataset,
    indices: Sequence[int],
    folders: Mapping[str, Path],
    variants: Mapping[str, Mapping[int, Sequence[dict]]],
    shown: int,
    cell: int,
) -> None:
    """The sheet `folder`.png with a photo of every class, and `folder`/CLASS.png of each class.

    Args:
        indices: photos of the dataset.
        folders: where the images of each set lie.
        variants: of each set, the records of each photo.
        shown: variants of each photo and set.
        cell: side of a picture in pixels.
    """
    by_class: dict[str, list[int]] = {}
    for idx in indices:
        name = dataset.class_names[dataset.get_label_by_idx(idx)]
        by_class.setdefault(name, []).append(idx)

    def row(name: str, idx: int):
        groups = [
            [read_image(folders[key] / r["file_name"]) for r in variants[key][idx][:shown]]
            for key in folders
        ]
        return name, [[dataset.get_image_by_idx(idx)], *groups]

    def write(path: Path, rows: Iterable) -> None:
        with atomic_path(path) as temporary:
            sheet = contact_sheet(list(rows), ["photo", *folders], cell)
            sheet.save(temporary, format="PNG")

    firsts = [(name, photos[0]) for name, photos in by_class.items()]
    fitting = min(SHEET_ROWS, SHEET_SIDE // (cell + GAP) - 1)
    write(folder.with_name(f"{folder.name}.png"), (row(*first) for first in firsts[:fitting]))
    names, sources = folder_names(dataset.class_names), dataset.sources()
    for name, photos in progress_bar(iterable=by_class.items(), desc="sheets", unit="class"):
        rows = (row(Path(sources[idx]).name, idx) for idx in photos[:fitting])
        write(folder / f"{names[name]}.png", rows)
    if max(len(firsts), *map(len, by_class.values())) > fitting:
        log.info("sheets have the first %s; the page has all", counted(fitting, "row"))


if __name__ == "__main__":
    main()
