"""Train the autoencoder of the small Stable Diffusion: 64x64x3 pixels to 16x16x4 latents and back.

    python sample/build/train_autoencoder.py --cache CACHE_DIR

The loss is an L1 distance of pixels and of their differences at three scales (pixel loss alone
blurs edges and teeth), a distance of early features of the backbone, and a light pull of the
latents towards a normal distribution. Resumes from
CACHE_DIR/autoencoder/checkpoint.pt and leaves CACHE_DIR/autoencoder/vae for the next stage. With
`--decoder sample/model`, the decoder of a finished model goes on alone.
"""

import argparse
import os
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


@torch.no_grad()
def encode_all(vae, images, device):
    """Posterior means and deviations of uint8 images [N, 64, 64, 3], float16 [N, 8, 16, 16]."""
    rows, batch = [], 1024 if device.type == "cuda" else 256
    for start in range(0, len(images), batch):
        x = training.to_tensor(images[start : start + batch], device)
        with training.autocast(device):
            moments = vae.quant_conv(vae.encoder(x)).float()
        mean, logvar = moments.chunk(2, dim=1)
        deviation = (0.5 * logvar.clamp(-30, 20)).exp()
        rows.append(torch.cat([mean, deviation], 1).half())
    return torch.cat(rows)


def cached_latents(cache, vae, images, device, mirror=True):
    """[1 or 2, N, 8, 16, 16] float16 on the device: all renders (and their mirror images)."""
    name = training.fingerprint(vae.encoder, vae.quant_conv)
    path = Path(cache) / "latents" / f"{name}.pt"
    if path.exists():
        stored = torch.load(path, map_location=device, weights_only=True)
        if stored.shape[1] == len(images) and len(stored) > mirror:
            return stored
    images = torch.from_numpy(images)
    views = [images, images.flip(2)] if mirror else [images]
    latents = torch.stack([encode_all(vae, view, device) for view in views])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(latents, part)
    os.replace(part, path)
    return latents


def distances(features, y, x):
    """(pixel, edge, feature) distances of decoded images y and images x."""
    pixel, edge = (y - x).abs().mean(), edge_loss(y, x)
    feature = feature_loss(features, y, x) if features is not None else pixel * 0
    return pixel, edge, feature


def draw_images(images, count, rng):
    """(rows, flips, [count, 3, 64, 64] in [-1, 1]) of uint8 images; every second one mirrored."""
    rows = torch.randint(len(images), (count,), generator=rng, device=images.device)
    flips = torch.randint(2, (count,), generator=rng, device=images.device)
    batch = images[rows]
    batch = torch.where(flips.bool()[:, None, None, None], batch.flip(2), batch)
    return rows, flips, training.to_tensor(batch)


def train_both(args, vae, features, images, folder):
    """Encoder and decoder together."""
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    run = training.Run(folder, {"vae": vae}, optimizer, args, decay=0.998, warmup=100)
    device = images.device
    while run.goes_on():
        rng = training.generator(args.seed + 1, run.step, device)
        _, _, x = draw_images(images, args.batch_size, rng)
        noise = torch.randn((len(x), 4, 16, 16), generator=rng, device=device)
        with training.autocast(device):
            mean, logvar = vae.quant_conv(vae.encoder(x)).float().chunk(2, dim=1)
            logvar = logvar.clamp(-30, 20)
            y = vae.decode(mean + noise * (0.5 * logvar).exp()).sample.float()
            pixel, edge, feature = distances(features, y, x)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        training.update(optimizer, pixel + 2.0 * edge + 0.1 * feature + 3e-4 * kl)
        run.advance({"l1": pixel, "edge": edge, "feature": feature, "kl": kl})
    run.use_average()


def train_decoder(args, vae, features, images, latents, folder):
    """The decoder alone, from stored latents: sharper pictures, and the UNet's latents stay."""
    modules = {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}
    vae.encoder.requires_grad_(False)
    weights = [p for m in modules.values() for p in m.parameters()]
    optimizer = torch.optim.AdamW(
        weights, lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    run = training.Run(folder, modules, optimizer, args, decay=0.998, warmup=100)
    device = images.device
    while run.goes_on():
        rng = training.generator(args.seed + 3, run.step, device)
        rows, flips, x = draw_images(images, args.batch_size, rng)
        stored = latents[flips, rows].float()
        noise = torch.randn(stored[:, :4].shape, generator=rng, device=device)
        with training.autocast(device):
            y = vae.decode(stored[:, :4] + stored[:, 4:] * noise).sample.float()
            pixel, edge, feature = distances(features, y, x)
        training.update(optimizer, pixel + 2.0 * edge + 0.1 * feature)
        run.advance({"l1": pixel, "edge": edge, "feature": feature})
    run.use_average()


def main(argv=None):
    parser = argparse.ArgumentParser(description="Train the autoencoder.")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--backbone", default=str(make_data.ROOT / "backbone"))
    parser.add_argument(
        "--decoder",
        metavar="MODEL",
        help="train only the decoder of this model, and put it into the model",
    )
    training.add_budget(parser, 5600)
    training.add_wait(parser)
    parser.add_argument("--renders", type=int, default=1, help="renders that --wait awaits")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    device, cache = training.pick_device(), Path(args.cache)
    torch.manual_seed(args.seed)
    features = load_features(args.backbone, device)
    if args.decoder:
        source = Path(args.decoder) / "vae"
        training.wait_until(
            (Path(args.decoder) / "model_index.json").exists, args.wait, args.decoder
        )
        vae = AutoencoderKL.from_pretrained(source).float().to(device)
    else:
        enough = lambda: make_data.count_renders(cache) >= args.renders  # noqa: E731
        training.wait_until(enough, args.wait, f"{args.renders} renders")
        vae = build_model().to(device)
    vae.to(memory_format=torch.channels_last)
    stored, _, _ = make_data.load_shards(cache)
    images = torch.from_numpy(stored).to(device)
    if args.decoder:
        latents = cached_latents(cache, vae, stored, device)
        folder = cache / f"decoder-{training.fingerprint(vae.encoder)}"
        train_decoder(args, vae, features, images, latents, folder)
    else:
        folder = cache / "autoencoder"
        train_both(args, vae, features, images, folder)
        vae.eval()
        latents = encode_all(vae, images[:4000], device)
        vae.register_to_config(scaling_factor=1.0 / latents[:, :4].float().std().item())

    vae.eval()
    with torch.no_grad():
        x = training.to_tensor(images[:512])
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        psnr = 10 * torch.log10(4 / F.mse_loss(y, x)).item()
    result = {
        "psnr": round(psnr, 2),
        "scaling_factor": vae.config.scaling_factor,
        "parameters": sum(p.numel() for p in vae.parameters()),
    }
    training.write_result(folder, result)
    vae.to(memory_format=torch.contiguous_format)
    if args.decoder:
        training.write_folder(source, vae.half().save_pretrained)
    else:
        training.write_folder(folder / "vae", vae.save_pretrained)


if __name__ == "__main__":
    main()
