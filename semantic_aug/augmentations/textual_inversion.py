"""DA-Fusion: edits guided by words learned from the photos (arXiv 2302.07944, section 4.1)."""

import copy
from typing import Any

from semantic_aug import UserError
from semantic_aug.augmentations.sdedit import SDEditor, masks_of, pipeline_or_load, words_of
from semantic_aug.diffusion.loading import text_encoders
from semantic_aug.generative_augmentation import GenerativeAugmentation
from semantic_aug.words.embeddings import (
    check_widths,
    class_tokens,
    read_header,
    read_words,
    token_for,
)


class TextualInversion(GenerativeAugmentation):
    """Edits a photo towards a prompt that holds the learned word of its class.

    Text encoders and tokenizers are copied before the words are added. So several objects, such as
    for several trials, share a UNet and a VAE, but not their words.

    Args:
        embed_path: a merged file, or a class's file; the second file of an SDXL lies beside it.
        pipeline: a loaded diffusers pipeline (default: loaded from `model_path`). Offload it to the
            CPU's memory only afterwards.
        model_path: hub id or folder.
        options: of `SDEditor`. `{name}` in a prompt stands for the learned word.

    Raises:
        UserError: the file is unreadable or was made for a model of another width.
    """

    def __init__(self, embed_path, pipeline=None, *, model_path: str | None = None, **options):
        pipeline = pipeline_or_load(pipeline, model_path)
        pairs = text_encoders(pipeline)
        if any(hasattr(part, "_hf_hook") for part in pipeline.components.values()):
            raise UserError(
                "the pipeline is offloaded, but learned words must be added before: call its "
                "remove_all_hooks() first, and diffusion.offload() afterwards"
            )
        words = read_words(embed_path, len(pairs))
        dims = [encoder.get_input_embeddings().weight.shape[1] for _, encoder in pairs]
        check_widths(embed_path, words, dims)
        self.tokens = set(words[0])
        self.classes = class_tokens(read_header(embed_path), words[0])
        pairs = [tuple(map(copy.deepcopy, pair)) for pair in pairs]
        own: dict[str, Any] = {}
        for suffix, (tokenizer, encoder) in zip(("", "_2"), pairs):
            own |= {f"tokenizer{suffix}": tokenizer, f"text_encoder{suffix}": encoder}
        self.edit = SDEditor(pipeline, aug="textual-inversion", components=own, **options)
        for (tokenizer, encoder), embeddings in zip(pairs, words):
            try:
                self.edit.pipeline.load_textual_inversion(
                    [{token: rows} for token, rows in embeddings.items()],
                    tokenizer=tokenizer,
                    text_encoder=encoder,
                )
            except ValueError as error:  # the model has this token already
                raise UserError(f"{embed_path}: {error}") from error
        self.needs_mask = self.edit.mask

    def token(self, class_name: str) -> str:
        """The learned word of a class."""
        token = token_for(class_name, self.classes, self.tokens)
        if token is None:
            raise UserError(f"class {class_name!r} has no learned word; run fine_tune.py for it")
        return token

    def augment(self, images, labels, metadata, generators):
        tokens = [self.token(meta["name"]) for meta in metadata]
        words = words_of(metadata, name=tokens, token=tokens)
        masks = masks_of(metadata) if self.needs_mask else None
        return self.edit(images, words, masks, generators)
