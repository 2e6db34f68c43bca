"""Files that begin with the sha256 of their content, which shows damage. For checkpoints."""

import hashlib
from pathlib import Path

from semantic_aug.experiment.files import atomic_path

_DIGEST = 32  # bytes


def write_checked(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(hashlib.sha256(content).digest() + content)


def read_checked(path: Path) -> bytes:
    """The content of a file of `write_checked`.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged, or no file of `write_checked`.
    """
    data = path.read_bytes()
    if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
        raise ValueError("its checksum is wrong")
    return data[_DIGEST:]
