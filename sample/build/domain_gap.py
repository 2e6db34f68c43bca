"""Measure the gap that augmentation is to close.

    python sample/build/domain_gap.py --cache CACHE_DIR

The backbone stays frozen; a linear head is trained on its pooled features, once on a few training
photos per class, once on 64 renders per class with the full range of materials, tables, lights and
views. Those renders show the *training* geometries, so the second number says what wider conditions
alone can bring. Head settings (weight decay, steps) are chosen on the validation split.
"""

import argparse
import json
from pathlib import Path

import make_data
import numpy as np
import parts
import render
import torch
import training
from PIL import Image
from torch.nn import functional as F
from transformers import ResNetForImageClassification


def load_split(root, names, split):
    """(images uint8 [N, 64, 64, 3], labels, names) of one split of sample/mvip."""
    images, labels, files = [], [], []
    for label, name in enumerate(names):
        folder = Path(root) / name / f"{split}_data"
        for path in sorted(folder.rglob("*_rgb.png"), key=lambda p: p.name):
            with Image.open(path) as image:
                small = image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
            images.append(np.asarray(small))
            labels.append(label)
            files.append(path)
    return np.stack(images), np.array(labels), files


def render_wide(cache, names, count):
    """`count` renders a class of training geometries under the full range of conditions."""
    target = Path(cache) / f"wide_{count}.npz"
    if target.exists():
        with np.load(target) as data:
            if data["labels"].max() + 1 == len(names):
                return data["images"], data["labels"]
    images, labels = [], []
    for label, name in enumerate(names):
        for i in range(count):
            rng = make_data.stream("wide", name, i)
            part = make_data.load_part(cache, name, i % 2)
            cond = render.draw_condition(rng, parts.poses(name))
            images.append(render.render(part, cond, 64)[0])
            labels.append(label)
    np.savez(target, images=np.stack(images), labels=np.array(labels))
    return np.stack(images), np.array(labels)


def open_sample(mvip, backbone, names):
    """A function from images to features, and {split: (images, labels)}."""
    device = training.pick_device()
    model = ResNetForImageClassification.from_pretrained(backbone, dtype=torch.float32)
    model = model.to(device).eval()
    splits = {split: load_split(mvip, names, split)[:2] for split in ("train", "valid", "test")}
    return lambda images: features(model, images, device).cpu(), splits


def features(model, images, device):
    """Pooled features [N, D] of images and of their mirror images, stacked [2, N, D]."""
    rows = []
    with torch.no_grad():
        for view in (images, images[:, :, ::-1]):
            x = training.to_tensor(view, device)
            pooled = [model.resnet(c).pooler_output.flatten(1) for c in x.split(128)]
            rows.append(torch.cat(pooled))
    return torch.stack(rows)


def fit_head(train, train_labels, classes, decay, steps, seed=0):
    """A linear head by AdamW on standardised features; returns (head, mean, deviation)."""
    torch.manual_seed(seed)
    flat = train.flatten(0, 1)
    labels = torch.as_tensor(train_labels).repeat(2)
    mean, deviation = flat.mean(0), flat.std(0) + 1e-3
    head = torch.nn.Linear(flat.shape[1], classes)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=decay)
    x = (flat - mean) / deviation
    for _ in range(steps):
        loss = F.cross_entropy(head(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head, mean, deviation


def accuracy(fitted, test, labels):
    head, mean, deviation = fitted
    guess = head((test[0] - mean) / deviation).argmax(1)
    return float((guess == torch.as_tensor(labels)).float().mean())


def measure(train, val, test, classes):
    """Test accuracy of the head whose settings were best on the validation split."""
    best = None
    for decay in (0.01, 0.1, 1.0):
        for steps in (50, 200):
            fitted = fit_head(*train, classes, decay, steps)
            score = accuracy(fitted, *val)
            if best is None or score > best[0]:
                best = (score, accuracy(fitted, *test))
    return best[1]


def main(argv=None):
    parser = argparse.ArgumentParser(description="Measure the domain gap of sample/mvip.")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--mvip", default=str(make_data.ROOT / "mvip"))
    parser.add_argument("--backbone", default=str(make_data.ROOT / "backbone"))
    parser.add_argument("--wide", type=int, default=64, help="wide renders per class")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    names = parts.QUICK_NOVEL if args.quick else list(parts.NOVEL)
    compute, splits = open_sample(args.mvip, args.backbone, names)
    seen = {split: (compute(images), labels) for split, (images, labels) in splits.items()}
    images, labels = render_wide(args.cache, names, args.wide)
    wide = compute(images), labels
    result = {}
    for shots in (1, 2, 4, 8, 16):
        scores = []
        for trial in range(args.trials):
            rng = np.random.default_rng(trial)
            chosen = [
                rng.permutation(np.flatnonzero(seen["train"][1] == c))[:shots]
                for c in range(len(names))
            ]
            ids = np.concatenate(chosen)
            train = seen["train"][0][:, ids], seen["train"][1][ids]
            scores.append(measure(train, seen["valid"], seen["test"], len(names)))
        result[f"real_{shots}"] = [
            round(float(np.mean(scores)), 4),
            round(float(np.std(scores)), 4),
        ]
    result[f"wide_{args.wide}"] = round(measure(wide, seen["valid"], seen["test"], len(names)), 4)
    print(json.dumps(result))
    (Path(args.cache) / "domain_gap.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
