"""The rows of a word: their initial values, and their place in a frozen text encoder."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from semantic_aug import UserError
from semantic_aug.diffusion.loading import text_encoders
from semantic_aug.words.embeddings import vector_tokens


def initializer_id(tokenizer, initializer_token: str | None, class_name: str) -> int:
    """The token id whose row initialises a word.

    Args:
        initializer_token: a word that is a single token. Default: the last word of the class
            name that is a single token, else the class name's last token.

    Raises:
        UserError: the initializer is several tokens.
    """

    def ids_of(word: str) -> list[int]:
        return tokenizer(word, add_special_tokens=False).input_ids

    if initializer_token is not None:
        ids = ids_of(initializer_token)
        if len(ids) != 1:
            raise UserError(
                f"--initializer_token: {initializer_token!r} is {len(ids)} tokens of this model, "
                "expected a word that is a single token"
            )
        return ids[0]
    words = class_name.replace("_", " ").replace("-", " ").split()
    for word in reversed(words):
        ids = ids_of(word)
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return ids[0]
    ids = ids_of(class_name) or ids_of("object")
    return ids[-1]


def initial_rows(start: torch.Tensor, num_vectors: int, generator: torch.Generator) -> torch.Tensor:
    """Initial rows: `start` [dim], and for further rows `start` plus small seeded noise.

    Equal rows would get nearly equal gradients, and become different only slowly.

    Returns:
        [num_vectors, dim] float32.
    """
    rows = start.detach().float().cpu().repeat(num_vectors, 1)
    noise = torch.randn(rows.shape, generator=generator) * (0.1 * rows.std())
    noise[0] = 0
    return rows + noise


def add_tokens(tokenizer, token: str, num_vectors: int) -> list[int]:
    """Add a word's vectors to a tokenizer, under the names that stock diffusers gives them.

    Returns:
        The vectors' ids, which are consecutive.

    Raises:
        UserError: the tokenizer already has one of these tokens.
    """
    names = vector_tokens(token, num_vectors)
    vocabulary = tokenizer.get_vocab()
    known = [name for name in names if name in vocabulary]
    if known:
        raise UserError(f"token {known[0]} exists already in this model; choose another name")
    tokenizer.add_tokens(names)
    return tokenizer.convert_tokens_to_ids(names)


class _RowsEmbedding(nn.Module):
    """A frozen embedding table, followed by rows of new words."""

    def __init__(self, table: nn.Embedding, rows: torch.Tensor, first_id: int):
        super().__init__()
        self.table, self.rows, self.first_id = table, rows, first_id

    @property
    def weight(self) -> torch.Tensor:
        return self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        is_new = (ids >= self.first_id) & (ids < self.first_id + len(self.rows))
        known = self.table(ids.masked_fill(is_new, 0))
        new = self.rows[(ids - self.first_id).clamp(0, len(self.rows) - 1)]
        return torch.where(is_new.unsqueeze(-1), new.to(known.dtype), known)


@contextlib.contextmanager
def rows_in_place(text_encoder, rows: torch.Tensor, first_id: int) -> Iterator[None]:
    """Within the block, ids from `first_id` on mean `rows` [R, dim]; the table stays unchanged."""
    table = text_encoder.get_input_embeddings()
    text_encoder.set_input_embeddings(_RowsEmbedding(table, rows, first_id))
    try:
        yield
    finally:
        text_encoder.set_input_embeddings(table)


@contextlib.contextmanager
def words_in_place(pipeline, rows: Sequence[Sequence[torch.Tensor]], first_ids: Sequence[int]):
    """Within the block, the ids from `first_ids` on mean the words' rows, word by word.

    Args:
        rows: for each word and each text encoder, [num_vectors, dim].
    """
    with contextlib.ExitStack() as stack:
        for (_, encoder), of_encoder, first_id in zip(
            text_encoders(pipeline), zip(*rows), first_ids
        ):
            stacked = torch.cat([each.to(encoder.device) for each in of_encoder])
            stack.enter_context(rows_in_place(encoder, stacked, first_id))
        yield
