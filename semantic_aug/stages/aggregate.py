"""Merging the learned words of a trial into one file."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.cli.notices import RESULT
from semantic_aug.experiment.config import read_config
from semantic_aug.experiment.files import atomic_path, remove_leftovers
from semantic_aug.experiment.names import (
    EMBEDDINGS_FILE,
    Trial,
    fine_tuned_dir,
    folder_names,
    lora_file,
    merged_file,
    merged_lora,
)
from semantic_aug.experiment.processes import at_work
from semantic_aug.experiment.sharding import shard_blocks, shard_of
from semantic_aug.experiment.timing import AGGREGATE, timed
from semantic_aug.settings.common import Experiment
from semantic_aug.settings.merging import Merging
from semantic_aug.stages.common import experiment_of, nothing_to_do, stage, trials_of
from semantic_aug.words.embeddings import (
    LearnedWords,
    merge_embeddings,
    placeholder_token,
    placeholder_tokens,
    read_header,
    token_for,
)

log = logging.getLogger(__name__)


@stage(Merging)
def aggregate(run: Experiment, settings: Merging) -> dict[Trial, Path]:
    """Merge the learned words of each trial in this process's share into one file.

    A trial's LoRA is copied beside the merged file.

    Returns:
        The merged file of each trial.

    Raises:
        UserError: a trial has no words, or its words were learned with different settings.
    """
    experiment, shard, trials = (
        experiment_of(run),
        shard_of(settings.shard_index, settings.num_shards),
        trials_of(run),
    )
    given = given_words(settings.word)
    if not given and not experiment.is_dir():
        raise UserError(f"there is no experiment {experiment}; run fine_tune.py first")
    mine = [trials[number] for number in sorted(shard_blocks(len(trials), *shard))]
    if not mine:
        log.log(RESULT, "%s", nothing_to_do(shard, counted(len(trials), "trial")))
        return {}
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
            "words from elsewhere for %s: if they were learned from photos of val or test, they "
            "make results optimistic",
            ", ".join(given),
        )
    wanted = dict.fromkeys(trials, (1, 0))
    with at_work(experiment, AGGREGATE, wanted, shard=shard) as reporter:
        for trial, files in found.items():
            reporter.works_on([trial])
            merge(experiment, trial, files, given)
            carry_lora(experiment, trial)
    return {trial: merged_file(experiment, trial) for trial in mine}


def given_words(texts: Sequence[str]) -> dict[str, LearnedWords]:
    """The words that `--word` names, by class."""
    given: dict[str, LearnedWords] = {}
    for text in texts:
        name, _, file = text.partition("=")
        if not name or not file:
            raise UserError(f"--word: got {text!r}, expected CLASS=FILE, as cat=my-cat.safetensors")
        if name in given:
            raise UserError(f"--word: {name!r} has two files, {given[name].path} and {file}")
        words = LearnedWords.read(Path(file).expanduser())  # shells keep the ~ of cat=~/cat.pt
        given[name] = words.as_word_of(name, placeholder_token(name))
    return given


def merge(
    experiment: Path, trial: Trial, files: list[Path], given: dict[str, LearnedWords]
) -> None:
    """Write the merged file of a trial, and log which words the file has."""
    path = merged_file(experiment, trial)
    remove_leftovers(path.parent)
    config = read_config(fine_tuned_dir(experiment, trial)) or {}
    header = {
        "seed": trial.seed,
        "examples_per_class": trial.examples_per_class,
        # The arguments are left out: they name folders, shards and the like.
        "config": json.dumps(
            {key: value for key, value in config.items() if key != "arguments"},
            ensure_ascii=False,
        ),
    }
    headers = [read_header(file) for file in files]
    for key in ("model", "dataset"):
        header[key] = next((each[key] for each in headers if key in each), "")
    classes = classes_of(experiment, trial)
    tokens = placeholder_tokens(classes)
    with timed(experiment, AGGREGATE, trials=trial):
        by_folder = {folder: name for name, folder in folder_names(classes).items()}
        words = [named_by_folder(LearnedWords.read(file), by_folder, tokens) for file in files]
        words += [each.as_word_of(name, tokens[name]) if name in tokens else each
                  for name, each in given.items()]  # fmt: skip
        merged = merge_embeddings(words, path, header)
    log.log(RESULT, "%s: %s: %s", path, counted(len(merged), "word"), " ".join(merged))
    known = {name: token for each in words for token, name in each.classes.items()}
    missing = [name for name in classes if token_for(name, known, merged) is None]
    if missing:
        log.warning("%s: no word yet for: %s", trial.name, ", ".join(missing))


def carry_lora(experiment: Path, trial: Trial) -> None:
    """Put a trial's LoRA, if it has one, beside its merged words."""
    source, path = lora_file(experiment, trial), merged_lora(merged_file(experiment, trial))
    if not source.is_file():
        return
    remove_leftovers(path.parent)
    with atomic_path(path) as temporary:
        shutil.copyfile(source, temporary)
    log.log(RESULT, "%s: the LoRA of %s", path, trial.name)


def named_by_folder(words: LearnedWords, by_folder: dict, tokens: dict) -> LearnedWords:
    """A file's only word, assigned to the class of its folder if the file names no class.

    Where the classes of the trial are unknown, the token comes from the folder's name.

    Args:
        by_folder: the trial's classes by the names of their folders.
        tokens: the classes' tokens.
    """
    if words.classes or len(words.rows[0]) > 1:
        return words
    (own,), folder = words.rows[0], words.path.parent.name
    name = class_of(words.path, by_folder)
    token = tokens.get(name, placeholder_token(folder))
    named = words.as_word_of(name, token)
    if own != token:
        log.info("%s: its word %s is %s in the merged file", words.path, own, token)
    return named if name in tokens else replace(named, classes={})


def class_of(file: Path, by_folder: dict[str, str]) -> str:
    """The class of a file in a trial's folder: its header names the class, else its folder."""
    folder = file.parent.name
    return read_header(file).get("class") or by_folder.get(folder, folder)


def classes_of(experiment: Path, trial: Trial) -> list[str]:
    """The classes of a trial, as far as fine_tune.py has recorded them."""
    config = read_config(fine_tuned_dir(experiment, trial)) or {}
    names = config.get("arguments", {}).get("class_names")
    return [str(name) for name in names] if isinstance(names, list) else []


def check_classes(given: dict[str, LearnedWords], trial: Trial, classes: list[str]) -> None:
    """Raise UserError where `--word` names a class that the trial lacks."""
    unknown = [name for name in given if classes and name not in classes]
    if unknown:
        raise UserError(
            f"--word: {trial.name} has no class {unknown[0]!r}; there are: {', '.join(classes)}"
        )


def files_of(experiment: Path, trial: Trial, given: dict[str, LearnedWords]) -> list[Path]:
    """The embedding files of a trial's classes without a given word, sorted by folder."""
    folder = fine_tuned_dir(experiment, trial)
    files = list(folder.glob(f"*/{EMBEDDINGS_FILE}"))
    with_file = {file.parent for file in files}
    # Files of earlier versions count where a class has no newer file.
    files += [f for f in folder.glob("*/learned_embeds.bin") if f.parent not in with_file]
    names = folder_names(classes_of(experiment, trial))
    by_folder = {folder: name for name, folder in names.items()}
    return [file for file in sorted(files) if class_of(file, by_folder) not in given]


def trained_trials(experiment: Path) -> list[str]:
    """Names of the trials that fine_tune.py has begun."""
    return sorted(path.name for path in experiment.glob("fine-tuned/seed=*_ex=*"))


def check_same_settings(files: list[Path], config: dict | None) -> None:
    """Raise UserError where the words of a trial were trained with different settings.

    Args:
        config: config.json of the trial, which becomes part of the merged file.
    """
    by_settings: dict[str, list[str]] = {}
    for file in files:
        header = read_header(file)
        if "config_id" in header:
            by_settings.setdefault(header["config_id"], []).append(file.parent.name)
    if len(by_settings) > 1:
        groups = "; ".join(", ".join(names) for names in by_settings.values())
        raise UserError(
            f"classes in {files[0].parent.parent} were trained with different settings ({groups}); "
            "train the older words again with fine_tune.py --overwrite"
        )
    if by_settings and (config or {}).get("id") not in by_settings:
        raise UserError(
            f"{files[0].parent.parent} holds words, but no readable config.json says how they were "
            "learned; run fine_tune.py again, with the same flags, which writes it"
        )
