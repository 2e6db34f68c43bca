"""Masks from a semantic-segmentation model: its class 0 is ground, and all others are object."""

import functools
from collections.abc import Sequence

import torch
from PIL import Image

from semantic_aug import UserError, counted
from semantic_aug.diffusion.identity import identity_of
from semantic_aug.masking.loading import load_model, load_processor, read_config
from semantic_aug.masking.masker import Found, Masker
from semantic_aug.settings.masking import Masking

FLAG = "--masker"


def make(settings: Masking) -> Masker:
    """See `make_masker`."""
    import transformers

    name = settings.masker
    config = read_config(FLAG, name)
    if type(config) not in transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        raise UserError(
            f"{FLAG}: {name} is a {config.model_type}, expected a semantic-segmentation model of "
            "transformers such as a SegFormer, or the word named or salient"
        )
    if config.num_labels < 2:
        raise UserError(
            f"{FLAG}: {name} has {counted(config.num_labels, 'class')}, expected ground and others"
        )
    if settings.masker_models is not None:
        raise UserError(f"--masker_models goes with named and salient; {FLAG} {name} is a model")
    load_processor(FLAG, transformers.AutoImageProcessor, name)
    return Masker({"model": identity_of(name)}, lambda words: None, functools.partial(load, name))


def load(name: str, device: torch.device):
    """A function from photos to their pixels that are not ground; it ignores words."""
    import transformers

    model = load_model(FLAG, transformers.AutoModelForSemanticSegmentation, name, device)
    processor = load_processor(FLAG, transformers.AutoImageProcessor, name)

    def find(images: Sequence[Image.Image], words: Sequence[str]) -> list[Found]:
        # With a centre crop, the sides of a photo would have no mask.
        inputs = processor(list(images), return_tensors="pt", do_center_crop=False)
        with torch.no_grad():
            logits = model(pixel_values=inputs["pixel_values"].to(device)).logits
        shares = 1 - logits.float().softmax(dim=1)[:, 0]
        return [Found(each) for each in shares.cpu().numpy()]

    return find
