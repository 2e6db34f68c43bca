"""Render the data sets of the small world, all at 64 px.

    python sample/build/make_data.py pretrain --cache CACHE_DIR     # captioned, for the generator
    python sample/build/make_data.py backbone --cache CACHE_DIR     # for the backbone
    python sample/build/make_data.py catalogue --cache CACHE_DIR    # the same kinds on one bench
    python sample/build/make_data.py mvip --cache CACHE_DIR         # sample/mvip and same_places

`pretrain` and `backbone` draw the full range of conditions; `catalogue` draws all views, but only
four surfaces, three tables and one lamp. They write shards of 500 images
(CACHE_DIR/pretrain/NNNN.npz), and a resumed run keeps finished shards. `mvip` writes the photos of
common and novel kinds in MVIP's layout. Every photo has its own random stream, made from its name,
so any photo can be rendered again alone.
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
STRETCH = (0.75, 1.35)  # of rendered parts along their axis: varies their proportions
ROOT = Path(__file__).resolve().parents[1]
SIZE = 64
# The surfaces, tables and lamp of the catalogue's studio.
STUDIO_MATERIALS = ["steel", "galvanised", "black", "brass"]
STUDIO_BACKGROUNDS = ["paper", "concrete", "plate"]
PHOTOS = {"train": 32, "val": 20, "test": 30}
MORE_PHOTOS = 8  # of each common class in sample/same_places


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
    """Any view of a part on the bench of the catalogue."""
    free = render.draw_condition(rng, poses)
    bench = render.draw_condition(rng, poses, STUDIO_MATERIALS, STUDIO_BACKGROUNDS, studio=True)
    return bench | {key: free[key] for key in render.VIEW}


def draw_known(cache, name, rng):
    """The index of a geometry that models may see; a quick build has only the first geometries."""
    index = int(rng.integers(len(parts.rendered(name))))
    while not (Path(cache) / "meshes" / name / f"{index}.npz").exists():
        index -= 1
        if index < 0:
            raise FileNotFoundError(f"{cache}/meshes/{name}: no meshes; run parts.py first")
    return index


def render_shard(task):
    """Render 500 captioned images of base classes into one file; no file if the time is over."""
    cache, kind, number, count, names, seed, deadline = task
    target = Path(cache) / kind / f"{number:04d}.npz"
    draw = catalogue_condition if kind == "catalogue" else render.draw_condition
    if target.exists():
        return number
    images = np.empty((count, 64, 64, 3), np.uint8)
    masks = np.empty((count, 64, 64), bool)
    labels = np.empty(count, np.int64)
    texts = []
    for i in range(count):
        if time.time() > deadline:
            return None
        rng = stream(kind, seed, number, i)
        label = (number * SHARD + i) % len(names)
        name = names[label]
        index = draw_known(cache, name, rng)
        stretch = float(rng.uniform(*STRETCH)) if rng.random() < 0.5 else 1.0
        cond = draw(rng, parts.poses(name))
        images[i], masks[i] = render.render(load_part(cache, name, index, stretch), cond, 64)
        labels[i] = label
        texts.append(render.caption(rng, (parts.BASE | parts.BACKBONE)[name][0], cond))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".tmp.npz")
    packed = np.packbits(masks, axis=-1)
    np.savez(part, images=images, masks=packed, labels=labels, captions=np.array(texts))
    os.replace(part, target)
    return number


def make_shards(cache, kind, count, names, seed, workers, seconds=math.inf):
    shards, deadline = (count + SHARD - 1) // SHARD, time.time() + seconds
    tasks = [
        (cache, kind, n, min(SHARD, count - n * SHARD), names, seed, deadline)
        for n in range(shards)
    ]
    Path(cache, kind).mkdir(parents=True, exist_ok=True)
    Path(cache, kind, "classes.json").write_text(json.dumps(names))
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


def load_masks(cache, kind="pretrain"):
    """bool [N, 64, 64], where the parts are in the images of `load_shards`."""
    files = sorted(Path(cache, kind).glob("[0-9][0-9][0-9][0-9].npz"))
    data = [np.load(f) for f in files]
    if not data or not all("masks" in d for d in data):
        raise SystemExit(f"no masks in {cache}/{kind}: run make_data.py {kind} into another cache")
    return np.unpackbits(np.concatenate([d["masks"] for d in data]), axis=-1).astype(bool)


@functools.cache
def places():
    """The four places of all training photos: a table and a lamp each, drawn once."""
    tables = stream("places").permutation(list(render.BACKGROUNDS))[:4]
    keys = set(render.TABLE + render.LIGHT) - {"offset"}  # where on the table is up to the photo
    drawn = [render.draw_condition(stream("place", t), [(0, 0)], None, [t]) for t in tables]
    return [{key: cond[key] for key in keys} for cond in drawn]


def finish(name):
    """The material and state of a class's training parts; no two classes of a set share them."""
    names = list(parts.COMMON if name in parts.COMMON else parts.NOVEL)
    materials = stream("finishes", names[0]).permutation(list(render.MATERIALS))
    cond = render.draw_condition(stream("finish", name), [(0, 0)], [materials[names.index(name)]])
    return {key: cond[key] for key in render.SURFACE}


def load_classes(cache, kind="pretrain"):
    """The names of the shards' labels, in their order."""
    return json.loads(Path(cache, kind, "classes.json").read_text())


def photo_plan(name, split, index, home=None):
    """Photo `index` of a split: (folder below the split's, geometry index, condition).

    With `home`, the photo shows a part of the training finish in one of the four training places.
    """
    home = split == "train" if home is None else home
    rng = stream("mvip", name, split, index, *["home"] * (home and split != "train"))
    individuals, poses = parts.individuals(name, split), parts.poses(name)
    geometry, turn = individuals[index % len(individuals)], index // len(individuals)
    cond = render.draw_condition(rng, poses)
    group = f"set_{index % len(individuals):02d}"
    if home:
        place, turn = turn % len(places()), turn // len(places())
        cond |= places()[place] | finish(name)
        group += f"/orientation_{place}"
    # Two cameras, as on a bench: one looks down, one looks from the side.
    camera = turn % 2
    cond["tilt"] = float(rng.uniform(50, 86) if camera == 0 else rng.uniform(22, 50))
    return f"{group}/cam_{camera}", geometry, cond


def photo(cache, name, split, index, home=None):
    """(folder below the split's, image uint8 [64, 64, 3], mask bool [64, 64])."""
    place, geometry, cond = photo_plan(name, split, index, home)
    image, mask = render.render(load_part(cache, name, geometry), cond, SIZE)
    # Three low bits of texture grain are not worth twice the file size.
    return place, np.minimum((image.astype(np.int16) + 4) // 8 * 8, 255).astype(np.uint8), mask


def write_png(array, path, mode=None):
    image = Image.fromarray(array)
    if mode:
        image = image.convert(mode)
    part = path.with_name("." + path.name + ".tmp")
    image.save(part, format="PNG", optimize=True)
    os.replace(part, path)


def make_class(task):
    """Write one class: its folder of sample/mvip, and further photos from the training places."""
    cache, name, out, counts, more = task
    folder = Path(out) / "mvip" / name
    shutil.rmtree(folder, ignore_errors=True)
    for split, count in counts.items():
        for i in range(count):
            place, image, mask = photo(cache, name, split, i)
            target = folder / f"{'valid' if split == 'val' else split}_data" / place
            target.mkdir(parents=True, exist_ok=True)
            write_png(image, target / f"{i:03d}_rgb.png")
            write_png(mask.astype(np.uint8) * 255, target / f"{i:03d}_rgb_mask_gen.png", "1")
    option = "CarComponent" if name in parts.COMMON else "NovelComponent"
    super_name, description = parts.described(name)
    meta = {"super_class": [option, super_name], "description": description}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    if name in parts.COMMON:
        target = Path(out) / "same_places" / name
        target.mkdir(parents=True, exist_ok=True)
        for i in range(more):
            image = photo(cache, name, "train", counts["train"] + i)[1]
            write_png(image, target / f"{i:03d}.png")
    return name


def make_mvip(cache, out, names, counts, more, workers):
    tasks = [(cache, name, str(out), counts, more) for name in names]
    with ProcessPoolExecutor(workers) as pool:
        for name in pool.map(make_class, tasks):
            print(f"{name}: {sum(counts.values())} photos", flush=True)
    (Path(out) / "classes.json").write_text(json.dumps(parts.record(), indent=1) + "\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description="Render a pretraining set or sample/mvip.")
    parser.add_argument("what", choices=["pretrain", "backbone", "catalogue", "mvip"])
    parser.add_argument("--cache", required=True)
    parser.add_argument("--count", type=int, default=22000, help="captioned renders")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="stop rendering after so long"
    )
    parser.add_argument("--out", default=str(ROOT), help="folder of mvip and same_places")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few classes and photos")
    args = parser.parse_args(argv)
    if args.what != "mvip":
        names = parts.kinds("generator" if args.what == "pretrain" else "backbone", args.quick)
        seed, workers = args.seed, args.workers
        make_shards(args.cache, args.what, args.count, names, seed, workers, args.seconds)
    else:
        names, counts, more = [*parts.COMMON, *parts.NOVEL], PHOTOS, MORE_PHOTOS
        if args.quick:
            names, counts = (
                parts.QUICK_COMMON + parts.QUICK_NOVEL,
                {"train": 4, "val": 4, "test": 6},
            )
            more = 2
        make_mvip(args.cache, args.out, names, counts, more, args.workers)


if __name__ == "__main__":
    main()
