"""Make masks for photos without masks; background, paste, masked edits and crops need masks.

    python -m semantic_aug.masking --dataset folder --data_dir photos

Writes a mask for every photo, photos/masks/CLASS/NAME.png; other commands find it by themselves.
Doubtful masks go to photos/masks/doubtful/, and no command uses them. photos/masks/report.html and
report/CLASS.png show all masks, doubtful masks first. Masks that a person has painted or corrected
are kept. For other datasets, --mask_dir names the folder of masks, here and in all other commands.
"""

if __name__ == "__main__":
    from semantic_aug.experiment.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

from semantic_aug.cli.command import Parser, command
from semantic_aug.settings import add_flags, build_all
from semantic_aug.settings.common import Run
from semantic_aug.settings.masking import Masking

PROG = "masks"
OF_PHOTOS = ("dataset", "data_dir", "dataset_args", "mask_dir")


def parse_args(argv=None):
    parser = Parser(__doc__, prog="python -m semantic_aug.masking")
    add_flags(parser, Run, only=OF_PHOTOS)
    add_flags(parser, Masking)
    return parser.parse_args(argv)


@command
def main(argv=None):
    given = {"experiment_name": "masks", **vars(parse_args(argv))}  # no experiment is involved
    run, settings = build_all(given, Run, Masking)
    # Imported late: --help needs no torch.
    from semantic_aug.stages.masks import masks

    masks(run, settings)


if __name__ == "__main__":
    main()
