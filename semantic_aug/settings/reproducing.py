"""The settings of generate_augmentations.py --reproduce."""

from semantic_aug.settings import setting, settings
from semantic_aug.settings.common import BEST_DEVICE


@settings()
class Reproduction:
    """Paths that have changed since an image was made."""

    data_dir: str | None = setting(None, "present folder of the photos (default: as recorded)")
    mask_dir: str | None = setting(None, "present folder of the masks (default: as recorded)")
    model: str | None = setting(
        None,
        "present folder or hub id of the model (default: as recorded)",
        flags=("--model_path",),
    )
    lora: str | None = setting(None, "present path of the LoRA (default: as recorded)")
    unet_path: str | None = setting(None, "present path of the UNet (default: as recorded)")
    controlnet: str | None = setting(
        None, "present folder or hub id of the ControlNet (default: as recorded)"
    )
    device: str | None = setting(None, BEST_DEVICE)
