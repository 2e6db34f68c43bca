"""How long it takes to list a dataset of ImageNet's size, with and without an index.

    python benchmarks/folder_index.py            1000 folders, 1.28 million names
    python benchmarks/folder_index.py --quick    a fortieth of it

Folders in the layout of ILSVRC 2012 are made of hard links to a few small photos, and removed
afterwards. A few-shot trial of 4 photos per class is built in its own process, first without an
index and then with the index that the first process left. The last line is one JSON object;
`ratio` is the time without an index / the time with an index, of medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from coco_index import peak_mb

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

NUM_CLASSES, PER_CLASS = 1000, 1281
LINKS = 50_000  # of one file; file systems end at 65,000


def write_folders(root: Path, num_classes: int) -> None:
    """ROOT/train/nXXXXXXXX/*.JPEG, an empty ROOT/val/, and ROOT/classes.txt."""
    from PIL import Image

    photo, count = None, 0
    for label in range(num_classes):
        wnid = f"n{label:08d}"
        folder = root / "train" / wnid
        folder.mkdir(parents=True)
        for number in range(PER_CLASS):
            if count % LINKS == 0:
                photo = root / f"photo{count}.jpg"
                Image.new("RGB", (8, 8)).save(photo)
            (folder / f"{wnid}_{number}.JPEG").hardlink_to(photo)
            count += 1
        os.utime(folder, (1e9, 1e9))  # a folder that has just changed is not kept in the cache
    (root / "val").mkdir()
    lines = [f"n{label:08d} class {label}\n" for label in range(num_classes)]
    (root / "classes.txt").write_text("".join(lines))


def measure(root: str) -> None:
    """Print seconds, peak MB of the process, and the number of photos in the trial."""
    from semantic_aug.datasets import build_dataset

    options = {"data_dir": root, "dataset_args": [f"class_list={root}/classes.txt"]}
    start = time.perf_counter()
    trial = len(build_dataset("imagenet", "train", examples_per_class=4, **options))
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, peak_mb(), trial]))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a fortieth of the size")
    parser.add_argument("--repeats", type=int, default=3, help="of each way (default 3)")
    parser.add_argument("--measure", metavar="ROOT", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        return measure(args.measure)

    num_classes = NUM_CLASSES // (40 if args.quick else 1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "imagenet"
        write_folders(root, num_classes)
        results = {"without": [], "with": []}
        for repeat in range(args.repeats):
            environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache{repeat}"}
            for way, found in results.items():
                command = [sys.executable, __file__, "--measure", str(root)]
                done = subprocess.run(
                    command, env=environment, stdout=subprocess.PIPE, text=True, check=True
                )
                found.append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{way:7} {found[-1][0]:6.2f} s, {found[-1][1]:6.0f} MB")
    without, with_index = (
        [statistics.median(column) for column in zip(*found)] for found in results.values()
    )
    assert without[2] == with_index[2] == 4 * num_classes
    report = {
        "ratio": round(without[0] / with_index[0], 2),
        "without_index_s": round(without[0], 2),
        "with_index_s": round(with_index[0], 2),
        "without_index_peak_mb": round(without[1]),
        "with_index_peak_mb": round(with_index[1]),
        "num_names": num_classes * PER_CLASS,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
