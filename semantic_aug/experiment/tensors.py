"""Files of tensors: the same content gives the same bytes."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from semantic_aug.experiment.files import atomic_path


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, object]
) -> None:
    """Write a safetensors file of float32 with a header of texts, whole or not at all.

    The same tensors and header give the same bytes: a file's hash stands in the configuration of
    the images that were made with it.
    """
    plain = {
        name: each.detach().to("cpu", torch.float32).contiguous() for name, each in tensors.items()
    }
    texts = {key: str(value) for key, value in header.items()}
    texts = {key: texts[key].encode("utf-8", "backslashreplace").decode() for key in sorted(texts)}
    with atomic_path(path) as temporary:
        temporary.write_bytes(_ordered(save(plain, metadata=texts), texts))


def _ordered(data: bytes, texts: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with its texts in the order given.

    The library writes them in another order each time. A header is its length in 8 bytes, then
    JSON, padded so that the tensors after it are aligned.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end]) | {"__metadata__": texts}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]
