"""The names of classes in prompts."""

import re
from collections.abc import Callable, Iterable

UPPER, LOWER = "A-ZÀ-ÖØ-Þ", "a-zß-öø-ÿ"
# BevelGear, bevelGear2: words of three letters at least, so that McLaren, iPod and FA stay whole.
HUMPS = re.compile(rf"(?:[{UPPER}][{LOWER}]{{2,}}|[{LOWER}]{{3,}})(?:[{UPPER}][{LOWER}]{{2,}})+\d*")
HUMP = re.compile(rf"[{UPPER}]?[{LOWER}]+|\d+")
# Between words of two letters at least, so that t-shirt and x-ray stay whole.
HYPHEN = re.compile(rf"(?<=[{LOWER}]{{2}})-(?=[{LOWER}]{{2}})")


def as_words(name: str) -> str:
    """The name of a folder as captions write it: "bevel gear" for bevel_gear and BevelGear.

    Underscores become blanks. A name without blanks is split before capitals within the name. A
    lower-case name without underscores is split at hyphens. Other names stay as they are:
    "ball bearing", "T-shirt", "Boeing 737-800", "Shih-Tzu".
    """
    words = older_words(name)
    if " " not in name:
        if "_" not in name and name == name.lower():
            words = HYPHEN.sub(" ", name)
        else:
            words = " ".join(map(_parted, words.split(" ")))
    return words if words.strip() else name


def _parted(word: str) -> str:
    return " ".join(HUMP.findall(word)).lower() if HUMPS.fullmatch(word) else word


def older_words(name: str) -> str:
    """The name in prompts of images that are older than `--name_style`."""
    return name.replace("_", " ")


STYLES: dict[str | None, Callable[[str], str]] = {"words": as_words, "raw": str, None: older_words}


def say_classes(names: Iterable[str], style: str | None) -> dict[str, str]:
    """The name of each class in prompts.

    Args:
        style: `words`; `raw` for the unchanged name; None for `older_words`.
    """
    return {name: STYLES[style](name) for name in names}
