"""Pretrain the small image classifier on base classes: what ImageNet weights are to the real thing.

    python sample/build/train_backbone.py --cache CACHE_DIR --out sample/backbone

A transformers ResNet at 64 px, trained on the captioned renders of `make_data.py pretrain`; one in
40 renders is held out for measuring. Resumes from CACHE_DIR/backbone/checkpoint.pt. With
`--renders catalogue` it knows the surfaces, tables and light of the training photos alone.
"""

import argparse
import json
from pathlib import Path

import make_data
import numpy as np
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
    """Flip, shift by up to 6 pixels, jitter brightness, contrast and colour; uint8 in and out."""
    out = np.empty_like(images)
    size = images.shape[1]
    padded = np.pad(images, ((0, 0), (6, 6), (6, 6), (0, 0)), mode="edge")
    for i in range(len(images)):
        y, x = rng.integers(0, 13, 2)
        view = padded[i, y : y + size, x : x + size]
        out[i] = view[:, ::-1] if rng.random() < 0.5 else view
    gain = rng.uniform(0.75, 1.25, (len(images), 1, 1, 1)) * rng.uniform(
        0.92, 1.08, (len(images), 1, 1, 3)
    )
    mean = out.mean((1, 2, 3), keepdims=True)
    shifted = (out - mean) * gain + mean * rng.uniform(0.8, 1.2, (len(images), 1, 1, 1))
    return np.clip(shifted, 0, 255).astype(np.uint8)


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
        choices=["pretrain", "catalogue"],
        default="pretrain",
        help="seen under all conditions, or on the bench of the training photos alone",
    )
    args = parser.parse_args(argv)
    device = training.pick_device()
    torch.manual_seed(args.seed)
    images, labels, _ = make_data.load_shards(args.cache, args.renders)
    names = list(parts.BASE) if labels.max() >= len(parts.QUICK_BASE) else parts.QUICK_BASE
    held = np.arange(len(images)) % 40 == 39
    train_ids, held_ids = np.flatnonzero(~held), np.flatnonzero(held)

    model = build_model(names).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05, fused=True)
    folder = Path(args.cache) / ("backbone" if args.renders == "pretrain" else "backbone-catalogue")
    run = training.Run(folder, {"model": model}, optimizer, args, decay=0.998, warmup=100)
    model.train()
    while run.goes_on():
        rng = np.random.default_rng([args.seed, run.step])
        ids = rng.choice(train_ids, args.batch_size)
        batch = training.to_tensor(augment(images[ids], rng), device)
        target = torch.from_numpy(labels[ids]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(batch.contiguous(memory_format=torch.channels_last)).logits
        loss = F.cross_entropy(logits.float(), target, label_smoothing=0.05)
        training.update(optimizer, loss, limit=2.0)
        run.advance({"loss": loss})

    run.use_average()
    right = 0
    with torch.no_grad():
        for ids in np.array_split(held_ids, max(1, len(held_ids) // 64)):
            logits = model(training.to_tensor(images[ids], device)).logits
            right += int((logits.argmax(1).cpu().numpy() == labels[ids]).sum())
    result = {
        "steps": run.step,
        "held_out_accuracy": round(right / len(held_ids), 4),
        "renders": len(images),
        **training.final_line(run.folder),
    }
    print(json.dumps(result), flush=True)
    (run.folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")

    out = Path(args.out)
    model.half().save_pretrained(out)
    processor = {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 64},
        "crop_pct": 1.0,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")
    AutoImageProcessor.from_pretrained(out)  # fails here rather than at the user's
    classes = {n: parts.record()["base"][n] for n in names}
    (out / "classes.json").write_text(json.dumps({"base": classes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
