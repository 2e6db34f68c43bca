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

from semantic_aug import UserError
from semantic_aug.cli.command import Parser, command
from semantic_aug.experiment.files import remove_leftovers
from semantic_aug.experiment.names import aug_dir
from semantic_aug.experiment.timing import seconds_per_image
from semantic_aug.report.page import EMBED, NEAR_DUPLICATE, write_page
from semantic_aug.report.sheets import check_width, records_by_photo, write_sheets
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

PROG = "report.py"  # what its errors begin with, since it was a file of this name


def parse_args(argv=None):
    parser = Parser(__doc__, prog=PROG)
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


if __name__ == "__main__":
    main()
