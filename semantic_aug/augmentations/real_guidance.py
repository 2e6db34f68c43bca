"""Real guidance: edits guided by the class's own name (arXiv 2210.07574; DA-Fusion's baseline)."""

from semantic_aug.augmentations.sdedit import SDEditor, masks_of, pipeline_or_load, words_of
from semantic_aug.generative_augmentation import GenerativeAugmentation


class RealGuidance(GenerativeAugmentation):
    """Edits a photo towards a prompt that names its class.

    Args:
        pipeline: a loaded diffusers pipeline (default: loaded from `model_path`).
        model_path: hub id or folder.
        options: of `SDEditor`: prompt, strength, guidance_scale, mask and so on.
    """

    def __init__(self, pipeline=None, *, model_path: str | None = None, **options):
        self.edit = SDEditor(pipeline_or_load(pipeline, model_path), aug="real-guidance", **options)
        self.needs_mask = self.edit.mask

    def augment(self, images, labels, metadata, generators):
        words = words_of(metadata)
        masks = masks_of(metadata) if self.needs_mask else None
        return self.edit(images, words, masks, generators)
