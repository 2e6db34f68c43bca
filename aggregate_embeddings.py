"""Merge the learned words of each trial into one file.

    python aggregate_embeddings.py --experiment_name=demo --examples_per_class 4

Reads output/EXP/fine-tuned/seed=S_ex=N/CLASS/learned_embeds.safetensors and writes
output/EXP/fine-tuned-merged/seed=S_ex=N.safetensors. Words of other tools may also lie in these
folders, or come by --word. A trial's LoRA is copied to seed=S_ex=N_lora/. Next:
generate_augmentations.py.
"""

if __name__ == "__main__":
    from semantic_aug.experiment.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

import semantic_aug
from semantic_aug.cli.command import Parser, command
from semantic_aug.settings import add_flags, build_all
from semantic_aug.settings.common import Experiment
from semantic_aug.settings.merging import Merging
from semantic_aug.stages.common import command_line, learned_from


def parse_args(argv=None):
    return build_parser().parse_args(argv)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add_flags(parser, Experiment, Merging)
    return parser


@command
def main(argv=None):
    run, settings = build_all(vars(parse_args(argv)), Experiment, Merging)
    merged = semantic_aug.aggregate(run, settings)
    learned = learned_from(run)  # this command has no setting for the dataset
    if merged and learned:
        print(f"next: {command_line('generate', *learned)}")


if __name__ == "__main__":
    main()
