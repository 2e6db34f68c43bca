"""Splits of photos from a table: a CSV with the columns `source`, `split` and perhaps `group`."""

import csv
import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.few_shot_dataset import SPLITS, Record

log = logging.getLogger(__name__)

COLUMNS = ("source", "split")  # every table needs these columns
OTHERS = "%s that %s does not name: left out"


def read_split_table(path: Path) -> dict[str, tuple[str, str]]:
    """Split and group of each photo by its source; other columns are ignored.

    Raises:
        UserError: the file is no such table, or names a photo twice.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is no CSV in UTF-8"
        raise UserError(f"splits={path}: cannot be read: {reason}") from None
    found: dict[str, tuple[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        missing = [name for name in COLUMNS if not row.get(name)]
        if missing:
            raise UserError(
                f"splits={path}: line {number} has no {missing[0]}; expected a table with the "
                "columns source (a path relative to the data root), split and perhaps group"
            )
        source, split = row["source"], row["split"]
        if split not in SPLITS:
            raise UserError(
                f"splits={path}: line {number} has split {split!r}, expected {', '.join(SPLITS)}"
            )
        if source in found:
            raise UserError(f"splits={path}: line {number} names {source} a second time")
        found[source] = split, row.get("group") or ""
    if not found:
        raise UserError(f"splits={path}: no photo in it")
    return found


def split_by_table(path: Path, records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records that a table names, by its splits and with its groups.

    Records that the table does not name are left out and counted; missing photos too.

    Raises:
        UserError: as `read_split_table`; or the table names none of the photos.
    """
    table = read_split_table(path)
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    others, there = 0, set()
    for record in records:
        if record.source not in table:
            others += 1
            continue
        there.add(record.source)
        split, group = table[record.source]
        splits[split].append(dataclasses.replace(record, group=group))
    missing = [source for source in table if source not in there]
    if not there:
        raise UserError(
            f"splits={path}: its photos do not exist, such as {missing[0]}; expected paths "
            "relative to the data root"
        )
    if missing:
        log.warning(
            "%d of the %d photos that %s lists do not exist, such as %s: left out",
            len(missing), len(table), path, missing[0],
            extra={"missing": [f"{source} ({path.name})" for source in missing]},
        )  # fmt: skip
    if others:
        log.info(OTHERS, counted(others, "photo"), path)
    return splits
