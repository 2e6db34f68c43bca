"""Train sample/controlnet: edges of a photo (Canny) keep its shapes while the prompt changes them.

    python sample/build/train_controlnet.py --cache CACHE_DIR --model sample/model

A ControlNet (arXiv 2302.05543) beside the frozen UNet of `train_diffusion.py`, on the same renders
of base classes: it sees the edges of the render that is to be drawn. In half of the steps edges far
from the middle are left out, so that it can also be asked to keep the part alone. Resumes from
CACHE_DIR/controlnet/checkpoint.pt.
"""

import argparse
import json
import sys
from pathlib import Path

import make_data
import numpy as np
import parts
import torch
import training
from diffusers import ControlNetModel, StableDiffusionPipeline
from PIL import Image
from train_diffusion import cached_latents

sys.path.insert(0, str(make_data.ROOT.parent))
from semantic_aug.adapters import canny_edges


def build_controlnet(unet):
    """A copy of the UNet's first half behind a small network that brings edges to 16x16."""
    # Two halvings, 64 to 16, where Stable Diffusion has three, 512 to 64.
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 48, 96))


def all_edges(images):
    """[N, 64, 64] bool, the edges of uint8 images [N, 64, 64, 3]."""
    lines = canny_edges([Image.fromarray(image) for image in images])
    return torch.from_numpy(np.stack([np.asarray(each)[:, :, 0] > 0 for each in lines]))


def near_the_middle(edges, rng):
    """`edges` without those outside an ellipse around the middle; in every second image."""
    count, side = len(edges), edges.shape[-1]
    middle = side / 2 + rng.uniform(-4, 4, (2, count, 1, 1))
    radius = side * rng.uniform(0.3, 0.5, (2, count, 1, 1))
    y, x = np.mgrid[:side, :side]
    inside = ((y - middle[0]) / radius[0]) ** 2 + ((x - middle[1]) / radius[1]) ** 2 < 1
    return edges & torch.from_numpy(inside | (rng.random((count, 1, 1)) < 0.5))


def main(argv=None):
    parser = argparse.ArgumentParser(description="Train sample/controlnet.")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--model", default=str(make_data.ROOT / "model"))
    parser.add_argument("--out", default=str(make_data.ROOT / "controlnet"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--drop", type=float, default=0.12, help="share of empty captions")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    device = training.pick_device()
    torch.manual_seed(args.seed)
    images, _, captions = make_data.load_shards(args.cache)
    pipeline = StableDiffusionPipeline.from_pretrained(args.model, dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    unet, text_encoder, vae = pipeline.unet, pipeline.text_encoder, pipeline.vae
    for module in (unet, text_encoder, vae):
        module.requires_grad_(False).eval()
    latents = cached_latents(args.cache, vae, images, device, mirror=False)[0]
    edges = all_edges(images)
    tokens = pipeline.tokenizer(
        captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    empty = pipeline.tokenizer([""], padding="max_length", max_length=77, return_tensors="pt")

    controlnet = build_controlnet(unet).to(device).train()
    for module in (unet, controlnet):
        module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        controlnet.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    modules = {"controlnet": controlnet}
    run = training.Run(Path(args.cache) / "controlnet", modules, optimizer, decay=0.998)
    alphas = pipeline.scheduler.alphas_cumprod.to(device)
    while run.step < args.steps:
        run.set_rate(training.learning_rate(run.step, args.steps, args.lr, 50))
        rng, noise_rng = training.step_generators(args.seed + 6, run.step)
        rows = torch.from_numpy(rng.integers(len(images), size=args.batch_size))
        chosen = latents[rows].float()
        fresh = torch.randn(chosen[:, :4].shape, generator=noise_rng)
        noise = torch.randn(fresh.shape, generator=noise_rng).to(device)
        x = ((chosen[:, :4] + chosen[:, 4:] * fresh) * vae.config.scaling_factor).to(device)
        # Noisy steps decide on shapes: they come more often, in proportion to their time.
        times = (1000 * torch.rand(len(rows), generator=noise_rng).sqrt()).long().to(device)
        ids = tokens[rows].clone()
        ids[torch.from_numpy(rng.random(len(rows)) < args.drop)] = empty.input_ids[0]
        seen = near_the_middle(edges[rows], rng).float()[:, None].expand(-1, 3, -1, -1).to(device)
        signal = alphas[times].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * x + (1 - signal).sqrt() * noise
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                states = text_encoder(ids.to(device))[0]
            down, middle = controlnet(noisy, times, states, seen, return_dict=False)
            guess = unet(
                noisy, times, states, down_block_additional_residuals=down,
                mid_block_additional_residual=middle, return_dict=False,
            )[0]  # fmt: skip
        velocity = signal.sqrt() * noise - (1 - signal).sqrt() * x
        loss = (guess.float() - velocity).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(controlnet.parameters(), 1.0)
        optimizer.step()
        run.advance({"velocity_mse": loss.item()}, args.steps)

    run.use_average()
    out = Path(args.out)
    controlnet.to(memory_format=torch.contiguous_format).half().save_pretrained(out)
    classes = parts.seen(make_data.load_classes(args.cache))
    (out / "classes.json").write_text(json.dumps({"generator": classes}, indent=1) + "\n")
    result = {
        "parameters": sum(p.numel() for p in controlnet.parameters()),
        "renders": len(images),
        **training.final_line(run.folder),
    }
    (run.folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
