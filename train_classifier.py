"""Train and evaluate a classifier on few photos per class and their synthetic variants.

    python train_classifier.py --dataset=coco --experiment_name=coco-demo \\
        --examples_per_class 1 2 4 --num_trials 8 --compare real

For every trial, a linear head on a frozen backbone (or, with --finetune, the backbone as well)
learns from the few-shot photos and their images from generate_augmentations.py. It is evaluated
on the whole val split after every epoch, and on the whole test split once. With --num_synthetic 0
it learns only from real photos. Results go to output/EXP/results/METHOD/:
results_SEED_EXAMPLES.csv and confusion_SEED_EXAMPLES.csv per trial, and over all trials
summary.csv and pictures. Finished trials are skipped.
"""

if __name__ == "__main__":
    from semantic_aug.experiment.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

from dataclasses import replace
from pathlib import Path

import semantic_aug
from semantic_aug.cli.command import Parser, command
from semantic_aug.settings import add_flags, build_all, fields_of
from semantic_aug.settings.classification import Classification, Synthetic, baseline
from semantic_aug.settings.common import Run
from semantic_aug.settings.generation import Generation
from semantic_aug.settings.reporting import Reporting
from semantic_aug.stages.common import command_line


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
        print(f"next: {_next(run, settings, Path(found['folder']))}")


def _next(run: Run, settings: Classification, folder: Path) -> str:
    """The next command: results of real photos only, the comparison, or a look at the images."""
    name = baseline(settings.objective)
    real = folder.parent / name
    if folder != real and not any(real.glob("results_*.csv")):
        none = {name: field.default for name, field in fields_of(Synthetic).items()}
        none |= {"num_synthetic": 0, "negative_aug_name": None}
        alone = replace(settings, **none, method=None, compare=())
        return command_line("train_classifier", run, alone)
    if folder != real and name not in settings.compare:
        return command_line("train_classifier", run, replace(settings, compare=(name,)))
    if folder == real:
        return command_line("generate", run, Generation(classes=settings.classes))
    shown = Reporting(aug_name=settings.aug_name, classes=settings.classes)
    return command_line("report", run, shown)


if __name__ == "__main__":
    main()
