"""Train and evaluate a classifier on few photos per class and their synthetic variants.

    python train_classifier.py --dataset=coco --experiment_name=coco-demo \\
        --examples_per_class 1 2 4 --num_trials 8 --compare real

For every trial, a linear head on a frozen backbone (or, with --finetune, the backbone as well)
learns from the few-shot photos and the images that generate_augmentations.py made of them; it is
evaluated on the whole val split after every epoch, and on the whole test split once. With
--num_synthetic 0 it learns from the real photos only. Results go to output/EXP/results/METHOD/:
results_SEED_EXAMPLES.csv and confusion_SEED_EXAMPLES.csv per trial, and over all trials
summary.csv and pictures. Finished trials are skipped.
"""

if __name__ == "__main__":
    from semantic_aug.experiment.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

import semantic_aug
from semantic_aug.cli.command import Parser, command
from semantic_aug.settings import add_flags, build_all
from semantic_aug.settings.classification import Classification
from semantic_aug.settings.common import Run


def parse_args(argv=None):
    return build_parser().parse_args(argv)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add_flags(parser, Run, Classification)
    return parser


@command
def main(argv=None) -> None:
    run, settings = build_all(vars(parse_args(argv)), Run, Classification)
    found = semantic_aug.train_classifier(run, settings).attrs
    # Imported late: --help needs no pandas.
    from semantic_aug.evaluation.tables import comparison_lines, summary_lines

    for line in [*summary_lines(found["summary"]), *comparison_lines(found["comparison"])]:
        print(line)
    if found["summary"]:
        print(f"results: {found['folder']}")


if __name__ == "__main__":
    main()
