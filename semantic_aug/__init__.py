"""Few-shot image classifiers improved by synthetic images (DA-Fusion, arXiv 2302.07944)."""

import hashlib

__version__ = "0.1.0"


class UserError(ValueError):
    """Input that a person can mend: one line with what was got, what was expected, how to fix it.

    The commands print the line on stderr and end with exit status 2, without a traceback.
    """


def counted(number: int, noun: str) -> str:
    """`1 photo`, `2 photos`, `3 classes`: a number with a noun that it counts.

    Args:
        noun: of one; of several it ends in `s`, or in `es` where it ends in `s` already.
    """
    if number != 1:
        noun += "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}"


def stable_hash(*parts) -> int:
    """A 63-bit number that depends on the text of `parts` alone.

    The same in every process, on every machine and in every Python, unlike `hash`. All random
    streams and all orders of this project start from it, never from global state.
    """
    # A separator that no text holds keeps ("ab", "c") and ("a", "bc") apart.
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) >> 1
