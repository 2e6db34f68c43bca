"""sha256 of whole files, remembered between runs where hashing takes time.

`$XDG_CACHE_HOME/semantic_aug/sha256/` (`~/.cache/...`) holds a file for each folder of hashed
files. A digest is valid while its file keeps size, time and inode. If the cache is damaged or
cannot be written, everything is hashed again.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import stat
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from semantic_aug import stable_hash
from semantic_aug.experiment.files import remove_leftovers, write_text

KEEP_FROM = 0.5  # seconds; files that take less to hash are hashed again
SETTLED = 2e9  # ns; a file system may give the same time to two changes within this span


def cache_dir() -> Path:
    """The folder of all files that only save time; it need not exist."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of this variable says: ignore relative paths.
    return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "semantic_aug"


def file_digests(paths: Iterable[str | os.PathLike]) -> list[str]:
    """sha256 of the whole content of every file, 64 hex digits each, in the order given.

    A file that cannot be read, or is no regular file, gives `unreadable: ` and the reason.
    """
    by_folder: dict[str, dict[int, Path]] = defaultdict(dict)
    found: list[str] = []
    for number, path in enumerate(map(Path, paths)):
        by_folder[str(path.parent.absolute())][number] = path
        found.append("")
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads:
        for folder, files in by_folder.items():
            known, started = _read(folder), time.monotonic()
            new = dict(zip(files, threads.map(_entry, files.values(), [known] * len(files))))
            if time.monotonic() - started >= KEEP_FROM:
                settled = time.time_ns() - SETTLED
                kept = {files[n].name: each for n, each in new.items() if each[1] < settled}
                _write(folder, known | kept)
            for number, (*_, digest) in new.items():
                found[number] = digest
    return found


def _entry(path: Path, known: dict[str, list]) -> list:
    """[size, time, inode, digest] of a file; a known file is not read again."""
    try:
        state = _state(path)
        *before, digest = known.get(path.name, [""])
        return [*state, digest if before == state else sha256_file(path)]
    except OSError as error:
        return [0, math.inf, 0, f"unreadable: {error.strerror}"]  # inf: never kept


def sha256_file(path: str | Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> list[int]:
    """Size in bytes, time in ns, inode; a change of the content changes at least one of them."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise OSError(errno.EINVAL, f"it is {kind}", str(path))
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _place(folder: str) -> Path:
    return cache_dir() / "sha256" / f"{stable_hash('sha256', folder):016x}.json"


def _read(folder: str) -> dict[str, list]:
    """`{name: [size, time, inode, digest]}` from an earlier run; empty without a whole file."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        kept = json.loads(_place(folder).read_bytes())
        if isinstance(kept, dict) and all(_is_whole(each) for each in kept.values()):
            return kept
    return {}


def _is_whole(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 4
        and isinstance(entry[3], str)
        and len(entry[3]) == 64
    )


def _write(folder: str, entries: dict[str, list]) -> None:
    # If two processes write in turn, the entries of the first are lost, and hashed once more.
    with contextlib.suppress(OSError, RuntimeError):
        remove_leftovers(_place(folder).parent)
        write_text(_place(folder), json.dumps(entries))
