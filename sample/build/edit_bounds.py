"""The gain of perfect edits: the same photos, rendered again with one change.

    python sample/build/edit_bounds.py --cache CACHE_DIR

An edit of SDEdit keeps the shape and the view and changes surface, table or light; at full strength
it also changes the view. The renderer can make such an edit of every training photo, without a
generator's faults: the same geometry with another surface (material, state), another table, another
lamp, or all of these. The gain of training with these renders is a bound for edits of the photos.
Other individuals of the kind, which a generator may also draw, bring more. trials.py trains the
heads; test photos choose nothing.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import make_data
import numpy as np
import parts
import render
import trials
from render import LIGHT, SURFACE, TABLE, VIEW

EDITS = {
    "surface": SURFACE,
    "table, light": TABLE + LIGHT,
    "surface, table, light": SURFACE + TABLE + LIGHT,
    "everything": SURFACE + TABLE + LIGHT + VIEW,
    "everything, other individuals": SURFACE + TABLE + LIGHT + VIEW,
}


def edited(cache, name, photo, edit, variant):
    """Training photo number `photo` of a class, rendered with a part of its condition redrawn.

    Other individuals are the generator's individuals, or else the photos' individuals.
    """
    _, geometry, cond = make_data.photo_plan(name, "train", photo)
    rng = make_data.stream("edit", name, photo, edit, variant)
    other = render.draw_condition(rng, parts.poses(name))
    cond = cond | {key: other[key] for key in EDITS[edit]}
    if "individuals" in edit and parts.rendered(name):
        geometry = make_data.draw_known(cache, name, rng)
    part = make_data.load_part(cache, name, geometry)
    return render.render(part, cond, 64)[0]


def edits_of_class(task):
    """[photos, variants, 64, 64, 3] uint8."""
    cache, name, photos, edit, variants = task
    return np.stack([
        [edited(cache, name, i, edit, v) for v in range(variants)] for i in range(photos)
    ])  # fmt: skip


def edits_of(cache, names, photos, edit, variants, workers):
    """[classes, photos, variants, 64, 64, 3] uint8, kept in the cache."""
    path = (
        Path(cache)
        / "edits"
        / f"{names[0]}-{edit.replace(', ', '-').replace(' ', '-')}-{variants}.npz"
    )
    if not path.exists():
        tasks = [(cache, name, photos, edit, variants) for name in names]
        with ProcessPoolExecutor(workers) as pool:
            images = np.stack(list(pool.map(edits_of_class, tasks)))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=images)
    with np.load(path) as data:
        return data["images"]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", required=True)
    parser.add_argument("--mvip", default=str(make_data.ROOT / "mvip"))
    parser.add_argument("--backbone", default=str(make_data.ROOT / "backbone"))
    parser.add_argument("--out", help="a JSON file; default: CACHE_DIR/edit_bounds.json")
    parser.add_argument("--edits", nargs="+", choices=EDITS, default=list(EDITS))
    parser.add_argument("--variants", type=int, default=8, help="of each photo and edit")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sets", nargs="+", default=["common", "novel"])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    features, found = trials.Features(args.backbone), {}
    sets = {"common": list(parts.COMMON), "novel": list(parts.NOVEL)}
    if args.quick:
        sets = {"common": parts.QUICK_COMMON, "novel": parts.QUICK_NOVEL}
    for kind in args.sets:
        names = sets[kind]
        photos = trials.load_split(args.mvip, names, "train")
        val, test = (features(trials.load_split(args.mvip, names, s))[:, :, 0]
                     for s in ("valid", "test"))  # fmt: skip
        methods = {
            "real": (features(photos, 8), None),
            "RandAugment": (features(photos, 8, "randaugment"), None),
        }
        for edit in args.edits:
            images = edits_of(args.cache, names, photos.shape[1], edit, args.variants, args.workers)
            methods[edit] = methods["real"][0], features(images, 2)
        for shots in (shots for shots in (1, 2, 4, 8) if shots <= photos.shape[1]):
            scores = {
                method: trials.train(*each, val, test, shots, args.trials)["test"]
                for method, each in methods.items()
            }
            rows = {"real": trials.interval(scores["real"])}
            for method in list(scores)[1:]:
                rows[method] = trials.interval(scores[method] - scores["real"])
            found[f"{kind} {shots}"] = rows
            print(kind, shots, rows, flush=True)
    out = Path(args.out or Path(args.cache) / "edit_bounds.json")
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
