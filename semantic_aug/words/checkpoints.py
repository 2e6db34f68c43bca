"""Checkpoints of words in training: output/EXP/fine-tuned/seed=S_ex=N/CLASS/checkpoint-STEP.pt.

Each word has its own files, because each word is trained as if alone. A finished word's
checkpoints are removed. A file is a checksum followed by content in torch's format.
"""

import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from semantic_aug import UserError
from semantic_aug.experiment.checked_files import read_checked, write_checked
from semantic_aug.experiment.config import as_stored
from semantic_aug.settings.names import differences as settings_that_differ


def checkpoint_path(folder: Path, step: int) -> Path:
    """The path of a word's checkpoint after `step` optimiser steps."""
    return folder / f"checkpoint-{step}.pt"


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints in a word's folder by step, earliest first."""
    found = {}
    for path in folder.glob("checkpoint-*.pt"):
        match = re.fullmatch(r"checkpoint-(\d+)\.pt", path.name)
        if match:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def write_checkpoint(path: Path, state: Mapping, header: Mapping, settings: Mapping) -> None:
    """Write a word's state atomically, with everything that it depends on."""
    texts = {key: str(value) for key, value in header.items()}
    content = io.BytesIO()
    torch.save({"state": state, "header": texts, "settings": json.dumps(settings)}, content)
    write_checked(path, content.getvalue())


def read_checkpoint(path: Path) -> dict:
    """The dictionary with `step`, `state`, `header` and `settings` of a checkpoint.

    Raises:
        UserError: the file is missing or damaged, or is no checkpoint.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint file {path}")
    try:
        content = io.BytesIO(read_checked(path))
        found = torch.load(content, map_location="cpu", weights_only=True)
        found["settings"] = json.loads(found["settings"])
        step, _ = int(found["state"]["step"]), found["header"]["class"]
    except Exception as error:  # on broken files, the unpickler raises any kind of exception
        raise UserError(
            f"cannot read checkpoint {path}: it is damaged, or fine_tune.py has not written it"
        ) from error
    return found | {"step": step}


def differences(checkpoint: Mapping, header: Mapping, settings: Mapping) -> list[str]:
    """Texts: how a checkpoint's header and settings differ from the current header and settings."""
    before = checkpoint["settings"]
    differing = settings_that_differ(before, json.loads(json.dumps(as_stored(settings, before))))
    keys = ("class", "seed", "examples_per_class", "token", "initializer", "steps", "photos")
    return differing + header_differences(checkpoint["header"], header, keys)


def header_differences(there: Mapping, header: Mapping, keys: Iterable[str]) -> list[str]:
    """The differences of a word's or checkpoint's header from the current header, as texts."""
    return [
        f"{key}: there {there.get(key)}, now {header[key]}"
        for key in keys
        if there.get(key) != str(header[key])
    ]


def remove_checkpoints(folder: Path, keep: int = 0) -> None:
    """Remove a word's checkpoints except the latest `keep`."""
    found = list(list_checkpoints(folder).values())
    for path in found[: max(0, len(found) - keep)]:
        path.unlink(missing_ok=True)
