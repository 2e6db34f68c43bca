"""How far the parts in the photos are from the parts that the generator has seen.

    python sample/build/individuals.py --cache CACHE_DIR --out sample/individuals.json

The generator knows the common kinds, but not the individuals in the photos: this script measures
that. Parts are scaled to one size, and renders stretch known parts along their axis by 0.75 to
1.35, so two sizes of a standard are nearly the same mesh. The distance of two parts is a robust
Hausdorff distance: at least a twentieth of a part's surface is so far from the other part's
surface, in radii of the sphere around a part. It is the smallest distance over all stretches, turns
about the axis, and both ways up. For every part in the photos of a common kind, the script writes
the nearest rendered part and the distance.
"""

import argparse
import json
from pathlib import Path

import make_data
import numpy as np
import parts
from scipy.spatial import cKDTree

STRETCHES = np.linspace(*make_data.STRETCH, 9)
CLEAR = 0.08  # a distance of outlines above this needs no turning


def surface_points(cache, name, index, count, seed=0):
    """[count, 3] points, uniform on the surface of a part."""
    vertices, faces, _ = parts.load_mesh(cache, name, index)
    rng = np.random.default_rng(seed)
    corners = vertices[faces]
    sides = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.linalg.norm(np.cross(*sides), axis=1)
    chosen = rng.choice(len(faces), count, p=area / area.sum())
    u, v = rng.random((2, count, 1))
    inside = u + v <= 1
    u, v = np.where(inside, u, 1 - u), np.where(inside, v, 1 - v)
    return corners[chosen, 0] + u * sides[0][chosen] + v * sides[1][chosen]


def outline(points):
    """[N, 2]: distance from the axis, and height."""
    return np.stack([np.hypot(points[:, 0], points[:, 1]), points[:, 2]], 1)


def stretched(points, stretch):
    points = points * np.array([1, 1, stretch])
    return points / np.linalg.norm(points, axis=1).max()


def turned(points, angle, flip):
    c, s = np.cos(angle), np.sin(angle)
    points = points @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    return points * np.array([1, -1, -1]) if flip else points


def apart(*pairs):
    """The distance that a twentieth of the points exceeds from the tree, in the worst pair."""
    return max(np.quantile(tree.query(points)[0], 0.95) for tree, points in pairs)


class Surface:
    """Points of a part and, for each stretch, a tree of the points and a tree of their outline."""

    def __init__(self, points, stretches):
        self.points = [stretched(points, stretch) for stretch in stretches]
        self.trees = [cKDTree(each) for each in self.points]
        self.outlines = [cKDTree(outline(each)) for each in self.points]


def distance(photo, known, few=400, turns=18):
    """Between two surfaces, of which the second is stretched."""
    points, tree, flat_tree = photo.points[0][:few], photo.trees[0], photo.outlines[0]
    closest = []
    for k, other in enumerate(known.points):
        for flip in (False, True):
            near = turned(points, 0, flip), turned(other[:few], 0, flip)
            found = apart((known.outlines[k], outline(near[0])), (flat_tree, outline(near[1])))
            closest.append((found, k, flip))
    closest.sort()
    if closest[0][0] > CLEAR:
        return closest[0][0]  # outlines are never further apart than surfaces
    result = np.inf
    for _, k, flip in closest[:3]:
        for turn in range(turns):
            angle = 2 * np.pi * turn / turns
            # A turn of either part is the opposite turn of the other; a flip undoes itself.
            there = turned(known.points[k][:few], angle, flip)
            back = turned(points, angle if flip else -angle, flip)
            result = min(result, apart((known.trees[k], back), (tree, there)))
    return result


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", required=True)
    parser.add_argument("--out", default=str(make_data.ROOT / "individuals.json"))
    parser.add_argument("--points", type=int, default=60000, help="on each surface")
    parser.add_argument("--classes", nargs="+", default=list(parts.COMMON))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    found = {}
    for name in parts.QUICK_COMMON if args.quick else args.classes:
        rendered, first = parts.rendered(name), len(parts.rendered(name))
        known = range(2 if args.quick else first)
        seen = [
            Surface(surface_points(args.cache, name, i, args.points, i), STRETCHES) for i in known
        ]
        for offset, (geometry, _) in enumerate(parts.photographed(name)):
            photo, again = (
                Surface(surface_points(args.cache, name, first + offset, args.points, seed), [1])
                for seed in (1000, 2000)
            )
            # Two draws of the same surface have the distance of its points: the resolution.
            floor = apart((photo.trees[0], again.points[0][:400]))
            each = [max(distance(photo, other) - floor, 0) for other in seen]
            nearest = int(np.argmin(each))
            found[geometry] = {
                "class": name,
                "nearest": rendered[nearest][0],
                "distance": round(float(each[nearest]), 4),
            }
            print(f"{geometry}: {found[geometry]}", flush=True)
    Path(args.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
