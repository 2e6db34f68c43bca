"""Token names, and the files that hold learned words: read, write, merge.

A file is safetensors: key = placeholder token, value = [num_vectors, dim] float32, and a header of
texts that says where the token comes from. Stock diffusers loads a file of one class with
`load_textual_inversion`, a merged one as `[{token: tensor} for token, tensor in ...]`.
"""

import hashlib
import json
import pickle
import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from semantic_aug import UserError
from semantic_aug.experiment import UNENCODABLE, atomic_path, unique_names

FORMAT_VERSION = "1"


def placeholder_token(class_name: str) -> str:
    """`<` + class name (Unicode NFC, lower case, blanks to `_`) + `>`.

    Lower case, because CLIP's tokenizer lower-cases prompts: stock diffusers would not find an
    upper-case token in them and silently drop its further vectors.
    """
    # Lower-casing can decompose a letter, so that NFC comes last.
    name = unicodedata.normalize("NFC", unicodedata.normalize("NFC", class_name).lower())
    return "<" + re.sub(rf"[\s<>\x00-\x1f\x7f{UNENCODABLE}]", "_", name.strip()) + ">"


def placeholder_tokens(class_names: Iterable[str]) -> dict[str, str]:
    """The token of every class. Tokens that would meet get a suffix, in the order given."""
    inner = unique_names(class_names, lambda name: placeholder_token(name)[1:-1])
    return {name: f"<{text}>" for name, text in inner.items()}


def vector_tokens(token: str, num_vectors: int) -> list[str]:
    """The names under which stock diffusers keeps the vectors of one token."""
    return [token] + [f"{token}_{number}" for number in range(1, num_vectors)]


def expand_token(prompt: str, token: str, num_vectors: int) -> str:
    """`prompt` with a token replaced by all its vectors, as stock diffusers does it."""
    return prompt.replace(token, " ".join(vector_tokens(token, num_vectors)))


def embedding_files(path: str | Path, count: int = 2) -> list[Path]:
    """The files of a model's text encoders: `path`, and for a second one `_2` before its ending."""
    path = Path(path)
    return [path, path.with_name(f"{path.stem}_2{path.suffix}")][:count]


def write_embeddings(
    path: str | Path, embeddings: Mapping[str, torch.Tensor], header: Mapping[str, object]
) -> None:
    """Write `{token: [num_vectors, dim]}` with a header of texts, whole or not at all.

    The same embeddings and header give the same bytes: a file's hash stands in the configuration
    of the images that were made with it.
    """
    tensors = {
        token: rows.detach().to("cpu", torch.float32).contiguous()
        for token, rows in embeddings.items()
    }
    texts = {key: str(value) for key, value in header.items()} | {"format_version": FORMAT_VERSION}
    texts = {key: texts[key].encode("utf-8", "backslashreplace").decode() for key in sorted(texts)}
    with atomic_path(path) as temporary:
        temporary.write_bytes(_ordered(save(tensors, metadata=texts), texts))


def _ordered(data: bytes, texts: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with its texts in the order given.

    The library writes them in another order each time. A header is its length in 8 bytes, then
    JSON, padded so that the tensors behind it are aligned.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end]) | {"__metadata__": texts}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


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
        UserError: no such file, no tensors in it, rows of different widths or not finite, or two
            tokens that differ in letter case alone.
    """
    try:
        if _is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pickles of an unusual protocol
                found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds other things than tensors and is not loaded, because a pickle can run "
            "code; expected a dictionary {token: tensor}"
        ) from error
    except Exception as error:  # on broken files, the unpickler raises all that Python has
        raise _unreadable(path, error) from error
    is_dictionary = isinstance(found, dict) and all(
        isinstance(token, str) and isinstance(rows, torch.Tensor) and rows.ndim in (1, 2)
        and rows.is_floating_point() and rows.numel() > 0
        for token, rows in found.items()
    )  # fmt: skip
    if not is_dictionary or not found:
        raise UserError(f"{path}: expected a dictionary {{token: [num_vectors, dim]}}")
    embeddings = {
        unicodedata.normalize("NFC", token.lower()): rows.reshape(-1, rows.shape[-1]).float()
        for token, rows in found.items()
    }
    if len(embeddings) < len(found):
        raise UserError(f"{path}: tokens differ in letter case alone, which no prompt can tell")
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
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"cannot read embedding file {path}: {reason}")


def class_tokens(header: Mapping[str, str], tokens: Iterable[str]) -> dict[str, str]:
    """`{class name: token}` from a file's header, as far as it says so.

    Raises:
        UserError: the header is damaged.
    """
    if "classes" in header:
        try:
            return {name: token for token, name in json.loads(header["classes"]).items()}
        except (ValueError, AttributeError, TypeError):
            raise UserError(
                f"the header of an embedding file is damaged: classes={header['classes']!r:.60}, "
                "expected a JSON object {token: class}; make the file again"
            ) from None
    if "class" in header:
        return {header["class"]: next(iter(tokens))}
    return {}


def token_for(class_name: str, known: Mapping[str, str], tokens: Iterable[str]) -> str | None:
    """The token of a class in a file: from its header, else by the naming rule; None without."""
    token = known.get(class_name)
    if token is None and placeholder_token(class_name) not in known.values():
        token = placeholder_token(class_name)
    return token if token in tokens else None


def rows_digest(*rows: torch.Tensor) -> str:
    """sha256 of a word's rows, for each text encoder: the same wherever its file lies."""
    return hashlib.sha256(b"".join(r.contiguous().numpy().tobytes() for r in rows)).hexdigest()


def read_words(path: str | Path, count: int = 1) -> list[dict[str, torch.Tensor]]:
    """What `read_embeddings` gives for each of a model's `count` text encoders.

    Raises:
        UserError: also where the second file is missing, or has other words than the first.
    """
    words = [read_embeddings(file) for file in embedding_files(path, count)]
    for second in words[1:]:
        if second.keys() != words[0].keys():
            other = ", ".join(sorted(second.keys() ^ words[0].keys()))
            raise UserError(
                f"{embedding_files(path)[1]} and {path} differ in their words ({other}); run "
                "aggregate_embeddings.py again"
            )
    return words


def check_widths(path, words: Iterable[Mapping], dims: Iterable[int]) -> None:
    """Raise UserError unless the rows fit the widths of a model's text encoders."""
    found = [next(iter(of_encoder.values())).shape[1] for of_encoder in words]
    if found != list(dims):
        raise UserError(
            f"{path} holds rows of width {' and '.join(map(str, found))}, the model's text encoder "
            f"has {' and '.join(map(str, dims))}: they were learned with another model"
        )


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
    by_width = {rows.shape[1]: origin[token] for token, rows in merged.items()}
    if len(by_width) > 1:
        found = ", ".join(f"{width} in {file}" for width, file in by_width.items())
        raise UserError(
            f"embeddings of different widths: {found}; they were learned with different models: "
            "train one of them again, or remove its folder"
        )
    texts = {**header, "classes": json.dumps(classes, ensure_ascii=False)}
    write_embeddings(path, merged, texts)
    return sorted(merged)
