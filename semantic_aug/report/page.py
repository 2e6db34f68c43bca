"""The page of a trial: every source photo with its synthetic variants, in one HTML file.

`page.html` is the page without its data, with style and script; it needs no network. This module
collects the data, keeps it small, and inserts it.
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
from itertools import zip_longest
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from semantic_aug.experiment.files import atomic_path, write_text
from semantic_aug.experiment.names import places_dir
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.images.layout import Layout
from semantic_aug.images.likeness import change_of, reduced
from semantic_aug.images.reading import read_image
from semantic_aug.settings.reporting import EMBED, NEAR_DUPLICATE
from semantic_aug.synthesis.records import read_lines

PHOTO, VARIANT = 256, 128  # longer sides of thumbnails in pixels

# Keys about a single image; many records share the other values.
_OWN = {
    "file_name", "label", "class_name", "source", "index", "repeat", "seed", "examples_per_class",
    "score", "kept", "seconds", "place", "place_sha256", "other_photo",
}  # fmt: skip
_LAYOUT = tuple(Layout().details())

log = logging.getLogger(__name__)


def write_page(
    path: Path,
    title: str,
    dataset,
    indices: Sequence[int],
    folders: Mapping[str, Path],
    variants: Mapping[str, Mapping[int, Sequence[dict]]],
    left_out: Mapping[str, Mapping[str, str]],
    embed: int = EMBED,
    near_duplicate: float = NEAR_DUPLICATE,
    seconds: Mapping[str, float | None] | None = None,
) -> None:
    """Write the page of a trial to `path`.

    Up to `embed` pictures lie within the page as thumbnails. With more pictures, the page stays
    small: it refers to the images by relative paths, and to thumbnails of the photos. These lie
    beside it, in a folder with the page's name.

    Args:
        dataset: the trial's training photos.
        indices: of the photos.
        folders: of the images of each set, by the name of the set.
        variants: of each set, the records of each photo; a record may have `score`, `kept` and
            `seconds`.
        left_out: of each set, the reasons why photos get no variants, by source.
        near_duplicate: variants whose `change_of` is smaller, of 255, are flagged.
        seconds: average seconds per image of each set, if known.

    Raises:
        UserError: an image cannot be read.
    """
    total = len(indices) + sum(
        len(records[idx]) for records in variants.values() for idx in indices
    )
    data = page_data(dataset, indices, folders, variants, left_out, embed=total <= embed, page=path)
    data["near_duplicate"] = near_duplicate
    for each in data["sets"]:
        each["seconds"] = _number((seconds or {}).get(each["name"]))
    write_text(path, filled("page.html", title, DATA=script_json(data)))
    flagged = sum(v["change"] < near_duplicate for v in data["variants"])
    if flagged:
        log.warning(
            "%s: %d of %d variants are near-duplicates of their photos",
            path.stem,
            flagged,
            len(data["variants"]),
        )


def page_data(dataset, indices, folders, variants, left_out, *, embed: bool, page: Path) -> dict:
    """What the page shows, in JSON types.

    Returns:
        `classes`; `sets` (name, relative address of the folder, and why photos were left out, by
        their number); `settings` of images and texts of `places`, without repetitions; `photos`;
        and `variants`. Photos and variants refer to the others by number.
    """
    sources = dataset.sources()
    prompts = {name: prompts_of_places(folder) for name, folder in folders.items()}
    reasons: list[dict[int, str]] = [{} for _ in folders]
    settings: dict[str, int] = {}
    places: dict[str, int] = {}
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
            if not variants[name][idx] and sources[idx] in left_out[name]:
                reasons[set_number][number] = left_out[name][sources[idx]]
            for record in variants[name][idx]:
                place, layouts = place_in_words(record, prompts[name]), whole_layouts(record)
                own = _OWN.union(() if layouts is None else _LAYOUT)
                if place == record.get("prompt"):
                    own |= {"prompt"}  # shown only once
                shared = {key: value for key, value in record.items() if key not in own}
                key = json.dumps(shared)
                row = {
                    "photo": number,
                    "set": set_number,
                    "settings": settings.setdefault(key, len(settings)),
                    "place": places.setdefault(place, len(places)) if place else None,
                    "layouts": layouts or None,
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
            {
                "name": name,
                "folder": quote(_relative(folder, page.parent), safe="/="),
                "left_out": of_set,
            }
            for (name, folder), of_set in zip(folders.items(), reasons)
        ],
        "settings": [json.loads(key) for key in settings],
        "places": list(places),
        "photos": photos,
        "variants": rows,
    }


def prompts_of_places(folder: Path) -> dict[str, str]:
    """The prompts of the places drawn for the images in `folder`, by the places' sha256."""
    lines = read_lines(places_dir(folder))
    return {line["sha256"]: line["prompt"] for line in lines if "sha256" in line}


def place_in_words(record: Mapping, prompts: Mapping[str, str]) -> str:
    """The place of an image's object; empty if its record does not tell it."""
    found = []
    told = (record.get(key) or () for key in ("place", "place_sha256", "other_photo"))
    for place, sha256, other_photo in zip_longest(*told):
        if other_photo is not None:
            found.append(f"the photo {other_photo} without its object")
        elif sha256 in prompts:
            found.append(f"{prompts[sha256]} ({place})")
        elif place is not None:
            found.append(str(place))
    return " + ".join(found)


def whole_layouts(record: Mapping) -> list[list[int]] | None:
    """The layouts of a record that change something, in whole numbers, which are short.

    Returns:
        Of each: size in percent; degrees counter-clockwise; shift to the right and down in percent;
        1 if mirrored; degrees of hue, saturation and brightness in percent. None where the record
        has no layouts, or other values under their names.
    """
    try:
        edits = zip(*(record[key] for key in _LAYOUT), strict=True)
        layouts = [whole_layout(*edit) for edit in edits if edit[0] is not None]
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return None
    return [layout for layout in layouts if layout != whole_layout(**Layout().details())]


def whole_layout(scale, angle, shift, mirror, colour) -> list[int]:
    """See `whole_layouts`."""
    (right, down), (hue, saturation, brightness) = shift, colour
    numbers = (
        100 * scale, angle, 100 * right, 100 * down, mirror,
        360 * hue, 100 * saturation, 100 * brightness,
    )  # fmt: skip
    return [round(number) for number in numbers]


def filled(name: str, title: str, **parts: str) -> str:
    """A page of this room: the head that pages share, a title, and parts in place of their names.

    Args:
        parts: HTML, by the name that stands in the file as `{{NAME}}`.
    """
    head, page = (Path(__file__).with_name(each).read_text("utf-8") for each in ("head.html", name))
    page = page.replace("{{HEAD}}", head.rstrip()).replace("{{TITLE}}", html.escape(title))
    for part, text in parts.items():
        page = page.replace("{{" + part + "}}", text)
    return page


def script_json(data) -> str:
    """JSON that is safe within a <script> element, with any strings."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def to_webp(image: Image.Image, side: int) -> bytes:
    """An image as WebP, reduced to at most `side` pixels."""
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
