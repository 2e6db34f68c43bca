"""The job list of a trial -> blocks -> images and records; resumable, shared among processes.

A job is (source photo, repeat). Jobs are grouped into blocks of `batch_size`; a block with any
image missing is computed whole, so that an image's bytes do not depend on interruptions.
"""

import contextlib
import functools
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from semantic_aug import UserError, counted, stable_hash
from semantic_aug.embeddings import embedding_files, read_header, read_words, rows_digest
from semantic_aug.experiment.config import (
    check_config,
    config_id,
    is_called,
    read_config,
    write_config,
)
from semantic_aug.experiment.files import atomic_path, derive, remove_leftovers
from semantic_aug.experiment.names import CONFIG_FILE, MERGED, METADATA_FILE, Trial, merged_file
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.experiment.sharding import shard_blocks
from semantic_aug.experiment.timing import GENERATE, read_timing
from semantic_aug.generative_augmentation import GenerativeAugmentation, augmented

RECORDS_DIR = "records"
OPENERS = 8  # threads that look at the ends of files, which takes its time over a network
PROBED, NEAR = 500, 2e-4  # files, and seconds for each where the disk is this machine's own
WRITERS = 2  # threads that compress and write images while the next batch is computed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One synthetic image to be made: photo `index` of the trial, variant `repeat`."""

    index: int
    repeat: int

    @property
    def file_name(self) -> str:
        return _file_name(self.index, self.repeat)


def _file_name(index: int, repeat: int) -> str:
    return f"{index:06d}-{repeat:03d}.png"


def job_generator(seed: int, source: str, repeat: int) -> torch.Generator:
    """The random stream of a job, which depends on nothing else."""
    return torch.Generator().manual_seed(stable_hash("job", seed, source, repeat))


def make_jobs(indices: Sequence[int], num_synthetic: int) -> list[Job]:
    """All jobs of a trial, photo by photo."""
    return [Job(index, repeat) for index in indices for repeat in range(num_synthetic)]


def share_of(
    jobs: Sequence[Job], batch_size: int, shard: tuple[int, int], already: int = 0
) -> list[list[Job]]:
    """The blocks of one process's (index, count), in the order in which it makes them.

    Args:
        already: how many blocks were dealt out before these.
    """
    blocks = [jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)]
    return [blocks[number] for number in shard_blocks(len(blocks), *shard, already)]


def generate(
    dataset,
    make_augmentation: Callable[[], GenerativeAugmentation],
    folder: Path,
    settings: Mapping,
    *,
    num_synthetic: int,
    batch_size: int,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    shard: tuple[int, int] = (0, 1),
    already: int = 0,
    constants: Mapping | None = None,
    arguments: Mapping | None = None,
    notes: Mapping | None = None,
    of_class: Mapping[str, Mapping[str, str | None]] | None = None,
    count: Callable[[int], None] = lambda images: None,
) -> int:
    """Make what is missing of a trial's synthetic images.

    Args:
        dataset: a FewShotDataset, the trial's training photos.
        make_augmentation: called once, and only if an image is missing: it may load a model.
        folder: where images, `records/`, `metadata.jsonl` and `config.json` go.
        settings: whatever changes an image, for config.json. Records of other settings do not
            count, and are removed with their images before the first image is made.
        num_synthetic: variants per photo.
        batch_size: images per block.
        seed: of the trial.
        indices: which photos; default all.
        shard: this process's (index, count).
        already: how many blocks were dealt out before those of this trial.
        constants: what all records share.
        arguments: for config.json.
        notes: likewise, beside the settings.
        of_class: what may change while `settings` stay, such as the sha256 of a class's learned
            word, by class and by the key it has in records (`CLASS_KEYS`); images whose record
            says otherwise are removed and made again.
        count: told from time to time how many images have been made since.

    Returns:
        How many images were made.
    """
    indices = range(len(dataset)) if indices is None else indices
    sources = dataset.sources()
    remove_leftovers(folder)
    identity = config_id(settings)
    finished, stale = find_images(folder, identity, of_class)
    finished = whole_images(folder, finished)
    mine = share_of(make_jobs(indices, num_synthetic), batch_size, shard, already)
    todo = [block for block in mine if any(job.file_name not in finished for job in block)]
    kept = sum(job.file_name in finished for block in mine for job in block)
    if not todo and not finished:
        return 0  # a shard without a share
    augmentation, made = make_augmentation() if todo else None, 0
    # From here on the folder changes: not before the model has been loaded. What is out of date
    # goes before anything is made, so that no record ever stands for another image.
    write_config(folder, settings, arguments or {}, notes)
    discard_other_records(folder, identity)
    for name in stale.keys() & {job.file_name for block in mine for job in block}:
        (folder / name).unlink(missing_ok=True)
    if not todo:
        write_metadata(folder, identity)  # a process may have been killed just before it did
        return 0
    progress = progress_bar(
        total=sum(map(len, mine)), initial=kept, desc=f"generate {folder.name}", unit="image"
    )
    writing: deque[tuple] = deque()  # images on their way to the disk, with their records

    def finish_oldest():
        nonlocal made
        saved, record = writing.popleft()
        saved.result()
        writer.write(record)  # not before its image is whole on disk
        made += 1
        progress.update()

    try:
        with (
            progress,
            RecordWriter(folder, identity, shard) as writer,
            ThreadPoolExecutor(WRITERS) as pool,
        ):
            try:
                for block in todo:
                    before = made
                    for job, image, edits in compute(dataset, augmentation, block, sources, seed):
                        if job.file_name in finished:
                            continue
                        record = _record(dataset, job, sources, edits, constants or {})
                        record |= (of_class or {}).get(record["class_name"], {})
                        saving = pool.submit(_save, image, folder / job.file_name)
                        writing.append((saving, record))
                    while len(writing) > len(block):  # those of the block before
                        finish_oldest()
                    if made > before:
                        count(made - before)
                while writing:
                    finish_oldest()
            except BaseException:
                with contextlib.suppress(OSError):  # what is computed is not lost
                    while writing:
                        finish_oldest()
                raise
    except OSError:
        log.error("%s: %s made now", folder, counted(made, "image"))
        raise
    finally:
        write_metadata(folder, identity)
    return made


def _save(image, path: Path) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def compute(dataset, augmentation, block: Sequence[Job], sources, seed) -> Iterator[tuple]:
    """(job, image, edits) of a block."""
    images, labels, metadata = [], [], []
    photos = {job.index: dataset.get_image_by_idx(job.index) for job in block}  # decoded once
    masks = {}
    if augmentation.needs_mask:
        masks = {index: dataset.get_mask_by_idx(index) for index in photos}
    for job in block:
        meta = dict(dataset.get_metadata_by_idx(job.index))
        if augmentation.needs_mask:
            meta["mask"] = masks[job.index]
        images.append(photos[job.index])
        labels.append(dataset.get_label_by_idx(job.index))
        metadata.append(meta)
    generators = [job_generator(seed, sources[job.index], job.repeat) for job in block]
    results, edits = augmented(augmentation, images, labels, metadata, generators)
    return zip(block, results, edits)


def _record(dataset, job: Job, sources, edits, constants: Mapping) -> dict:
    label = dataset.get_label_by_idx(job.index)
    return {
        "file_name": job.file_name,
        "label": label,
        "class_name": dataset.class_names[label],
        "source": sources[job.index],
        "index": job.index,
        "repeat": job.repeat,
        **{key: constants[key] for key in ("seed", "examples_per_class") if key in constants},
        # One text, also where edits of a sequence have different prompts: a column of one type.
        "prompt": " | ".join(dict.fromkeys(edit.prompt for edit in edits)),
        "aug": [edit.aug for edit in edits],
        "strength": [edit.strength for edit in edits],
        "guidance_scale": [edit.guidance_scale for edit in edits],
        "mask": [edit.mask for edit in edits],
        "inverted": [edit.inverted for edit in edits],
        "embeddings": None,
        **constants,
        **(_safety(edits) if "safety_checker" in constants else {}),
    }


def _safety(edits: Sequence) -> dict:
    """What a safety checker said: edits may have been made again, and in vain."""
    return {
        "attempts": [edit.attempts for edit in edits],
        "flagged": any(edit.flagged for edit in edits),
    }


# --- records ---------------------------------------------------------------------------------


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
        self.path, self.file = records / name, None

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
    if "label" in line and line["file_name"] != _file_name(line["index"], line["repeat"]):
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
    finished, stale, older = set(), {}, None
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
    indices, of_class = list(indices), {}
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
    said, images = {}, {}
    for line in read_lines(folder, identity):
        if "label" in line:
            images[line.get("file_name")] = {key: line[key] for key in CLASS_KEYS if key in line}
        elif "file_name" in line:
            said.setdefault(line["file_name"], []).append(line)
    found = {}
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
    return check_config(folder, settings, bool(ids), overwrite, ids=lambda: ids)


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


class MissingImages(UserError):
    """Images, or what says how they were made, are not there: what made the others makes them."""


def read_variants(
    folder: Path,
    dataset,
    num_synthetic: int | None = None,
    classes: Sequence[str] | None = None,
    ignore_filter: bool = False,
) -> dict[int, list[tuple[Path, int]]]:
    """The synthetic images of a trial's photos: `{index: [(path, label), ...]}`.

    Labels come from records, never from file names. Images that a filter has rejected (`kept` is
    false in a record of its own) are left out; a photo then has fewer. So are those that a safety
    checker has made black.

    Args:
        dataset: the trial's training photos.
        num_synthetic: at most that many per photo; default all that were made.
        classes: only photos of these need variants; default all.
        ignore_filter: take rejected images as well.

    Raises:
        MissingImages: some are missing, records name files that are not there, or the folder's
            config.json is lost.
        UserError: records do not fit the dataset, its photos or masks have changed since, or a
            filter has rejected every image.
    """
    recorded = read_records(folder, only_present=False)
    whole = whole_images(folder, (record["file_name"] for record in recorded))
    records = [record for record in recorded if record["file_name"] in whole]
    if not records:
        raise MissingImages(f"no synthetic images in {folder}")
    config = read_config(folder)
    if config is None:
        raise MissingImages(
            f"{folder} holds images, but no config.json that can be read and says how they were "
            "made; the command that made them, given again with the same flags, writes it anew"
        )
    position = {source: idx for idx, source in enumerate(dataset.sources())}
    by_photo: dict[int, dict[int, tuple[Path, int]]] = {}
    for record in records:
        name, label = record["class_name"], record["label"]
        names = dataset.class_names
        if not 0 <= label < len(names) or names[label] != name:
            raise UserError(
                f"{folder} was made with other classes: label {label} is {name!r} there and "
                f"{names[label] if 0 <= label < len(names) else 'nothing'!r} here"
            )
        if record["source"] not in position:
            raise UserError(
                f"{folder / record['file_name']} was made from {record['source']}, which is not "
                "among the training photos of this trial: what it shows would leak into the result"
            )
        idx = position[record["source"]]
        if dataset.get_label_by_idx(idx) != label:
            raise UserError(
                f"{folder / record['file_name']} is labelled {name!r}, its photo "
                f"{record['source']} is {names[dataset.get_label_by_idx(idx)]!r}"
            )
        by_photo.setdefault(idx, {})[record["repeat"]] = (folder / record["file_name"], label)
    photos = config.get("settings", {}).get("photos")
    if photos is not None and photos != dataset.photo_digest():
        raise UserError(
            f"{folder} was made of other photos: the training photos of this trial have the same "
            "names and have changed since"
        )
    wanted = dataset.indices(classes)
    made_with = {record["class_name"]: record["masks"] for record in records if "masks" in record}
    for name, digest in masks_by_class(dataset, wanted if made_with else ()).items():
        if made_with.get(name, digest) != digest:
            raise UserError(f"{folder} was made with other masks of {name!r} than there are now")
    made = 1 + max(record["repeat"] for record in recorded)
    needed = made if num_synthetic is None else num_synthetic
    there = {idx: sum(n < needed for n in by_photo.get(idx, ())) for idx in wanted}
    missing = needed * len(wanted) - sum(there.values())
    if missing:
        source = dataset.sources()[next(idx for idx in wanted if there[idx] < needed)]
        gone = sorted({record["file_name"] for record in recorded} - whole)
        lost = (
            f"; records name {counted(len(gone), 'file')} not whole, as {gone[0]}" if gone else ""
        )
        raise MissingImages(
            f"{missing} of {len(wanted) * needed} synthetic images are missing in "
            f"{folder}, the first of photo {source}{lost}"
        )
    scores = {} if ignore_filter else read_scores(folder)
    rejected = {name for name, each in scores.items() if each.get("kept") is False}
    rejected |= {record["file_name"] for record in records if record.get("flagged")}
    variants = {}
    for idx in wanted:
        own = [by_photo[idx][n] for n in sorted(by_photo[idx])] if needed else []
        variants[idx] = [each for each in own if each[0].name not in rejected][:needed]
    if needed and not any(variants.values()):
        raise UserError(f"a filter has rejected every synthetic image in {folder}")
    return variants


def differing_settings(folders: Mapping[Trial, Path]) -> dict[str, dict[str, object]]:
    """Settings in which the synthetic images of several trials differ, and should not.

    Photos differ by right, and so do learned words; how the words were learned does not.

    Returns:
        `{setting: {name of the trial: value}}`. A setting of the learned words is called
        `words: ...`; it is known where a merged file of the experiment still holds the words. A
        trial of which a setting is not known is not among its values.
    """
    of_images, of_words, said = {}, {}, {}
    for trial, folder in folders.items():
        config, records = read_config(folder) or {}, read_records(folder, only_present=False)
        of_images[trial.name] = config.get("settings", {})
        of_words[trial.name] = _settings_of_words(folder, trial, config, records)
        older = older_precision(folder)
        for record in records:
            if "unet" in record:
                # Records that do not say the precision are older, and name weights in another way.
                name = "unet" if "precision" in record else "unet, by its older name,"
                key = f"{name} of {record['class_name']}"
                said.setdefault(key, {})[trial.name] = record["unet"]
            precision = record.get("precision", older)
            if precision is not None:
                said.setdefault("precision", {})[trial.name] = precision
    for prefix, settings in (("", of_images), ("words: ", of_words)):
        known = {name: each for name, each in settings.items() if each}
        for key in sorted(set().union(*known.values()) - {"photos"}):
            said[prefix + key] = {name: each.get(key) for name, each in known.items()}
    return {
        key: values
        for key, values in said.items()
        if len({json.dumps(value, sort_keys=True) for value in values.values()}) > 1
    }


def _settings_of_words(
    folder: Path, trial: Trial, config: Mapping, records: Sequence[Mapping]
) -> dict:
    """How the words in a folder's images were learned; empty where none are used, or unknown.

    Records tell a word by its rows alone: the file that holds such rows says the rest.
    """
    used = {record.get("embeddings") for record in records} - {None}
    experiment = folder.parent.parent
    given = config.get("arguments", {}).get("embed_path")
    files = [merged_file(experiment, trial), *([Path(trial.fill(given))] if given else [])]
    files += sorted((experiment / MERGED).glob("*.safetensors"))  # words of another trial
    for path in dict.fromkeys(files) if used else ():
        # A foreign or a damaged file says nothing of how its words were learned.
        with contextlib.suppress(UserError, LookupError, TypeError, ValueError):
            words = read_words(path, sum(file.is_file() for file in embedding_files(path)))
            if used & {rows_digest(*(each[token] for each in words)) for token in words[0]}:
                return dict(json.loads(read_header(path)["config"])["settings"])
    return {}


def augment_dataset(
    dataset, augmentation: GenerativeAugmentation, num_repeats: int, folder: Path | None
) -> dict[int, list[tuple]]:
    """Variants of every photo, kept in memory or, with a folder, written there with records."""
    if folder is not None:
        settings = {
            "dataset": type(dataset).__qualname__,
            "aug": type(augmentation).__qualname__,
            "photos": dataset.photo_digest(),
        }
        check_settings(folder, settings, overwrite=False)
        constants = {"seed": dataset.seed}
        generate(
            dataset,
            lambda: augmentation,
            folder,
            settings,
            num_synthetic=num_repeats,
            batch_size=1,
            seed=dataset.seed,
            constants=constants,
            arguments={"num_synthetic": num_repeats},
        )
        return read_variants(folder, dataset, num_repeats)
    sources, variants = dataset.sources(), {}
    jobs = make_jobs(range(len(dataset)), num_repeats)
    for job in progress_bar(iterable=jobs, desc="generate", unit="image"):
        for _, image, _ in compute(dataset, augmentation, [job], sources, dataset.seed):
            label = dataset.get_label_by_idx(job.index)
            variants.setdefault(job.index, []).append((image, label))
    return variants
