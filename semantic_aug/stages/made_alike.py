"""Whether the images of several trials were made with the same settings."""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semantic_aug import UserError
from semantic_aug.diffusion.identity import identity_of
from semantic_aug.experiment.config import read_config
from semantic_aug.experiment.names import MERGED, Trial, merged_file, merged_lora
from semantic_aug.settings.fine_tuning import LORA_SETTINGS
from semantic_aug.settings.generation import OWN
from semantic_aug.synthesis.records import older_precision, read_records
from semantic_aug.words.embeddings import embedding_files, read_header, read_words, rows_digest

log = logging.getLogger(__name__)

OF_ONE_TRIAL = {"photos", "place_masks"}  # settings that tell a trial's photos


def check_alike(folders: dict[Trial, Path], mixed: bool, name: str = "") -> None:
    """Check that the images of several trials share their settings.

    Args:
        name: the name of the set, where there are several sets.

    Raises:
        UserError: settings differ, and `mixed` does not allow this.
    """
    differing = []
    for key, values in differing_settings(folders).items():
        edits = [value for value in values.values() if key == "edits"]
        if edits and all(isinstance(each, list) for each in edits):
            values = {trial: _edits_alone(value, edits) for trial, value in values.items()}
        shown = ", ".join(f"{trial}: {json.dumps(value)}" for trial, value in values.items())
        differing.append(f"{key} ({shown})")
    of = f"in set {name!r} of" if name else "of"
    said = f"the synthetic images {of} these trials were made with different settings: "
    said += "; ".join(differing)
    if differing and mixed:
        log.warning("%s; their results are taken together", said)
    elif differing:
        raise UserError(
            f"{said}; make them alike with generate_augmentations.py, give each set its "
            "own --aug_name, or pass --mixed_settings to take their results together"
        )


def _edits_alone(edits: list[dict], others: list[list[dict]]) -> dict[str, list]:
    """The differing settings of edits: a value for each edit, by key."""
    columns = {
        key: [edit.get(key) for edit in edits] for key in sorted({k for e in edits for k in e})
    }
    return {
        key: column
        for key, column in columns.items()
        if any([edit.get(key) for edit in each] != column for each in others)
    }


def differing_settings(folders: Mapping[Trial, Path]) -> dict[str, dict[str, Any]]:
    """Settings in which the synthetic images of several trials differ, and should not.

    Photos, their masks, learned words and the trials' own LoRAs may differ; the settings of words
    and LoRAs should not.

    Returns:
        `{setting: {name of the trial: value}}`, without trials whose setting is unknown. Settings
        of the learned words are called `words: ...`, and settings of LoRAs `LoRA: ...`. They are
        known if a merged file of the experiment still holds the words, or the LoRA.
    """
    of_images, of_words, of_loras = {}, {}, {}
    said: dict[str, dict[str, Any]] = {}
    for trial, folder in folders.items():
        config, records = read_config(folder) or {}, read_records(folder, only_present=False)
        of_images[trial.name] = dict(config.get("settings", {}))
        if config.get("arguments", {}).get("lora", "") in (None, OWN):
            lora = of_images[trial.name].get("lora")
            if lora is not None:
                of_images[trial.name]["lora"] = OWN
                of_loras[trial.name] = _settings_of_lora(folder, trial, lora)
        of_words[trial.name] = _settings_of_words(folder, trial, config, records)
        older = older_precision(folder)
        for record in records:
            if "unet" in record:
                # Records without a precision are older, and name weights in another way.
                name = "unet" if "precision" in record else "unet, by its older name,"
                key = f"{name} of {record['class_name']}"
                said.setdefault(key, {})[trial.name] = record["unet"]
            precision = record.get("precision", older)
            if precision is not None:
                said.setdefault("precision", {})[trial.name] = precision
    for prefix, settings in (("", of_images), ("words: ", of_words), ("LoRA: ", of_loras)):
        known = {name: each for name, each in settings.items() if each}
        for key in sorted(set().union(*known.values()) - OF_ONE_TRIAL):
            said[prefix + key] = {name: each.get(key) for name, each in known.items()}
    return {
        key: values
        for key, values in said.items()
        if len({json.dumps(value, sort_keys=True) for value in values.values()}) > 1
    }


def _settings_of_lora(folder: Path, trial: Trial, identity: str) -> dict:
    """The settings that a trial's own LoRA adds to the words' settings; empty if unknown."""
    path = merged_lora(merged_file(folder.parent.parent, trial))
    if not path.is_file() or identity_of(str(path)) != identity:
        return {}
    found = json.loads(read_header(path).get("settings", "{}"))
    return {key: found[key] for key in found if key in LORA_SETTINGS}


def _settings_of_words(
    folder: Path, trial: Trial, config: Mapping, records: Sequence[Mapping]
) -> dict:
    """The settings of the words in a folder's images; empty without words, or if unknown.

    Records identify a word by its rows only; the file with these rows has the settings.
    """
    used = {record.get("embeddings") for record in records} - {None}
    experiment = folder.parent.parent
    given = config.get("arguments", {}).get("embed_path")
    files = [merged_file(experiment, trial), *([Path(trial.fill(given))] if given else [])]
    files += sorted((experiment / MERGED).glob("*.safetensors"))  # words of another trial
    for path in dict.fromkeys(files) if used else ():
        # Foreign or damaged files do not tell the settings of their words.
        with contextlib.suppress(UserError, LookupError, TypeError, ValueError):
            words = read_words(path, sum(file.is_file() for file in embedding_files(path)))
            if used & {rows_digest(*(each[token] for each in words)) for token in words[0]}:
                return dict(json.loads(read_header(path)["config"])["settings"])
    return {}
