"""Contact sheets of a trial: photos beside their variants, of every class and of each class."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.experiment.files import atomic_path
from semantic_aug.experiment.names import folder_names
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.images.reading import read_image
from semantic_aug.images.sheet import GAP, contact_sheet
from semantic_aug.synthesis.records import read_records, read_scores
from semantic_aug.synthesis.variants import read_variants

SHEET_ROWS = 100
SHEET_SIDE = 16_384  # pixels; most viewers show no more, and a square sheet takes 800 MB

log = logging.getLogger(__name__)


# --- records ---------------------------------------------------------------------------------


def records_by_photo(folder: Path, dataset, indices: Sequence[int]) -> dict[int, list[dict]]:
    """The records of the present images of some photos: `{index: [record, ...]}`.

    If a filter has scored an image, its record also has `score` and `kept`.

    Raises:
        UserError: there are no images, or they do not fit the dataset.
    """
    read_variants(folder, dataset, 0)  # raises if records do not fit
    position = {source: idx for idx, source in enumerate(dataset.sources())}
    scores = read_scores(folder)
    found: dict[int, list[dict]] = {idx: [] for idx in indices}
    for record in read_records(folder):
        idx = position[record["source"]]
        if idx in found:
            found[idx].append(record | scores.get(record["file_name"], {}))
    return found


# --- contact sheets --------------------------------------------------------------------------


def check_width(
    variants: Mapping[str, Mapping[int, Sequence[dict]]], shown: int, cell: int
) -> None:
    """Raise UserError if a sheet of these variants would be too wide, see `write_sheets`."""
    longest = [max(map(len, of_set.values())) for of_set in variants.values()]
    pictures = 1 + sum(min(shown, each) for each in longest)
    if pictures * (cell + GAP) > SHEET_SIDE:
        raise UserError(
            f"--variants: got {shown}, which gives rows of {pictures} pictures of --cell {cell}, "
            f"expected rows of {SHEET_SIDE} pixels at most: reduce --variants or --cell"
        )


def write_sheets(
    folder: Path,
    dataset,
    indices: Sequence[int],
    folders: Mapping[str, Path],
    variants: Mapping[str, Mapping[int, Sequence[dict]]],
    left_out: Mapping[str, Mapping[str, str]],
    shown: int,
    cell: int,
) -> None:
    """The sheet `folder`.png with a photo of every class, and `folder`/CLASS.png of each class.

    A class shows its first photo that no set leaves out, if there is such a photo.

    Args:
        indices: photos of the dataset.
        folders: of the images of each set.
        variants: of each set, the records of each photo.
        left_out: of each set, the reasons why photos get no variants, by source.
        shown: variants of each photo and set.
        cell: side of a picture in pixels.
    """
    sources = dataset.sources()
    by_class: dict[str, list[int]] = {}
    for idx in indices:
        name = dataset.class_names[dataset.get_label_by_idx(idx)]
        by_class.setdefault(name, []).append(idx)

    def row(name: str, idx: int):
        groups = [
            [read_image(folders[key] / r["file_name"]) for r in variants[key][idx][:shown]]
            for key in folders
        ]
        return name, [[dataset.get_image_by_idx(idx)], *groups]

    def write(path: Path, rows: Iterable) -> None:
        with atomic_path(path) as temporary:
            sheet = contact_sheet(list(rows), ["photo", *folders], cell)
            sheet.save(temporary, format="PNG")

    def reasons(idx: int) -> list[str]:
        said = [left_out[key].get(sources[idx]) for key in folders if not variants[key][idx]]
        return list(dict.fromkeys(reason for reason in said if reason))

    firsts = [(name, min(photos, key=lambda i: len(reasons(i)) > 0))
              for name, photos in by_class.items()]  # fmt: skip
    fitting = min(SHEET_ROWS, SHEET_SIDE // (cell + GAP) - 1)
    write(folder.with_name(f"{folder.name}.png"), (row(*first) for first in firsts[:fitting]))
    names = folder_names(dataset.class_names)
    for name, photos in progress_bar(iterable=by_class.items(), desc="sheets", unit="class"):
        rows = (
            row("\n".join([Path(sources[idx]).name, *reasons(idx)]), idx)
            for idx in photos[:fitting]
        )
        write(folder / f"{names[name]}.png", rows)
    if max(len(firsts), *map(len, by_class.values())) > fitting:
        log.info("sheets have the first %s; the page has all", counted(fitting, "row"))
