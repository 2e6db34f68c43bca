"""The page of a trial: every source photo with its synthetic variants, in one HTML file.

`page.html` is the page without its data: style and script are in it, and it asks no
network for anything. Here the data is collected, kept small, and put in.
"""

import base64
import html
import io
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from semantic_aug.experiment.files import atomic_path, write_text
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.images.likeness import change_of, reduced
from semantic_aug.images.reading import read_image
from semantic_aug.settings.reporting import EMBED, NEAR_DUPLICATE

PHOTO, VARIANT = 256, 128  # longer sides of thumbnails in pixels

# What says something about one image; the rest of a record is shared by many.
_OWN = {
    "file_name", "label", "class_name", "source", "index", "repeat", "seed", "examples_per_class",
    "score", "kept", "seconds",
}  # fmt: skip

log = logging.getLogger(__name__)


def write_page(
    path: Path,
    title: str,
    dataset,
    indices: Sequence[int],
    folders: Mapping[str, Path],
    variants: Mapping[str, Mapping[int, Sequence[dict]]],
    embed: int = EMBED,
    near_duplicate: float = NEAR_DUPLICATE,
    seconds: Mapping[str, float | None] | None = None,
) -> None:
    """Write the page of a trial to `path`.

    Up to `embed` pictures lie within the page as thumbnails. With more, the page stays small: it
    refers to the images by relative paths, and thumbnails of the photos lie in a folder beside it,
    which is named like the page.

    Args:
        dataset: the trial's training photos.
        indices: which photos.
        folders: where the images of each set lie, by the name of the set.
        variants: of each set, the records of each photo; a record may have `score`, `kept` and
            `seconds`.
        near_duplicate: variants whose `change_of` is less, of 255, are flagged.
        seconds: what an image of each set took on average, where it is known.

    Raises:
        UserError: an image cannot be read.
    """
    total = len(indices) + sum(
        len(records[idx]) for records in variants.values() for idx in indices
    )
    data = page_data(dataset, indices, folders, variants, embed=total <= embed, page=path)
    data["near_duplicate"] = near_duplicate
    for each in data["sets"]:
        each["seconds"] = _number((seconds or {}).get(each["name"]))
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    page = template.replace("{{TITLE}}", html.escape(title))
    write_text(path, page.replace("{{DATA}}", script_json(data)))
    flagged = sum(v["change"] < near_duplicate for v in data["variants"])
    if flagged:
        log.warning(
            "%s: %d of %d variants are near-duplicates of their photos",
            path.stem,
            flagged,
            len(data["variants"]),
        )


def page_data(dataset, indices, folders, variants, *, embed: bool, page: Path) -> dict:
    """What the page shows, in JSON types.

    Returns:
        `classes`, `sets` (name and relative address of the folder), `settings` (what made images,
        each once), `photos` and `variants`, of which each refers to the others by number.
    """
    sources = dataset.sources()
    settings: dict[str, int] = {}
    photos, small, rows, files = [], [], [], []
    for number, idx in enumerate(progress_bar(iterable=indices, desc="photos", unit="photo")):
        image = dataset.get_image_by_idx(idx)
        small.append(reduced(image))
        thumbnail = to_webp(image, PHOTO)
        if embed:
            address = data_uri(thumbnail)
        else:
            beside = page.with_suffix("") / "photos" / f"{number:06d}.webp"
            with atomic_path(beside) as temporary:
                temporary.write_bytes(thumbnail)
            address = quote(f"{page.stem}/photos/{beside.name}", safe="/=")
        photos.append(
            {"class": dataset.get_label_by_idx(idx), "source": sources[idx], "image": address}
        )
        for set_number, (name, folder) in enumerate(folders.items()):
            for record in variants[name][idx]:
                shared = {key: value for key, value in record.items() if key not in _OWN}
                key = json.dumps(shared)
                row = {
                    "photo": number,
                    "set": set_number,
                    "settings": settings.setdefault(key, len(settings)),
                    "file": record["file_name"],
                    "score": _number(record.get("score")),
                    "kept": record.get("kept"),
                    "seconds": _number(record.get("seconds")),
                }
                rows.append({key: value for key, value in row.items() if value is not None})
                files.append(folder / record["file_name"])

    def look(job):
        row, file = job
        image = read_image(file)
        row["change"] = round(change_of(small[row["photo"]], reduced(image)), 1)
        if embed:
            row["image"] = data_uri(to_webp(image, VARIANT))

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:  # decoding runs in parallel
        jobs = threads.map(look, zip(rows, files))
        for _ in progress_bar(iterable=jobs, total=len(rows), desc="variants", unit="image"):
            pass
    return {
        "classes": list(dataset.class_names),
        "sets": [
            {"name": name, "folder": quote(_relative(folder, page.parent), safe="/=")}
            for name, folder in folders.items()
        ],
        "settings": [json.loads(key) for key in settings],
        "photos": photos,
        "variants": rows,
    }


def script_json(data) -> str:
    """JSON that can stand within a <script> element, whatever the strings in it say."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def to_webp(image: Image.Image, side: int) -> bytes:
    """An image, made smaller where it is larger than `side` pixels, as WebP."""
    image = image.convert("RGB")
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=80)
    return file.getvalue()


def data_uri(webp: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(webp).decode()


def _number(value) -> float | None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None  # JSON has no NaN
    return float(f"{value:.4g}")


def _relative(folder: Path, start: Path) -> str:
    return Path(os.path.relpath(folder, start)).as_posix() + "/"
