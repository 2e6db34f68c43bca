"""Turn each labelled photo into varied photos of its class, by image-to-image edits.

    python generate_augmentations.py --dataset=folder --data_dir=photos --experiment_name=demo \\
        --examples_per_class 4 --num_synthetic 10 --strength 0.5

Writes output/EXP/AUG/seed=S_ex=N/ with images, records/ and metadata.jsonl. Prompts name a class by
the word that fine_tune.py has learned and aggregate_embeddings.py has merged, or else by the class
name (see --aug). Existing images are not made again, so the same command goes on after an
interruption. Next: train_classifier.py.

With --preview the same command only makes a sheet, output/EXP/report/preview_*.png, and tells how
long all images will take. With --reproduce it makes an image again and tells whether it is equal:

    python generate_augmentations.py --reproduce output/EXP/AUG/seed=S_ex=N/000000-000.png
"""

if __name__ == "__main__":
    from semantic_aug.experiment.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

import shlex
import sys

import semantic_aug
from semantic_aug.cli.command import Parser, command
from semantic_aug.cli.scripts import words_of
from semantic_aug.settings import add_flags, build_all, setting, settings
from semantic_aug.settings.classification import Classification
from semantic_aug.settings.common import Run
from semantic_aug.settings.generation import Generation, Previewing
from semantic_aug.settings.reproducing import Reproduction
from semantic_aug.stages.common import command_line


@settings()
class Remade:
    reproduce: str = setting(help="the image to make again", metavar="IMAGE")


def parse_args(argv=None):
    return build_parser().parse_args(argv)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add_flags(parser, Run, Generation, Previewing)
    return parser


@command
def main(argv=None):
    argv = sys.argv[1:] if argv is None else [str(arg) for arg in argv]
    if any(arg.split("=")[0] == "--reproduce" for arg in argv):
        return make_again(argv)
    run, settings, wanted = build_all(vars(parse_args(argv)), Run, Generation, Previewing)
    if wanted.preview:
        semantic_aug.preview(run, settings)
        return
    command = shlex.join([*words_of("generate"), *argv])
    made = semantic_aug.generate(run, settings, command=command)
    if made:
        next_one = Classification(aug_name=(settings.aug_name,), classes=settings.classes)
        print(f"next: {command_line('train_classifier', run, next_one)}")


def image_size(path: str) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.size


def make_again(argv) -> None:
    """Make an image again and tell whether it is equal; end with status 1 if it is not."""
    parser = Parser("Make a synthetic image again, and tell whether it is equal.")
    add_flags(parser, Remade, Reproduction)
    image, settings = build_all(vars(parser.parse_args(argv)), Remade, Reproduction)
    again, difference = semantic_aug.reproduce(image.reproduce, settings)
    if difference == 0:
        print(f"{image.reproduce}: equal")
    elif difference is not None and difference <= 2:
        print(f"{image.reproduce}: at most {difference} of 255 apart, as for another batch size")
    else:
        said = f"differs by up to {difference} of 255"
        if difference is None:
            said = f"its size is {image_size(image.reproduce)}, not {again.size}"
        print(f"{image.reproduce}: {said}")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
