"""Models that benchmarks use by name."""

import json
from pathlib import Path

from common import ROOT


def model_folder(name: str, work: str, device: str = "cpu") -> str:
    """The folder of a model; `sd14` is made in `work`, with random weights of the real shape.

    On a GPU the weights are drawn in seconds, and kept in half precision.
    """
    if name != "sd14":
        return name
    import torch

    folder = Path(work) / "sd14"
    if not (folder / "model_index.json").exists():
        with torch.device(device):
            pipeline = build_sd14()
        if device != "cpu":
            pipeline.to(torch.float16)
        pipeline.save_pretrained(folder)
    return str(folder)


def backbone_folder(name: str, work: str) -> str:
    """The folder of a backbone; `resnet50` is made in `work`, with random weights of its shape."""
    if name != "resnet50":
        return name
    from transformers import ResNetConfig, ResNetModel

    folder = Path(work) / "resnet50"
    if not folder.exists():
        ResNetModel(ResNetConfig()).save_pretrained(folder)  # whose defaults are ResNet-50
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        config = {"image_mean": mean, "image_std": std, "size": {"shortest_edge": 224}}
        (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return str(folder)


def build_sd14():
    """Stable Diffusion 1.4 by its published configuration: 860, 84 and 123 million parameters."""
    import torch
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            projection_dim=768,
        )
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(ROOT / "sample/model", subfolder="tokenizer"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
