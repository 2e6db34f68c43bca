"""Reading a whole dataset once, before a GPU spends a day on it."""

import contextlib
import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from statistics import median_low
from typing import Any

from semantic_aug import UserError, counted
from semantic_aug.datasets import build_dataset
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.few_shot_dataset import SPLITS, FewShotDataset
from semantic_aug.images.reading import BITS_HELP, brightness_doubt, open_bytes, open_image

SHOWN = 10  # of each kind of problem


@dataclass(frozen=True)
class Photo:
    """The result of reading a photo and its mask; without errors, `error` and `mask_error` are "".

    `mask` is `none` (the dataset gives no mask), `empty`, `good`, or `bad`.
    """

    split: str
    class_name: str
    source: str
    digest: bytes = b""
    size: tuple[int, int] | None = None
    mode: str = ""
    error: str = ""
    doubt: str = ""
    mask: str = "none"
    mask_error: str = ""


@dataclass
class Findings:
    """All photos of a dataset, splits that cannot be listed, and warnings.

    `missing` are the listed files that are not on the disk.
    """

    class_names: list[str]
    photos: list[Photo] = field(default_factory=list)
    missing_splits: dict[str, str] = field(default_factory=dict)  # split -> why
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # files that are no photo of a class

    def problems(self) -> dict[str, list[str]]:
        """Kind of problem -> a line per case."""
        has_masks = any(photo.mask != "none" for photo in self.photos)
        found = {
            "splits that cannot be listed": [
                f"{split}: {why}" for split, why in self.missing_splits.items()
            ],
            "warnings": self.warnings,
            "listed files that are not on the disk": self.missing,
            "classes without training photos": self._never_trained(),
            "unreadable photos": [photo.error for photo in self.photos if photo.error],
            f"photos whose brightness may be wrong ({BITS_HELP})": [
                f"{photo.source}: {photo.doubt}" for photo in self.photos if photo.doubt
            ],
            "photos without a mask, while others have one": [
                photo.source
                for photo in self.photos
                if has_masks and photo.mask == "none" and not photo.error
            ],
            "masks that cannot be used": [
                photo.mask_error for photo in self.photos if photo.mask_error
            ],
            "empty masks (no mask shows an object)": self._all_empty(),
            "photos in several splits": self._copies("split"),
            "photos in several classes": self._copies("class_name"),
        }
        return {kind: lines for kind, lines in found.items() if lines}

    def __str__(self) -> str:
        return report(self)

    def _never_trained(self) -> list[str]:
        """Classes with photos only outside train, which no classifier can learn."""
        splits: dict[str, Counter[str]] = defaultdict(Counter)
        for photo in self.photos:
            splits[photo.class_name][photo.split] += 1
        trained = {name.casefold(): name for name, counts in splits.items() if counts["train"]}
        lines = []
        for name, counts in splits.items():
            if not counts["train"]:
                line = ", ".join(f"{counts[split]:,} in {split}" for split in SPLITS[1:])
                same = trained.get(name.casefold())
                lines.append(f"{name}: {line}" + (f"; is it the class {same}?" if same else ""))
        return lines

    def _all_empty(self) -> list[str]:
        """The photos with an empty mask, if no mask has an object."""
        if any(photo.mask == "good" for photo in self.photos):
            return []
        return [photo.source for photo in self.photos if photo.mask == "empty"]

    def _copies(self, attribute: str) -> list[str]:
        """Files of equal content that differ in an attribute."""
        copies = defaultdict(list)
        for photo in self.photos:
            if photo.digest:
                copies[photo.digest].append(photo)
        return [
            " = ".join(f"{each.source} ({getattr(each, attribute)})" for each in same)
            for same in copies.values()
            if len({getattr(each, attribute) for each in same}) > 1
        ]


def check_dataset(
    name: str, data_dir: str | None, dataset_args: Sequence[str], mask_dir: str | None = None
) -> Findings:
    """Read every photo and every mask of all splits.

    Raises:
        UserError: there is no such dataset, its root is wrong, or `train` has no photo.
    """
    datasets, missing = [], {}
    with _warnings() as (warnings, listed):
        for split in SPLITS:
            try:
                datasets.append(
                    build_dataset(
                        name, split, data_dir=data_dir, dataset_args=dataset_args, mask_dir=mask_dir
                    )
                )
            except UserError as error:
                if split == "train":
                    raise
                if split == "test" and getattr(datasets[0], "published_val", False):
                    continue  # this option leaves no photo for test
                missing[split] = str(error)
    findings = Findings(
        datasets[0].class_names,
        missing_splits=missing,
        warnings=list(warnings),
        missing=list(listed),
    )
    jobs = ((dataset, index) for dataset in datasets for index in range(len(dataset)))
    bar = progress_bar(total=sum(map(len, datasets)), desc="reading", unit="photo")
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        while some := list(islice(jobs, 256)):  # not a million jobs in memory at once
            for photo in pool.map(lambda job: read_photo(*job), some):
                findings.photos.append(photo)
                bar.update()
    if hasattr(datasets[0], "left_out"):
        findings.left_out = datasets[0].left_out({photo.source for photo in findings.photos})
    return findings


@contextlib.contextmanager
def _warnings() -> Iterator[tuple[dict[str, None], dict[str, None]]]:
    """Collect this package's warnings, each once, and the missing files.

    A warning of missing files has their names as `missing`, and is not among the messages.
    """
    messages: dict[str, None] = {}
    missing: dict[str, None] = {}

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            names = getattr(record, "missing", None)
            (messages if names is None else missing).update(
                dict.fromkeys(names or [record.getMessage()])
            )

    handler = Collector(logging.WARNING)
    logger = logging.getLogger("semantic_aug")
    logger.addHandler(handler)
    try:
        yield messages, missing
    finally:
        logger.removeHandler(handler)


def read_photo(dataset: FewShotDataset, index: int) -> Photo:
    """Photo `index` of a dataset with its mask, decoded and forgotten."""
    metadata = dataset.get_metadata_by_idx(index)
    class_name = dataset.class_names[dataset.get_label_by_idx(index)]
    found: dict[str, Any] = {
        "split": dataset.split,
        "class_name": class_name,
        "source": metadata.get("source", str(index)),
    }
    try:
        if hasattr(dataset, "records"):
            path = dataset.records[index].path
            with open_image(path) as image:
                found["doubt"] = brightness_doubt(path, image, dataset.bits)
                found |= {"size": image.size, "mode": image.mode}
            with open_bytes(path) as file:
                found["digest"] = hashlib.file_digest(file, "sha256").digest()
            has_mask = dataset.records[index].mask is not None
        else:  # a subclass that makes its images itself
            made = dataset.get_image_by_idx(index)
            digest = hashlib.sha256(made.tobytes()).digest()
            found |= {"size": made.size, "mode": made.mode, "digest": digest}
            has_mask = metadata.get("mask") is not None
    except Exception as error:
        return Photo(**found, error=_line(found["source"], error))
    if has_mask:
        try:
            found["mask"] = "good" if dataset.get_mask_by_idx(index).any() else "empty"
        except Exception as error:
            found |= {"mask": "bad", "mask_error": _line(found["source"], error)}
    return Photo(**found)


def _line(source: str, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, UserError) else f"{source}: {type(error).__name__}: {text}"


# --- what is printed -------------------------------------------------------------------------


def report(findings: Findings, verbose: bool = False) -> str:
    """Tables of counts and problems, as text; `verbose` shows every case, not only the first."""
    return "\n".join(
        [
            *_counts(findings),
            "",
            *_properties(findings.photos),
            *_left_out(findings.left_out, verbose),
            *_problems(findings, None if verbose else SHOWN),
            _end(findings),
        ]
    )


def _counts(findings: Findings) -> Iterator[str]:
    counts = Counter((photo.class_name, photo.split) for photo in findings.photos)
    present = {photo.class_name for photo in findings.photos}
    names = [name for name in findings.class_names if name in present]
    width = max(map(len, [*names, "class"]))
    yield f"{'class':{width}}" + "".join(f"{split:>9}" for split in SPLITS)
    for name in names:
        yield f"{name:{width}}" + "".join(f"{counts[name, split]:9,}" for split in SPLITS)
    totals = Counter(photo.split for photo in findings.photos)
    yield f"{'total':{width}}" + "".join(f"{totals[split]:9,}" for split in SPLITS)
    absent = [name for name in findings.class_names if name not in present]
    if absent:
        more = " ..." if len(absent) > SHOWN else ""
        yield f"classes without a photo, {len(absent):,}: {', '.join(absent[:SHOWN])}{more}"


def _properties(photos: list[Photo]) -> Iterator[str]:
    sizes = sorted((p.size for p in photos if p.size), key=lambda size: size[0] * size[1])
    if sizes:
        small, middle, large = (
            f"{width} x {height}" for width, height in (sizes[0], median_low(sizes), sizes[-1])
        )
        yield f"sizes   {small} to {large} pixels, middle {middle}, {len(set(sizes))} different"
    modes = Counter(photo.mode for photo in photos if photo.mode)
    yield "modes   " + ", ".join(f"{mode} {count:,}" for mode, count in modes.most_common())
    masks = Counter(photo.mask for photo in photos)
    kinds = [f"{kind} {masks[kind]:,}" for kind in ("good", "empty", "bad", "none") if masks[kind]]
    yield "masks   " + ", ".join(kinds)
    copies = len([p for p in photos if p.digest]) - len({p.digest for p in photos if p.digest})
    if copies:
        yield f"copies  {counted(copies, 'photo')} with the same bytes as another photo"


def _left_out(files: list[str], verbose: bool) -> Iterator[str]:
    if not files:
        return
    kinds = Counter(PurePosixPath(file).suffix.lower() or "no suffix" for file in files)
    counts = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common(SHOWN))
    more = f", {len(kinds) - SHOWN:,} more kinds" if len(kinds) > SHOWN else ""
    hint = "" if verbose else " (--verbose names them)"
    yield f"others  {len(files):,} files are no photo of a class: {counts}{more}{hint}"
    if verbose:
        yield from (f"  {file}" for file in files)


def _problems(findings: Findings, shown: int | None) -> Iterator[str]:
    for kind, lines in findings.problems().items():
        yield f"\n{kind}: {len(lines):,}"
        yield from (f"  {line}" for line in lines[:shown])
        if shown is not None and len(lines) > shown:
            yield f"  ... and {len(lines) - shown:,} more (--verbose)"


def _end(findings: Findings) -> str:
    count = sum(len(lines) for lines in findings.problems().values())
    read = (
        f"{counted(len(findings.photos), 'photo')} of {counted(len(findings.class_names), 'class')}"
    )
    return f"\n{read}: {counted(count, 'problem') if count else 'nothing is wrong'}"
