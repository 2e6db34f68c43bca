"""Records: one line of each image, written when it is whole; and what filters say of it."""

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
OPENERS = 8  # threads that look at the ends of files, which takes its time over a network
PROBED, NEAR = 500, 2e-4  # files, and seconds for each where the disk is this machine's own

log = logging.getLogger(__name__)


class RecordWriter:
    """Appends records to a file of this process's own in `folder`/records, made with the first.

    The name starts with the id of the configuration, so that records of another one, left by
    `--overwrite`, never count.
    """

    def __init__(self, folder: Path, identity: str, shard: tuple[int, int]):
        # The time comes first, so that of two records of an image the later one is read last; also
        # where the clock of another node was ahead of this one's.
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
        identity: only records of this `config_id`; default that of the folder's config.json.
        only_present: false to have the records of lost images as well.

    A torn last line, whose process was killed, is dropped; so is the record of an image that is
    no longer there, or empty. Of an image that was recorded twice the later record counts.
    """
    found = {record["file_name"]: record for record in _records(folder, identity, only_present)}
    return sorted(found.values(), key=_job_order)


def _records(folder: Path, identity: str | None, only_present: bool = True) -> Iterator[dict]:
    """Those of `read_records` as they lie there, one at a time: a later one of an image counts."""
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


_PNG_END = b"IEND\xaeB`\x82"  # the last chunk, which holds nothing, and its checksum


def whole_images(folder: Path, names: Iterable[str]) -> set[str]:
    """Those of the PNG files `names` that are there to their end; their pixels are not read."""

    def is_whole(name: str) -> bool:
        try:
            # O_NONBLOCK: a FIFO is not waited for, and cannot be sought in.
            fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_NONBLOCK)
            with open(fd, "rb", buffering=0) as file:
                file.seek(-len(_PNG_END), os.SEEK_END)
                return file.read() == _PNG_END
        except OSError:  # it is not there, or shorter
            return False

    names, started = list(names), time.monotonic()
    first, rest = names[:PROBED], names[PROBED:]
    found = set(filter(is_whole, first))
    if time.monotonic() - started < PROBED * NEAR:
        return found | set(filter(is_whole, rest))  # threads would only wait for each other
    shares = [rest[number::OPENERS] for number in range(OPENERS)]
    with ThreadPoolExecutor(OPENERS) as threads:
        return found.union(*threads.map(lambda share: list(filter(is_whole, share)), shares))


def _job_order(record: Mapping) -> tuple[int, int]:
    return record["index"], record["repeat"]


# What may change while the folder's settings stay: the learned word, the UNet and the masks of one
# class, and the precision of the model.
CLASS_KEYS = ("embeddings", "unet", "masks", "precision")
# What a line has that is the record of an image; that of a filter has no label.
_NEEDED = ("file_name", "label", "class_name", "source", "index", "repeat")
# JSON types of what something here depends on.
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
    """What is wrong with a line of records/, if anything is."""
    if not isinstance(line, dict):
        return "it is no record"
    wrong = _wrong_key(tuple(line), tuple(map(type, line.values())))
    if wrong is not None:
        return f"its {wrong} is {line[wrong]!r:.40}" if wrong in line else f"it has no {wrong}"
    if "score" in line and not abs(line["score"]) < 1e300:  # neither nan nor beyond a float
        return f"its score is {line['score']}"
    if "label" in line and line["file_name"] != file_name_of(line["index"], line["repeat"]):
        return f"{line['file_name']} has not its index and repeat"
    return None


@functools.lru_cache(maxsize=256)  # all lines of a folder have a few sets of keys and types
def _wrong_key(keys: tuple[str, ...], kinds: tuple[type, ...]) -> str | None:
    """The first key of a line that has another type than it should, or that is missing."""
    for key, kind in zip(keys, kinds):
        if kind not in _KINDS.get(key, (kind,)):  # true is no number
            return key
    needed = _NEEDED if "label" in keys else ()
    return next((key for key in needed if key not in keys), None)


def find_images(
    folder: Path, identity: str, of_class: Mapping[str, Mapping] | None = None
) -> tuple[set[str], dict[str, dict]]:
    """The images with a record that are there, and those that are out of date.

    Args:
        of_class: as `generate` takes it.

    Returns:
        Names of the files that count; and of those that were made with other words, weights or
        masks, or in another precision, which do not, each with its record.
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
    """What of `expected` an image was not made with, as far as its record says so."""
    return [key for key, value in expected.items() if not is_called(value, record.get(key, value))]


def older_precision(folder: Path) -> str | None:
    """The precision of images whose records do not say it, which older code has made.

    It was float16 unless asked for otherwise, and float32 on the CPU. None where the device is not
    known.
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
    """Sixteen hex digits of the masks of each class's photos; of classes that have masks.

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
    """Bytes of a file; 0 of one that another process has just renamed or removed."""
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return 0


def read_scores(folder: Path, identity: str | None = None) -> dict[str, dict]:
    """What filters say of the images in `folder`: `{file_name: {"score": ..., "kept": ...}}`.

    Of an image that was scored twice the later line counts. What was said of an image that has
    been made again with other words, weights or masks since does not.

    Args:
        identity: only lines of this `config_id`; default that of the folder's config.json.
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
    """Whether a score is one of the image that a record tells of, or of an earlier in its place."""
    # A line of our own has all keys of the record that the image had then.
    keys = CLASS_KEYS if "embeddings" in score else ()
    return all(score.get(key) == record.get(key) for key in keys)


def read_left_out(folder: Path, identity: str | None = None) -> dict[str, str]:
    """The photos, by source, that get no images in `folder`, each with the reason.

    Args:
        identity: only lines of this `config_id`; default that of the folder's config.json.
    """
    lines = (line for line in read_lines(folder, identity) if "left_out" in line)
    said = {line.get("source"): line["left_out"] for line in lines}
    return {source: reason for source, reason in said.items() if source and reason}


def note_left_out(
    folder: Path, identity: str, left_out: Mapping[str, str], sources: Iterable[str],
    shard: tuple[int, int],
) -> None:  # fmt: skip
    """Say in records/ which photos get no images, where it does not say so already.

    Args:
        left_out: the reason by source.
        sources: all photos; what was said of those that do get images now is taken back.
    """
    there = read_left_out(folder, identity)
    with RecordWriter(folder, identity, shard) as writer:
        for source in sources:
            if there.get(source) != left_out.get(source):
                writer.write({"source": source, "left_out": left_out.get(source)})


def read_lines(folder: Path, identity: str | None = None) -> Iterator[dict]:
    """All lines in `folder`/records of a configuration, those of images and those of filters.

    Args:
        identity: a `config_id`; default that of the folder's config.json.
    """
    if identity is None:
        identity = (read_config(folder) or {}).get("id", "*")
    for path in sorted((folder / RECORDS_DIR).glob(f"{identity}.*.jsonl")):
        yield from _lines(path)


def _lines(path: Path) -> Iterator[dict]:
    try:
        file = open(path, encoding="utf-8", errors="replace")  # noqa: SIM115
    except FileNotFoundError:  # another process has just discarded them
        return
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):  # torn: its process was killed
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
    """Whether a line may be a filter's: a look at the text, a tenth of the time of reading it."""
    for path in (folder / RECORDS_DIR).glob(f"{identity}.*.jsonl"):
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            if any(b'"score"' in line for line in file):
                return True
    return False


def write_metadata(folder: Path, identity: str) -> None:
    """Derive `metadata.jsonl` from all records.

    Once an image has a score, each line has `score` and `kept`, null where they are not known.
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
    """Refuse to mix images, as `check_config` does; the settings to go on with.

    Raises:
        UserError: `folder` holds images of other settings, or nothing says how they were made.
    """
    ids = {path.name.partition(".")[0] for path in (folder / RECORDS_DIR).glob("*.jsonl")}
    return check_config(folder, settings, bool(ids), overwrite, lambda: ids, "--aug_name")


def discard_other_records(folder: Path, identity: str) -> None:
    """Remove what other configurations left, after config.json was written for this one.

    Images newer than config.json are this configuration's, perhaps another process's.
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
