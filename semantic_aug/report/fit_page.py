"""The page of `semantic-aug fit`: what was chosen and why, in one file that needs no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from semantic_aug.experiment.files import write_text
from semantic_aug.report.page import data_uri, filled, script_json, to_webp

SHOWN = 160  # longer side of a photo in pixels


def write_fit_page(path: Path, title: str, content: Mapping, wrong: Sequence[Mapping]) -> None:
    """Write the page.

    Args:
        content: as fit.json has it, and `predict`, the command to go on with.
        wrong: photos that are told wrong: `photo`, `class`, `right`, `taken_for`, and `image`.
    """
    small = [
        dict(row) | {"image": data_uri(to_webp(row["image"], SHOWN))} for row in wrong
    ]  # fmt: skip
    data = script_json(dict(content) | {"wrong": small})
    write_text(path, filled("fit_page.html", title, DATA=data))
