"""Choosing the LoRA of a model: a LoRA for all trials, a trial's own LoRA, or no LoRA."""

import json
import logging
from pathlib import Path

from semantic_aug import UserError
from semantic_aug.diffusion.identity import identity_of
from semantic_aug.diffusion.inspecting import ModelInfo
from semantic_aug.diffusion.lora import check_lora
from semantic_aug.experiment.names import LORA_FILE, Trial, merged_file, merged_lora
from semantic_aug.settings.generation import NONE, OWN, Generation
from semantic_aug.words.embeddings import LearnedWords, read_header, words_digest

log = logging.getLogger(__name__)


def lora_for_all(settings: Generation) -> str | None:
    """The LoRA that the settings name, which becomes part of the model; None without a name."""
    return None if settings.lora in (NONE, OWN) else settings.lora


def own_lora(
    settings: Generation, words: Path | None, experiment: Path, trial: Trial, objects=None,
    moved: str | None = None,
) -> Path | None:  # fmt: skip
    """The file of the LoRA that was trained with a trial's words; None where it is not used.

    Args:
        words: the learned words that the edits use; None where they use no words. Without words,
            the LoRA is used only if the settings ask for it.
        objects: augmentations given as objects, each with its own model.
        moved: the LoRA's file or folder, where it has been moved.

    Raises:
        UserError: the settings ask for a LoRA that does not exist.
    """
    if settings.lora not in (None, OWN):
        return None
    if objects:
        if settings.lora == OWN:
            raise UserError("--lora: the augmentation is an object already: give it to its model")
        return None
    of_each_class = "{name}" in (settings.unet_path or "")
    if settings.lora is None and (words is None or of_each_class):
        return None
    path = merged_lora(words or merged_file(experiment, trial))
    if moved is not None:
        path = Path(moved) / LORA_FILE if Path(moved).is_dir() else Path(moved)
    if path.is_file():
        say_if_of_other_words(path, words)
        return path
    if settings.lora is None:
        return None
    raise UserError(
        f"--lora {OWN}: there is no {path}; fine_tune.py --lora_rank trains it, and "
        "aggregate_embeddings.py puts it there"
    )


def say_if_of_other_words(path: Path, words: Path | None) -> None:
    """Warn where a LoRA was trained with other words than a merged file holds."""
    header = read_header(path)
    if words is None or "words" not in header:
        return
    learned = LearnedWords.read(words)
    tokens = {name: token for token, name in learned.classes.items()}
    rows = {
        name: [of_encoder[tokens[name]] for of_encoder in learned.rows]
        for name in json.loads(header["classes"])
        if name in tokens
    }
    if words_digest(rows) != header["words"]:
        log.warning(
            "%s was trained beside other words than %s holds: run fine_tune.py and "
            "aggregate_embeddings.py again, or leave it out with --lora %s",
            path, words, NONE,
        )  # fmt: skip


def weights_of_own(settings: Generation, info: ModelInfo, path: Path | None) -> dict:
    """A trial's own LoRA, as settings; empty without a LoRA.

    Raises:
        UserError: the LoRA does not fit the model.
    """
    if path is None:
        return {}
    try:  # a LoRA that was trained with this model fits
        fits = read_header(path).get("model_id") == str(info.identity)
        identity = identity_of(str(path)) if fits else check_lora(info, str(path))
    except UserError as error:
        raise UserError(f"{error}; --lora {NONE} leaves it out") from error
    return {"lora": identity, "lora_scale": settings.lora_scale}
