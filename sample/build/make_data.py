"""Render the two data sets of the small world.

    python sample/build/make_data.py pretrain --cache CACHE_DIR     # captioned renders, 64 px
    python sample/build/make_data.py catalogue --cache CACHE_DIR    # the same parts on the bench
    python sample/build/make_data.py mvip --cache CACHE_DIR         # sample/mvip, 128 px

`pretrain` draws base classes under the full range of conditions, `catalogue` in all views but with
the surfaces, tables and lamp of the training photos; both in shards of 500 images
(CACHE_DIR/pretrain/NNNN.npz); finished shards are kept, so a killed run goes on where it was.
`mvip` writes the few-shot set of the novel classes in MVIP's own layout. Every photo has its own
random stream, made from its name, so that any of them can be rendered again alone.
"""

import argparse
import functools
import hashlib
import json
import math
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import parts
import render
from PIL import Image

SHARD = 500
ROOT = Path(__file__).resolve().parents[1]
# What the studio of the training photos owns; every class was photographed in two sessions, each
# with one finish of the part and one table.
STUDIO_MATERIALS = ["steel", "galvanised", "black", "brass"]
STUDIO_BACKGROUNDS = ["paper", "concrete", "plate"]
PHOTOS = {"train": 16, "val": 20, "test": 30}


def stream(*names):
    """A random generator that depends on `names` alone."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


@functools.cache
def loaded_part(cache, name, index):
    """A part, kept for the whole process: its scene costs as much as a small picture."""
    return render.Part(*parts.load_mesh(cache, name, index))


def load_part(cache, name, index, stretch=1.0):
    """A part; `stretch` scales it along its axis, to vary the proportions of base parts."""
    part = loaded_part(cache, name, index)
    return part if stretch == 1.0 else part.stretched(stretch)


def catalogue_condition(rng, poses):
    """Any view of a part on the bench of the training photos."""
    free = render.draw_condition(rng, poses)
    bench = render.draw_condition(rng, poses, STUDIO_MATERIALS, STUDIO_BACKGROUNDS, studio=True)
    return bench | {key: free[key] for key in render.VIEW}


def render_shard(task):
    """Render 500 captioned photos of base classes into one file; nothing if the time is over."""
    cache, kind, number, count, names, seed, deadline = task
    target = Path(cache) / kind / f"{number:04d}.npz"
    draw = {"pretrain": render.draw_condition, "catalogue": catalogue_condition}[kind]
    if target.exists():
        return number
    images = np.empty((count, 64, 64, 3), np.uint8)
    labels = np.empty(count, np.int64)
    texts = []
    for i in range(count):
        if time.time() > deadline:
            return None
        rng = stream(kind, seed, number, i)
        label = (number * SHARD + i) % len(names)
        name = names[label]
        index = int(rng.integers(len(parts.makers(name))))
        while not (Path(cache) / "meshes" / name / f"{index}.npz").exists():
            index -= 1  # only in a quick build, which has the first geometries alone
            if index < 0:
                raise FileNotFoundError(f"{cache}/meshes/{name}: no meshes; run parts.py first")
        stretch = float(rng.uniform(0.75, 1.35)) if rng.random() < 0.5 else 1.0
        cond = draw(rng, parts.poses(name))
        images[i], _ = render.render(load_part(cache, name, index, stretch), cond, 64)
        labels[i] = label
        texts.append(render.caption(rng, parts.BASE[name][0], cond))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".tmp.npz")
    np.savez(part, images=images, labels=labels, captions=np.array(texts))
    os.replace(part, target)
    return number


def make_shards(cache, kind, count, names, seed, workers, seconds=math.inf):
    shards, deadline = (count + SHARD - 1) // SHARD, time.time() + seconds
    tasks = [
        (cache, kind, n, min(SHARD, count - n * SHARD), names, seed, deadline)
        for n in range(shards)
    ]
    with ProcessPoolExecutor(workers) as pool:
        for number in pool.map(render_shard, tasks):
            if number is not None:
                print(f"shard {number + 1}/{shards}", flush=True)


def count_renders(cache, kind="pretrain"):
    """How many renders are in whole shards by now."""
    return SHARD * len(list(Path(cache, kind).glob("[0-9][0-9][0-9][0-9].npz")))


def load_shards(cache, kind="pretrain"):
    """(images uint8 [N, 64, 64, 3], labels [N], captions) of all finished shards."""
    files = sorted(Path(cache, kind).glob("[0-9][0-9][0-9][0-9].npz"))
    if not files:
        raise SystemExit(f"no renders in {cache}/{kind}: run make_data.py {kind} first")
    data = [np.load(f) for f in files]
    images = np.concatenate([d["images"] for d in data])
    labels = np.concatenate([d["labels"] for d in data])
    return images, labels, [str(c) for d in data for c in d["captions"]]


def studio_sessions(name):
    """The two (material, background) of a class's training photos."""
    rng = stream("studio", name)
    materials = rng.permutation(STUDIO_MATERIALS)[:2]
    backgrounds = rng.permutation(STUDIO_BACKGROUNDS)[:2]
    return [(str(m), str(b)) for m, b in zip(materials, backgrounds, strict=True)]


def photo_plan(name, split, index):
    """Photo `index` of a split: (folder below the split's, geometry index, condition)."""
    rng = stream("mvip", name, split, index)
    names = [g for g, _ in parts.makers(name)]
    cut = range(len(names))[parts.SPLIT_GEOMETRIES[split]]
    poses = parts.poses(name)
    geometry = cut[index % len(cut)]
    group = f"set_{geometry:02d}"
    if split != "train":
        cam = (index // len(cut)) % 2
        cond = render.draw_condition(rng, poses)
        # Two cameras, as on a bench: one looks down, one looks from the side.
        cond["tilt"] = float(rng.uniform(50, 86) if cam == 0 else rng.uniform(22, 50))
        return f"{group}/cam_{cam}", geometry, cond
    material, background = studio_sessions(name)[index % 2]
    orientation, cam = (index // 2) % 2, (index // 4) % 2
    cond = render.draw_condition(rng, poses, [material], [background], studio=True)
    cond["pose"] = list(poses[0] if orientation == 0 else poses[-2])
    cond["tilt"] = float(rng.uniform(58, 64) if cam == 0 else rng.uniform(48, 54))
    return f"{group}/orientation_{orientation}/cam_{cam}", geometry, cond


def write_png(array, path, mode=None):
    image = Image.fromarray(array)
    if mode:
        image = image.convert(mode)
    part = path.with_name("." + path.name + ".tmp")
    image.save(part, format="PNG", optimize=True)
    os.replace(part, path)


def make_class(task):
    """Write one class of sample/mvip; returns its photos' records."""
    cache, name, root, photos = task
    records = []
    folder = Path(root) / name
    shutil.rmtree(folder, ignore_errors=True)
    for split, count in photos.items():
        for i in range(count):
            place, geometry, cond = photo_plan(name, split, i)
            part = load_part(cache, name, geometry)
            image, mask = render.render(part, cond, 128)
            # Three low bits of texture grain are not worth twice the file size.
            image = np.minimum((image.astype(np.int16) + 4) // 8 * 8, 255).astype(np.uint8)
            target = folder / f"{'valid' if split == 'val' else split}_data" / place
            target.mkdir(parents=True, exist_ok=True)
            write_png(image, target / f"{i:03d}_rgb.png")
            write_png(mask.astype(np.uint8) * 255, target / f"{i:03d}_rgb_mask_gen.png", "1")
            records.append((split, str(target / f"{i:03d}_rgb.png"), geometry, cond))
    super_name, description = parts.NOVEL[name][:2]
    meta = {"super_class": ["CarComponent", super_name], "description": description}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    return name, records


def make_mvip(cache, root, names, photos, workers):
    tasks = [(cache, n, str(root), photos) for n in names]
    with ProcessPoolExecutor(workers) as pool:
        for name, records in pool.map(make_class, tasks):
            print(f"{name}: {len(records)} photos", flush=True)
    text = json.dumps(parts.record(), indent=1) + "\n"
    (Path(root).parent / "classes.json").write_text(text)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Render a pretraining set or sample/mvip.")
    parser.add_argument("what", choices=["pretrain", "catalogue", "mvip"])
    parser.add_argument("--cache", required=True)
    parser.add_argument("--count", type=int, default=22000, help="captioned renders")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="stop rendering after so long"
    )
    parser.add_argument("--out", default=str(ROOT / "mvip"), help="folder of the few-shot set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few classes and photos")
    args = parser.parse_args(argv)
    if args.what != "mvip":
        names = parts.QUICK_BASE if args.quick else list(parts.BASE)
        seed, workers = args.seed, args.workers
        make_shards(args.cache, args.what, args.count, names, seed, workers, args.seconds)
    else:
        names = parts.QUICK_NOVEL if args.quick else list(parts.NOVEL)
        photos = {"train": 4, "val": 4, "test": 6} if args.quick else PHOTOS
        make_mvip(args.cache, args.out, names, photos, args.workers)


if __name__ == "__main__":
    main()
