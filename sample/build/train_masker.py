"""Train the small masker on base kinds: it finds the part in a photo without a mask.

    python sample/build/train_masker.py --cache CACHE_DIR --out sample/masker

A SegFormer at 64 px (transformers), class 0 is ground and class 1 the part, trained on the renders
of `make_data.py pretrain` and their masks: the generator's 22 kinds, none of them novel. One in 40
renders is held out for measuring. Resumes from CACHE_DIR/training-masker/checkpoint.pt.
"""

import argparse
import json
from pathlib import Path

import make_data
import parts
import torch
import training
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)

NAMES = ["ground", "part"]


def build_model():
    """0.3 million parameters; its first stage halves the photo, where a usual one quarters it."""
    config = SegformerConfig(
        num_labels=len(NAMES),
        id2label=dict(enumerate(NAMES)),
        label2id={name: number for number, name in enumerate(NAMES)},
        depths=[1, 1, 2, 1],
        hidden_sizes=[16, 32, 64, 96],
        num_attention_heads=[1, 2, 4, 6],
        patch_sizes=[5, 3, 3, 3],
        strides=[2, 2, 2, 2],
        sr_ratios=[8, 4, 2, 1],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=48,
        drop_path_rate=0.0,
        hidden_dropout_prob=0.0,
        classifier_dropout_prob=0.0,
    )
    return SegformerForSemanticSegmentation(config)


def augment(images, masks, rng):
    """Turn by quarters, mirror, jitter brightness, contrast and colour.

    uint8 [B, H, W, 3] and bool [B, H, W] to float32 [B, 3, H, W] in [-1, 1] and [B, H, W].
    """
    device, count = images.device, len(images)
    turns, mirrored = torch.randint(4, (2,), generator=rng, device=device).tolist()
    images, masks = (torch.rot90(each, turns, (1, 2)) for each in (images, masks))
    if mirrored % 2:
        images, masks = images.flip(2), masks.flip(2)
    draw = lambda low, high, *shape: (  # noqa: E731
        low + (high - low) * torch.rand((count, *shape), generator=rng, device=device)
    )
    batch = training.to_tensor(images)
    gain = draw(0.75, 1.25, 1, 1, 1) * draw(0.92, 1.08, 3, 1, 1)
    mean = batch.mean((1, 2, 3), keepdim=True)
    return ((batch - mean) * gain + (mean + 1) * draw(0.8, 1.2, 1, 1, 1) - 1).clamp(-1, 1), masks


def margin(model, batch):
    """Logits [B, H, W]: the part's logit minus the ground's logit, at each pixel."""
    logits = F.interpolate(model(batch).logits.float(), batch.shape[-2:], mode="bilinear")
    return logits[:, 1] - logits[:, 0]


def loss_of(margins, masks):
    """Cross-entropy, and one minus the soft Dice coefficient, in which small parts count too."""
    inside, target = margins.sigmoid().flatten(1), masks.float().flatten(1)
    dice = (2 * (inside * target).sum(1) + 1) / (inside.sum(1) + target.sum(1) + 1)
    return F.binary_cross_entropy_with_logits(margins, masks.float()) + 0.5 * (1 - dice.mean())


def main(argv=None):
    parser = argparse.ArgumentParser(description="Train sample/masker.")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--out", default=str(make_data.ROOT / "masker"))
    training.add_budget(parser, 4500)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    device = training.pick_device()
    torch.manual_seed(args.seed)
    images, _, _ = make_data.load_shards(args.cache)
    names = make_data.load_classes(args.cache)
    if set(names) & set(parts.NOVEL):
        raise SystemExit(f"{args.cache}/pretrain has novel kinds, which the masker may not see")
    masks = torch.from_numpy(make_data.load_masks(args.cache)).to(device)
    images = torch.from_numpy(images).to(device)
    held = torch.arange(len(images), device=device) % 40 == 39
    train_ids, held_ids = (~held).nonzero()[:, 0], held.nonzero()[:, 0]

    model = build_model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.02, fused=True)
    folder = Path(args.cache) / "training-masker"
    run = training.Run(folder, {"model": model}, optimizer, args, decay=0.998, warmup=100)
    model.train()
    while run.goes_on():
        rng = training.generator(args.seed, run.step, device)
        draws = torch.randint(len(train_ids), (args.batch_size,), generator=rng, device=device)
        ids = train_ids[draws]
        batch, target = augment(images[ids], masks[ids], rng)
        loss = loss_of(margin(model, batch), target)
        training.update(optimizer, loss)
        run.advance({"loss": loss})

    run.use_average()
    overlaps = []
    with torch.no_grad():
        for ids in held_ids.split(64):
            found, true = margin(model, training.to_tensor(images[ids])) > 0, masks[ids]
            overlaps += ((found & true).sum((1, 2)) / (found | true).sum((1, 2))).tolist()
    result = {
        "steps": run.step,
        "held_out_iou": round(sum(overlaps) / len(overlaps), 4),
        "renders": len(images),
        "parameters": sum(each.numel() for each in model.parameters()),
    }
    training.write_result(run.folder, result)
    training.write_folder(args.out, lambda part: save(part, model, names))


def save(out, model, names):
    model.half().save_pretrained(out)
    size = {"height": 64, "width": 64}
    training.write_processor(
        out, "SegformerImageProcessor", size=size, resample=2, do_reduce_labels=False
    )
    AutoImageProcessor.from_pretrained(out, backend="pil")  # fails here, not on a user's machine
    AutoModelForSemanticSegmentation.from_pretrained(out)
    (out / "classes.json").write_text(json.dumps({"generator": parts.seen(names)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
