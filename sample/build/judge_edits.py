"""Do edits show what their prompts say? A classifier of 64 renders per kind tells.

    python sample/build/judge_edits.py --cache CACHE_DIR output/EXP/AUG/seed=0_ex=32 ...
    python sample/build/judge_edits.py --cache CACHE_DIR --kinds novel output/EXP/AUG/seed=*_ex=2

A linear head on the features of the backbone learns the generator's kinds from 64 captioned renders
of each kind (make_data.py pretrain); with --kinds common or novel, these kinds from 64 renders of
their test parts, which are no photos of sample/mvip (needs the meshes of parts.py). For every
folder of edits, the script prints the share of edits whose class the head names, of all edits and
by class. It prints the same shares of further renders, for comparison. A new version of the
generator is kept only if this share and the accuracies of search.py have risen.
"""

import argparse
import json
from pathlib import Path

import make_data
import numpy as np
import parts
import torch
import trials
from PIL import Image
from torch.nn import functional as F

RENDERS = 64  # of each kind, to learn from; as many again to be judged


def learn(features, images, labels, steps=1500):
    """A head that names the kind of a render."""
    seen = features(images, 4)  # under four random views
    views = seen.shape[1]
    rows, kinds = seen.flatten(0, 1), torch.from_numpy(labels).repeat_interleave(views)
    torch.manual_seed(0)
    head = torch.nn.Linear(rows.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3, weight_decay=1e-4)
    for _ in range(steps):
        batch = torch.randint(len(rows), (256,))
        loss = F.cross_entropy(head(rows[batch]), kinds[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.requires_grad_(False)


def renders_of_generator(cache):
    """Kinds, and images and labels of twice RENDERS renders of each kind, those of a kind in a row.

    The first half of a kind's renders is to learn from.
    """
    images, labels, _ = make_data.load_shards(cache)
    kinds = make_data.load_classes(cache)
    order = [np.flatnonzero(labels == kind)[: 2 * RENDERS] for kind in range(len(kinds))]
    return kinds, [images[rows] for rows in order]


def renders_of_photographed(cache, kinds):
    """The same of kinds in sample/mvip: test parts elsewhere, in views after the test photos."""
    first = make_data.PHOTOS["test"]
    numbers = range(first, first + 2 * RENDERS)
    draw = make_data.photo
    return kinds, [np.stack([draw(cache, kind, "test", n)[1] for n in numbers]) for kind in kinds]


def edits_in(folder, kinds):
    """(uint8 [N, 64, 64, 3], labels [N]) of the edits of these kinds in a trial's folder."""
    images, labels = [], []
    for line in (folder / "metadata.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["class_name"] in kinds:
            with Image.open(folder / record["file_name"]) as image:
                images.append(np.asarray(image.convert("RGB")))
            labels.append(kinds.index(record["class_name"]))
    if not images:
        raise SystemExit(f"{folder} has no edit of a kind that the generator knows")
    return np.stack(images), np.array(labels)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--backbone", default=str(make_data.ROOT / "backbone"))
    parser.add_argument("--kinds", choices=["generator", "common", "novel"], default="generator")
    args = parser.parse_args(argv)
    if args.kinds == "generator":
        kinds, renders = renders_of_generator(args.cache)
    else:
        chosen = parts.COMMON if args.kinds == "common" else parts.NOVEL
        kinds, renders = renders_of_photographed(args.cache, list(chosen))
    known, further = (np.concatenate([rows[part] for rows in renders])
                      for part in (slice(RENDERS), slice(RENDERS, None)))  # fmt: skip
    known_labels, further_labels = (
        np.repeat(np.arange(len(kinds)), [len(rows[part]) for rows in renders])
        for part in (slice(RENDERS), slice(RENDERS, None))
    )
    features = trials.Features(args.backbone)
    head = learn(features, known, known_labels)

    def judged(what, images, labels):
        right = head(features(images)[:, 0]).argmax(1).numpy() == labels
        found = {kinds[kind]: round(100 * right[labels == kind].mean(), 1)
                 for kind in np.unique(labels)}  # fmt: skip
        row = {"images": what, "number": len(labels), "right": round(100 * right.mean(), 1)}
        print(json.dumps(row | {"by_class": found}), flush=True)

    judged("further renders", further, further_labels)
    for folder in args.folders:
        judged(str(folder), *edits_in(folder, kinds))


if __name__ == "__main__":
    main()
