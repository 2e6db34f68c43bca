"""What perfect edits would bring: the same photos, rendered again with one thing changed.

    python sample/build/edit_bounds.py --cache CACHE_DIR

An edit of SDEdit keeps the shape and the view and changes surface, table or light. The renderer can
do exactly that to every training photo, without any fault of a generator: same geometry, pose and
camera, another surface (material, state), another table, another lamp, or all three. The gain of
these renders beside the real photos is a bound for any augmentation that keeps shape and view; the
row `view` changes what such an augmentation cannot.
"""

import argparse
import json
from pathlib import Path

import domain_gap
import make_data
import numpy as np
import parts
import render
import torch
from render import LIGHT, SURFACE, TABLE, VIEW

EDITS = {
    "surface": SURFACE,
    "table": TABLE,
    "light": LIGHT,
    "surface, table, light": SURFACE + TABLE + LIGHT,
    "view": VIEW,
    "everything": SURFACE + TABLE + LIGHT + VIEW,
}


def edited(cache, name, photo, keys, variant):
    """Training photo number `photo` of a class again, with the keys of its condition redrawn."""
    _, geometry, cond = make_data.photo_plan(name, "train", photo)
    other = render.draw_condition(
        make_data.stream("edit", name, photo, "/".join(keys), variant), parts.poses(name)
    )
    cond = cond | {key: other[key] for key in keys}
    part = make_data.load_part(cache, name, geometry)
    return render.render(part, cond, 64)[0]


def edits_of(cache, names, photos, keys, variants):
    """[classes, photos, variants, 64, 64, 3] uint8."""
    return np.stack([
        [[edited(cache, name, i, keys, v) for v in range(variants)] for i in range(photos)]
        for name in names
    ])  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", required=True)
    parser.add_argument("--mvip", default=str(make_data.ROOT / "mvip"))
    parser.add_argument("--backbone", default=str(make_data.ROOT / "backbone"))
    parser.add_argument("--variants", type=int, default=6, help="of each photo and edit")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    names = parts.QUICK_NOVEL if args.quick else list(parts.NOVEL)
    features, splits = domain_gap.open_sample(args.mvip, args.backbone, names)
    seen = {split: (features(images), labels) for split, (images, labels) in splits.items()}
    photos, of_edit = len(splits["train"][1]) // len(names), {}
    for edit, keys in EDITS.items():
        images = edits_of(args.cache, names, photos, keys, args.variants)
        shape = (2, *images.shape[:3], -1)
        of_edit[edit] = features(images.reshape(-1, 64, 64, 3)).view(shape)
        print(f"{edit}: {np.prod(images.shape[:3])} renders", flush=True)

    found = {}
    for shots in (shots for shots in (1, 2, 4, 8) if shots <= photos):
        scores = {edit: [] for edit in ("real photos alone", *EDITS)}
        for trial in range(args.trials):
            rng = np.random.default_rng(trial)
            chosen = [torch.from_numpy(rng.permutation(photos)[:shots]) for _ in names]
            real = torch.cat([
                seen["train"][0][:, c * photos + chosen[c]] for c in range(len(names))
            ], dim=1)  # fmt: skip
            labels = np.repeat(np.arange(len(names)), shots)
            for edit in scores:
                train, of_train = real, labels
                if edit in of_edit:
                    made = torch.cat([
                        of_edit[edit][:, c, chosen[c]].flatten(1, 2) for c in range(len(names))
                    ], dim=1)  # fmt: skip
                    # As often as all variants of a photo together: the paper's half and half.
                    train = torch.cat([real.repeat(1, args.variants, 1), made], dim=1)
                    of_train = np.concatenate([
                        np.tile(labels, args.variants), np.repeat(labels, args.variants)
                    ])  # fmt: skip
                result = domain_gap.measure(
                    (train, of_train), seen["valid"], seen["test"], len(names)
                )
                scores[edit].append(result)
        found[shots] = {
            edit: [round(100 * float(np.mean(each)), 1), round(100 * float(np.std(each)), 1)]
            for edit, each in scores.items()
        }
        print(shots, found[shots], flush=True)
    (Path(args.cache) / "edit_bounds.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
