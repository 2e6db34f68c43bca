"""How fast and how small the index of COCO 2017's annotations is, beside plain pycocotools.

    python benchmarks/coco_index.py            full size: 118,287 images, 860,001 annotations
    python benchmarks/coco_index.py --quick    a fortieth of it, within a minute; imports then
                                               take more memory than the file

A file of this shape is generated (450 MB at full size, removed afterwards). Three ways to get the
class and the mask of every photo are timed in turn, each in its own process:
`pycocotools.coco.COCO(file)`, our index without a cache, and our index with a cache. Peak memory is
the largest resident size of the whole process. Our process has imported torch, the plain process
has not. The last line is one JSON object; `ratio` is plain time / our time, of medians.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

NUM_IMAGES, NUM_ANNOTATIONS = 118_287, 860_001
CATEGORY_IDS = [number for number in range(1, 91) if number not in
                (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # fmt: skip


def write_instances(path: Path, num_images: int, num_annotations: int) -> None:
    """An `instances_train2017.json` of the published file's keys, order and mean lengths."""
    from semantic_aug.datasets.coco import CLASS_NAMES

    rng = random.Random(0)
    # A few thousand different outlines suffice: parsers do not notice repetitions.
    outlines = [outline(rng) for _ in range(3000)]
    with open(path, "w") as file:
        file.write('{"info": {"description": "COCO 2017 Dataset","year": 2017},"licenses": [],')
        file.write('"images": [')
        for number in range(num_images):
            name = f"{number * 5 + 9:012d}.jpg"
            file.write("," * (number > 0))
            file.write(
                f'{{"license": 3,"file_name": "{name}","coco_url": '
                f'"http://images.cocodataset.org/train2017/{name}","height": 480,"width": 640,'
                f'"date_captured": "2013-11-14 16:28:13","flickr_url": '
                f'"http://farm4.staticflickr.com/3153/2970773875_164f0c0b83_z.jpg",'
                f'"id": {number * 5 + 9}}}'
            )
        file.write('],"annotations": [')
        for number in range(num_annotations):
            crowd = number % 85 == 84  # about one in a hundred is a run-length encoding
            area = round(rng.uniform(20, 60000), 4)
            segmentation = runs(rng) if crowd else outlines[number % len(outlines)]
            # The first annotations go to different images; the others go to any image.
            image = number if number < num_images else rng.randrange(num_images)
            file.write("," * (number > 0))
            file.write(
                f'{{"segmentation": {segmentation},"area": {area},"iscrowd": {int(crowd)},'
                f'"image_id": {image * 5 + 9},"bbox": [473.07,395.93,38.65,28.67],'
                f'"category_id": {CATEGORY_IDS[number % 80]},"id": {number + 1}}}'
            )
        categories = [
            {"supercategory": "thing", "id": number, "name": name}
            for number, name in zip(CATEGORY_IDS, CLASS_NAMES)
        ]
        file.write(f'],"categories": {json.dumps(categories)}}}')


def outline(rng: random.Random) -> str:
    """One to three polygons, about 50 numbers in all, as in the published file."""
    polygons = [
        [round(rng.uniform(0, 480), 2) for _ in range(2 * rng.randint(4, 30))]
        for _ in range(rng.choice((1, 1, 1, 1, 2, 3)))
    ]
    return json.dumps(polygons).replace(", ", ",")


def runs(rng: random.Random) -> str:
    counts, left = [], 480 * 640
    while left > 400:
        counts.append(rng.randint(1, 400))
        left -= counts[-1]
    return json.dumps({"counts": [*counts, left], "size": [480, 640]}).replace(", ", ",")


# --- the measurement, in its own process -----------------------------------------------------


def measure(way: str, path: str) -> None:
    """Print seconds, peak MB of the process, and how many photos there were."""
    if way == "plain":
        from pycocotools.coco import COCO
    else:
        from semantic_aug.datasets import index
        from semantic_aug.datasets.coco import read_photos

        index.KEEP_FROM = 0  # seconds; with --quick nothing takes a second
    start = time.perf_counter()
    if way == "plain":
        count = len(COCO(path).imgToAnns)
    else:
        count = len(read_photos(Path(path), Path(path).stat().st_mtime_ns))
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, peak_mb(), count]))


def peak_mb() -> float:
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def run(way: str, path: Path, cache: Path) -> list:
    command = [sys.executable, __file__, "--measure", way, str(path)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a fortieth of the size")
    parser.add_argument("--repeats", type=int, default=3, help="of each way (default 3)")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, metavar=("SHARE", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        return measure(*args.measure)
    if args.write:
        share, path = int(args.write[0]), Path(args.write[1])
        return write_instances(path, NUM_IMAGES // share, NUM_ANNOTATIONS // share)

    share = 40 if args.quick else 1
    with tempfile.TemporaryDirectory() as folder:
        path, cache = Path(folder) / "instances_train2017.json", Path(folder) / "cache"
        # Also in its own process: a new process counts its parent's memory as its own.
        subprocess.run([sys.executable, __file__, "--write", str(share), str(path)], check=True)
        os.utime(path, (0, 1e9))  # a file that has just changed is not kept in the cache
        print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB")
        results = {"plain": [], "ours": [], "cached": []}
        for _ in range(args.repeats):
            for way, found in results.items():
                if way == "ours":
                    for old in cache.rglob("*.json"):
                        old.unlink()
                found.append(run(way, path, cache))
                print(f"{way:6} {found[-1][0]:7.2f} s, {found[-1][1]:6.0f} MB")
        medians = {
            way: [statistics.median(column) for column in zip(*found)]
            for way, found in results.items()
        }
    assert medians["plain"][2] == medians["ours"][2] == medians["cached"][2]
    plain, ours, cached = (medians[way] for way in results)
    report = {
        "ratio": round(plain[0] / ours[0], 2),
        "plain_s": round(plain[0], 2),
        "ours_s": round(ours[0], 2),
        "cached_s": round(cached[0], 3),
        "memory_ratio": round(plain[1] / ours[1], 2),
        "plain_peak_mb": round(plain[1]),
        "ours_peak_mb": round(ours[1]),
        "cached_peak_mb": round(cached[1]),
        "num_photos": int(plain[2]),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
