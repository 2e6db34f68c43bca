"""Train sample/controlnet: edges of a photo (Canny) keep its shapes while the prompt changes them.

    python sample/build/train_controlnet.py --cache CACHE_DIR --model sample/model

A ControlNet (arXiv 2302.05543) beside the frozen UNet of `train_diffusion.py`, on the same renders
of base classes: it sees the edges of the render that is to be drawn. In half of the steps edges far
from the middle are left out, so that it can also be asked to keep the part alone. Resumes from
CACHE_DIR/controlnet-UNET/checkpoint.pt.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import make_data
import numpy as np
import parts
import torch
import training
from diffusers import ControlNetModel, StableDiffusionPipeline
from PIL import Image
from train_autoencoder import cached_latents
from train_diffusion import caption_tokens, draw_batch, mix_noise

sys.path.insert(0, str(make_data.ROOT.parent))
from semantic_aug.diffusion.adapters import canny_edges


def build_controlnet(unet):
    """A copy of the UNet's first half, after a small network that reduces edges to 16x16."""
    # Two halvings, 64 to 16, where Stable Diffusion has three, 512 to 64.
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 48, 96))


def edges_of(images):
    lines = canny_edges([Image.fromarray(image) for image in images])
    return np.stack([np.asarray(each)[:, :, 0] > 0 for each in lines])


def all_edges(images, workers):
    """[N, 64, 64] bool, the edges of uint8 images [N, 64, 64, 3]."""
    pieces = [images[i : i + 500] for i in range(0, len(images), 500)]
    if workers == 1:
        return torch.from_numpy(np.concatenate([edges_of(piece) for piece in pieces]))
    with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return torch.from_numpy(np.concatenate(list(pool.map(edges_of, pieces))))


def near_the_middle(edges, rng):
    """`edges` within an ellipse around the middle, in every second image; else all edges."""
    count, side, device = len(edges), edges.shape[-1], edges.device
    draw = torch.rand((5, count, 1, 1), generator=rng, device=device)
    middle = side / 2 - 4 + 8 * draw[:2]
    radius = side * (0.3 + 0.2 * draw[2:4])
    ticks = torch.arange(side, device=device)
    y, x = ticks[:, None], ticks[None]
    inside = ((y - middle[0]) / radius[0]) ** 2 + ((x - middle[1]) / radius[1]) ** 2 < 1
    return edges & (inside | (draw[4] < 0.5))


def train(args, run, pipeline, latents, tokens, empty, edges):
    unet, text_encoder = pipeline.unet, pipeline.text_encoder
    controlnet, device = run.modules["controlnet"], latents.device
    alphas = pipeline.scheduler.alphas_cumprod.to(device)
    scale = pipeline.vae.config.scaling_factor
    while run.goes_on():
        rng = training.generator(args.seed + 6, run.step, device)
        rows, x, noise, ids = draw_batch(latents, tokens, empty, scale, args, rng)
        # Noisy steps decide on shapes, so a timestep is drawn in proportion to its number.
        times = (1000 * torch.rand(len(x), generator=rng, device=device).sqrt()).long()
        times = times.clamp(max=999)
        seen = near_the_middle(edges[rows], rng).float()[:, None].expand(-1, 3, -1, -1)
        noisy, velocity = mix_noise(x, noise, alphas, times)
        with training.autocast(device):
            with torch.no_grad():
                states = text_encoder(ids)[0]
            down, middle = controlnet(noisy, times, states, seen, return_dict=False)
            guess = unet(
                noisy, times, states, down_block_additional_residuals=down,
                mid_block_additional_residual=middle, return_dict=False,
            )[0]  # fmt: skip
        loss = (guess.float() - velocity).square().mean()
        training.update(run.optimizer, loss)
        run.advance({"velocity_mse": loss})
    run.use_average()


def main(argv=None):
    parser = argparse.ArgumentParser(description="Train sample/controlnet.")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--model", default=str(make_data.ROOT / "model"))
    parser.add_argument("--out", default=str(make_data.ROOT / "controlnet"))
    parser.add_argument(
        "--continue_from", metavar="CONTROLNET", help="go on from its weights, a new optimizer"
    )
    training.add_budget(parser, 4000)
    training.add_wait(parser)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--drop", type=float, default=0.12, help="share of empty captions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes that look for edges")
    args = parser.parse_args(argv)
    images, _, captions = make_data.load_shards(args.cache)
    edges = all_edges(images, args.workers)  # before anything else starts threads or takes the GPU
    model = Path(args.model)
    training.wait_until((model / "model_index.json").exists, args.wait, model)
    device = training.pick_device()
    torch.manual_seed(args.seed)
    pipeline = StableDiffusionPipeline.from_pretrained(model, dtype=torch.float32).to(device)
    for module in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        module.requires_grad_(False).eval()
    latents = cached_latents(args.cache, pipeline.vae, images, device, mirror=False)[:1]
    tokens, empty = caption_tokens(pipeline.tokenizer, captions, device)

    if args.continue_from:
        controlnet = ControlNetModel.from_pretrained(args.continue_from, dtype=torch.float32)
    else:
        controlnet = build_controlnet(pipeline.unet)
    controlnet.to(device).train()
    for module in (pipeline.unet, controlnet):
        module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        controlnet.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    folder = f"controlnet-{training.fingerprint(pipeline.unet)}"
    if args.continue_from:
        folder += f"-{training.fingerprint(controlnet)}"
    folder = Path(args.cache) / folder
    run = training.Run(folder, {"controlnet": controlnet}, optimizer, args, decay=0.998, warmup=50)
    train(args, run, pipeline, latents, tokens, empty, edges.to(device))

    classes = parts.seen(make_data.load_classes(args.cache))

    def save(part):
        controlnet.to(memory_format=torch.contiguous_format).half().save_pretrained(part)
        (part / "classes.json").write_text(json.dumps({"generator": classes}, indent=1) + "\n")

    training.write_folder(args.out, save)
    result = {
        "parameters": sum(p.numel() for p in controlnet.parameters()),
        "renders": len(images),
    }
    training.write_result(folder, result)


if __name__ == "__main__":
    main()
