"""Turn a classifier that train_classifier.py has kept into a model for other programs.

    semantic-aug export output/EXP/results/METHOD/classifier_0_4 my-model --onnx

Writes a whole model of transformers to the folder, which must be absent or empty: weights, class
names, image processor and a model card. pipeline("image-classification", model="my-model") opens
the model without this package.
"""

import semantic_aug
from semantic_aug.cli.command import Parser, command
from semantic_aug.settings import add_flags, build
from semantic_aug.settings.using import Exporting

PROG = "export"


def parse_args(argv=None):
    usage = "%(prog)s CLASSIFIER FOLDER --flag value ..."
    parser = Parser(__doc__, usage=usage, intermixed=True)
    parser.add_argument("classifier", metavar="CLASSIFIER", help="folder of the classifier")
    parser.add_argument("folder", metavar="FOLDER", help="folder for the model")
    add_flags(parser, Exporting)
    return parser.parse_args(argv)


@command
def main(argv=None) -> None:
    found = vars(parse_args(argv))
    classifier, folder = found.pop("classifier"), found.pop("folder")
    semantic_aug.export(classifier, build(Exporting, found), folder=folder)


if __name__ == "__main__":
    main()
