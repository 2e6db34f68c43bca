"""DA-Fusion: edits guided by words learned from the photos (arXiv 2302.07944, section 4.1)."""

import copy

from semantic_aug import UserError
from semantic_aug.augmentations.sdedit import SDEditor, masks_of, pipeline_or_load
from semantic_aug.embeddings import class_tokens, read_embeddings, read_header, token_for
from semantic_aug.generative_augmentation import GenerativeAugmentation


class TextualInversion(GenerativeAugmentation):
    """Edits a photo towards a prompt that holds the learned word of its class.

    The text encoder and tokenizer are copied before the words go in, so that several of these,
    say of several trials, share one UNet and VAE and never each other's words.

    Args:
        embed_path: a merged file, or one of a single class.
        pipeline: a loaded diffusers pipeline; where it is missing, one is loaded from
            `model_path`.
        model_path: hub id or folder.
        options: those of `SDEditor`. `{name}` in a prompt stands for the learned word.

    Raises:
        UserError: the file is unreadable or was made for a model of another width, or the
            pipeline has two text encoders.
    """

    def __init__(self, embed_path, pipeline=None, *, model_path: str | None = None, **options):
        pipeline = pipeline_or_load(pipeline, model_path)
        if hasattr(pipeline, "text_encoder_2"):
            raise UserError("--aug textual-inversion: expected SD 1.x or 2.x, got an SDXL model")
        embeddings = read_embeddings(embed_path)
        self.tokens = set(embeddings)
        self.classes = class_tokens(read_header(embed_path), embeddings)
        width = pipeline.text_encoder.get_input_embeddings().weight.shape[1]
        check_width(embed_path, embeddings, width)
        own = {
            "tokenizer": copy.deepcopy(pipeline.tokenizer),
            "text_encoder": copy.deepcopy(pipeline.text_encoder),
        }
        self.edit = SDEditor(pipeline, aug="textual-inversion", components=own, **options)
        try:
            self.edit.pipeline.load_textual_inversion(
                [{token: rows} for token, rows in embeddings.items()]
            )
        except ValueError as error:  # a token that the model has already
            raise UserError(f"{embed_path}: {error}") from error
        self.needs_mask = self.edit.mask

    def token(self, class_name: str) -> str:
        """The learned word of a class."""
        token = token_for(class_name, self.classes, self.tokens)
        if token is None:
            raise UserError(f"class {class_name!r} has no learned word; run fine_tune.py for it")
        return token

    def augment(self, images, labels, metadata, generators):
        words = [self.token(meta["name"]) for meta in metadata]
        masks = masks_of(metadata) if self.needs_mask else None
        return self.edit(images, words, masks, generators)


def check_width(embed_path, embeddings: dict, width: int) -> None:
    """Raise UserError unless the rows fit a text encoder of this width."""
    found = next(iter(embeddings.values())).shape[1]
    if found != width:
        raise UserError(
            f"{embed_path} holds rows of width {found}, the model's text encoder has {width}: "
            "they were learned with another model"
        )
