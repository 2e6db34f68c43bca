"""Teach a frozen Stable Diffusion one new word per class (textual inversion, arXiv 2208.01618).

    python fine_tune.py --dataset=folder --data_dir=photos --experiment_name=demo \\
        --examples_per_class 4 --num_vectors 4 --max_train_steps 1000 --mixed_precision fp16

Writes output/EXP/fine-tuned/seed=S_ex=N/CLASS/learned_embeds.safetensors for every class and
trial. Several classes are trained in each batch, each exactly as if alone. After an interruption,
the same command skips finished classes, and begun classes go on from their last checkpoint. With
--lora_rank, it then trains a LoRA of each trial, with these words in prompts:
output/EXP/fine-tuned/seed=S_ex=N/pytorch_lora_weights.safetensors. Next: aggregate_embeddings.py.
"""

if __name__ == "__main__":
    from semantic_aug.experiment.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

import semantic_aug
from semantic_aug import counted
from semantic_aug.cli.command import Parser, command
from semantic_aug.experiment.names import FINE_TUNED
from semantic_aug.settings import add_flags, build_all
from semantic_aug.settings.common import Experiment, Run
from semantic_aug.settings.fine_tuning import FineTuning
from semantic_aug.stages.common import command_line, experiment_of


def parse_args(argv=None):
    return build_parser().parse_args(argv)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add_flags(parser, Run, FineTuning)
    return parser


@command
def main(argv=None):
    run, settings = build_all(vars(parse_args(argv)), Run, FineTuning)
    learned = semantic_aug.fine_tune(run, settings)
    there = len(learned.made) + len(learned.skipped)
    print(f"{experiment_of(run) / FINE_TUNED}: {counted(there, 'word')}, {len(learned.made)} new")
    if learned.failed:
        raise SystemExit(1)
    print(f"next: {command_line('aggregate', run, of=Experiment)}")


if __name__ == "__main__":
    main()
