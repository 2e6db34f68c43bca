"""Choosing the learned words that guide the edits of a trial, and recording them."""

import logging
import re
from dataclasses import replace
from pathlib import Path

from semantic_aug import UserError
from semantic_aug.augmentations import augmentation_class
from semantic_aug.diffusion.adapters import check_unet
from semantic_aug.diffusion.inspecting import ModelInfo
from semantic_aug.experiment.names import BORROWED_WORDS, FINE_TUNED, MERGED, Trial, merged_file
from semantic_aug.settings.generation import REAL_GUIDANCE, TEXTUAL_INVERSION, Generation
from semantic_aug.stages.edits import check_prompts, read_prompts
from semantic_aug.synthesis.records import masks_by_class
from semantic_aug.words.embeddings import (
    class_tokens,
    read_header,
    read_words,
    rows_digest,
    token_for,
)

log = logging.getLogger(__name__)


def choose_words(
    settings: Generation, experiment: Path, trials: list[Trial]
) -> tuple[Generation, dict[Trial, Path | None]]:
    """The settings with their prompts and augmentations, and the learned words of each trial.

    Raises:
        UserError: prompts cannot be filled in, or the requested words do not exist.
    """
    settings = replace(settings, prompt=tuple(read_prompts(settings.prompt)))
    check_prompts(settings.prompt)
    embed_paths = {trial: find_embeddings(settings, experiment, trial) for trial in trials}
    if settings.aug is None:
        found = all(embed_paths.values())
        settings = replace(settings, aug=(TEXTUAL_INVERSION if found else REAL_GUIDANCE,))
    uses_words = TEXTUAL_INVERSION in (settings.aug or ())
    report_words(settings, experiment, embed_paths, uses_words)
    return settings, embed_paths if uses_words else dict.fromkeys(trials)


def details_of_classes(
    dataset, embed_path: Path | None, info: ModelInfo | None, unets, masked
) -> dict:
    """Everything that changes the images of a single class, by its key in their records.

    Args:
        masked: photos whose masks change the images.
    """
    details: dict[str, dict] = {name: {} for name in dataset.class_names}
    for name, digest in word_digests(embed_path, dataset, info).items():
        details[name]["embeddings"] = digest
    for name, path in unets.items():
        assert info is not None  # weights need a model
        details[name]["unet"] = check_unet(info, path)
    for name, digest in masks_by_class(dataset, masked).items():
        details[name]["masks"] = digest
    return details


def find_embeddings(settings: Generation, experiment: Path, trial: Trial) -> Path | None:
    """The file of learned words for a trial; None where there is none.

    Raises:
        UserError: `--embed_path` names no file.
    """
    if settings.embed_path:
        path = Path(trial.fill(settings.embed_path))
        if not path.is_file():
            raise UserError(
                f"--embed_path: {path} does not exist; aggregate_embeddings.py makes it"
            )
        return path
    own = merged_file(experiment, trial)
    if own.is_file():
        return own
    found = {path: distance(path, trial) for path in (experiment / MERGED).glob("*.safetensors")}
    others = {path: far for path, far in found.items() if far is not None}
    return min(others, key=lambda path: others[path], default=None)


def distance(path: Path, trial: Trial) -> tuple | None:
    """Sort key of other trials: not more photos, then the nearest number, then the same seed."""
    name = re.fullmatch(r"seed=(\d+)_ex=(\d+)", path.stem)
    if name is None:
        return None
    seed, examples = int(name[1]), int(name[2])
    more = examples > trial.examples_per_class
    return more, abs(examples - trial.examples_per_class), seed != trial.seed, seed


def report_words(
    settings: Generation, experiment: Path, embed_paths: dict, uses_words: bool
) -> None:
    """Log what guides the edits, and everything that could surprise the user."""
    log.info("augmentation: %s", ", ".join(dict.fromkeys(settings.aug or ())))
    missing = [trial.name for trial, path in embed_paths.items() if path is None]
    if uses_words and missing:
        raise UserError(
            f"no learned words for {', '.join(missing)} in {experiment / MERGED}; run fine_tune.py "
            "and aggregate_embeddings.py, or use --aug real-guidance"
        )
    if all("places" in augmentation_class(aug).takes for aug in settings.aug or ()):
        return  # no prompt names a class
    if not uses_words and len(missing) < len(embed_paths):
        log.warning("the experiment has learned words, and they are not used")
    elif not uses_words and any((experiment / FINE_TUNED).glob("seed=*/*/learned_embeds.*")):
        log.warning(
            "the experiment has learned words, and they are not used: "
            "aggregate_embeddings.py has not merged them"
        )
    for trial, path in embed_paths.items() if uses_words else ():
        if words_note(path, trial).get(BORROWED_WORDS):
            log.warning(
                "%s does not use its own learned words, but the words in %s; words learned from "
                "other or more photos than the trial has make its result optimistic",
                trial.name,
                path,
            )


def words_note(path: Path | None, trial: Trial) -> dict[str, str | None]:
    """For config.json: the other trial whose words a file holds; None for its own or no words.

    Empty where the trial is unknown.
    """
    if path is None:
        return {BORROWED_WORDS: None}
    header, name = read_header(path), path.stem
    if {"seed", "examples_per_class"} <= header.keys():
        name = f"seed={header['seed']}_ex={header['examples_per_class']}"
    elif not re.fullmatch(r"seed=\d+_ex=\d+", name):
        return {}
    return {BORROWED_WORDS: None if name == trial.name else name}


def word_digests(embed_path: Path | None, dataset, info: ModelInfo | None) -> dict[str, str]:
    """sha256 of every class's learned word; empty where no words are used."""
    if embed_path is None or info is None:
        return {}
    words = read_words(embed_path, len(info.embedding_dims))
    known = class_tokens(read_header(embed_path), words[0])
    tokens = {name: token_for(name, known, words[0]) for name in dataset.class_names}
    return {
        name: rows_digest(*(of_encoder[token] for of_encoder in words))
        for name, token in tokens.items()
        if token
    }
