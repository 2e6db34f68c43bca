"""Many trials of heads on a frozen backbone at once, for choices before the commands run.

Photos have features under random views, as `train_classifier.py` draws them; a method is a number
of further images of every photo. All trials of a method are trained in one batch of heads, as the
command trains them: 300 steps of 32 images, half of which are synthetic if the method has any, with
Adam. Validation photos choose the epoch.
"""

import sys
from pathlib import Path

import make_data
import numpy as np
import torch
import training
from PIL import Image
from torch.nn import functional as F
from transformers import ResNetForImageClassification

sys.path.insert(0, str(make_data.ROOT.parent))
from semantic_aug.evaluation.standard_augmentation import AUGMENTATIONS

RATE, STEPS, BATCH, EPOCHS = 1e-2, 300, 32, 6


def load_split(root, names, split):
    """Images uint8 [classes, photos, 64, 64, 3] of one split of sample/mvip."""
    rows = []
    for name in names:
        files = (Path(root) / name / f"{split}_data").rglob("*_rgb.png")
        opened = [Image.open(path) for path in sorted(files, key=lambda path: path.name)]
        rows.append(np.stack([np.asarray(image.convert("RGB")) for image in opened]))
    return np.stack(rows)


class Features:
    """Pooled features of a backbone, under random views."""

    def __init__(self, backbone):
        self.device = training.pick_device()
        model = ResNetForImageClassification.from_pretrained(backbone, dtype=torch.float32)
        self.model = model.to(self.device).eval()

    def __call__(self, images, views=0, augmentation="flip-rotate", seed=0):
        """[..., max(views, 1), D] of uint8 images [..., 64, 64, 3]; 0 views: unchanged images."""
        flat = np.ascontiguousarray(images.reshape(-1, *images.shape[-3:]))
        generator, rows = torch.Generator().manual_seed(seed), []
        with torch.no_grad():
            for batch in torch.from_numpy(flat).permute(0, 3, 1, 2).split(128):
                pixels, each = batch.to(self.device).float() / 255, []
                for _ in range(max(views, 1)):
                    seen = AUGMENTATIONS[augmentation](pixels, generator) if views else pixels
                    each.append(self.model.resnet(2 * seen - 1).pooler_output.flatten(1))
                rows.append(torch.stack(each, 1).cpu())
        return torch.cat(rows).view(*images.shape[:-3], max(views, 1), -1)


def choose(photos, classes, shots, trials):
    """[trials, classes, shots] indices of photos: the first of a permutation in each trial."""
    return torch.from_numpy(
        np.stack([
            [np.random.default_rng([t, c]).permutation(photos)[:shots] for c in range(classes)]
            for t in range(trials)
        ])
    )  # fmt: skip


def train(real, synthetic, val, test, shots, trials=8, share=0.5, home=None, seed=0):
    """Accuracies [trials] of heads on "val", "test" and, if given, "home".

    `test` judges the epoch that `val` chooses. `home` are photos from the training places;
    "test_by_home" is the accuracy on test photos in the epoch that `home` would have chosen.

    Args:
        real: [C, P, V, D] features of photos.
        synthetic: [C, P, S, W, D] or None.
        val, test, home: [C, N, D].
        shots: photos per class.
        share: how often an image is synthetic.
    """
    classes, photos = real.shape[:2]
    chosen = choose(photos, classes, shots, trials)
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high: torch.randint(high, (trials, BATCH), generator=generator)  # noqa: E731
    width, bound = real.shape[-1], real.shape[-1] ** -0.5
    weight = torch.empty(trials, width, classes).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(trials, 1, classes).uniform_(-bound, bound, generator=generator)
    heads = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.Adam(heads, lr=RATE)
    best = {}

    def judged(features):
        scores = features.flatten(0, 1) @ weight + bias
        labels = torch.arange(classes).repeat_interleave(features.shape[1]).expand(trials, -1)
        loss = F.cross_entropy(scores.transpose(1, 2), labels, reduction="none").mean(1)
        return (scores.argmax(2) == labels).float().mean(1), loss

    for step in range(STEPS):
        label, shot = draw(classes), draw(shots)
        photo = chosen[torch.arange(trials)[:, None], label, shot]
        batch = real[label, photo, draw(real.shape[2])]
        if synthetic is not None:
            made = synthetic[label, photo, draw(synthetic.shape[2]), draw(synthetic.shape[3])]
            instead = torch.rand(trials, BATCH, 1, generator=generator) < share
            batch = torch.where(instead, made, batch)
        scores = batch @ weight + bias
        loss = F.cross_entropy(scores.transpose(1, 2), label, reduction="none").mean(1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % (STEPS // EPOCHS) == 0:
            with torch.no_grad():
                on_test = judged(test)[0]
                for split, photos_of in (("val", val), ("home", home)):
                    if photos_of is None:
                        continue
                    now = (*judged(photos_of), on_test)
                    if split in best:
                        before = best[split]
                        better = (now[0] > before[0]) | (
                            (now[0] == before[0]) & (now[1] < before[1])
                        )
                        now = tuple(map(lambda a, b: torch.where(better, a, b), now, before))
                    best[split] = now
    found = {"val": best["val"][0], "test": best["val"][2]}
    if home is not None:
        found |= {"home": best["home"][0], "test_by_home": best["home"][2]}
    return {name: values.numpy() for name, values in found.items()}


def interval(values):
    """(mean, half width of the 95 % Student interval) in points; one trial has no width."""
    from scipy import stats

    values = 100 * np.asarray(values, float)
    mean, count = round(float(values.mean()), 1), len(values)
    if count < 2:
        return mean, None
    return mean, round(float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / count**0.5), 1)
