"""Token names, and the files that hold learned words: read, write, merge.

A file is safetensors: key = placeholder token, value = [num_vectors, dim] float32, and a header of
texts that says where the token comes from. Stock diffusers loads a file of one class with
`load_textual_inversion`, a merged one as `[{token: tensor} for token, tensor in ...]`.
"""

import json
import pickle
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from semantic_aug import UserError
from semantic_aug.experiment import atomic_path, unique_names

FORMAT_VERSION = "1"


def placeholder_token(class_name: str) -> str:
    """`<` + class name (Unicode NFC, lower case, blanks to `_`) + `>`.

    Lower case, because CLIP's tokenizer lower-cases prompts: stock diffusers would not find an
    upper-case token in them and silently drop its further vectors.
    """
    # Lower-casing can decompose a letter, so that NFC comes last.
    name = unicodedata.normalize("NFC", unicodedata.normalize("NFC", class_name).lower())
    return "<" + re.sub(r"[\s<>\x00-\x1f\x7f]", "_", name.strip()) + ">"


def placeholder_tokens(class_names: Iterable[str]) -> dict[str, str]:
    """The token of every class. Tokens that would meet get a suffix, in the order given."""

    def make_inner(name: str) -> str:
        return placeholder_token(name)[1:-1]

    inner = unique_names(class_names, make_inner, "-")
    return {name: f"<{text}>" for name, text in inner.items()}


def vector_tokens(token: str, num_vectors: int) -> list[str]:
    """The names under which stock diffusers keeps the vectors of one token."""
    return [token] + [f"{token}_{number}" for number in range(1, num_vectors)]


def expand_token(prompt: str, token: str, num_vectors: int) -> str:
    """`prompt` with a token replaced by all its vectors, as stock diffusers does it."""
    return prompt.replace(token, " ".join(vector_tokens(token, num_vectors)))


def write_embeddings(
    path: str | Path, embeddings: Mapping[str, torch.Tensor], header: Mapping[str, object]
) -> None:
    """Write `{token: [num_vectors, dim]}` with a header of texts, whole or not at all."""
    tensors = {
        token: rows.detach().to("cpu", torch.float32).contiguous()
        for token, rows in embeddings.items()
    }
    texts = {key: str(value) for key, value in header.items()} | {"format_version": FORMAT_VERSION}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=texts)


def read_header(path: str | Path) -> dict[str, str]:
    """The header of an embedding file; empty for the predecessors' `.bin` and `.pt` files."""
    if not _is_safetensors(path):
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def read_embeddings(path: str | Path) -> dict[str, torch.Tensor]:
    """`{token: [num_vectors, dim] float32}` from a safetensors file or an old dictionary.

    Old `.bin` and `.pt` dictionaries are read with `weights_only=True`: a pickle is never run.

    Raises:
        UserError: no such file, no tensors in it, or rows of different widths.
    """
    try:
        if _is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise _unreadable(path, error) from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds other things than tensors and is not loaded, because a pickle can run "
            "code; expected a dictionary {token: tensor}"
        ) from error
    is_dictionary = isinstance(found, dict) and all(
        isinstance(token, str) and isinstance(rows, torch.Tensor) and rows.ndim in (1, 2)
        for token, rows in found.items()
    )
    if not is_dictionary or not found:
        raise UserError(f"{path}: expected a dictionary {{token: [num_vectors, dim]}}")
    embeddings = {
        unicodedata.normalize("NFC", token.lower()): rows.reshape(-1, rows.shape[-1]).float()
        for token, rows in found.items()
    }
    widths = sorted({rows.shape[1] for rows in embeddings.values()})
    if len(widths) > 1:
        raise UserError(f"{path} mixes embeddings of widths {widths}: they fit no single model")
    broken = [token for token, rows in embeddings.items() if not rows.isfinite().all()]
    if broken:
        raise UserError(f"{path}: not finite: {', '.join(broken)}; train these classes again")
    return embeddings


def _is_safetensors(path: str | Path) -> bool:
    return Path(path).suffix == ".safetensors"


def _unreadable(path: str | Path, error: Exception) -> UserError:
    if not Path(path).is_file():
        return UserError(f"embedding file {path} does not exist")
    return UserError(f"cannot read embedding file {path}: {str(error).splitlines()[0]}")


def class_tokens(header: Mapping[str, str], tokens: Iterable[str]) -> dict[str, str]:
    """`{class name: token}` from a file's header, as far as it says so."""
    if "classes" in header:
        return {name: token for token, name in json.loads(header["classes"]).items()}
    if "class" in header:
        return {header["class"]: next(iter(tokens))}
    return {}


def token_for(class_name: str, known: Mapping[str, str], tokens: Iterable[str]) -> str | None:
    """The token of a class in a file: from its header, else by the naming rule; None without."""
    token = known.get(class_name, placeholder_token(class_name))
    return token if token in tokens else None


def merge_embeddings(paths: Iterable[Path], path: Path, header: Mapping[str, object]) -> list[str]:
    """Merge files of single classes into one, which keeps each token's class in its header.

    Returns:
        The merged tokens.

    Raises:
        UserError: a token stands in two files, or widths differ.
    """
    merged, classes, origin = {}, {}, {}
    for file in paths:
        embeddings = read_embeddings(file)
        for name, token in class_tokens(read_header(file), embeddings).items():
            classes[token] = name
        for token, rows in embeddings.items():
            if token in merged:
                raise UserError(f"token {token} stands in {origin[token]} and in {file}")
            merged[token], origin[token] = rows, file
    widths = {rows.shape[1] for rows in merged.values()}
    if len(widths) > 1:
        raise UserError(f"embeddings of widths {sorted(widths)} in {path.stem}: train them anew")
    texts = {**header, "classes": json.dumps(classes, ensure_ascii=False)}
    write_embeddings(path, merged, texts)
    return sorted(merged)
