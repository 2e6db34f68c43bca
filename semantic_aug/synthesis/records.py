"""Records: a line per image, written when the image is whole, and the lines of filters."""

import contextlib
import functools
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from semantic_aug import stable_hash
from semantic_aug.experiment.config import check_config, is_called, read_config
from semantic_aug.experiment.files import atomic_path, derive
from semantic_aug.experiment.names import CONFIG_FILE, METADATA_FILE
from semantic_aug.experiment.timing import GENERATE, read_timing
from semantic_aug.synthesis.jobs import file_name_of

RECORDS_DIR = "records"
OPENERS = 8  # threads that read the ends of files, which is slow over a network
PROBED, NEAR = 500, 2e-4  # files that are timed; seconds per file on a local disk, at most

log = logging.getLogger(__name__)


class RecordWriter:
    """Appends records to this process's own file in `folder`/records, made with the first record.

    The file name starts with the id of the configuration, so that records of another
    configuration, left by `--overwrite`, never count.
    """

    def __init__(self, folder: Path, identity: str, shard: tuple[int, int]):
        # The time comes first in the name, so that the later of two records of an image is read
        # last, even if another node's clock was ahead.
        records = folder / RECORDS_DIR
        begun = [path.name.split(".")[1] for path in records.glob(f"{identity}.*.jsonl")]
        latest = max((int(text) for text in begun if text.isdigit()), default=0)
        started = max(time.time_ns(), latest + 1)
        name = f"{identity}.{started}.shard{shard[0]}of{shard[1]}.{os.getpid()}.jsonl"
        self.path = records / name
        self.file: TextIO | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.file is not None:
            self.file.close()

    def write(self, record: Mapping) -> None:
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.file.flush()


def read_records(
    folder: Path, identity: str | None = None, only_present: bool = True
) -> list[dict]:
    """The records of the images that `folder` holds, in job order.

    Args:
        identity: only records of this `config_id` (default: the id of the folder's config.json).
        only_present: without the records of missing and empty images.

    A truncated last line, left by a killed process, is dropped. If an image was recorded twice, the
    later record counts.
    """
    found = {record["file_name"]: record for record in _records(folder, identity, only_present)}
    return sorted(found.values(), key=_job_order)


def _records(folder: Path, identity: str | None, only_present: bool = True) -> Iterator[dict]:
    """The records of `read_records` in file order; the last record of an image counts."""
    if not folder.is_dir():
        return
    present = _present(folder) if only_present else None
    for record in read_lines(folder, identity):
        if "label" in record and (present is None or record["file_name"] in present):
            yield record


def _present(folder: Path) -> set[str]:
    """Names of the files that are not empty."""
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if _size(entry) > 0}


_PNG_END = b"IEND\xaeB`\x82"  # the last chunk, which is empty, and its checksum


def whole_images(folder: Path, names: Iterable[str]) -> set[str]:
    """The PNG files of `names` that are complete to their end; their pixels are not read."""

    def is_whole(name: str) -> bool:
        try:
            # O_NONBLOCK: do not wait for a FIFO, in which seeking fails.
            fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_NONBLOCK)
            with open(fd, "rb", buffering=0) as file:
                file.seek(-len(_PNG_END), os.SEEK_END)
                return file.read() == _PNG_END
        except OSError:  # the file is absent or shorter
            return False

    names, started = list(names), time.monotonic()
    first, rest = names[:PROBED], names[PROBED:]
    found = set(filter(is_whole, first))
    if time.monotonic() - started < PROBED * NEAR:
        return found | set(filter(is_whole, rest))  # locally, threads would only wait
    shares = [rest[number::OPENERS] for number in range(OPENERS)]
    with ThreadPoolExecutor(OPENERS) as threads:
        return found.union(*threads.map(lambda share: list(filter(is_whole, share)), shares))


def _job_order(record: Mapping) -> tuple[int, int]:
    return record["index"], record["repeat"]


# Facts that may change while the folder's settings stay: the learned word, the UNet and the masks
# of a class, and the precision of the model.
CLASS_KEYS = ("embeddings", "unet", "masks", "precision")
# The keys of an image's record; a filter's line has no label.
_NEEDED = ("file_name", "label", "class_name", "source", "index", "repeat")
# JSON types of the keys that this module reads.
_KINDS = {
    **dict.fromkeys(("file_name", "class_name", "source"), (str,)),
    **dict.fromkeys(("label", "index", "repeat"), (int,)),
    **dict.fromkeys(("seed", "examples_per_class"), (int, type(None))),
    **dict.fromkeys(CLASS_KEYS, (str, type(None))),
    **dict.fromkeys(("kept", "flagged"), (bool,)),
    "left_out": (str, type(None)),
    "score": (int, float),
}


def _damage(line: object) -> str | None:
    """The fault of a line of records/, or None."""
    if not isinstance(line, dict):
        return "it is no record"
    wrong = _wrong_key(tuple(line), tuple(map(type, line.values())))
    if wrong is not None:
        return f"its {wrong} is {line[wrong]!r:.40}" if wrong in line else f"it has no {wrong}"
    if "score" in line and not abs(line["score"]) < 1e300:  # not nan, and within a float
        return f"its score is {line['score']}"
    if "label" in line and line["file_name"] != file_name_of(line["index"], line["repeat"]):
        return f"{line['file_name']} does not fit its index and repeat"
    return None


@functools.lru_cache(maxsize=256)  # a folder's lines have few different sets of keys and types
def _wrong_key(keys: tuple[str, ...], kinds: tuple[type, ...]) -> str | None:
    """The first key of a line that is missing or has a wrong type."""
    for key, kind in zip(keys, kinds):
        if kind not in _KINDS.get(key, (kind,)):  # True is no number
            return key
    needed = _NEEDED if "label" in keys else ()
    return next((key for key in needed if key not in keys), None)


def find_images(
    folder: Path, identity: str, of_class: Mapping[str, Mapping] | None = None
) -> tuple[set[str], dict[str, dict]]:
    """The present images with a record, and the images that are out of date.

    Args:
        of_class: see `generate`.

    Returns:
        Names of the files that count; and, with their records, of the files that do not, because
        they were made with other words, weights or masks, or in another precision.
    """
    finished: set[str] = set()
    stale: dict[str, dict] = {}
    older: dict[str, str] | None = None
    for record in _records(folder, identity):
        name, expected = record["file_name"], (of_class or {}).get(record["class_name"], {})
        if "precision" in expected and "precision" not in record:
            older = older or {"precision": older_precision(folder) or expected["precision"]}
            record |= older
        finished.add(name)
        stale.pop(name, None)
        if differing_keys(record, expected):
            finished.discard(name)
            stale[name] = record
    return finished, stale


def differing_keys(record: Mapping, expected: Mapping) -> list[str]:
    """The parts of `expected` that differ from an image's record."""
    return [key for key, value in expected.items() if not is_called(value, record.get(key, value))]


def older_precision(folder: Path) -> str | None:
    """The precision of images of older code, whose records lack it.

    The default was float16, and float32 on the CPU. None if the device is unknown.
    """
    arguments = (read_config(folder) or {}).get("arguments", {})
    devices = {arguments.get("device")} - {None}
    if not devices:
        devices = {
            row["device"]
            for row in read_timing(folder.parent.parent)
            if (row["stage"], row["method"]) == (GENERATE, folder.parent.name)
            and f"seed={row['seed']}_ex={row['examples_per_class']}" == folder.name
        }
    wanted = arguments.get("mixed_precision") or "fp16"
    found = {"no" if str(device).startswith("cpu") else wanted for device in devices}
    return found.pop() if len(found) == 1 else None


def masks_by_class(dataset, indices: Iterable[int]) -> dict[str, str]:
    """A digest of the masks of each class, 16 hex digits, for classes with masks.

    Args:
        indices: all photos of some classes.
    """
    indices = list(indices)
    of_class: dict[str, list[str]] = {}
    for idx, digest in zip(indices, dataset.mask_digests(indices)):
        name = dataset.class_names[dataset.get_label_by_idx(idx)]
        of_class.setdefault(name, []).append(digest)
    return {
        name: f"{stable_hash('masks', *digests):016x}"
        for name, digests in of_class.items()
        if any(digests)
    }


def _size(entry: os.DirEntry | Path) -> int:
    """Bytes of a file; 0 if another process has just renamed or removed it."""
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return 0


def read_scores(folder: Path, identity: str | None = None) -> dict[str, dict]:
    """Scores and marks of the images in `folder`: `{file_name: {"score": ..., "kept": ...}}`.

    If an image was scored twice, the later line counts. A line no longer counts after its image was
    made again with other words, weights or masks.

    Args:
        identity: only lines of this `config_id` (default: from the folder's config.json).
    """
    said: dict[str, list[dict]] = {}
    images: dict[str | None, dict] = {}
    for line in read_lines(folder, identity):
        if "label" in line:
            images[line.get("file_name")] = {key: line[key] for key in CLASS_KEYS if key in line}
        elif "file_name" in line:
            said.setdefault(line["file_name"], []).append(line)
    found: dict[str, dict] = {}
    for name, lines in said.items():
        for line in lines:
            known = {key: line[key] for key in ("score", "kept") if key in line}
            if known and is_about(line, images.get(name, {})):
                found.setdefault(name, {}).update(known)
    return found


def is_about(score: Mapping, record: Mapping) -> bool:
    """Whether a score belongs to the image of a record, and not to an earlier image of its name."""
    # A filter's line repeats all keys of the image's record at that time.
    keys = CLASS_KEYS if "embeddings" in score else ()
    return all(score.get(key) == record.get(key) for key in keys)


def read_left_out(folder: Path, identity: str | None = None) -> dict[str, str]:
    """The photos, by source, that get no images in `folder`, each with the reason.

    Args:
        identity: only lines of this `config_id` (default: from the folder's config.json).
    """
    lines = (line for line in read_lines(folder, identity) if "left_out" in line)
    said = {line.get("source"): line["left_out"] for line in lines}
    return {source: reason for source, reason in said.items() if source and reason}


def note_left_out(
    folder: Path, identity: str, left_out: Mapping[str, str], sources: Iterable[str],
    shard: tuple[int, int],
) -> None:  # fmt: skip
    """Write to records/ which photos get no images, unless it is written already.

    Args:
        left_out: the reason by source.
        sources: all photos; earlier lines about photos that now get images are revoked.
    """
    there = read_left_out(folder, identity)
    with RecordWriter(folder, identity, shard) as writer:
        for source in sources:
            if there.get(source) != left_out.get(source):
                writer.write({"source": source, "left_out": left_out.get(source)})


def read_lines(folder: Path, identity: str | None = None) -> Iterator[dict]:
    """All lines in `folder`/records of a configuration, of images and of filters.

    Args:
        identity: a `config_id` (default: from the folder's config.json).
    """
    if identity is None:
        identity = (read_config(folder) or {}).get("id", "*")
    for path in sorted((folder / RECORDS_DIR).glob(f"{identity}.*.jsonl")):
        yield from _lines(path)


def _lines(path: Path) -> Iterator[dict]:
    try:
        file = open(path, encoding="utf-8", errors="replace")  # noqa: SIM115
    except FileNotFoundError:  # another process has just removed it
        return
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):  # truncated: its process was killed
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            damage = _damage(record)
            if damage is None:
                yield record
            else:
                log.warning("%s: line %d is left out: %s", path, number, damage)


def _have_scores(folder: Path, identity: str) -> bool:
    """Whether a line may be a filter's line: searching is ten times as fast as parsing."""
    for path in (folder / RECORDS_DIR).glob(f"{identity}.*.jsonl"):
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            if any(b'"score"' in line for line in file):
                return True
    return False


def write_metadata(folder: Path, identity: str) -> None:
    """Derive `metadata.jsonl` from all records.

    If any image has a score, each line has `score` and `kept`, null if unknown.
    """

    def sizes():
        return {path.name: _size(path) for path in (folder / RECORDS_DIR).glob("*.jsonl")}

    def write():
        lines = {}
        scores = read_scores(folder, identity) if _have_scores(folder, identity) else {}
        for record in _records(folder, identity):  # text takes a fifth of a dictionary's memory
            if scores:
                record |= {"score": None, "kept": None} | scores.get(record["file_name"], {})
            lines[_job_order(record)] = json.dumps(record, ensure_ascii=False)
        with (
            atomic_path(folder / METADATA_FILE) as temporary,
            open(temporary, "w", encoding="utf-8") as file,
        ):
            file.writelines(f"{lines[job]}\n" for job in sorted(lines))

    derive(sizes, write)


def check_settings(folder: Path, settings: Mapping, overwrite: bool) -> dict:
    """Refuse to mix images of different settings, as `check_config` does.

    Returns:
        The settings to go on with.

    Raises:
        UserError: `folder` holds images of other settings, or nothing says how they were made.
    """
    ids = {path.name.partition(".")[0] for path in (folder / RECORDS_DIR).glob("*.jsonl")}
    return check_config(folder, settings, bool(ids), overwrite, lambda: ids, "--aug_name")


def discard_other_records(folder: Path, identity: str) -> None:
    """Remove records and images of other configurations; config.json is already of this `identity`.

    Images newer than config.json belong to this configuration, perhaps from another process.
    """
    config_written = (folder / CONFIG_FILE).stat().st_mtime_ns
    for path in (folder / RECORDS_DIR).glob("*.jsonl"):
        if path.name.startswith(f"{identity}."):
            continue
        with contextlib.suppress(FileNotFoundError):  # another process removes them too
            for record in _lines(path):
                image = folder / str(record.get("file_name"))
                with contextlib.suppress(FileNotFoundError):
                    if image.parent == folder and image.stat().st_mtime_ns < config_written:
                        image.unlink()
            path.unlink()
