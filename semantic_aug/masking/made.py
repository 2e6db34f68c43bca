"""The content of a folder of masks, which the command or a person has made.

ROOT/CLASS/photo.png             masks in use, at the relative paths of the photos
ROOT/doubtful/CLASS/photo.png    unused masks
ROOT/report.html, ROOT/report/   overviews of all masks
ROOT/.made/config.json           settings of the masks
ROOT/.made/records/*.jsonl       a line for each generated mask: its sha256, its doubts

Each line is written before its file, so a file whose sha256 is in no line was made by a person.
If a doubtful mask is in use, a person has moved it there.
"""

import contextlib
import dataclasses
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from semantic_aug import UserError
from semantic_aug.experiment.digests import file_digests
from semantic_aug.experiment.files import atomic_path
from semantic_aug.images.masks import MADE_BY, masks_in
from semantic_aug.images.reading import readable_suffixes
from semantic_aug.synthesis.records import RECORDS_DIR

DOUBTFUL, REPORT = "doubtful", "report"
OWN = (DOUBTFUL, REPORT, MADE_BY)

MISSING, MADE, KEPT = "missing", "made", "kept"  # kept: a person's, painted or accepted


@dataclasses.dataclass(frozen=True)
class State:
    """The state of a photo's mask.

    Attributes:
        what: MISSING, MADE or KEPT.
        path: the file, in use or doubtful; None if missing.
        line: the record of a generated mask; empty for a person's mask.
    """

    what: str
    path: Path | None = None
    line: Mapping = dataclasses.field(default_factory=dict)


def names_for(sources: Iterable[str]) -> dict[str, str]:
    """By photo, the relative path of its mask: `cat/1.png` for `cat/1.jpg`.

    If photos of a folder differ only in their suffixes, `cat/1.jpg.png`.

    Raises:
        UserError: a photo lies in a folder whose name is reserved among masks.
    """
    paths = {source: PurePosixPath(source) for source in sources}
    stems = Counter(path.with_suffix("") for path in paths.values())
    for source, path in paths.items():
        if path.parts[0] in OWN:
            raise UserError(
                f"{source}: among masks, {path.parts[0]}/ is for the command's own files; "
                "rename that folder of photos"
            )
    return {
        source: f"{source}.png"
        if stems[path.with_suffix("")] > 1
        else f"{path.with_suffix('')}.png"
        for source, path in paths.items()
    }


def read_made(root: Path) -> Iterator[dict]:
    """All records of generated masks below `root`; a truncated last line is dropped."""
    for path in sorted((root / MADE_BY / RECORDS_DIR).glob("*.jsonl")):
        identity = path.name.partition(".")[0]
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    found = json.loads(line) if line.endswith("\n") else None
                    if isinstance(found, dict) and {"source", "sha256"} <= found.keys():
                        yield {"id": identity, **found}


def states_of(
    root: Path, names: Mapping[str, str], photos: Mapping[str, str], identity: str
) -> dict[str, State]:
    """The states of photos' masks.

    Args:
        names: by photo, the relative path of its mask.
        photos: by photo, the digest of its content.
        identity: the `config_id` of the current settings.
    """
    lines: dict[tuple[str, str], list[dict]] = {}
    for line in read_made(root):
        lines.setdefault((line["source"], line["sha256"]), []).append(line)
    used = masks_in(root, names)
    doubtful = {source: root / DOUBTFUL / name for source, name in names.items()}
    doubtful = {source: path for source, path in doubtful.items() if path.is_file()}
    paths = doubtful | used
    digests = dict(zip(paths, file_digests(paths.values())))

    def state_of(source: str) -> State:
        if source not in paths:
            return State(MISSING)
        said = lines.get((source, digests[source]), [])
        line = {key: value for each in said for key, value in each.items()}
        if not said or (source in used and doubts_in(line)):
            return State(KEPT, paths[source])
        made = (identity, photos[source])
        is_now = any((each["id"], each.get("photo")) == made for each in said)
        return State(MADE if is_now else MISSING, paths[source], line)

    return {source: state_of(source) for source in names}


def doubts_in(line: Mapping) -> list[str]:
    """The reasons why a mask is doubtful, by itself and compared with its class."""
    return [*line.get("doubts", []), *filter(None, [line.get("unusual")])]


def without_photo(root: Path, used: Iterable[Path]) -> list[str]:
    """Image files below `root` that belong to no photo, sorted."""
    used, found = set(used), []
    for folder, folders, names in os.walk(root):
        top = Path(folder) == root
        folders[:] = [n for n in folders if not n.startswith(".") and not (top and n in OWN)]
        paths = (Path(folder) / name for name in names if not name.startswith("."))
        found += [
            path.relative_to(root).as_posix()
            for path in paths
            if path not in used and path.suffix.lower() in readable_suffixes()
        ]
    return sorted(found)


def png_of(mask: np.ndarray) -> bytes:
    """A mask, bool [H, W], as a PNG of 0 and 255."""
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    return file.getvalue()


def put(path: Path, content: bytes, before: Path | None = None) -> None:
    """Write a mask's file atomically, in place of the previous file, which may lie elsewhere."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    if before is not None and before != path:
        before.unlink(missing_ok=True)


def set_aside(root: Path, name: str, path: Path) -> None:
    """Move a mask in use to the doubtful masks, unless another process has moved it."""
    aside = root / DOUBTFUL / name
    aside.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.replace(aside)
