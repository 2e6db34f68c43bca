"""The identity of a model in settings: its commit on the hub, or the content of its files."""

import contextlib
import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from semantic_aug import UserError
from semantic_aug.experiment.config import Identity
from semantic_aug.experiment.digests import file_digests


def identity_of(
    name: str, revision: str | None = None, variant: str | None = None, older: str | None = None
) -> Identity:
    """The identity of a model, or of an addition to it, in settings and records.

    A folder or file is identified by the content of the loaded files, wherever they lie; a hub
    model by its commit in the local cache.

    Args:
        older: the identity of a hub model in older versions (default: its name alone).

    Raises:
        UserError: a file cannot be read.
    """
    path = Path(name)
    if path.is_dir():
        return Identity(content_of(_files_that_count(path, variant)), older_content(path))
    if path.exists():
        return Identity(content_of({"": path}), older_content(path))
    commit = commit_of(name, revision)
    if commit is None:
        return Identity(older or name)
    return Identity(f"{name}@{commit}" + (f" {variant}" if variant else ""), older or name)


def commit_of(name: str, revision: str | None = None) -> str | None:
    """The commit of a hub id in the local cache; None for a folder, or without a copy."""
    from huggingface_hub import snapshot_download

    if Path(name).exists():
        return None
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True)).name
    except (OSError, ValueError):
        return None


def content_of(files: Mapping[str, Path]) -> str:
    """Sixteen hex digits of whole files and their names in the folder."""
    # In the hub's cache, the name of a large file is its sha256.
    real = {name: path.resolve() for name, path in files.items()}
    digests = {name: path.name for name, path in real.items() if _is_named_by_content(path)}
    others = [name for name in real if name not in digests]
    digests |= zip(others, file_digests(real[name] for name in others))
    for name, digest in digests.items():
        if digest.startswith("unreadable"):
            raise UserError(f"cannot read {files[name]}: {digest.partition(': ')[2]}")
    lines = "".join(f"{name}:{digest}\n" for name, digest in sorted(digests.items()))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()[:16]}"


def _is_named_by_content(path: Path) -> bool:
    in_cache = path.parent.name == "blobs" and path.parent.parent.name.startswith("models--")
    return in_cache and re.fullmatch("[0-9a-f]{64}", path.name) is not None


# A folder may hold the weights of a part in several formats or precisions.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".pb")


def _files_that_count(folder: Path, variant: str | None) -> dict[str, Path]:
    """All files of a model by their names in its folder, except weights that are not loaded.

    If there are ordinary weights, weights of a variant that was not asked for are not loaded. If
    there are safetensors of a variant, its other formats are not loaded.
    """
    found: list[Path] = []
    weights: dict[Path, list[Path]] = defaultdict(list)
    for file in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not hidden and file.is_file():
            (weights[file.parent] if file.suffix in _WEIGHTS else found).append(file)
    for files in weights.values():
        wanted = [file for file in files if _variant_of(file) in ("", variant)] or files
        safe = {_variant_of(file) for file in wanted if file.suffix == ".safetensors"}
        found += [
            file
            for file in wanted
            if file.suffix == ".safetensors" or _variant_of(file) not in safe
        ]
    return {file.relative_to(folder).as_posix(): file for file in found}


def _variant_of(file: Path) -> str:
    """`fp16` for `model.fp16.safetensors`, also if split into parts; "" for ordinary weights."""
    return ".".join(re.sub(r"-\d+-of-\d+", "", file.name).split(".")[1:-1])


def older_content(path: Path) -> str:
    """The `content_of` of older versions: both ends of every file, loaded or not."""
    digest, end = hashlib.sha256(), 1 << 20
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        inside = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in inside.parts):
            size = file.stat().st_size
            digest.update(f"{inside.as_posix()}:{size}\n".encode())
            with contextlib.suppress(OSError), open(file, "rb") as opened:
                digest.update(opened.read(end))
                opened.seek(max(size - end, min(size, end)))
                digest.update(opened.read())
    return f"sha256:{digest.hexdigest()[:16]}"
