"""Names of every file and folder under output/, config.json, and writes that are whole or absent.

output/EXP/fine-tuned/seed=S_ex=N/CLASS/learned_embeds.safetensors
output/EXP/fine-tuned-merged/seed=S_ex=N.safetensors
output/EXP/AUG/seed=S_ex=N/{index:06d}-{repeat:03d}.png, metadata.jsonl, records/, config.json
output/EXP/results/METHOD/results_{S}_{N}.csv, confusion_{S}_{N}.csv, summary.csv, pictures
output/EXP/cache/, timing/ and timing.json: features of images, and what everything cost
output/EXP/processes/ and slurm/: what each process does, and what SLURM jobs have written
output/EXP/report/seed=S_ex=N.html, seed=S_ex=N.png, seed=S_ex=N/CLASS.png
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import re
import socket
import subprocess
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from semantic_aug import UserError

FINE_TUNED = "fine-tuned"
MERGED = "fine-tuned-merged"
RESULTS = "results"
CACHE = "cache"
TIMING = "timing"
PROCESSES = "processes"
SLURM_LOGS = "slurm"
RESERVED_NAMES = (
    FINE_TUNED, MERGED, RESULTS, CACHE, TIMING, PROCESSES, SLURM_LOGS, "report", "logs",
)  # fmt: skip
EMBEDDINGS_FILE = "learned_embeds.safetensors"
CONFIG_FILE = "config.json"
METADATA_FILE = "metadata.jsonl"
BORROWED_WORDS = "borrowed_words"  # a note in config.json: of which other trial the words are

# Names of files that are not UTF-8 reach Python as lone surrogates, which no other file can hold.
UNENCODABLE = "\ud800-\udfff"

T = TypeVar("T")

_writes = itertools.count()

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


@dataclass(frozen=True, order=True)
class Trial:
    """A fixed few-shot subset: one seed and a number of examples per class."""

    seed: int
    examples_per_class: int

    @property
    def name(self) -> str:
        return f"seed={self.seed}_ex={self.examples_per_class}"

    def fill(self, text: str) -> str:
        """`text` with this trial's numbers in place of {seed} and {examples_per_class}."""
        filled = text.replace("{seed}", str(self.seed))
        return filled.replace("{examples_per_class}", str(self.examples_per_class))


def trial_named(name: str) -> Trial | None:
    """The trial of this name; None for another name."""
    seed, _, examples = name.removeprefix("seed=").partition("_ex=")
    try:
        trial = Trial(int(seed), int(examples))
    except ValueError:
        return None
    return trial if trial.name == name else None


# --- names -----------------------------------------------------------------------------------


def experiment_dir(output_dir: str | Path, name: str) -> Path:
    """`output_dir/name`.

    Raises:
        UserError: the name is empty or leads out of `output_dir`.
    """
    parts = Path(name).parts
    if not parts or not all(map(_is_component, parts)):
        raise UserError(
            f"--experiment_name: got {name!r}, expected a folder name inside {output_dir}/, "
            "such as my-experiment"
        )
    return Path(output_dir) / name


def aug_dir(experiment: Path, aug_name: str, trial: Trial) -> Path:
    """Folder of the synthetic images of one trial."""
    return experiment / check_component("--aug_name", aug_name, RESERVED_NAMES) / trial.name


def fine_tuned_dir(experiment: Path, trial: Trial) -> Path:
    """Folder that holds one folder per class with the learned words of a trial."""
    return experiment / FINE_TUNED / trial.name


def merged_file(experiment: Path, trial: Trial) -> Path:
    """The file with all learned words of a trial."""
    return experiment / MERGED / f"{trial.name}.safetensors"


def check_component(flag: str, name: str, reserved: tuple[str, ...] = ()) -> str:
    """`name`, if it is one folder name that this project does not use for something else."""
    if name in reserved:
        raise UserError(f"{flag}: {name!r} is the name of another stage's folder; choose another")
    if not _is_component(name):
        raise UserError(f"{flag}: got {name!r}, expected one folder name, such as aug-0.5")
    return name


def _is_component(name: str) -> bool:
    illegal = rf'[/\\\x00-\x1f:*?"<>|{UNENCODABLE}]'
    return bool(name.strip()) and name not in (".", "..") and not re.search(illegal, name)


def folder_names(class_names: Iterable[str]) -> dict[str, str]:
    """A folder name for every class: one path component, legal on every file system, unique.

    Names that would meet (also where letter case is ignored) get a suffix, in the order given.
    """
    return unique_names(class_names, _folder_name, key=str.casefold)


def _folder_name(class_name: str) -> str:
    name = unicodedata.normalize("NFC", class_name)
    name = re.sub(rf'[/\\:*?"<>|\s\x00-\x1f\x7f{UNENCODABLE}]', "_", name).strip(".") or "_"
    encoded = name.encode()
    if len(encoded) > 120:  # file systems end at 255 bytes
        digest = hashlib.sha256(encoded).hexdigest()[:8]
        name = f"{encoded[:100].decode(errors='ignore')}-{digest}"
    return name


def unique_names(names: Iterable[str], make, key=lambda text: text) -> dict[str, str]:
    """`{name: make(name)}`, with `-2`, `-3` ... behind what would stand twice as `key` sees it."""
    taken, unique = set(), {}
    for name in dict.fromkeys(names):
        candidate, number = make(name), 1
        while key(candidate) in taken:
            number += 1
            candidate = f"{make(name)}-{number}"
        taken.add(key(candidate))
        unique[name] = candidate
    return unique


# --- files -----------------------------------------------------------------------------------


def check_writable(folder: Path) -> Path:
    """`folder`, if files can be made there; it need not exist yet.

    Raises:
        UserError: a file or a link that leads nowhere is in the way, or writing is not allowed.
    """
    nearest = folder.absolute()
    while not nearest.exists():
        if nearest.is_symlink():
            raise UserError(f"{folder} cannot be a folder: {nearest} is a link that leads nowhere")
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UserError(f"{folder} cannot be a folder: {nearest} is a file")
    try:  # permissions do not tell: nobody writes to /proc, not even root
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise UserError(
            f"{nearest} cannot be written to ({error.strerror}): choose another place for the "
            "output"
        ) from error
    return folder


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` when the block ends without an error.

    So a file is whole or absent, whenever the process is killed. The temporary name carries host
    and process and is new each time, because processes and threads may write one file at once.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f".{path.name}.{next(_writes)}.{hostname()}-{os.getpid()}.tmp"
    temporary = path.with_name(name)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text through `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def derive(sources: Callable[[], object], write: Callable[[], T]) -> T:
    """Write what is derived from files that other processes may be adding to.

    It is written again if `sources()`, whatever tells their states apart, has changed meanwhile:
    another process may have derived more, and this one have put something older in its place. So
    the last process that adds something leaves everything derived from all. Returns what `write`
    returns.
    """
    for _ in range(10):  # not for ever, where many processes add something all the time
        before = sources()
        written = write()
        if sources() == before:
            break
    return written


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left directly in `folder`.

    A file of this host goes when its process is gone. Whether a process of another host lives
    cannot be known from here; its file goes after a day.
    """
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(".tmp")]
    for name in names:
        match = re.fullmatch(r"\..+\.(?P<host>[^.]+)-(?P<pid>\d+)\.tmp", name)
        if match is None:
            continue
        path = folder / name
        with contextlib.suppress(OSError, OverflowError):
            if match["host"] == hostname():
                dead = int(match["pid"]) == os.getpid() or not is_alive(int(match["pid"]))
            else:
                dead = path.stat().st_mtime < now_at(folder) - 86400
            if dead:
                path.unlink(missing_ok=True)


def hostname() -> str:
    """This machine's name as a part of file names."""
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname()) or "host"


def is_alive(pid: int) -> bool:
    """Whether a process of this host exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def now_at(folder: Path) -> float:
    """The clock of the file system, which may differ from this node's.

    Where `folder` belongs to somebody else it is not known, and this node's stands for it.
    """
    try:
        os.utime(folder)
    except OSError:
        return time.time()
    return folder.stat().st_mtime


# --- config.json -----------------------------------------------------------------------------


class Identity(str):
    """What settings and records call weights; other content has another name.

    Attributes:
        older: what they were called when not all of their content was looked at.
    """

    older: str

    def __new__(cls, name: str, older: str | None = None):
        made = super().__new__(cls, name)
        made.older = older or name
        return made


def is_called(value: object, stored: object) -> bool:
    """Whether `stored` is this value, or the older name of the same weights."""
    return stored in (value, getattr(value, "older", value))


def as_stored(settings: Mapping, stored: Mapping) -> dict:
    """`settings` with the older names of weights that `stored` has, so that its id stays."""
    return {
        key: value.older
        if isinstance(value, Identity) and stored.get(key) == value.older
        else value
        for key, value in settings.items()
    }


def config_id(settings: Mapping) -> str:
    """Twelve hex digits that name a set of result-changing settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def read_config(folder: Path) -> dict | None:
    """The `config.json` of a folder; None where there is none, or it is damaged, with a notice."""
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
) -> dict:
    """Refuse to mix results: `folder` holds some that were made with other settings.

    Args:
        settings: whatever changes a result, JSON types only. Batch size, shards, selected
            classes, counts, device and paths do not belong here.
        has_results: whether the folder holds results already.
        overwrite: go on all the same; the caller then makes the old results anew.
        ids: gives the `config_id` of each result, where results carry it: they then stand in for
            a config.json that is lost.

    Returns:
        The settings to go on with: those given, but weights keep the older name that they have in
        this folder, or, in a folder that is new, in one of another trial beside it.

    Raises:
        UserError: with the differing keys and both values; or nothing says how results were made.
    """
    old = read_config(folder)
    if old is None:
        beside = () if overwrite else sorted(folder.parent.glob(f"seed=*_ex=*/{CONFIG_FILE}"))
        for path in beside:
            settings = as_stored(settings, (read_config(path.parent) or {}).get("settings", {}))
        made = set() if overwrite or not has_results else {None} if ids is None else set(ids())
        if made - {config_id(settings)}:
            raise UserError(
                f"{folder} holds results, but no config.json that can be read and says how they "
                "were made; bring it back, choose another name, such as another "
                "--experiment_name, or pass --overwrite to make them again"
            )
        return dict(settings)
    before, kept = old.get("settings", {}), as_stored(settings, old.get("settings", {}))
    now = json.loads(json.dumps(kept))
    differing = [
        f"{key} (there {json.dumps(before.get(key))}, now {json.dumps(now.get(key))})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if differing and has_results and not overwrite:
        raise UserError(
            f"{folder} holds results made with other settings: {', '.join(differing)}; "
            "choose another name, such as another --experiment_name, or pass --overwrite "
            "to make them again"
        )
    return dict(settings) if differing else kept


def write_config(
    folder: Path, settings: Mapping, arguments: Mapping, notes: Mapping | None = None
) -> str:
    """Write `config.json`, unless it holds these settings already. Returns the `config_id`.

    Args:
        notes: keys beside the settings, in JSON types: what they say changes no result. They are
            brought up to date in a file that stays; one that is absent there is as good as None.
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


@functools.cache  # a process imports its packages once, and looking takes a while
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what comes out."""
    found = {"python": platform.python_version()}
    for package in _VERSIONED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@functools.cache  # the process runs the code that it has read, whatever happens to the files
def git_revision() -> str | None:
    """The commit this code stands at, with `-dirty` behind it where files were changed."""
    root = Path(__file__).resolve().parent.parent
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
