"""Do edits show what their prompts say? A classifier of 64 renders per kind tells.

    python sample/build/judge_edits.py --cache CACHE_DIR output/EXP/AUG/seed=0_ex=32 ...

A linear head on the features of the backbone learns the generator's kinds from 64 captioned renders
of each kind (make_data.py pretrain). For every folder of edits, the script prints the share of
edits whose class the head names, of all edits and by class. It prints the same shares of further
renders, for comparison. A new version of the generator is kept only if this share and the
accuracies of search.py have risen.
"""

import argparse
import json
from pathlib import Path

import make_data
import numpy as np
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
    args = parser.parse_args(argv)
    images, labels, _ = make_data.load_shards(args.cache)
    kinds = json.loads((Path(args.cache) / "pretrain" / "classes.json").read_text())
    order = [np.flatnonzero(labels == kind) for kind in range(len(kinds))]
    known, further = (np.concatenate([rows[part] for rows in order])
                      for part in (slice(RENDERS), slice(RENDERS, 2 * RENDERS)))  # fmt: skip
    features = trials.Features(args.backbone)
    head = learn(features, images[known], labels[known])

    def judged(what, images, labels):
        right = head(features(images)[:, 0]).argmax(1).numpy() == labels
        found = {kinds[kind]: round(100 * right[labels == kind].mean(), 1)
                 for kind in np.unique(labels)}  # fmt: skip
        row = {"images": what, "number": len(labels), "right": round(100 * right.mean(), 1)}
        print(json.dumps(row | {"by_class": found}), flush=True)

    judged("further renders", images[further], labels[further])
    for folder in args.folders:
        judged(str(folder), *edits_in(folder, kinds))


if __name__ == "__main__":
    main()
