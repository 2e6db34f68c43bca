"""Pretrain the small image classifier on base classes, in the role of ImageNet weights.

    python sample/build/train_backbone.py --cache CACHE_DIR --out sample/backbone

A transformers ResNet at 64 px, trained on the captioned renders of `make_data.py pretrain`; one in
40 renders is held out for measuring. Resumes from CACHE_DIR/backbone/checkpoint.pt. With
`--renders catalogue` it knows the surfaces, tables and light of the training photos alone.
"""

import argparse
import json
from pathlib import Path

import make_data
import parts
import torch
import training
from torch.nn import functional as F
from transformers import AutoImageProcessor, ResNetConfig, ResNetForImageClassification


def build_model(names):
    config = ResNetConfig(
        embedding_size=48,
        hidden_sizes=[48, 96, 160, 256],
        depths=[2, 2, 2, 1],
        layer_type="basic",
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={n: i for i, n in enumerate(names)},
    )
    return ResNetForImageClassification(config)


def augment(images, rng):
    """Flip, shift by up to 6 pixels, jitter brightness, contrast and colour.

    uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1], all on one device.
    """
    count, size, device = len(images), images.shape[1], images.device
    draw = lambda low, high, *shape: (  # noqa: E731
        low + (high - low) * torch.rand((count, *shape), generator=rng, device=device)
    )
    padded = F.pad(training.to_tensor(images), (6, 6, 6, 6), mode="replicate")
    y, x = torch.randint(13, (2, count, 1), generator=rng, device=device)
    along = torch.arange(size, device=device)
    across = torch.where(draw(0, 1, 1) < 0.5, along, along.flip(0))
    rows, columns = (y + along)[:, :, None], (x + across)[:, None]
    batch = padded[torch.arange(count, device=device)[:, None, None], :, rows, columns]
    batch = batch.permute(0, 3, 1, 2)
    gain = draw(0.75, 1.25, 1, 1, 1) * draw(0.92, 1.08, 3, 1, 1)
    mean = batch.mean((1, 2, 3), keepdim=True)
    return ((batch - mean) * gain + (mean + 1) * draw(0.8, 1.2, 1, 1, 1) - 1).clamp(-1, 1)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Pretrain sample/backbone.")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--out", default=str(make_data.ROOT / "backbone"))
    training.add_budget(parser, 2200)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--renders",
        choices=["backbone", "catalogue", "pretrain"],
        default="backbone",
        help="kinds without photos under all conditions, the same on one bench, or the generator's",
    )
    args = parser.parse_args(argv)
    device = training.pick_device()
    torch.manual_seed(args.seed)
    images, labels, _ = make_data.load_shards(args.cache, args.renders)
    names = make_data.load_classes(args.cache, args.renders)
    images, labels = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    held = torch.arange(len(images), device=device) % 40 == 39
    train_ids, held_ids = (~held).nonzero()[:, 0], held.nonzero()[:, 0]

    model = build_model(names).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05, fused=True)
    folder = Path(args.cache) / f"training-{args.renders}"
    run = training.Run(folder, {"model": model}, optimizer, args, decay=0.998, warmup=100)
    model.train()
    while run.goes_on():
        rng = training.generator(args.seed, run.step, device)
        draws = torch.randint(len(train_ids), (args.batch_size,), generator=rng, device=device)
        ids = train_ids[draws]
        batch = augment(images[ids], rng).contiguous(memory_format=torch.channels_last)
        with training.autocast(device):
            logits = model(batch).logits
        loss = F.cross_entropy(logits.float(), labels[ids], label_smoothing=0.05)
        training.update(optimizer, loss, limit=2.0)
        run.advance({"loss": loss})

    run.use_average()
    right = 0
    with torch.no_grad():
        for ids in held_ids.split(64):
            logits = model(training.to_tensor(images[ids])).logits
            right += int((logits.argmax(1) == labels[ids]).sum())
    result = {
        "steps": run.step,
        "held_out_accuracy": round(right / len(held_ids), 4),
        "renders": len(images),
    }
    training.write_result(run.folder, result)
    training.write_folder(args.out, lambda part: save(part, model, names))


def save(out, model, names):
    model.half().save_pretrained(out)
    size = {"shortest_edge": 64}
    training.write_processor(out, "ConvNextImageProcessor", size=size, resample=3, crop_pct=1.0)
    AutoImageProcessor.from_pretrained(out)  # fails here rather than on a user's machine
    (out / "classes.json").write_text(json.dumps({"backbone": parts.seen(names)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
