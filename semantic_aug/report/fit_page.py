"""The page of `semantic-aug fit`: the choice and its reasons, in a file that needs no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from semantic_aug.experiment.files import write_text
from semantic_aug.report.page import data_uri, filled, script_json, to_webp

SHOWN = 160  # longer side of a photo in pixels


def write_fit_page(path: Path, title: str, content: Mapping, wrong: Sequence[Mapping]) -> None:
    """Write the page.

    Args:
        content: the content of fit.json, and `predict`, the next command.
        wrong: misclassified photos: `photo`, `class`, `right`, `taken_for`, and `image`.
    """
    small = [
        dict(row) | {"image": data_uri(to_webp(row["image"], SHOWN))} for row in wrong
    ]  # fmt: skip
    data = script_json(dict(content) | {"wrong": small})
    write_text(path, filled("fit_page.html", title, DATA=data))
