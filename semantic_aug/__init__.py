"""Few-shot image classifiers improved by synthetic images (DA-Fusion, arXiv 2302.07944)."""

import hashlib
import importlib

__version__ = "1.0.0"


# The stages as functions, whose keywords are the flags of their commands; loaded on demand.
_FACE = {
    "Run": "semantic_aug.settings.common",
    "check": "semantic_aug.stages.check",
    "fine_tune": "semantic_aug.stages.fine_tune",
    "aggregate": "semantic_aug.stages.aggregate",
    "masks": "semantic_aug.stages.masks",
    "generate": "semantic_aug.stages.generate",
    "preview": "semantic_aug.stages.preview",
    "reproduce": "semantic_aug.stages.reproduce",
    "train_classifier": "semantic_aug.stages.train_classifier",
    "fit": "semantic_aug.stages.fit",
    "predict": "semantic_aug.stages.predict",
    "load_classifier": "semantic_aug.stages.predict",
    "export": "semantic_aug.stages.export",
}


def __getattr__(name: str):
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_FACE])


class UserError(ValueError):
    """Wrong input: a line with the given value, the expected value and the remedy.

    Commands print the line on stderr and end with exit status 2, without a traceback.
    """


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 photo`, `2 photos`, `3 classes`.

    Args:
        noun: in the singular; the plural ends in `s`, or in `es` after an `s`.
    """
    if number != 1:
        noun += "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}"


def first_line(error: BaseException) -> str:
    """The first line of a library's error; the error's class if it has no text."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def stable_hash(*parts) -> int:
    """A 63-bit number that depends on the text of `parts` alone.

    Unlike `hash`, it is the same in every process, on every machine and in every Python. All random
    streams and all orders of this project start from it, never from global state.
    """
    # A separator that no text holds keeps ("ab", "c") and ("a", "bc") apart.
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) >> 1
