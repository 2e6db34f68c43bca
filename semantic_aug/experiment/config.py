"""config.json: the settings of results, so that results of other settings never mix with them."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from semantic_aug import UserError
from semantic_aug.experiment.files import write_text
from semantic_aug.experiment.names import CONFIG_FILE
from semantic_aug.settings.names import differences

log = logging.getLogger(__name__)

_VERSIONED_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "numpy",
    "pillow",
)


class OtherSettings(UserError):
    """A folder holds results of other settings or other photos."""


class Identity(str):
    """The name of weights in settings and records; other content has another name.

    Attributes:
        older: the name that older code gave, from a part of the content.
    """

    older: str

    def __new__(cls, name: str, older: str | None = None):
        made = super().__new__(cls, name)
        made.older = older or name
        return made


class Newer(str):
    """The value of a setting that older folders lack: they go on without the setting."""


def is_called(value: object, stored: object) -> bool:
    """Whether `stored` is this value, or the older name of the same weights."""
    return stored in (value, getattr(value, "older", value))


def as_stored(settings: Mapping, stored: Mapping) -> dict:
    """`settings` in the form of `stored`, so that its id stays: weights keep their older names,
    and newer settings that `stored` lacks are left out."""
    return {
        key: value.older
        if isinstance(value, Identity) and stored.get(key) == value.older
        else value
        for key, value in settings.items()
        if not (isinstance(value, Newer) and stored and key not in stored)
    }


def config_id(settings: Mapping) -> str:
    """Twelve hex digits that name a set of result-changing settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def read_config(folder: Path) -> dict | None:
    """The `config.json` of a folder; None if it is absent or, with a notice, damaged."""
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        config = None
    kinds = {"id": str, "settings": dict, "arguments": dict}
    if isinstance(config, dict) and all(
        isinstance(config.get(key, kind()), kind) for key, kind in kinds.items()
    ):
        return config
    log.warning("%s is damaged: it counts as absent", path)
    return None


def check_config(
    folder: Path,
    settings: Mapping,
    has_results: bool,
    overwrite: bool,
    ids: Callable[[], Iterable[str]] | None = None,
    other: str = "--experiment_name",
) -> dict:
    """Refuse to mix results in `folder` with results of other settings.

    Args:
        settings: everything that changes a result, in JSON types. Batch size, shards, selected
            classes, counts, device and paths do not belong here.
        has_results: whether the folder holds results already.
        overwrite: go on nevertheless; the caller then replaces the old results.
        ids: gives the `config_id` of each result, where results carry it. These ids replace a
            lost config.json.
        other: the flag that names another folder.

    Returns:
        The settings to go on with. Weights keep the older name that they have in this folder or,
        if it is new, in the folder of another trial beside it. A `Newer` value is left out where
        such a folder lacks it.

    Raises:
        UserError: settings differ (the message has both values), or the settings of the results
            are unknown.
    """
    old = read_config(folder)
    if old is None:
        beside = () if overwrite else sorted(folder.parent.glob(f"seed=*_ex=*/{CONFIG_FILE}"))
        for path in beside:
            settings = as_stored(settings, (read_config(path.parent) or {}).get("settings", {}))
        made = set() if overwrite or not has_results else {None} if ids is None else set(ids())
        older = {key: value for key, value in settings.items() if not isinstance(value, Newer)}
        settings = older if made == {config_id(older)} else settings
        if made - {config_id(settings)}:
            raise UserError(
                f"{folder} holds results, but no readable config.json says how they were made; "
                f"restore it, choose another {other}, or pass --overwrite to make them again"
            )
        return dict(settings)
    before, kept = old.get("settings", {}), as_stored(settings, old.get("settings", {}))
    differing = differences(before, json.loads(json.dumps(kept)))
    if differing and has_results and not overwrite:
        raise OtherSettings(
            f"{folder} holds results made with other settings: {'; '.join(differing)}; choose "
            f"another {other}, or pass --overwrite to make them again"
        )
    return dict(settings) if differing else kept


def write_config(
    folder: Path, settings: Mapping, arguments: Mapping, notes: Mapping | None = None
) -> str:
    """Write `config.json`, unless it holds these settings already. Returns the `config_id`.

    Args:
        notes: keys beside the settings, in JSON types, that change no result. A file that stays
            gets the new notes; an absent note counts as None.
    """
    identity, notes = config_id(settings), dict(notes or {})
    config = old = read_config(folder) or {}
    if old.get("id") != identity:
        config = {
            "id": identity,
            "settings": settings,
            "arguments": arguments,
            "versions": versions(),
            "git_revision": git_revision(),
        } | notes
    elif any(old.get(key) != value for key, value in notes.items()):
        config = old | notes
    if config is not old:
        write_text(folder / CONFIG_FILE, json.dumps(config, indent=2, default=str) + "\n")
    return identity


@functools.cache  # a process imports its packages once, and looking them up is slow
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version()}
    for package in _VERSIONED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@functools.cache  # the process runs the code that it has read, even if files change
def git_revision() -> str | None:
    """The commit of this code, followed by `-dirty` if files were changed."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
