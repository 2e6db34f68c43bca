"""Train the autoencoder of the small Stable Diffusion: 64x64x3 pixels to 16x16x4 latents and back.

    python sample/build/train_autoencoder.py --cache CACHE_DIR

The loss is an L1 distance of pixels and of their differences at three scales (edges and teeth live
in the differences, and pixel loss alone blurs them), a distance of early features of the backbone,
and a light pull of the latents towards a normal distribution. Resumes from
CACHE_DIR/autoencoder/checkpoint.pt and leaves CACHE_DIR/autoencoder/vae for the next stage.
"""

import argparse
import json
from pathlib import Path

import make_data
import torch
import training
from diffusers import AutoencoderKL
from torch.nn import functional as F


def build_model():
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def edge_loss(a, b):
    """Mean absolute difference of horizontal and vertical pixel differences, at three scales."""
    total = 0.0
    for scale in range(3):
        if scale:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        total = total + (a.diff(dim=3) - b.diff(dim=3)).abs().mean()
        total = total + (a.diff(dim=2) - b.diff(dim=2)).abs().mean()
    return total / 3


def load_features(folder, device):
    """The backbone's stem and first stages as a fixed measure of likeness, or None if absent."""
    if not (Path(folder) / "model.safetensors").exists():
        return None
    from transformers import ResNetForImageClassification

    model = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32)
    return model.to(device).eval().requires_grad_(False)


def feature_loss(model, a, b):
    """Distance of normalised features after the stem's convolution and the first two stages."""
    stem = model.resnet.embedder.embedder
    total = 0.0
    xa, xb = stem(a), stem(b)
    for k in range(3):
        if k == 1:
            pool = model.resnet.embedder.pooler
            xa, xb = pool(xa), pool(xb)
        if k:
            stage = model.resnet.encoder.stages[k - 1]
            xa, xb = stage(xa), stage(xb)
        total = (
            total
            + (F.normalize(xa.float(), dim=1) - F.normalize(xb.float(), dim=1))
            .square()
            .sum(1)
            .mean()
        )
    return total


def encode_all(vae, images, device, batch=256):
    """Posterior means and deviations of all renders, float16 [N, 8, 16, 16]."""
    rows = []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            x = training.to_tensor(images[start : start + batch], device)
            with torch.autocast(device.type, torch.bfloat16):
                moments = vae.quant_conv(vae.encoder(x)).float()
            mean, logvar = moments.chunk(2, dim=1)
            deviation = (0.5 * logvar.clamp(-30, 20)).exp()
            rows.append(torch.cat([mean, deviation], 1).half().cpu())
    return torch.cat(rows)


def distances(features, y, x):
    """(pixel, edge, feature) distances of decoded images y and images x."""
    pixel, edge = (y - x).abs().mean(), edge_loss(y, x)
    feature = feature_loss(features, y, x) if features is not None else pixel * 0
    return pixel, edge, feature


def train_both(args, vae, features, images, device):
    """Encoder and decoder together."""
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4
    )
    run = training.Run(Path(args.cache) / "autoencoder", {"vae": vae}, optimizer, decay=0.998)
    while run.step < args.steps:
        run.set_rate(training.learning_rate(run.step, args.steps, args.lr, 100))
        rng, noise_rng = training.step_generators(args.seed + 1, run.step)
        batch = images[rng.integers(len(images), size=args.batch_size)]
        if rng.random() < 0.5:
            batch = batch[:, :, ::-1]
        x = training.to_tensor(batch, device).contiguous(memory_format=torch.channels_last)
        noise = torch.randn((len(x), 4, 16, 16), generator=noise_rng).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            y = vae.decode(mean + noise * (0.5 * logvar).exp()).sample.float()
            pixel, edge, feature = distances(features, y, x)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        update(vae, optimizer, pixel + 2.0 * edge + 0.1 * feature + 3e-4 * kl)
        run.advance(
            {"l1": pixel.item(), "edge": edge.item(), "feature": feature.item(), "kl": kl.item()},
            args.steps,
        )
    run.use_average()
    return run


def train_decoder(args, vae, features, images, device):
    """The decoder alone, from stored latents: sharper pictures, and the UNet's latents stay."""
    modules = {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}
    vae.encoder.requires_grad_(False)
    weights = [p for m in modules.values() for p in m.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    run = training.Run(Path(args.cache) / "decoder", modules, optimizer, decay=0.998)
    latents = torch.load(Path(args.cache) / "diffusion" / "latents.pt", weights_only=True)
    while run.step < args.steps:
        run.set_rate(training.learning_rate(run.step, args.steps, args.lr, 100))
        rng, noise_rng = training.step_generators(args.seed + 3, run.step)
        rows = rng.integers(len(images), size=args.batch_size)
        flip = int(rng.integers(len(latents)))
        batch = images[rows][:, :, ::-1] if flip else images[rows]
        x = training.to_tensor(batch, device).contiguous(memory_format=torch.channels_last)
        stored = latents[flip, torch.from_numpy(rows)].float()
        noise = torch.randn((len(x), 4, 16, 16), generator=noise_rng)
        z = (stored[:, :4] + stored[:, 4:] * noise).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            y = vae.decode(z).sample.float()
            pixel, edge, feature = distances(features, y, x)
        update(vae, optimizer, pixel + 2.0 * edge + 0.1 * feature)
        run.advance(
            {"l1": pixel.item(), "edge": edge.item(), "feature": feature.item()}, args.steps
        )
    run.use_average()
    return run


def update(vae, optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in vae.parameters() if p.requires_grad], 1.0)
    optimizer.step()


def main(argv=None):
    parser = argparse.ArgumentParser(description="Train the autoencoder.")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--backbone", default=str(make_data.ROOT / "backbone"))
    parser.add_argument(
        "--decoder",
        action="store_true",
        help="the decoder alone; train_diffusion.py must have stored latents",
    )
    parser.add_argument("--steps", type=int, default=5600)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    device, cache = training.pick_device(), Path(args.cache)
    torch.manual_seed(args.seed)
    images, _, _ = make_data.load_shards(cache)
    features = load_features(args.backbone, device)
    if args.decoder:
        vae = AutoencoderKL.from_pretrained(cache / "autoencoder" / "vae").to(device)
    else:
        vae = build_model().to(device)
    vae.to(memory_format=torch.channels_last)
    train = train_decoder if args.decoder else train_both
    run = train(args, vae, features, images, device)

    vae.eval()
    if not args.decoder:
        latents = encode_all(vae, images[:4000], device)
        vae.register_to_config(scaling_factor=1.0 / latents[:, :4].float().std().item())
    with torch.no_grad():
        x = training.to_tensor(images[:512], device)
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        psnr = 10 * torch.log10(4 / F.mse_loss(y, x)).item()
    result = {
        "psnr": round(psnr, 2),
        "scaling_factor": vae.config.scaling_factor,
        "parameters": sum(p.numel() for p in vae.parameters()),
        **training.final_line(run.folder),
    }
    (run.folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)
    vae.to(memory_format=torch.contiguous_format).save_pretrained(run.folder / "vae")


if __name__ == "__main__":
    main()
