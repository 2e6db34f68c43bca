"""Training the classifier: this project against a plain loop, on the embedded sample.

    python benchmarks/classifier.py            # 12 classes x 16 photos x 10 synthetic images
    python benchmarks/classifier.py --quick    # within a minute
    python benchmarks/classifier.py --augmentation flip-rotate    # --views 16 against fresh views

The plain loop works as earlier implementations do. A DataLoader with four workers decodes a file
for every sample. Every image of every step passes the frozen backbone, and so does the whole
validation split after every epoch. Both sides take the same photos, the same synthetic images (made
here from the photos, as their content does not matter), the same backbone, loss, optimiser and
number of steps. Imports are done before the start. The first row has no random augmentation, the
second row has flip-rotate.

The full run has 50 epochs of 200 steps of 32 images. The benchmark measures --epochs of them
(default 2). It measures the seconds of an epoch apart from the seconds of start and end, and
counts an epoch 50 times. If no step passes the backbone, all epochs of our side are measured. The
accuracies are measured on the test split, after the measured epochs of both sides.

With --augmentation, this command is compared with itself: a fresh view in every step against
--views 16, whose 50 epochs are all measured. The gain depends on the number of images: the run
shows 320,000 images, and 16 views of each image pass the backbone.
"""

import argparse
import functools
import json
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, compare, report_side, threads

SEED, EPOCHS, WORKERS, VIEWS = 0, 50, 4, 16
LEARNING_RATE, PROBABILITY = 1e-3, 0.5


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default=str(ROOT / "sample/backbone"))
    parser.add_argument("--data_dir", default=str(ROOT / "sample/mvip"))
    parser.add_argument("--examples", type=int, default=16, help="photos per class")
    parser.add_argument("--synthetic", type=int, default=10, help="images made of each photo")
    parser.add_argument("--epochs", type=int, default=2, help="measured, of 50")
    parser.add_argument("--steps", type=int, default=200, help="per epoch")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="2 photos with 2 images each, 1 round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--augmentation", choices=("none", "flip-rotate"))
    parser.set_defaults(finetune="none")
    parser.add_argument("--work", help="folder for what is made (default: a temporary one)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.examples, args.synthetic, args.steps, args.rounds = 2, 2, 4, 1
    return args


def main(argv=None):
    args = parse_args(argv)
    threads()
    if args.side:
        report_side(SIDES[args.side](args))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.work = args.work or folder
        make_images(args)
        if args.augmentation == "flip-rotate":
            result = row(args, "flip-rotate", ("fresh", "views")) | {"views": VIEWS}
        else:
            result = row(args, "none", ("plain", "ours"))
            if args.augmentation is None:
                more = row(args, "flip-rotate", ("plain", "ours"))
                result |= {f"flip_rotate_{key}": value for key, value in more.items()}
    result |= {"examples_per_class": args.examples, "synthetic_per_photo": args.synthetic}
    result |= {"epochs_measured": args.epochs, "epochs_counted": EPOCHS, "steps": args.steps}
    print(json.dumps(result))


def row(args, augmentation: str, sides: tuple[str, str]) -> dict:
    """Both sides in turns, and their accuracies."""
    keys = (
        "backbone", "data_dir", "examples", "synthetic", "epochs", "steps", "batch", "device",
        "work",
    )  # fmt: skip
    arguments = [f"--{key}={getattr(args, key)}" for key in keys]
    print(f"augmentation {augmentation}:")
    found = compare(__file__, sides, args.rounds, [*arguments, f"--augmentation={augmentation}"])
    runs = found.pop("rounds")
    for side in sides:
        found[f"{side}_test_accuracy"] = runs[side][0]["accuracy"]
        found[f"{side}_epoch_s"] = min(run["epoch"] for run in runs[side])
    seconds = ", ".join(f"{side} {found[f'{side}_s']:.1f} s" for side in sides)
    tested = ", ".join(f"{side} {found[f'{side}_test_accuracy']:.1%}" for side in sides)
    print(
        f"{EPOCHS} epochs: {seconds}: {found['ratio']:.1f} times; test accuracy after "
        f"{args.epochs} epochs: {tested}"
    )
    return found


def dataset(args, split: str):
    from semantic_aug.datasets import build_dataset

    few = {"seed": SEED, "examples_per_class": args.examples} if split == "train" else {}
    return build_dataset("mvip", split, data_dir=args.data_dir, **few)


def synthetic_folder(args) -> Path:
    return Path(args.work) / "benchmark" / "aug" / f"seed={SEED}_ex={args.examples}"


def make_images(args) -> None:
    """Stand-ins for edits: each photo in other colours, with records, on disk."""
    import torch
    from PIL import ImageEnhance

    from semantic_aug.generative_augmentation import GenerativeAugmentation

    class Recoloured(GenerativeAugmentation):
        def augment(self, images, labels, metadata, generators):
            changed = []
            for image, generator in zip(images, generators):
                light, colour = torch.rand(2, generator=generator).tolist()
                image = ImageEnhance.Brightness(image).enhance(0.6 + 0.8 * light)
                changed.append(ImageEnhance.Color(image).enhance(2 * colour))
            return changed, [[] for _ in changed]

    photos = dataset(args, "train")
    photos.generative_aug, photos.synthetic_dir = Recoloured(), synthetic_folder(args)
    photos.generate_augmentations(args.synthetic)


# --- the plain way ---------------------------------------------------------------------------


def plain(args) -> dict:
    """A file is decoded, and an image passes the backbone, each time it is shown."""
    import torch
    from torch.utils.data import DataLoader, RandomSampler

    from semantic_aug.evaluation.backbone import load_backbone

    torch.manual_seed(0)
    backbone = load_backbone(args.backbone, torch.device(args.device))
    train, val, test = (dataset(args, split) for split in ("train", "val", "test"))
    began = time.perf_counter()
    for each in (train, val, test):
        each.image_size = backbone.image_size
    train.synthetic_probability = PROBABILITY
    train.load_synthetic(synthetic_folder(args), args.synthetic)
    if args.augmentation == "flip-rotate":
        train.transform = FlipRotate(backbone.image_size)
    sampler = RandomSampler(train, replacement=True, num_samples=args.steps * args.batch)
    loader = DataLoader(train, args.batch, sampler=sampler, num_workers=WORKERS)
    evaluation = {s: DataLoader(s, args.batch, num_workers=WORKERS) for s in (val, test)}
    head = torch.nn.Linear(backbone.num_features, train.num_classes).to(args.device)
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)

    def features(images):
        with torch.no_grad():
            return backbone((images.to(args.device) + 1) / 2)

    def accuracy(split) -> float:
        hits, labels = [], []
        for images, target in evaluation[split]:
            hits.append(head(features(images)).argmax(dim=1).cpu() == target)
            labels.append(target)
        hits, labels = torch.cat(hits).double(), torch.cat(labels)
        return float(torch.stack([hits[labels == c].mean() for c in labels.unique()]).mean())

    per_epoch = []
    for _ in range(args.epochs):
        started = time.perf_counter()
        for images, target in loader:
            logits = head(features(images))
            loss = torch.nn.functional.cross_entropy(logits, target.to(args.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracy(val)
        per_epoch.append(time.perf_counter() - started)
    tested = accuracy(test)
    return measured(time.perf_counter() - began, per_epoch, tested)


class FlipRotate:
    """flip-rotate for one PIL image; a class, because workers cannot receive a local function."""

    def __init__(self, size):
        self.size = size

    def __call__(self, image):
        import torch
        from PIL import Image

        from semantic_aug.images.reading import image_to_tensor

        mirrored, turned = torch.rand(2).tolist()
        if mirrored < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = image.rotate(30 * turned - 15, Image.Resampling.BILINEAR)
        return image_to_tensor(image, self.size)


def measured(total: float, per_epoch: list[float], accuracy: float) -> dict:
    """Seconds of 50 epochs from the measured epochs; start and end count once."""
    epoch = sum(per_epoch) / len(per_epoch)
    seconds = total + (EPOCHS - len(per_epoch)) * epoch
    return {"seconds": seconds, "epoch": round(epoch, 3), "accuracy": accuracy}


# --- this project ----------------------------------------------------------------------------


def ours(args, views: int | None = None) -> dict:
    """The command itself. Where no step passes the backbone, all 50 epochs are measured."""
    whole = args.augmentation == "none" or views
    sys.stdout, stdout = sys.stderr, sys.stdout  # its messages are not this benchmark's
    try:
        # The first use of libraries is no part of the comparison.
        run(args, 1, 1, views and 1)
        few, accuracy = run(args, args.epochs, args.steps, views)
        if whole:
            seconds, _ = run(args, EPOCHS, args.steps, views)
            epoch = (seconds - few) / max(1, EPOCHS - args.epochs)
        else:
            once, _ = run(args, 1, args.steps, views)
            epoch = (few - once) / max(1, args.epochs - 1)
            seconds = few + (EPOCHS - args.epochs) * epoch
    finally:
        sys.stdout = stdout
    return {"seconds": seconds, "epoch": round(epoch, 3), "accuracy": accuracy}


def run(args, epochs: int, steps: int, views: int | None = None) -> tuple[float, float]:
    """The command once: its seconds, and the accuracy on the test split."""
    import csv

    import train_classifier

    method = f"{args.augmentation}-{epochs}-{time.time_ns()}"
    flags = [
        "--dataset=mvip", f"--data_dir={args.data_dir}", f"--output_dir={args.work}",
        "--experiment_name=benchmark", f"--classifier_backbone={args.backbone}",
        f"--seed={SEED}", f"--examples_per_class={args.examples}",
        f"--synthetic_probability={PROBABILITY}",
        f"--num_epochs={epochs}", f"--iterations_per_epoch={steps}",
        f"--batch_size={args.batch}", f"--learning_rate={LEARNING_RATE}",
        f"--augmentation={args.augmentation}", f"--device={args.device}",
        f"--finetune={args.finetune}",
        f"--method={method}", f"--num_synthetic={args.synthetic}",
        f"--logdir={args.work}/logs",
        *([f"--views={views}"] if views else []),
    ]  # fmt: skip
    forget_features(args)
    started = time.perf_counter()
    train_classifier.main(flags)
    seconds = time.perf_counter() - started
    file = Path(args.work) / "logs" / method / f"results_{SEED}_{args.examples}.csv"
    with open(file, newline="") as lines:
        rows = [r for r in csv.DictReader(lines)
                if (r["split"], r["metric"]) == ("Test", "Accuracy")]  # fmt: skip
    return seconds, float(rows[-1]["value"])


def forget_features(args) -> None:
    """Every run computes its features itself."""
    for path in (Path(args.work) / "benchmark" / "cache").glob("*"):
        path.unlink()


SIDES = {
    "plain": plain,
    "ours": ours,
    "fresh": ours,
    "views": functools.partial(ours, views=VIEWS),
}

if __name__ == "__main__":
    main()
