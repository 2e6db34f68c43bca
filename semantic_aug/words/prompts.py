"""Sentences with a new word: their tokens, and their encoding for the UNet."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from semantic_aug import UserError
from semantic_aug.diffusion.loading import text_encoders
from semantic_aug.words.embeddings import expand_token
from semantic_aug.words.rows import add_tokens


def check_num_vectors(tokenizer, num_vectors: int, templates: Sequence[str]) -> None:
    """Raise UserError unless `num_vectors` vectors of a word fit in every template."""
    room = min(
        tokenizer.model_max_length - len(tokenizer(template.replace("{}", "")).input_ids)
        for template in templates
    )
    if room < 1:
        longest = max(templates, key=lambda text: len(tokenizer(text).input_ids))
        raise UserError(f"--templates: no room for a word in {longest[:60]!r}...: shorten it")
    if not 1 <= num_vectors <= room:
        raise UserError(
            f"--num_vectors: got {num_vectors}, expected 1 to {room}: a prompt of this model "
            f"holds {tokenizer.model_max_length} tokens, the template included"
        )


def template_ids(tokenizer, templates: Sequence[str], token: str, num_vectors: int) -> torch.Tensor:
    """All templates with the word inserted, as [len(templates), 77] token ids."""
    prompts = [expand_token(t.replace("{}", token), token, num_vectors) for t in templates]
    return tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


@dataclass(frozen=True)
class Prompts:
    """The templates with a new word, tokenised once for all words.

    Attributes:
        ids: for each text encoder, [templates, 77] token ids.
        first_ids: for each text encoder, the id of the word's first vector.
    """

    ids: list[torch.Tensor]
    first_ids: list[int]

    def of_words(self, num_vectors: int, templates: Sequence[int]) -> list[torch.Tensor]:
        """Template `templates[n]` with word n, whose ids follow the ids of word n - 1.

        Returns:
            For each text encoder, [words, 77] token ids.
        """
        shift = torch.arange(len(templates)).unsqueeze(1) * num_vectors
        drawn = [ids[list(templates)] for ids in self.ids]
        return [ids + (ids >= first) * shift for ids, first in zip(drawn, self.first_ids)]


def tokenise(pipeline, templates: Sequence[str], token: str, num_vectors: int) -> Prompts:
    """Add a word to the pipeline's tokenizers, and return the templates tokenised with the word."""
    tokenizers = [tokenizer for tokenizer, _ in text_encoders(pipeline)]
    first_ids = [add_tokens(tokenizer, token, num_vectors)[0] for tokenizer in tokenizers]
    ids = [template_ids(each, templates, token, num_vectors) for each in tokenizers]
    return Prompts(ids, first_ids)


def encode_prompts(pipeline, ids: Sequence[torch.Tensor], latent_size: Sequence[int]):
    """The encoded prompts: (hidden states [B, 77, dim], other conditions or None).

    SDXL concatenates the penultimate states of two encoders. It also takes the second encoder's
    pooled state and the image's size (arXiv 2307.01952, sections 2.1 and 2.2). As in stock
    diffusers, transformers pools at the end of the text. If the configuration has an
    `eos_token_id` of 2, it pools at the highest id, which is a new word's last vector.
    """
    encoders = [encoder for _, encoder in text_encoders(pipeline)]
    if len(encoders) == 1:
        return encoders[0](ids[0])[0], None
    states = [encoder(each, output_hidden_states=True) for encoder, each in zip(encoders, ids)]
    hidden = torch.cat([state.hidden_states[-2] for state in states], dim=-1)
    height, width = (int(side) * pipeline.vae_scale_factor for side in latent_size)
    sizes = torch.tensor([height, width, 0, 0, height, width], dtype=hidden.dtype)
    sizes = sizes.to(hidden.device).repeat(len(hidden), 1)
    return hidden, {"text_embeds": states[1][0].to(hidden.dtype), "time_ids": sizes}
