"""Indexes: facts about a dataset that are slow to find, kept for the next run.

Indexes lie in `$XDG_CACHE_HOME/semantic_aug` (`~/.cache/semantic_aug`), because a data root is
often read-only and shared. An index names its sources, and is made again if they change. Nothing
depends on indexes: if they are damaged or cannot be written, everything is as slow as in the first
run. They may be deleted at any time.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from semantic_aug import stable_hash
from semantic_aug.experiment.digests import SETTLED, cache_dir
from semantic_aug.experiment.files import atomic_path, remove_leftovers
from semantic_aug.few_shot_dataset import collection_paused
from semantic_aug.images.reading import image_names_in

KEEP_FROM = 1.0  # seconds; an index that takes less is not kept


@collection_paused()  # of lists as long as the dataset
def cached(kind: str, paths: Iterable[Path], build: Callable[[], Any]) -> Any:
    """`build()`, or its earlier result from the same files.

    Args:
        kind: a word for the content, part of the file's name; a new format needs a new word.
        paths: the source files and folders. They count as unchanged while their sizes and times
            are; a folder's time changes with the names in it.
        build: returns only JSON types.
    """
    stats = [(str(path.absolute()), path.stat()) for path in paths]
    made_from = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    place = f"{kind}-{stable_hash(*(name for name, _ in stats)):016x}.json"
    # Without a home or a readable cache there is no index.
    with contextlib.suppress(OSError, ValueError, RuntimeError, TypeError, KeyError):
        kept = json.loads((cache_dir() / place).read_bytes())
        if kept["made_from"] == made_from:
            return kept["index"]
    start, now = time.monotonic(), time.time_ns()
    index = build()
    settled = all(stat.st_mtime_ns < now - SETTLED for _, stat in stats)
    if settled and time.monotonic() - start >= KEEP_FROM:
        with contextlib.suppress(OSError, RuntimeError):
            remove_leftovers(cache_dir())
            with atomic_path(cache_dir() / place) as temporary:
                temporary.write_text(json.dumps({"made_from": made_from, "index": index}))
    return index


def image_names(folders: Iterable[Path]) -> dict[Path, list[str]]:
    """The names of the images directly in each folder, sorted, without hidden files; an index."""
    folders = list(folders)

    def build() -> list[list[str]]:
        return [image_names_in(folder) for folder in folders]

    return dict(zip(folders, cached("images", folders, build)))
