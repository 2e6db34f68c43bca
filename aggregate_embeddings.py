"""Merge the learned words of each trial into one file.

    python aggregate_embeddings.py --experiment_name=demo --examples_per_class 4

Reads output/EXP/fine-tuned/seed=S_ex=N/CLASS/learned_embeds.safetensors and writes
output/EXP/fine-tuned-merged/seed=S_ex=N.safetensors. Words of other tools may lie in these folders
too, or are given with --word. Next: generate_augmentations.py.
"""

if __name__ == "__main__":
    from semantic_aug.experiment.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

import logging

from semantic_aug import UserError, counted
from semantic_aug.cli.command import Parser, command
from semantic_aug.experiment.config import read_config
from semantic_aug.experiment.names import EMBEDDINGS_FILE, fine_tuned_dir
from semantic_aug.experiment.processes import at_work
from semantic_aug.experiment.sharding import shard_blocks, shard_of
from semantic_aug.experiment.timing import AGGREGATE
from semantic_aug.settings import add_experiment_flags, add_shard_flags
from semantic_aug.stages.aggregate import (
    check_classes,
    check_same_settings,
    classes_of,
    files_of,
    given_words,
    merge,
    trained_trials,
)
from semantic_aug.stages.common import experiment_of, trials_of

log = logging.getLogger("semantic_aug.aggregate_embeddings")


def parse_args(argv=None):
    return build_parser().parse_args(argv)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add_experiment_flags(parser)
    add_shard_flags(parser)
    words = parser.add_argument_group("words from elsewhere")
    words.add_argument(
        "--word",
        nargs="+",
        action="extend",
        default=[],
        metavar="CLASS=FILE",
        help="the word of a class, for all trials, from a file of diffusers, of AUTOMATIC1111's "
        "web UI, of kohya's scripts or of this project",
    )
    return parser


@command
def main(argv=None):
    args = parse_args(argv)
    experiment, shard, trials = experiment_of(args), shard_of(args), trials_of(args)
    given = given_words(args.word)
    if not given and not experiment.is_dir():
        raise UserError(f"there is no experiment {experiment}; run fine_tune.py first")
    mine = [trials[number] for number in sorted(shard_blocks(len(trials), *shard))]
    if not mine:
        print(
            f"nothing to do: shard {shard[0]} of {shard[1]} has "
            f"none of {counted(len(trials), 'trial')}"
        )
        return
    found = {trial: files_of(experiment, trial, given) for trial in mine}
    for trial, files in found.items():
        if not files and not given:
            raise UserError(
                f"no {EMBEDDINGS_FILE} in {fine_tuned_dir(experiment, trial)}/*/; trained trials: "
                f"{', '.join(trained_trials(experiment)) or 'none'}; run fine_tune.py with the "
                "same --seed and --examples_per_class"
            )
        check_same_settings(files, read_config(fine_tuned_dir(experiment, trial)))
        check_classes(given, trial, classes_of(experiment, trial))
    if given:
        log.warning(
            "words from elsewhere for %s: if they have seen photos of val or test, they make "
            "results optimistic",
            ", ".join(given),
        )
    wanted = dict.fromkeys(trials, (1, 0))
    with at_work(experiment, AGGREGATE, wanted, shard=shard) as reporter:
        for trial, files in found.items():
            reporter.works_on([trial])
            merge(experiment, trial, files, given)


if __name__ == "__main__":
    main()
