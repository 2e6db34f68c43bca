"""The synthetic variants of each photo, checked: they are complete and fit the dataset."""

from collections.abc import Collection
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.experiment.config import read_config
from semantic_aug.synthesis.records import (
    masks_by_class,
    read_left_out,
    read_records,
    read_scores,
    whole_images,
)


class MissingImages(UserError):
    """Images or config.json are missing; the command that made the other images makes them."""


def read_variants(
    folder: Path,
    dataset,
    num_synthetic: int | None = None,
    classes: Collection[str] | None = None,
    ignore_filter: bool = False,
) -> dict[int, list[tuple[Path, int]]]:
    """The synthetic images of a trial's photos: `{index: [(path, label), ...]}`.

    Labels come from records, never from file names. Images are left out if a filter has rejected
    them (`kept` is false in the filter's line) or a safety checker has made them black; a photo
    then has fewer variants. A photo that records leave out has none.

    Args:
        dataset: the trial's training photos.
        num_synthetic: the most variants per photo (default: all).
        classes: only photos of these classes need variants (default: all).
        ignore_filter: also take rejected images.

    Raises:
        MissingImages: images are missing, records name absent files, or config.json is lost.
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
            f"{folder} holds images, but no readable config.json says how they were made; run the "
            "command that made them again, with the same flags: it writes config.json"
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
            f"{folder} was made from other photos: the training photos of this trial have changed "
            "since, under the same names"
        )
    without = {position.get(source) for source in read_left_out(folder)} - by_photo.keys()
    chosen = dataset.indices(classes)
    wanted = [idx for idx in chosen if idx not in without]
    made_with = {record["class_name"]: record["masks"] for record in records if "masks" in record}
    for name, digest in masks_by_class(dataset, chosen if made_with else ()).items():
        if made_with.get(name, digest) != digest:
            given = config.get("arguments", {}).get("mask_dir")
            where = f"; it has the masks of --mask_dir {given}" if given else ""
            raise UserError(
                f"{folder} was made with other masks of {name!r} than the present masks{where}"
            )
    made = 1 + max(record["repeat"] for record in recorded)
    needed = made if num_synthetic is None else num_synthetic
    there = {idx: sum(n < needed for n in by_photo.get(idx, ())) for idx in wanted}
    missing = needed * len(wanted) - sum(there.values())
    if missing:
        source = dataset.sources()[next(idx for idx in wanted if there[idx] < needed)]
        gone = sorted({record["file_name"] for record in recorded} - whole)
        lost = (
            f"; {counted(len(gone), 'recorded file')} missing or cut short, such as {gone[0]}"
            if gone
            else ""
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
