"""Merge the learned words of each trial into one file.

    python aggregate_embeddings.py --experiment_name=demo --examples_per_class 4

Reads output/EXP/fine-tuned/seed=S_ex=N/*/learned_embeds.safetensors and writes
output/EXP/fine-tuned-merged/seed=S_ex=N.safetensors. Next: generate_augmentations.py.
"""

if __name__ == "__main__":
    from semantic_aug.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

import json
import logging
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.cli import (
    Parser,
    add_experiment_flags,
    add_shard_flags,
    command,
    experiment_of,
    shard_blocks,
    shard_of,
    trials_of,
)
from semantic_aug.embeddings import embedding_files, merge_embeddings, read_header
from semantic_aug.experiment import (
    EMBEDDINGS_FILE,
    Trial,
    fine_tuned_dir,
    merged_file,
    read_config,
    remove_leftovers,
)
from semantic_aug.processes import at_work
from semantic_aug.timing import AGGREGATE, timed

log = logging.getLogger("semantic_aug.aggregate_embeddings")


def parse_args(argv=None):
    return build_parser().parse_args(argv)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add_experiment_flags(parser)
    add_shard_flags(parser)
    return parser


@command
def main(argv=None):
    args = parse_args(argv)
    experiment, shard, trials = experiment_of(args), shard_of(args), trials_of(args)
    if not experiment.is_dir():
        raise UserError(f"there is no experiment {experiment}; run fine_tune.py first")
    mine = [trials[number] for number in sorted(shard_blocks(len(trials), *shard))]
    if not mine:
        print(
            f"nothing to do: shard {shard[0]} of {shard[1]} has "
            f"none of {counted(len(trials), 'trial')}"
        )
        return
    found = {trial: files_of(experiment, trial) for trial in mine}
    for trial, files in found.items():
        if not files:
            raise UserError(
                f"no {EMBEDDINGS_FILE} in {fine_tuned_dir(experiment, trial)}/*/; trained trials: "
                f"{', '.join(trained_trials(experiment)) or 'none'}; run fine_tune.py with the "
                "same --seed and --examples_per_class"
            )
        check_same_settings(files)
        check_second_files(files)
    wanted = dict.fromkeys(trials, (1, 0))
    with at_work(experiment, AGGREGATE, wanted, shard=shard) as reporter:
        for trial, files in found.items():
            reporter.works_on([trial])
            merge(experiment, trial, files)


def merge(experiment: Path, trial: Trial, files: list[Path]) -> None:
    """Write the merged file of a trial, and say which words it has."""
    path = merged_file(experiment, trial)
    remove_leftovers(path.parent)
    config = read_config(fine_tuned_dir(experiment, trial)) or {}
    header = {
        "seed": trial.seed,
        "examples_per_class": trial.examples_per_class,
        # Without the arguments, which name folders and shards and so on.
        "config": json.dumps(
            {key: value for key, value in config.items() if key != "arguments"},
            ensure_ascii=False,
        ),
    }
    for key in ("model", "dataset"):
        header[key] = read_header(files[0]).get(key, "")
    with timed(experiment, AGGREGATE, trials=trial):
        if second_files(files):
            merge_embeddings(second_files(files), embedding_files(path)[1], header)
        tokens = merge_embeddings(files, path, header)
    print(f"{path}: {counted(len(tokens), 'word')}: {' '.join(tokens)}")
    missing = missing_classes(config, files)
    if missing:
        log.warning("%s: no word yet for: %s", trial.name, ", ".join(missing))


def files_of(experiment: Path, trial: Trial) -> list[Path]:
    """The embedding files of a trial's classes, in the order of their folders' names."""
    folder = fine_tuned_dir(experiment, trial)
    files = list(folder.glob(f"*/{EMBEDDINGS_FILE}"))
    with_file = {file.parent for file in files}
    # The predecessors' files, where a class has no newer one.
    files += [f for f in folder.glob("*/learned_embeds.bin") if f.parent not in with_file]
    return sorted(files)


def second_files(files: list[Path]) -> list[Path]:
    """The files of an SDXL's second text encoder beside these."""
    return [second for file in files if (second := embedding_files(file)[1]).exists()]


def check_second_files(files: list[Path]) -> None:
    """Raise UserError where some words are an SDXL's, with a second file, and others are not."""
    without = [file for file in files if not embedding_files(file)[1].exists()]
    if 0 < len(without) < len(files):
        raise UserError(
            f"{embedding_files(without[0])[1]} is missing, and other classes have theirs; train "
            "this class again, or remove its folder"
        )


def trained_trials(experiment: Path) -> list[str]:
    """Names of the trials that fine_tune.py has begun."""
    return sorted(path.name for path in experiment.glob("fine-tuned/seed=*_ex=*"))


def check_same_settings(files: list[Path]) -> None:
    """Raise UserError where some classes were trained with other settings than others."""
    by_settings: dict[str, list[str]] = {}
    for file in files:
        header = read_header(file)
        if "config_id" in header:
            by_settings.setdefault(header["config_id"], []).append(file.parent.name)
    if len(by_settings) > 1:
        groups = "; ".join(", ".join(names) for names in by_settings.values())
        raise UserError(
            f"classes in {files[0].parent.parent} were trained with different settings ({groups}); "
            "train the older ones again with fine_tune.py --overwrite"
        )


def missing_classes(config: dict, files: list[Path]) -> list[str]:
    """Classes of the trial without a file, as far as its config.json names them."""
    present = {read_header(file).get("class") for file in files}
    expected = config.get("arguments", {}).get("class_names")
    expected = expected if isinstance(expected, list) else []
    return [str(name) for name in expected if name not in present]


if __name__ == "__main__":
    main()
