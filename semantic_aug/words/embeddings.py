"""Token names, and the files that hold learned words: read, write, merge.

A file is safetensors: key = placeholder token, value = [num_vectors, dim] float32. Its header of
texts says where the token comes from. Stock diffusers loads the file of a single class with
`load_textual_inversion`, and a merged file as `[{token: tensor} for token, tensor in ...]`.

This module also reads files of other tools: dictionaries of diffusers, and the `.pt` files of
AUTOMATIC1111's web UI, the original textual inversion and kohya's scripts, also for SDXL.
"""

import hashlib
import json
import pickle
import re
import unicodedata
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from semantic_aug import UserError, first_line, stable_hash
from semantic_aug.experiment.names import UNENCODABLE, unique_names
from semantic_aug.experiment.tensors import write_tensors

FORMAT_VERSION = "1"
LFS_POINTER = b"version https://git-lfs"


def placeholder_token(class_name: str) -> str:
    """`<` + class name (Unicode NFC, lower case, blanks to `_`) + `>`.

    Lower case, because CLIP's tokenizer lower-cases prompts: stock diffusers would not find an
    upper-case token in them and silently drop its further vectors.
    """
    # Lower-casing can decompose a letter, so NFC comes last.
    name = unicodedata.normalize("NFC", unicodedata.normalize("NFC", class_name).lower())
    return "<" + re.sub(rf"[\s<>\x00-\x1f\x7f{UNENCODABLE}]", "_", name.strip()) + ">"


def placeholder_tokens(class_names: Iterable[str]) -> dict[str, str]:
    """The token of every class. Equal tokens get a suffix, in the order given."""
    inner = unique_names(class_names, lambda name: placeholder_token(name)[1:-1])
    return {name: f"<{text}>" for name, text in inner.items()}


def vector_tokens(token: str, num_vectors: int) -> list[str]:
    """The names under which stock diffusers keeps the vectors of one token."""
    return [token] + [f"{token}_{number}" for number in range(1, num_vectors)]


def expand_token(prompt: str, token: str, num_vectors: int) -> str:
    """`prompt` with a token replaced by all its vectors, as stock diffusers does it."""
    return prompt.replace(token, " ".join(vector_tokens(token, num_vectors)))


def embedding_files(path: str | Path, count: int = 2) -> list[Path]:
    """The files of a model's text encoders: `path`, and `path` with `_2` for the second encoder."""
    path = Path(path)
    return [path, path.with_name(f"{path.stem}_2{path.suffix}")][:count]


def write_embeddings(
    path: str | Path, embeddings: Mapping[str, torch.Tensor], header: Mapping[str, object]
) -> None:
    """Write `{token: [num_vectors, dim]}` with a header of texts, atomically."""
    write_tensors(path, embeddings, {**header, "format_version": FORMAT_VERSION})


def read_header(path: str | Path) -> dict[str, str]:
    """The header of an embedding file; empty for `.bin` and `.pt` files."""
    if not _is_safetensors(path):
        return {}
    _check_no_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def read_embeddings(path: str | Path) -> dict[str, torch.Tensor]:
    """`{token: [num_vectors, dim] float32}` from a file with words for one text encoder.

    Pickles are read with `weights_only=True`, which runs no code.

    Raises:
        UserError: the file is missing or has no tensors, rows have different widths or are not
            finite, two tokens differ only in letter case, or words are for two text encoders.
    """
    return read_words(path, 1)[0]


def read_words(path: str | Path, count: int | None = None) -> list[dict[str, torch.Tensor]]:
    """Words for each text encoder of a model, `{token: [num_vectors, dim] float32}`.

    The rows for SDXL's second text encoder are in a second file, or in the same file.

    Args:
        count: number of text encoders; None for as many as the file has words for.

    Raises:
        UserError: as `read_embeddings`; or the second file is missing or has other words than
            the first file.
    """
    words = [_checked(path, each) for each in _by_encoder(path, _content(path))]
    second = embedding_files(path)[1]
    if len(words) == 1 and (count == 2 or (count is None and second.exists())):
        words.append(read_embeddings(second))
        if words[1].keys() != words[0].keys():
            other = ", ".join(sorted(words[1].keys() ^ words[0].keys()))
            raise UserError(
                f"{second} and {path} differ in their words ({other}); run "
                "aggregate_embeddings.py again"
            )
    if count is not None and len(words) > count:
        raise UserError(
            f"{path} holds a word for the two text encoders of an SDXL; expected a word for a "
            "model with a single text encoder"
        )
    return words


def _content(path: str | Path):
    """The content of a file of any format."""
    _check_no_pointer(path)
    try:
        if _is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        # The original textual inversion keeps its rows in this class, which runs no code.
        allowed = torch.serialization.safe_globals([torch.nn.ParameterDict])
        with warnings.catch_warnings(), allowed:
            warnings.simplefilter("ignore")  # pickles of an unusual protocol
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds other things than tensors and is not loaded, because a pickle can run "
            "code; expected a dictionary {token: tensor}"
        ) from error
    except Exception as error:  # on broken files, the unpickler raises any kind of exception
        raise _unreadable(path, error) from error


def _by_encoder(path: str | Path, content) -> list:
    """The `{token: rows}` of a file, which any tool may have written, for each text encoder.

    If a file names no token, the file's name gives the token.

    Raises:
        UserError: the word is for another kind of model.
    """
    if not isinstance(content, dict):
        return [content]
    if "string_to_param" in content:  # AUTOMATIC1111, and the original textual inversion
        rows = content["string_to_param"]
        rows = getattr(rows, "_parameters", rows)
        if isinstance(rows, dict):
            name = content.get("name")
            own = placeholder_token(name if isinstance(name, str) and name else Path(path).stem)
            return [{own if token == "*" else token: each for token, each in rows.items()}]
    own = placeholder_token(Path(path).stem)
    if content.keys() == {"emb_params"}:  # kohya, and AUTOMATIC1111
        return [{own: content["emb_params"]}]
    if content.keys() == {"clip_l", "clip_g"}:  # kohya, for an SDXL
        return [{own: content[key]} for key in ("clip_l", "clip_g")]
    if not content.keys().isdisjoint({"clip_l", "clip_g"}):
        raise UserError(
            f"{path} holds a word for {', '.join(sorted(content))}, which is neither a Stable "
            "Diffusion nor an SDXL (clip_g, clip_l)"
        )
    return [content]


def _checked(path: str | Path, found) -> dict[str, torch.Tensor]:
    """A dictionary of words with valid tokens and rows."""
    is_dictionary = isinstance(found, dict) and all(
        isinstance(token, str) and isinstance(rows, torch.Tensor) and rows.ndim in (1, 2)
        and rows.is_floating_point() and rows.numel() > 0
        for token, rows in found.items()
    )  # fmt: skip
    if not is_dictionary or not found:
        raise UserError(f"{path}: expected a dictionary {{token: [num_vectors, dim]}}")
    embeddings = {
        unicodedata.normalize("NFC", token.lower()): rows.detach()
        .reshape(-1, rows.shape[-1])
        .float()
        for token, rows in found.items()
    }
    if len(embeddings) < len(found):
        raise UserError(f"{path}: tokens differ only in letter case, which prompts do not keep")
    widths = sorted({rows.shape[1] for rows in embeddings.values()})
    if len(widths) > 1:
        raise UserError(f"{path} mixes embeddings of widths {widths}: they fit no single model")
    broken = [token for token, rows in embeddings.items() if not rows.isfinite().all()]
    if broken:
        raise UserError(f"{path}: not finite: {', '.join(broken)}; train these classes again")
    return embeddings


def _is_safetensors(path: str | Path) -> bool:
    return Path(path).suffix == ".safetensors"


def _check_no_pointer(path: str | Path) -> None:
    """Raise UserError for a Git LFS pointer, whose large file is not fetched."""
    if Path(path).is_file():
        with open(path, "rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(
                    f"{path} is a Git LFS pointer, not the file itself: fetch it with git lfs pull"
                )


def _unreadable(path: str | Path, error: Exception) -> UserError:
    if not Path(path).is_file():
        return UserError(f"embedding file {path} does not exist")
    return UserError(f"cannot read embedding file {path}: {first_line(error)}")


def class_tokens(header: Mapping[str, str], tokens: Iterable[str]) -> dict[str, str]:
    """`{class name: token}`, as far as a file's header names classes.

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


def token_for(class_name: str, known: Mapping[str, str], tokens: Collection[str]) -> str | None:
    """The token of a class: from the file's header, else by the naming rule, else None."""
    token = known.get(class_name)
    if token is None and placeholder_token(class_name) not in known.values():
        token = placeholder_token(class_name)
    return token if token in tokens else None


def rows_digest(*rows: torch.Tensor) -> str:
    """sha256 of a word's rows for all text encoders."""
    return hashlib.sha256(b"".join(r.contiguous().numpy().tobytes() for r in rows)).hexdigest()


def words_digest(rows: Mapping[str, Sequence[torch.Tensor]]) -> str:
    """A digest of several classes' words in their order, 16 hex digits."""
    return f"{stable_hash('words', *rows, *(rows_digest(*each) for each in rows.values())):016x}"


def check_widths(path, words: Iterable[Mapping], dims: Iterable[int]) -> None:
    """Raise UserError unless the rows fit the widths of a model's text encoders."""
    found = [next(iter(of_encoder.values())).shape[1] for of_encoder in words]
    if found != list(dims):
        raise UserError(
            f"{path} holds rows of width {' and '.join(map(str, found))}, the model's text encoder "
            f"has {' and '.join(map(str, dims))}: they were learned with another model"
        )


@dataclass(frozen=True, eq=False)
class LearnedWords:
    """The words of a file.

    Attributes:
        path: of the file; a second file may lie beside it.
        rows: for each text encoder, `{token: [num_vectors, dim]}`.
        classes: `{token: class name}`, as far as the file names classes.
    """

    path: Path
    rows: list[dict[str, torch.Tensor]]
    classes: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> "LearnedWords":
        """The words of a file and of the second file beside it."""
        rows = read_words(path)
        known = class_tokens(read_header(path), rows[0])
        return cls(path, rows, {token: name for name, token in known.items()})

    def only_rows(self) -> list[torch.Tensor]:
        """For each text encoder, the rows of the file's first word."""
        return [next(iter(of_encoder.values())) for of_encoder in self.rows]

    def as_word_of(self, class_name: str, token: str) -> "LearnedWords":
        """The file's only word, or its word for a class, under the class's token.

        Raises:
            UserError: the file has several words, and does not say which word is for this class.
        """
        own: str | None
        own, *others = self.rows[0]
        if others:
            known = {name: each for each, name in self.classes.items()}
            own = token_for(class_name, known, self.rows[0])
        if own is None:
            raise UserError(
                f"{self.path} has several words ({', '.join(self.rows[0])}) and does not say which "
                f"word is for {class_name!r}; expected a file with one word"
            )
        rows = [{token: of_encoder[own]} for of_encoder in self.rows]
        return LearnedWords(self.path, rows, {token: class_name})


def merge_embeddings(
    words: Sequence[LearnedWords], path: Path, header: Mapping[str, object]
) -> list[str]:
    """Merge words into one file, which keeps each token's class in its header.

    For two text encoders, a second file holds the rows for the second encoder.

    Returns:
        The merged tokens.

    Raises:
        UserError: two files have the same token, widths differ, or words are for different
            numbers of text encoders.
    """
    counts = {len(each.rows) for each in words}
    if len(counts) > 1:
        alone = next(each.path for each in words if len(each.rows) == 1)
        raise UserError(
            f"{embedding_files(alone)[1]} is missing, but other classes have such a file; train "
            "this class again, or remove its folder"
        )
    classes = {token: name for each in words for token, name in each.classes.items()}
    texts = {**header, "classes": json.dumps(classes, ensure_ascii=False)}
    merged: list[dict[str, torch.Tensor]] = []
    for number in range(max(counts)):
        merged.append({})
        origin: dict[str, Path] = {}
        for each in words:
            for token, rows in each.rows[number].items():
                if token in origin:
                    raise UserError(f"token {token} is in {origin[token]} and in {each.path}")
                merged[-1][token], origin[token] = rows, each.path
        by_width = {rows.shape[1]: origin[token] for token, rows in merged[-1].items()}
        if len(by_width) > 1:
            found = ", ".join(f"{width} in {file}" for width, file in by_width.items())
            raise UserError(
                f"embeddings of different widths: {found}; they were learned with different "
                "models: train one of them again, or remove its folder"
            )
    # The first file is written last: if it exists, the second file does too.
    for file, embeddings in reversed(list(zip(embedding_files(path), merged))):
        write_embeddings(file, embeddings, texts)
    return sorted(merged[0])
