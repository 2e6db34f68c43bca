"""The settings of generate_augmentations.py --reproduce."""

from semantic_aug.settings import setting, settings
from semantic_aug.settings.common import BEST_DEVICE


@settings()
class Reproduction:
    """What lies elsewhere now than when an image was made."""

    data_dir: str | None = setting(None, "where the photos are now (default: where they were)")
    mask_dir: str | None = setting(None, "where the masks are now (default: where they were)")
    model: str | None = setting(
        None, "where the model is now (default: where it was)", flags=("--model_path",)
    )
    lora: str | None = setting(None, "where the LoRA is now (default: where it was)")
    unet_path: str | None = setting(None, "where the UNet is now (default: where it was)")
    controlnet: str | None = setting(None, "where the ControlNet is now (default: where it was)")
    device: str | None = setting(None, BEST_DEVICE)
