"""Masks for inspection: their outlines on photos, a sheet for each class and a page."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from semantic_aug.experiment.files import atomic_path, remove_leftovers, write_text
from semantic_aug.experiment.names import folder_names
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.images.framing import mask_within, photo_within
from semantic_aug.images.masks import read_mask
from semantic_aug.images.sheet import contact_sheet
from semantic_aug.report.page import data_uri, filled, script_json, to_webp
from semantic_aug.settings.reporting import EMBED

CELL, ACROSS, ROWS = 160, 6, 40  # pixels of a picture, pictures in a row, rows of a sheet at most
SIDE = 224  # longer side of a picture in the page
OUTLINE = (255, 0, 170)  # hardly any object has this colour
DIMMED = 0.55  # share of the light outside a mask


@dataclasses.dataclass(frozen=True)
class Shown:
    """A mask for inspection.

    Attributes:
        mask: its file.
        doubts: why the mask is not used; empty for a mask in use.
        painted: a person has made or accepted the mask.
    """

    source: str
    class_name: str
    mask: Path
    doubts: tuple[str, ...]
    painted: bool

    @property
    def state(self) -> str:
        return "doubtful" if self.doubts else "painted" if self.painted else "used"


Read = Callable[[Shown], Image.Image]


def outlined(photo: Image.Image, mask: np.ndarray, side: int) -> Image.Image:
    """A reduced photo, darker outside the mask, with a line around the mask.

    Args:
        mask: [H, W] uint8, 255 on the object; a mask of another size is stretched.
        side: longer side in pixels at most.
    """
    if mask.shape != photo.size[::-1]:  # a person's mask, which commands refuse
        mask = np.asarray(Image.fromarray(mask).resize(photo.size, Image.Resampling.NEAREST))
    pixels = np.asarray(photo_within(photo.convert("RGB"), side)).copy()
    inside = mask_within(mask, side) > 0
    grown = np.pad(inside, 1)
    near = grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:]
    pixels[~inside] = (pixels[~inside] * DIMMED).astype(np.uint8)
    pixels[near & ~inside] = OUTLINE
    return Image.fromarray(pixels)


def write_sheets(folder: Path, shown: Iterable[Shown], read: Read) -> None:
    """`folder`/CLASS.png of each class, with as many of its masks as fit, in order."""
    of_class: dict[str, dict[str, list[Shown]]] = {}
    for each in shown:
        of_class.setdefault(each.class_name, {}).setdefault(each.state, []).append(each)
    names = folder_names(sorted(of_class))
    remove_leftovers(folder)
    for name, by_state in progress_bar(iterable=of_class.items(), desc="sheets", unit="class"):
        rows = []
        for state, some in by_state.items():
            for start in range(0, len(some), ACROSS):
                row = some[start : start + ACROSS]
                rows.append((f"{state}\n{start + 1} to {start + len(row)}", row))
        pictures = [
            (text, [[outlined(read(each), read_mask(each.mask), CELL) for each in row]])
            for text, row in rows[:ROWS]
        ]
        with atomic_path(folder / f"{names[name]}.png") as temporary:
            contact_sheet(pictures, [name], CELL, 14).save(temporary, format="PNG")


def write_page(path: Path, shown: Sequence[Shown], read: Read, embed: int = EMBED) -> None:
    """Write a page of all masks to `path`, in their order.

    Up to `embed` pictures lie within the page; more pictures are files in a folder beside it.
    """
    entries = []
    beside = path.with_suffix("") / "photos"
    remove_leftovers(beside)
    for number, each in enumerate(progress_bar(iterable=shown, desc="page", unit="photo")):
        mask = read_mask(each.mask)
        picture = to_webp(outlined(read(each), mask, SIDE), SIDE)
        if len(shown) > embed:
            with atomic_path(beside / f"{number:06d}.webp") as temporary:
                temporary.write_bytes(picture)
            address = f"{path.stem}/photos/{number:06d}.webp"
        else:
            address = data_uri(picture)
        entries.append(
            {
                "source": each.source,
                "class": each.class_name,
                "state": each.state,
                "doubts": list(each.doubts),
                "share": round(float((mask > 0).mean()), 4),
                "image": address,
            }
        )
    page = filled("masks.html", f"Masks of {path.parent}", DATA=script_json(entries))
    write_text(path, page)
